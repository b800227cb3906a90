from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.manifest import read_manifest, write_manifest
from shards.pipeline import clips
from shards.pipeline.clips import CLIP_LINE, read_clips, scan_manifests
from shards.pipeline.inputs import FromManifests
from shards.sample import Utterance
from shards.sets.index import name_hash


def line(name: str, **more: object) -> str:
    return json.dumps({"id": name, "audio": "a.wav", "text": "t", "corpus": "c", **more}, ensure_ascii=False)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


@given(st.lists(st.text(min_size=1), min_size=1, max_size=40, unique=True), st.integers(1, 9), st.randoms())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_clip_is_in_one_task_in_an_order_that_only_ids_decide(
    tmp_path: Path, ids: list[str], size: int, random: object
) -> None:
    def tasks(manifests: list[Path]) -> list[list[str]]:
        inputs = FromManifests(manifests, ["train"], size)
        lines = [task.lines for task in inputs.tasks]
        return [[clip.utterance.id for clip in read_clips(manifests, part)] for part in lines if part is not None]

    one = write(tmp_path / "one.jsonl", *map(line, ids))
    dealt = tasks([one])
    assert sorted(name for task in dealt for name in task) == sorted(ids)
    assert [len(task) for task in dealt[:-1]] == [size] * (len(dealt) - 1)
    two = [write(tmp_path / "a.jsonl", *map(line, ids[::-2])), tmp_path / "b.jsonl"]
    if rest := ids[-2::-2]:
        write(two[1], *map(line, rest))
    assert tasks(two if rest else two[:1]) == dealt


def test_what_is_read_is_what_read_manifest_reads(tmp_path: Path) -> None:
    rows = [
        Utterance(id=f"ü{i}", audio=f"/elsewhere/{i}.wav", text="x" * i, corpus="c", start_s=i / 2) for i in range(9)
    ]
    rows.append(Utterance(id="inside", audio=str(tmp_path / "wav" / "a.wav"), text="", corpus="d", licence="free"))
    write_manifest(tmp_path / "m.jsonl", rows)
    lines = scan_manifests([tmp_path / "m.jsonl"], ["train"])
    found = read_clips(lines.manifests, lines.rows)
    assert [name_hash(clip.utterance.id) for clip in found] == sorted(name_hash(row.id) for row in rows)
    there = [replace(clip.utterance, audio=clip.audio[0]) for clip in found]
    assert sorted(there, key=lambda u: u.id) == read_manifest(tmp_path / "m.jsonl")
    assert {clip.utterance.audio for clip in found if clip.utterance.corpus == "d"} == {"wav/a.wav"}


def test_an_id_counts_once_and_later_manifests_have_duplicates(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", line("x", text="first"), line("y"))
    second = write(tmp_path / "b.jsonl", line("z"), line("x", text="second"))
    lines = scan_manifests([first, second], ["train"])
    assert {clip.utterance.id: clip.utterance.text for clip in read_clips(lines.manifests, lines.rows)} == {
        "x": "first", "y": "t", "z": "t",
    }  # fmt: skip
    assert [(reject.source, reject.reason) for reject in lines.rejects()] == [(f"{second}: x", "duplicate_id")]


def test_two_ids_with_one_hash_are_two_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "name_hash", lambda name: len(name))
    first = write(tmp_path / "a.jsonl", line("dd"), line("bb"), line("x"))
    second = write(tmp_path / "b.jsonl", line("aa"), line("dd"), line("cc"))
    lines = scan_manifests([first, second], ["train"])
    found = [clip.utterance.id for clip in read_clips(lines.manifests, lines.rows)]
    assert found == ["x", "aa", "bb", "cc", "dd"]
    assert len(lines.duplicates) == 1


def test_every_bad_line_of_every_manifest_is_named(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", line("x"), "{", line("y"), line("x"))
    second = write(tmp_path / "b.jsonl", "", line("z", emotion="glad"), "x" * 200_000, line("w"))
    with pytest.raises(ValueError) as error:
        scan_manifests([first, second], ["train"])
    told = str(error.value).splitlines()
    assert told[0].startswith(f"{first}:2: not JSON")
    assert told[1].startswith(f"{second}:2: unknown emotion 'glad'")
    assert told[2:] == [
        f"{second}:3: longer than 131072 bytes",
        f"{first}:4: id 'x' was already used in line 1",
    ]


def test_a_manifest_that_changes_under_a_job_is_noticed(tmp_path: Path) -> None:
    manifest = write(tmp_path / "a.jsonl", line("x"))
    lines = scan_manifests([manifest], ["train"])
    write(manifest, line("y"))
    with pytest.raises(ValueError, match="has changed since it was checked; run the same command again"):
        read_clips(lines.manifests, lines.rows)


def test_a_clip_takes_32_bytes_however_long_its_transcript_is(tmp_path: Path) -> None:
    number = 5000
    write(tmp_path / "a.jsonl", *(line(f"clip-{i}", text="word " * 200) for i in range(number)))
    scan_manifests([tmp_path / "a.jsonl"], ["train"])
    tracemalloc.start()
    lines = scan_manifests([tmp_path / "a.jsonl"], ["train"])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert CLIP_LINE.itemsize == 32 and len(lines.rows) == number
    assert kept < 40 * number + 20_000
    assert peak < 120 * number + 200_000


@pytest.mark.parametrize("number", ["1e39", str(10**42), "1" + "0" * 400, "1e7", str(10**7), "1" + "0" * 5000])
@pytest.mark.parametrize("field", ["start_s", "duration_s"])
def test_numbers_that_are_no_seconds_are_bad_lines(tmp_path: Path, field: str, number: str) -> None:
    fine = line("x", **{field: 0.75, "text": "t"})
    assert len(scan_manifests([write(tmp_path / "a.jsonl", fine)], ["train"]).rows) == 1
    manifest = write(tmp_path / "a.jsonl", fine.replace("0.75", number))
    told = r"Exceeds the limit" if len(number) > 4300 else rf"field '{field}' must be below 10,000,000 seconds, got 1"
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: {told}"):
        scan_manifests([manifest], ["train"])


def _bytes_read() -> int:
    said = dict(entry.split(": ") for entry in Path("/proc/self/io").read_text().splitlines())
    return int(said["rchar"])


def test_a_manifest_full_of_one_id_is_read_a_few_times_and_not_once_per_line(tmp_path: Path) -> None:
    number = 1500
    manifest = write(tmp_path / "a.jsonl", *[line("x", text="w" * 4000)] * number)
    before = _bytes_read()
    with pytest.raises(ValueError) as error:
        scan_manifests([manifest], ["train"])
    assert _bytes_read() - before < 10 * manifest.stat().st_size
    told = [f"{manifest}:{i}: id 'x' was already used in line 1" for i in range(2, 12)]
    assert str(error.value).splitlines() == [*told, f"... and {number - 11} more bad lines"]
