from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest import mock

import pytest

from cluster.files import new_folder, persistently, write_atomically


def test_content_is_replaced_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644


def test_failure_keeps_the_old_file_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "b.json"
    write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_all_of_a_new_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, synced = tmp_path / "out", set()
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.add((os.fstat(descriptor).st_ino, out.exists())))
    with new_folder(out) as folder:
        (folder / "a").mkdir()
        (folder / "a" / "b").write_text("b")
    assert {(path.stat().st_ino, False) for path in (out, out / "a", out / "a" / "b")} | {
        (tmp_path.stat().st_ino, True)
    } == synced


def test_a_disk_that_fails_once_is_asked_again_and_a_full_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.files._PAUSES_S", (0.0, 0.0))
    for number, tries in ((errno.EIO, 3), (errno.ENOSPC, 1)):
        disk = mock.Mock(side_effect=[OSError(number, "no"), OSError(number, "no"), "done"])
        if tries == 3:
            assert persistently(disk) == "done"
        else:
            with pytest.raises(OSError, match="no"):
                persistently(disk)
        assert disk.call_count == tries
