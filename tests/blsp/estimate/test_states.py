"""Bytes by formula, and those that two real ranks hold and send: equal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from blsp.estimate.job import job
from blsp.estimate.parts import read_parts, weights
from blsp.estimate.workload import read_workload
from blsp.recipe import TrainRecipe
from cluster.forecast import step_traffic
from cluster.sharding import States, Weights, Zero, states
from tests.blsp.test_engine import finish, start
from tests.blsp.tiny import ALL_AT_ONCE, LORA, STAGE_1, make_encoder, make_loud_llm, make_shards, model_section

RANKS = 2
BUCKET = 100_000
# As with an LLM of 7 B: nothing stays gathered until it is used again.
NOTHING_KEPT = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}


@dataclass(frozen=True)
class Setting:
    """One of the runs. Three micro-batches are two on each rank."""

    dtype: str
    stage: int
    frozen: str = "resident"
    micro_batches: int = 3
    all_learn: bool = True
    kept: bool = True

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in vars(self).values())

    @property
    def zero(self) -> Zero:
        return Zero(self.stage, RANKS, self.frozen == "partitioned")

    @property
    def accumulation(self) -> int:
        return -(-self.micro_batches // RANKS)

    def recipe(self, root: Path) -> dict[str, Any]:
        stage = ALL_AT_ONCE if self.all_learn else STAGE_1
        model = model_section(root / "llm", root / "encoder", lora=LORA if self.all_learn else None, dtype=self.dtype)
        sizes = {"reduce_bucket_size": BUCKET, **({} if self.kept else NOTHING_KEPT)}
        return {
            "kind": "train", "run": str(root / self.name), "model": model.model_dump(mode="json"),
            "stage": stage.model_dump(mode="json"),
            "data": {"shards": str(root / "data/shards"), "clips_per_step": 11, "micro_batches": self.micro_batches},
            "optim": {"lr": dict.fromkeys(stage.train, 1e-3), "warmup_steps": 0, "steps": 4},
            "engine": {
                "checkpoint_every_steps": 9, "zero_stage": self.stage, "frozen": self.frozen,
                "deepspeed": {"zero_optimization": sizes},
            },
        }  # fmt: skip


SETTINGS = [
    *(Setting(dtype, stage) for dtype in ("float32", "bfloat16") for stage in (1, 2, 3)),
    Setting("float32", 1, micro_batches=2),
    Setting("float32", 3, "partitioned"),
    Setting("bfloat16", 3, "partitioned", all_learn=False, kept=False),
]
by_setting = pytest.mark.parametrize("setting", SETTINGS, ids=[setting.name for setting in SETTINGS])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    root = tmp_path_factory.mktemp("held")
    make_shards(root / "data", "continue", 11)
    make_loud_llm(tokenizer, root / "llm")
    make_encoder(root / "encoder")
    return root


@pytest.fixture(scope="module")
def measured(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Of each rank, by name of the run."""
    listed = root / "recipes.json"
    listed.write_text(json.dumps([setting.recipe(root) for setting in SETTINGS]))
    ranks = start(RANKS, ["tests.blsp.held_bytes", str(listed), str(root)])
    printed = finish(ranks)
    assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(printed)
    return {
        setting.name: [json.loads((root / f"{setting.name}.{rank}.json").read_text()) for rank in range(RANKS)]
        for setting in SETTINGS
    }


def sizes(setting: Setting, root: Path) -> Weights:
    recipe = TrainRecipe.model_validate(setting.recipe(root))
    return weights(read_parts(recipe), recipe)


@pytest.mark.slow
@by_setting
def test_weights_gradients_and_optimizer_take_what_two_ranks_hold(
    measured: dict[str, list[dict[str, Any]]], root: Path, setting: Setting
) -> None:
    for rank, found in enumerate(measured[setting.name]):
        expected = states(sizes(setting, root), setting.zero, setting.accumulation, rank)
        assert States(found["weights"], found["gradients"], found["optimizer"]) == expected


@pytest.mark.slow
@by_setting
def test_a_step_sends_what_is_counted(measured: dict[str, list[dict[str, Any]]], root: Path, setting: Setting) -> None:
    recipe = TrainRecipe.model_validate(setting.recipe(root))
    made = job(recipe, read_parts(recipe), read_workload(recipe, read_parts(recipe)))
    expected = step_traffic(made, setting.zero)
    for found in measured[setting.name]:
        carried = found["carried"]
        # Partitioned and nothing kept, one norm of the LLM travels once more in each step.
        exact = setting.kept or not setting.zero.partitioned
        assert carried["all_gather_into_tensor"] == pytest.approx(expected.gathered, rel=0 if exact else 1e-3)
        assert carried.get("reduce_scatter_tensor", 0) == expected.scattered
        # What all ranks agree on, such as the norm, is a few numbers.
        assert carried["all_reduce"] - expected.reduced in range(64)
