"""Sets over tars that others wrote: stock webdataset's, and hostile ones."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from numpy.typing import NDArray

from shards.audio import load_audio
from shards.pipeline.job import ShardJob, Summary
from shards.sets import index_tars as module
from shards.sets.index_tars import Indexed, index_tars
from shards.sets.remove import Selection, remove
from shards.sets.shard_set import CorruptSample, ShardSet
from shards.sets.store import open_store
from shards.sets.verify import verify
from tests.shards.s3_server import BUCKET, ROOT, S3Server
from tests.shards.sets.made import flip

# rate, channels, suffix, and how libsndfile calls it
KINDS = [
    (16000, 1, "flac", "FLAC", "PCM_16"), (48000, 2, "wav", "WAV", "PCM_24"), (22050, 1, "mp3", "MP3", None),
    (44100, 1, "ogg", "OGG", "VORBIS"), (48000, 1, "opus", "OGG", "OPUS"), (16000, 1, "flac", "FLAC", "PCM_24"),
]  # fmt: skip
NUM_SAMPLES = 30


def tone(i: int, rate: int, channels: int) -> NDArray[np.float64]:
    seconds = np.arange(int(rate * (0.3 + 0.05 * i))) / rate
    wave = 0.3 * np.sin(2 * np.pi * (200 + 10 * i) * seconds) + 0.05 * np.sin(2 * np.pi * 1000 * seconds)
    return np.stack([wave] * channels, axis=1)


@functools.cache  # an OGG file gets a number of its own each time
def encoded(i: int) -> tuple[str, bytes]:
    rate, channels, suffix, kind, subtype = KINDS[i % len(KINDS)]
    content = io.BytesIO()
    soundfile.write(content, tone(i, rate, channels), rate, format=kind, subtype=subtype)
    return suffix, content.getvalue()


@pytest.fixture
def theirs(tmp_path: Path) -> list[Path]:
    """What `webdataset.ShardWriter` makes of NUM_SAMPLES clips of six kinds: three tars of ten."""
    (tmp_path / "theirs").mkdir()
    with webdataset.ShardWriter(str(tmp_path / "theirs" / "%04d.tar"), maxcount=10, verbose=0) as writer:
        for i in range(NUM_SAMPLES):
            suffix, audio = encoded(i)
            fields = {"text": f"Text {i}.", "emotion": ("sad", "bored")[i % 2], "speaker": f"s{i % 3}"}
            writer.write({"__key__": f"clip{i:04d}", suffix: audio, "json": fields})
    return sorted((tmp_path / "theirs").iterdir())


def rejects(root: Path) -> list[dict[str, str]]:
    return [json.loads(line) for path in sorted((root / "rejects").iterdir()) for line in path.open(encoding="utf-8")]


def test_what_stock_shard_writer_wrote_becomes_a_set_that_reads_the_same(theirs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "set"
    progress: list[tuple[int, int, int]] = []
    indexed = index_tars(theirs, out, "calls", "CC-BY", lambda *state: progress.append(state))
    shard_set = ShardSet.open(out)
    assert (indexed.inputs, indexed.written, indexed.rejected, indexed.duplicates) == (30, 30, {}, 0)
    assert (indexed.unknown_emotions, len(shard_set), len(shard_set.shards)) == (15, 30, 3)
    assert not (out / "rejects").exists()
    total = sum(path.stat().st_size for path in theirs)
    assert progress[-1] == (total, total, 30)
    assert progress == sorted(progress)
    for row in range(30):
        suffix, audio = encoded(row)
        utterance, continuation = shard_set.record(row)
        assert (utterance.id, utterance.text, continuation) == (f"calls/clip{row:04d}", f"Text {row}.", None)
        assert (utterance.speaker, utterance.licence) == (f"s{row % 3}", "CC-BY")
        assert utterance.emotion == ("sad" if row % 2 == 0 else None)
        assert shard_set.audio_bytes(row) == audio
        (tmp_path / f"alone.{suffix}").write_bytes(audio)
        samples = shard_set.audio(row)
        assert np.array_equal(samples, load_audio(tmp_path / f"alone.{suffix}"))
        assert len(samples) == shard_set.rows["num_samples"][row]
        assert abs(len(samples) / 16000 - (0.3 + 0.05 * row)) < 0.06
    record = json.loads((out / "dataset.json").read_text())
    assert record["corpora"] == [{"corpus": "calls", "licence": "CC-BY", "clips": 30}]
    assert record["inputs"] == record["written"] + sum(record["rejected"].values()) + record["duplicates"]
    lines: list[str] = []
    assert verify(out, lines.append).damages == 0, lines
    assert sum(path.stat().st_size for path in (out / "shards").iterdir()) < total / 3


def test_the_set_trains_through_an_overlay_and_moves_with_its_tars(
    theirs: list[Path], job: ShardJob, make_shards: Callable[..., Summary], tmp_path: Path
) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "theirs").rename(tmp_path / "all" / "theirs")
    root = tmp_path / "all"
    index_tars(sorted((root / "theirs").iterdir()), root / "set", "calls", "CC-BY")
    summary = make_shards(
        dataclasses.replace(job, manifests=(), base=root / "set", out=root / "overlay", prompt="continue")
    )
    assert summary.written == 30
    assert verify(root / "overlay", pytest.fail).rows_read == 30
    record = json.loads((root / "overlay" / "dataset.json").read_text())
    assert record["corpora"] == [{"corpus": "calls", "licence": "CC-BY", "clips": 30}]
    root.rename(tmp_path / "moved")
    before, overlay = ShardSet.open(tmp_path / "moved" / "set"), ShardSet.open(tmp_path / "moved" / "overlay")
    for row in range(30):
        sample = overlay.read(row)
        assert np.array_equal(sample.waveform, before.audio(row))
        assert sample.continuation.text == f"and {sample.utterance.emotion} Text {row}."
    flip(tmp_path / "moved" / "theirs" / "0001.tar", int(overlay.rows["audio_offset"][12]) + 50)
    with pytest.raises(CorruptSample, match="row 2: the audio fails its checksum"):
        overlay.read(12)


def test_removal_encodes_what_is_no_flac_of_ours_and_keeps_the_samples(theirs: list[Path], tmp_path: Path) -> None:
    index_tars(theirs, tmp_path / "set", "calls")
    removed = remove(tmp_path / "set", tmp_path / "out", Selection("s1"))
    before, after = ShardSet.open(tmp_path / "set"), ShardSet.open(tmp_path / "out")
    assert (removed.kept, removed.removed, removed.reencoded) == (20, 10, 15)
    waveforms = {before.record(row)[0].id: before.audio(row) for row in range(30)}
    for row in range(20):
        assert np.array_equal(after.audio(row), waveforms[after.record(row)[0].id])


def write(path: Path, *files: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for file in files:
            info = file if isinstance(file, tarfile.TarInfo) else tarfile.TarInfo(file[0])
            info.size = 0 if file is info else len(file[1])  # type: ignore[index]
            tar.addfile(info, None if file is info else io.BytesIO(file[1]))  # type: ignore[index]
    return path


def link(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return info


def good(key: str) -> list[tuple[str, bytes]]:
    return [(f"{key}.flac", encoded(0)[1]), (f"{key}.txt", b"text")]


def test_every_input_is_written_rejected_or_a_duplicate(tmp_path: Path) -> None:
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(16000), 16000, format="WAV")
    first = write(
        tmp_path / "a.tar",
        *good("one"), ("notes", b"belongs to no sample"), ("two.flac", b"no audio"), ("two.txt", b"t"),
        ("three.wav", silence.getvalue()), ("three.txt", b"t"), *good("two"), ("four.txt", b"t"), link("five.flac"),
        ("five.txt", b"t"), ("../six.flac", b"x"), *good("one"), *good("seven"), ("\udcff.flac", b"x"),
    )  # fmt: skip
    second = write(tmp_path / "b.tar", *good("seven"), *good("eight"))
    indexed = index_tars([first, second], tmp_path / "set", "c")
    assert indexed == Indexed(
        dataset_id=indexed.dataset_id, inputs=12, written=4, duplicates=2, unknown_emotions=0, hours=indexed.hours,
        rejected={"refused_member": 2, "unreadable": 1, "silent": 1, "missing_audio": 1, "no_text": 1},
    )  # fmt: skip
    shard_set = ShardSet.open(tmp_path / "set")
    assert [shard_set.record(row)[0].id for row in range(4)] == ["c/one", "c/two", "c/seven", "c/eight"]
    assert [(reject["source"], reject["reason"]) for reject in rejects(tmp_path / "set")] == [
        (f"{first}: two", "unreadable"), (f"{first}: three", "silent"), (f"{first}: four", "missing_audio"),
        (f"{first}: five", "refused_member"), (f"{first}: ../six", "refused_member"),
        (f"{first}: one", "duplicate_id"), (f"{first}: \ufffd", "no_text"), (f"{second}: seven", "duplicate_id"),
    ]  # fmt: skip


def test_bad_tars_stop_with_their_name_and_nothing_is_extracted(theirs: list[Path], tmp_path: Path) -> None:
    whole = theirs[1].read_bytes()
    for content, sentence in {
        whole[: len(whole) // 2]: "cut off",
        b"text": "cut off: it ends",
        b"\x1f\x8b" + whole: "packed with gzip",
        b"x" + whole[1:]: "not a tar",
    }.items():
        theirs[1].write_bytes(content)
        with pytest.raises(ValueError, match=f"0001.tar: {sentence}"):
            index_tars(theirs, tmp_path / "set", "calls")
    theirs[1].unlink()
    with pytest.raises(ValueError, match=r"0001\.tar: no such file"):
        index_tars(theirs, tmp_path / "set", "calls")
    with pytest.raises(ValueError, match=r"0000\.tar: named twice"):
        index_tars([theirs[0], theirs[0]], tmp_path / "set", "calls")
    with pytest.raises(ValueError, match="none of the 1 samples could be used"):
        index_tars([write(tmp_path / "x.tar", ("a.flac", b"x"))], tmp_path / "other", "calls")


def test_a_mistyped_call_leaves_nothing_that_the_right_one_must_not_find(theirs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "set"
    with pytest.raises(ValueError, match=r"0003\.tar: no such file"):
        index_tars([*theirs, tmp_path / "0003.tar"], out, "calls")
    assert not out.exists()
    (tmp_path / "notes.txt").write_text("not a tar")
    with pytest.raises(ValueError, match=r"notes\.txt: "):
        index_tars([tmp_path / "notes.txt", *theirs], out, "cals")
    assert index_tars(theirs, out, "calls").written == 30
    before = (out / "dataset.json").read_bytes()
    with pytest.raises(ValueError, match="holds another shard set"):
        index_tars(theirs, out, "cals")
    assert (out / "dataset.json").read_bytes() == before
    assert json.loads((out / "job.json").read_text())["corpus"] == "calls"
    for name, content in {"theirs.txt": "mine", "job.json": '{"format": 2}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(content)
        with pytest.raises(ValueError, match="holds something else"):
            index_tars(theirs, tmp_path / name, "calls")
        assert [path.name for path in (tmp_path / name).iterdir() if path.is_file() and path.name[0] != "."] == [name]
        assert (tmp_path / name / name).read_text() == content


def test_a_damaged_commit_is_named_with_the_remedy(theirs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "set"
    index_tars(theirs, out, "calls")
    commit = out / "commits" / "000001.json"
    good = json.loads(commit.read_text())
    for content, what in {
        "{": "Expecting property name", "{}": "no 'rejected'", json.dumps({**good, "bytes": "1"}): "a number in it",
        json.dumps({**good, "rejected": []}): "a number in it", json.dumps({**good, "inputs": 11}): "its numbers do",
        json.dumps({**good, "shards": [{**good["shards"][0], "more": 1, "rows": "10"}]}): "rows is '10'",
    }.items():  # fmt: skip
        commit.write_text(content)
        with pytest.raises(ValueError) as told:
            index_tars(theirs, out, "calls")
        assert str(told.value).startswith(f"{commit}: damaged ({what}"), told.value
        assert "; delete this file and run the same command again" in str(told.value)
    commit.unlink()
    assert index_tars(theirs, out, "calls").written == 30
    assert json.loads(commit.read_text()) == good


def test_a_killed_call_goes_on_after_the_last_finished_tar(theirs: list[Path], tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def stop(done: int, total: int, samples: int) -> None:
        if samples > 15:
            raise Killed

    index_tars(theirs, tmp_path / "whole", "calls")
    with pytest.raises(Killed):
        index_tars(theirs, tmp_path / "set", "calls", on_progress=stop)
    with pytest.raises(ValueError, match="unfinished"):
        ShardSet.open(tmp_path / "set")
    (first,) = (tmp_path / "set" / "shards").iterdir()
    time = first.stat().st_mtime_ns
    with pytest.raises(ValueError, match="holds something else"):
        index_tars(theirs, tmp_path / "set", "walks")
    index_tars(theirs, tmp_path / "set", "calls")
    assert first.stat().st_mtime_ns == time
    again = index_tars(theirs, tmp_path / "set", "calls")
    assert (again.written, again.duplicates) == (30, 0)
    for name in ("shards", "index", "dataset.json", "commits"):
        here, there = (tmp_path / root / name for root in ("set", "whole"))
        assert [path.name for path in sorted(here.rglob("*"))] == [path.name for path in sorted(there.rglob("*"))]
    assert (tmp_path / "set" / "dataset.json").read_bytes() == (tmp_path / "whole" / "dataset.json").read_bytes()
    with theirs[0].open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=r"0000\.tar: changed since .* was made; choose another folder"):
        index_tars(theirs, tmp_path / "set", "calls")
    with pytest.raises(ValueError, match=r"0000\.tar: \d+ bytes, not \d+ as when"):
        ShardSet.open(tmp_path / "set")


def test_large_tars_become_several_shards(theirs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CLIPS_PER_SHARD", 4)
    index_tars(theirs, tmp_path / "set", "calls")
    shard_set = ShardSet.open(tmp_path / "set")
    assert [shard.rows for _, shard in shard_set.shards] == [4, 4, 2] * 3
    assert [shard_set.record(row)[0].text for row in range(30)] == [f"Text {row}." for row in range(30)]


def test_our_own_tars_can_be_indexed_like_others(shard_set: ShardSet, tmp_path: Path) -> None:
    tars = sorted((Path(shard_set.url) / "shards").iterdir())
    index_tars(tars, tmp_path / "set", "again")
    again = ShardSet.open(tmp_path / "set")
    assert len(again) == 23
    for row in range(23):
        assert np.array_equal(again.audio(row), shard_set.audio(row))
        assert again.record(row)[0].text == shard_set.record(row)[0].text


def test_tars_in_a_bucket_are_read_once_and_their_set_may_lie_there_too(
    theirs: list[Path], s3: S3Server, tmp_path: Path
) -> None:
    for path in theirs:
        open_store(f"s3://{BUCKET}/tars").write(path.name, path.read_bytes())
    urls = [f"s3://{BUCKET}/tars/{path.name}" for path in theirs]
    s3.reset()
    index_tars(urls, ROOT, "calls")
    assert s3.bytes_sent < 1.05 * sum(path.stat().st_size for path in theirs) + 50_000
    index_tars(urls, tmp_path / "here", "calls")
    index_tars(theirs, tmp_path / "local", "calls")
    local = ShardSet.open(tmp_path / "local")
    for root in (ROOT, tmp_path / "here"):
        shard_set = ShardSet.open(root)
        assert [shard_set.record(row) for row in range(30)] == [local.record(row) for row in range(30)]
        assert all(np.array_equal(shard_set.audio(row), local.audio(row)) for row in range(0, 30, 4))
    assert verify(ROOT, pytest.fail).rows_read == 30


def test_audio_on_its_way_to_the_decoder_lies_on_the_machines_own_disk(
    theirs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set may lie on NFS, and its `_tmp` with it."""
    here, own = set[str](), set[Path]()
    (tmp_path / "own").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "own"))

    def look(done: int, total: int, samples: int) -> None:
        here.update(path.name for path in (tmp_path / "set" / "_tmp").iterdir())
        own.update(path for path in (tmp_path / "own").rglob("*") if path.is_file())

    index_tars(theirs, tmp_path / "set", "calls", on_progress=look)
    assert {name.partition(".")[2] for name in here} <= {"tar", "jsonl"}
    assert own
    assert not list((tmp_path / "own").iterdir())


def test_audio_that_ends_the_decoder_is_one_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder's process has a defect here: it dies of files that begin with BOOM."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nimport soundfile\n\n_init = soundfile.SoundFile.__init__\n\n"
        "def init(self, file, *args, **options):\n"
        "    if isinstance(file, int) and os.pread(file, 4, 0) == b'BOOM':\n        os.abort()\n"
        "    _init(self, file, *args, **options)\n\nsoundfile.SoundFile.__init__ = init\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    files = [*good("one"), ("two.mp3", b"BOOM"), ("two.txt", b"t"), *good("three")]
    indexed = index_tars([write(tmp_path / "a.tar", *files)], tmp_path / "set", "c")
    assert (indexed.written, indexed.rejected) == (2, {"decoder_crash": 1})
    (reject,) = rejects(tmp_path / "set")
    assert reject["detail"].startswith("two.mp3: ends the decoder")
    assert not list((tmp_path / "set" / "_tmp").iterdir())
