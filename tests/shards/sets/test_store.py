from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.prompts import ChatTemplate
from shards.sets import reads, store
from shards.sets.shard_set import ShardSet
from shards.sets.store import FolderStore, open_store
from tests.shards.batches.test_reader import read, readers

Failing = Callable[[int, int], list[int]]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """`failing(number, times)`: so many reads fail with this errno; every read is noted in what it returns."""
    monkeypatch.setattr(reads, "_FIRST_PAUSE_S", 0.01)
    pread = os.pread

    def begin(number: int, times: int) -> list[int]:
        seen: list[int] = []

        def fail(descriptor: int, size: int, offset: int) -> bytes:
            seen.append(descriptor)
            if len(seen) <= times:
                raise OSError(number, os.strerror(number))
            return pread(descriptor, size, offset)

        monkeypatch.setattr(os, "pread", fail)
        return seen

    return begin


@pytest.fixture
def folder(tmp_path: Path) -> FolderStore:
    (tmp_path / "a").write_bytes(b"0123456789")
    return FolderStore(tmp_path)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_an_error_that_passes_is_waited_for(
    folder: FolderStore, failing: Failing, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    seen = failing(number, 2)
    assert folder.read_ranges([("a", 2, 3), ("a", 8, 5)]) == [b"234", b"89"]
    assert len(seen) == 4
    assert caplog.messages[0].endswith(f"/a: {os.strerror(number)}; trying again in 0.0 s")


def test_an_error_that_stays_is_raised_by_the_deadline(
    folder: FolderStore, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "RETRY_DEADLINE_S", 0.2)
    failing(errno.EIO, 10**9)
    began = time.monotonic()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        folder.read_ranges([("a", 0, 1)])
    assert time.monotonic() - began < 2


def test_an_outage_of_the_disk_is_never_a_lost_clip(
    shard_set: ShardSet, template: ChatTemplate, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "RETRY_DEADLINE_S", 0.2)
    (reader,) = readers(shard_set, template, 1)
    failing(errno.EIO, 10**9)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        read(reader)


def test_after_an_error_the_file_is_opened_anew(folder: FolderStore, failing: Failing, tmp_path: Path) -> None:
    folder.read_ranges([("a", 0, 1)])
    (tmp_path / "new").write_bytes(b"abcdefghij")
    (tmp_path / "new").replace(tmp_path / "a")  # what an open descriptor does not see
    failing(errno.ESTALE, 1)
    assert folder.read_ranges([("a", 0, 3)]) == [b"abc"]


def test_a_missing_file_is_missing_at_once(folder: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    for action in (folder.read, folder.size, lambda name: folder.read_ranges([(name, 0, 1)])):
        with pytest.raises(FileNotFoundError):
            action("no")


def test_a_pipe_in_the_place_of_a_file_does_not_hang(folder: FolderStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="not a plain file"):
        folder.read_ranges([("pipe", 0, 1)])


def test_open_files_are_bounded(tmp_path: Path) -> None:
    folder = FolderStore(tmp_path)
    for i in range(200):
        (tmp_path / str(i)).write_bytes(b"%d" % i)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert folder.read_ranges([(str(i), 0, 9) for i in range(200)]) == [b"%d" % i for i in range(200)]
    assert len(os.listdir("/proc/self/fd")) - before <= 64  # noqa: PTH208


def test_of_many_that_create_a_file_one_is_first(folder: FolderStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: folder.create("commits/0.json", b"%d" % i), range(8)))
    assert sum(made) == 1
    assert folder.read("commits/0.json") == b"%d" % made.index(True)
    assert list(folder.scratch().iterdir()) == []


def test_a_creation_whose_answer_was_lost_is_known_for_ours(
    folder: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_twice(source: Path, target: Path) -> None:  # as an NFS client whose first request got no answer
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    assert folder.create("commit", b"ours")
    assert not folder.create("commit", b"second")
    assert folder.read("commit") == b"ours"


def test_files_are_put_listed_and_deleted(folder: FolderStore, tmp_path: Path) -> None:
    local = folder.scratch() / "attempt"
    local.write_bytes(b"tar")
    folder.put(local, "shards/a.tar")
    assert (folder.names("shards"), folder.read("shards/a.tar"), local.exists()) == (["a.tar"], b"tar", False)
    assert (folder.names(""), folder.folders(""), folder.names("no"), folder.folders("no")) == (
        ["a"], ["_tmp", "shards"], [], [],
    )  # fmt: skip
    folder.delete("shards/a.tar")
    folder.delete("shards/a.tar")
    assert folder.names("shards") == []


def test_a_root_has_one_writer(tmp_path: Path) -> None:
    with (
        open_store(tmp_path).lock(),
        pytest.raises(ValueError, match=f"already in use by process {os.getpid()}"),
        open_store(str(tmp_path)).lock(),
    ):
        pass


def test_a_folder_can_be_pickled_while_its_files_are_open(folder: FolderStore) -> None:
    folder.read_ranges([("a", 0, 1)])
    assert pickle.loads(pickle.dumps(folder)).read_ranges([("a", 1, 2)]) == [b"12"]  # noqa: S301


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [("os.link", errno.EPERM, "makes no hard links"), ("fcntl.flock", errno.ENOLCK, "has no locks")],
)
def test_a_disk_on_which_commits_are_not_safe_is_found_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, refuse)
    with pytest.raises(OSError, match=words), store.open_store(tmp_path).lock():
        pass
