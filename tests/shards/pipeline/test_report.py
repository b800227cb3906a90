from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.pipeline.job import Progress, ShardJob, Summary
from shards.pipeline.report import Speed
from shards.prompts import ChatTemplate
from shards.sets.shard_set import ShardSet
from shards.writers.protocol import Writer

Make = Callable[..., Summary]


def read(job: ShardJob) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((Path(job.out) / "report.json").read_text())
    return report


@pytest.fixture
def echo(echo: Callable[[ShardJob], Writer], template: ChatTemplate) -> Callable[[ShardJob], Writer]:
    """With a tokenizer."""

    def load(job: ShardJob) -> Writer:
        writer: Any = echo(job)
        writer.template = template
        return writer  # type: ignore[no-any-return]

    return load


def test_every_clip_is_in_every_histogram(job: ShardJob, corpus: Path, make_shards: Make) -> None:
    wavs = sorted((corpus.parent / "wav").iterdir())
    shutil.copy(wavs[0], wavs[1])  # two ids, one sound
    wavs[2].write_bytes(b"")
    states: list[Progress] = []
    summary = make_shards(job, states.append)
    report = read(job)
    assert {name: report[name] for name in ("inputs", "written", "rejected", "duplicates")} == {
        "inputs": 23, "written": 22, "rejected": {"empty_audio": 1}, "duplicates": 0,
    }  # fmt: skip
    for histogram in (report["duration_s"], report["response_tokens"]):
        assert sum(row["clips"] for row in histogram) == 22
    assert sum(report["emotions"].values()) == 22
    assert [(corpus["corpus"], corpus["clips"]) for corpus in report["corpora"]] == [("tones", 22)]
    assert report["speakers"] == {
        "number": 0, "most_clips": 0, "median_clips": 0.0, "clips_without_speaker": 22,
    }  # fmt: skip
    assert report["identical_audio"] == {"groups": 1, "clips": 2}
    finish = report["finish"]
    assert {emotion: row["finished"] + row["cut"] for emotion, row in finish.items()} == report["emotions"]
    finished = [text.finished for _, text in map(ShardSet.open(job.out).record, range(22))]
    assert sum(row["cut"] for row in finish.values()) == finished.count(False) > 0
    assert all(row["cut_share"] == round(row["cut"] / (row["finished"] + row["cut"]), 4) for row in finish.values())
    assert report["last_run"]["clips"] == 23 and report["last_run"]["clips_per_s"] > 0
    assert states[-1].speed.clips == 23 and states[-1].speed.hours == pytest.approx(summary.hours)


def test_people_read_the_same_in_markdown(job: ShardJob, corpus: Path, make_shards: Make) -> None:
    sorted((corpus.parent / "wav").iterdir())[2].write_bytes(b"")
    make_shards(job)
    text = (Path(job.out) / "report.md").read_text()
    assert "23 clips came in: 22 are written" in text
    for row in ("| empty_audio | 1 | █", "| tones, None | 22 | █", "| neutral | 5 | █"):
        assert row in text
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Rejected", "Found by filters, and left in", "Corpora", "Emotions", "Continuations cut by the token limit",
        "Durations", "Responses",
    ]  # fmt: skip


def test_speed_counts_this_run_alone(job: ShardJob, make_shards: Make) -> None:
    def stop(state: Progress) -> None:
        if state.done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shards(job, stop)
    make_shards(job)
    assert read(job)["last_run"]["clips"] == 11
    before = read(job)
    make_shards(replace(job, cpu_actors=1))  # there is nothing left to do
    assert read(job) == before
    assert (Speed().clips_per_s, Speed(10, 1.0, 5.0).clips_per_s, Speed(10, 1.0, 5.0).hours_per_s) == (0, 2, 0.2)
