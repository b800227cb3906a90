"""From each corpus as it is unpacked to shards, in one set with nothing lost on the way, and to the page on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blsp.set_report import write_set_report
from shards.corpora.build import build_manifest
from shards.manifest import read_manifest
from shards.pipeline.job import ShardJob, Summary
from shards.sets.verify import verify
from shards.targets.filters import Filters
from tests.shards.corpora.miniatures import miniature, names


@pytest.mark.slow
@pytest.mark.parametrize(("prompt", "labelled"), [("continue", False), ("continue_emotion", True)])
def test_every_corpus_becomes_shards(
    prompt: str, labelled: bool, job: ShardJob, make_shards: Callable[..., Summary], tmp_path: Path
) -> None:
    manifests, clips, without = [], Counter[str](), 0
    for name in names():
        made = miniature(name).make(tmp_path / "corpora" / name)
        manifests.append(tmp_path / f"{name}.jsonl")
        build_manifest(name, made.root, manifests[-1], subset=made.subset)
        for utterance in read_manifest(manifests[-1]):
            if labelled and utterance.emotion is None:
                without += 1
            else:
                clips[utterance.corpus] += 1
    everything = replace(
        job, manifests=tuple(manifests), splits=("train", "dev", "test"), prompt=prompt, clips_per_shard=50,
        filters=Filters(drop=()),  # the writer of the tests says the transcript again
    )  # fmt: skip
    summary = make_shards(everything)
    assert (summary.written, summary.duplicates) == (clips.total(), 0)
    assert summary.rejected == ({"unknown_emotion": without} if without else {})
    damages: list[str] = []
    assert verify(job.out, damages.append).rows_read == clips.total()
    assert damages == []
    report = json.loads((Path(job.out) / "report.json").read_text())
    assert {row["corpus"]: row["clips"] for row in report["corpora"]} == clips
    write_set_report(str(job.out), tmp_path / "report.html", [])
    page = (tmp_path / "report.html").read_text("utf-8")
    assert [corpus for corpus in clips if corpus not in page] == []
