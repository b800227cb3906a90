"""Tars that mean ill, through what makes a set over them: what they cost, and what becomes of their neighbours."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards.sets.foreign import samples
from shards.sets.index_tars import index_tars
from shards.sets.tar_scan import TarWindow
from tests.bounds import bounded
from tests.shards.sets.test_tar_scan import END, header
from tests.shards.test_hostile_audio import FILES


def clip() -> bytes:
    content = io.BytesIO()
    soundfile.write(content, 0.3 * np.sin(np.arange(16000) / 20), 16000, format="FLAC")
    return content.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


@pytest.mark.slow
def test_a_tar_of_bombs_and_traps_gives_its_one_clip_and_touches_nothing_outside(tmp_path: Path) -> None:
    place = tmp_path / "corpus"
    place.mkdir()
    (tmp_path / "precious").write_text("as it was")
    with tarfile.open(place / "a.tar", "w") as tar:
        add(tar, "good.flac", clip())
        add(tar, "good.txt", b"hello")
        for number, (data, _) in enumerate(FILES.values()):
            add(tar, f"bomb{number:02d}.wav", data)
            add(tar, f"bomb{number:02d}.txt", b"boom")
        add(tar, "link.wav", type=tarfile.SYMTYPE, linkname="../../precious")
        add(tar, "hard.wav", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        add(tar, "device.wav", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add(tar, "../precious.wav", clip())
        add(tar, "../precious.txt", b"replaced")
        add(tar, "/tmp/precious.wav", clip())
        add(tar, "deep.flac", clip())
        add(tar, "deep.json", b"[" * 100_000)
        add(tar, "words.flac", clip())
        add(tar, "words.json", json.dumps({"text": "\x1b[2J", "speaker": "a" * 10**5}).encode())
    ended = bounded(lambda: index_tars([place / "a.tar"], tmp_path / "set", "c"), seconds=60, megabytes=400)
    assert ended.error is None
    report = json.loads((tmp_path / "set" / "dataset.json").read_text())
    fine = sum(reason == "fine" for _, reason in FILES.values())
    assert report["written"] == 2 + fine
    assert report["rejected"]["refused_member"] == 5 and report["rejected"]["bad_json"] == 1
    assert (tmp_path / "precious").read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "precious", "set"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["members", "headers", "a record"])
def test_a_scan_takes_no_more_than_a_tenth_of_a_second_and_nothing_of_memory_per_megabyte(
    tmp_path: Path, kind: str
) -> None:
    """20 MB of members without content, or of extended headers, eight before each; and gigabytes that one claims."""
    record = b"".join(b"6 a=b\n" for _ in range(10_922)).ljust(65_536, b"\0")
    extended = header(type=tarfile.XHDTYPE, size=65_536) + record
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        if kind == "members":
            file.write(header(size=0) * 40_000 + END)
        elif kind == "headers":
            file.write((extended * 8 + header(size=0)) * 38 + END)
        else:
            file.write(header(type=tarfile.XHDTYPE, size=4 * 2**30))
            file.truncate(5 * 2**30)
    with path.open("rb") as file:

        def read(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        window = TarWindow(read, path.stat().st_size)
        ended = bounded(lambda: len(list(samples(window))), seconds=10, megabytes=50)
    if kind == "a record":
        assert "the extended header at byte 0 is larger than any sample needs" in ended.said
        assert ended.seconds < 0.5
    else:
        assert ended.error is None
