"""How large micro-batches are, by the shard index, and beside the plan of a real training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from blsp.estimate.families import read_encoder, read_llm
from blsp.estimate.parts import Parts
from blsp.estimate.workload import mixture, read_workload
from blsp.features import AudioWindow
from blsp.recipe import ConvSection, TrainRecipe
from shards.batches.collate import Collator
from shards.batches.plan import Plan
from shards.batches.sizes import Sizes
from shards.prompts import ChatTemplate
from shards.sets.shard_set import ShardSet
from shards.sets.tokens import token_counts
from tests.bench.train.workload import num_speech_tokens
from tests.blsp.tiny import STAGE_1, make_encoder, make_shards, model_section


@pytest.fixture
def parts(llm_folder: Path, tmp_path: Path) -> Parts:
    encoder = read_encoder(str(make_encoder(tmp_path / "encoder")))
    return Parts(read_llm(str(llm_folder), None), encoder, ConvSection(), None, None)


def recipe(shards: Path, window: str = "exact", **data: Any) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "kind": "train", "run": "run", "stage": STAGE_1.model_dump(),
            "model": model_section(Path("llm"), Path("encoder"), audio_window=window).model_dump(),
            "data": {"shards": str(shards), "clips_per_step": 4, "micro_batches": 2, **data},
            "optim": {"lr": {"adapter": 1e-3}, "warmup_steps": 0, "epochs": 1},
            "engine": {"checkpoint_every_steps": 9},
        }
    )  # fmt: skip


def test_an_epoch_has_the_plans_steps_and_the_sets_lengths(
    tmp_path: Path, parts: Parts, tokenizer: PreTrainedTokenizerFast
) -> None:
    shards = make_shards(tmp_path / "data", "continue", 11)
    shard_set = ShardSet.open(shards)
    counts = token_counts(shard_set, ChatTemplate(tokenizer))
    found = read_workload(recipe(shards), parts).clips
    assert found.seconds == pytest.approx(shard_set.rows["num_samples"].mean() / 16000)
    assert found.transcript == counts["num_text_tokens"].mean()
    assert found.response == counts["num_response_tokens"].mean()
    for weights in ({}, {"clips": 0.5}, {"clips": 3}):
        asked = recipe(shards, mixture=weights)
        ones = np.ones(len(shard_set), np.int64)
        plan = Plan(
            Sizes(ones, ones, ones, ones), dataset_id="", seed=1, clips_per_step=4, micro_batches=2,
            mixture=mixture(asked.data, shard_set),
        )  # fmt: skip
        assert read_workload(asked, parts).clips.steps == plan.num_steps(0)


def test_the_largest_is_the_plans(tmp_path: Path, parts: Parts, tokenizer: PreTrainedTokenizerFast) -> None:
    shards = make_shards(tmp_path / "data", "continue", 23)
    shard_set, template = ShardSet.open(shards), ChatTemplate(tokenizer)
    counts = token_counts(shard_set, template)
    for window in ("exact", "30s"):
        asked = recipe(shards, window, clips_per_step=8, micro_batches=3)
        collator = Collator(template, num_speech_tokens, {"continue": 1}, with_teacher=True)
        sizes = collator.sizes(shard_set.clips, counts, AudioWindow(window).padded, None)
        real = Plan(sizes, dataset_id="", seed=1, clips_per_step=8, micro_batches=3).summary()
        found = read_workload(asked, parts).largest
        assert found.heard == pytest.approx(real.largest_audio_s * 50, rel=0.05)
        assert found.rows == pytest.approx(real.largest_response_tokens, rel=0.1)
        around = template.num_around("continue") - 35  # more than was assumed, once for each clip or all together
        assert found.tokens == pytest.approx(real.largest_tokens, rel=0.1, abs=4 * around)


def test_without_a_shard_set_it_is_said_what_was_assumed(tmp_path: Path, parts: Parts) -> None:
    made = read_workload(recipe(tmp_path / "none"), parts)
    assert made.clips.steps is None
    assert made.clips.known.startswith(f"no shard set at {tmp_path / 'none'}: clips of 10 s")
    assert (made.mean.clips, made.mean.positions, made.mean.heard) == (2, 1000, 1000)


def test_the_window_is_heard_and_caps_bound_the_largest(tmp_path: Path, parts: Parts) -> None:
    for window, seconds in (("30s", 30), ("tail:2", 12), ("exact", 10)):
        mean = read_workload(recipe(tmp_path / "none", window), parts).mean
        assert (mean.heard, mean.positions) == (2 * 50 * seconds, 1000)
    capped = read_workload(recipe(tmp_path / "none", caps={"audio_s": 40, "tokens": 77, "response_tokens": 9}), parts)
    assert (capped.largest.heard, capped.largest.tokens, capped.largest.rows) == (2000, 77, 9)
