from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.pipeline.job import Progress, ShardJob, Summary
from shards.sets.shard_set import ShardSet

Make = Callable[..., Summary]


@pytest.fixture
def again(job: ShardJob, shard_set: ShardSet, tmp_path: Path) -> ShardJob:
    """The job of an overlay over `shard_set`, beside it."""
    return replace(job, manifests=(), base=job.out, out=tmp_path / "again", prompt="continue")


def test_new_words_over_audio_that_stays_where_it_is(again: ShardJob, shard_set: ShardSet, make_shards: Make) -> None:
    summary = make_shards(again)
    overlay = ShardSet.open(again.out)
    assert (summary.inputs, summary.written) == (23, 23) and overlay.prompt == "continue"
    by_id = {shard_set.record(row)[0].id: row for row in range(23)}
    for row in range(23):
        sample, old = overlay.read(row), shard_set.read(by_id[overlay.record(row)[0].id])
        assert sample.utterance == old.utterance
        assert sample.continuation.prompt == "continue" != old.continuation.prompt
        assert np.array_equal(sample.waveform, old.waveform)
    tars = [path.stat().st_size for path in (Path(again.out) / "shards").iterdir()]
    assert len(tars) == 6 and max(tars) <= 10240
    assert np.array_equal(overlay.rows["num_samples"], shard_set.rows["num_samples"])


def test_base_and_overlay_can_be_moved_together(
    again: ShardJob, shard_set: ShardSet, make_shards: Make, tmp_path: Path
) -> None:
    make_shards(again)
    (tmp_path / "there").mkdir()
    for name in ("out", "again"):
        shutil.move(tmp_path / name, tmp_path / "there" / name)
    assert len(ShardSet.open(tmp_path / "there" / "again").read(22).waveform) > 0


def test_an_overlay_elsewhere_names_its_base_absolutely(
    again: ShardJob, shard_set: ShardSet, make_shards: Make, tmp_path: Path
) -> None:
    elsewhere = replace(again, out=tmp_path / "a" / "b")
    make_shards(elsewhere)
    shutil.move(tmp_path / "a" / "b", tmp_path / "c")
    assert len(ShardSet.open(tmp_path / "c").read(0).waveform) > 0


def test_an_overlay_of_an_overlay_points_at_the_same_audio(
    again: ShardJob, shard_set: ShardSet, make_shards: Make, tmp_path: Path
) -> None:
    make_shards(again)
    third = replace(again, base=again.out, out=tmp_path / "third", prompt="continue_emotion")
    make_shards(third)
    first, last = shard_set.read(5), ShardSet.open(third.out).read(5)
    assert np.array_equal(first.waveform, last.waveform) and first.utterance == last.utterance


def test_a_clip_whose_words_are_rejected_is_absent(
    again: ShardJob, shard_set: ShardSet, make_shards: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.targets.filters.refuses", lambda text: "number 7." in text)
    summary = make_shards(again)
    assert (summary.written, summary.rejected) == (22, {"llm_refusal": 1})
    assert len(ShardSet.open(again.out)) == 22


def test_a_stopped_overlay_goes_on(again: ShardJob, shard_set: ShardSet, make_shards: Make, tmp_path: Path) -> None:
    whole = make_shards(replace(again, out=tmp_path / "whole"))

    def stop(state: Progress) -> None:
        if state.done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="2 of 6 shards"):
        make_shards(again, stop)
    assert make_shards(again) == whole


def test_manifests_or_a_base_and_a_base_that_is_finished(
    job: ShardJob, again: ShardJob, make_shards: Make, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="give either manifests, or the shard set"):
        replace(job, base=tmp_path)
    with pytest.raises(ValueError, match="give either manifests, or the shard set"):
        replace(job, manifests=())
    with pytest.raises(ValueError, match="not a shard set"):
        make_shards(replace(again, base=tmp_path / "nothing"))
    make_shards(again)
    path = Path(job.out) / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dataset_id": "0" * 16}))
    with pytest.raises(ValueError, match=r"made with other settings \(base: "):
        make_shards(again)
