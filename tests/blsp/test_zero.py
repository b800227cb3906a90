from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from blsp import zero
from blsp.recipe import TrainRecipe
from tests.blsp.tiny import STAGE_1, model_section


def recipe(dtype: str = "float32", micro_batches: int = 24, **engine: Any) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "kind": "train",
            "run": "run",
            "model": {**model_section(Path("llm"), Path("encoder")).model_dump(), "dtype": dtype},
            "stage": STAGE_1.model_dump(),
            "data": {"shards": "shards", "clips_per_step": 8, "micro_batches": micro_batches},
            "optim": {"lr": {"adapter": 1e-3}, "warmup_steps": 0, "steps": 4, "clip_norm": 0.5},
            "engine": {"checkpoint_every_steps": 2, **engine},
        }
    )


@pytest.mark.parametrize(("micro_batches", "world", "steps"), [(24, 1, 24), (24, 8, 3), (24, 7, 4), (2, 2, 1)])
def test_every_rank_makes_as_many_calls(micro_batches: int, world: int, steps: int) -> None:
    made = zero.config(recipe(micro_batches=micro_batches), world)
    assert zero.accumulation_steps(micro_batches, world) == steps
    assert made["gradient_accumulation_steps"] == steps
    assert made["train_batch_size"] == made["train_micro_batch_size_per_gpu"] * steps * world


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_recipe_decides(stage: int) -> None:
    made = zero.config(recipe("bfloat16", zero_stage=stage), 2)
    assert made["zero_optimization"]["stage"] == stage
    assert made["bf16"] == {"enabled": True}
    assert made["gradient_clipping"] == 0.5
    assert zero.config(recipe(), 2)["bf16"] == {"enabled": False}


@pytest.mark.parametrize(
    ("dtype", "stage", "added_in"),
    [("bfloat16", 3, "fp32"), ("bfloat16", 2, "fp32"), ("bfloat16", 0, None), ("float32", 3, None)],
)
def test_micro_batches_are_added_up_in_float32(dtype: str, stage: int, added_in: str | None) -> None:
    made = zero.config(recipe(dtype, zero_stage=stage), 2)
    assert made.get("data_types", {}).get("grad_accum_dtype") == added_in


def test_keys_of_the_recipe_are_put_over_section_by_section() -> None:
    extra = {"zero_optimization": {"reduce_bucket_size": 7}, "steps_per_print": 3}
    made = zero.config(recipe(deepspeed=extra), 2)
    assert made["zero_optimization"]["reduce_bucket_size"] == 7
    assert made["zero_optimization"]["stage"] == 3
    assert made["steps_per_print"] == 3


def test_what_is_fetched_ahead_holds_a_layer_of_what_is_cut() -> None:
    def ahead(partitioned: bool) -> int:
        made = zero.config(recipe(), 2, partitioned=partitioned)["zero_optimization"]
        return int(made["stage3_prefetch_bucket_size"])

    whisper_layer, qwen_7b_layer = 12 * 1280**2, 3584 * (2 * 3584 + 2 * 512 + 3 * 18944)
    assert ahead(partitioned=False) > 2 * whisper_layer
    assert ahead(partitioned=True) > qwen_7b_layer
    assert "stage3_prefetch_bucket_size" not in zero.config(recipe(zero_stage=2), 2)["zero_optimization"]


def test_merging_changes_neither_side() -> None:
    base, extra = {"a": {"b": 1}, "c": 2}, {"a": {"d": 3}, "c": {"e": 4}}
    assert zero.merge(base, extra) == {"a": {"b": 1, "d": 3}, "c": {"e": 4}}
    assert (base, extra) == ({"a": {"b": 1}, "c": 2}, {"a": {"d": 3}, "c": {"e": 4}})


def test_loading_never_runs_code_from_the_first_call_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    zero.prepare_environment()
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
