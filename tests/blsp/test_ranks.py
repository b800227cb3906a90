"""The gradient of one step on two real processes under DeepSpeed, beside that of plain torch over the whole step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from blsp.model import SpeechLM
from blsp.recipe import ModelSection
from blsp.run import Stage
from shards.batches.collate import Collator
from shards.sets.shard_set import ShardSet
from tests.blsp.test_engine import finish, start
from tests.blsp.tiny import ALL_AT_ONCE, CPU, LORA, make_encoder, make_loud_llm, make_shards, model_section

pytestmark = pytest.mark.slow

CLOSE = 1e-5
NUM_CLIPS = 11
# Micro-batches per step and ZeRO stage; 12 are more than clips: the last is a filler.
SPLITS = {"m2_zero3": (2, 3), "m5_zero3": (5, 3), "m12_zero3": (12, 3), "m3_zero2": (3, 2), "m3_zero0": (3, 0)}
Result = tuple[dict[str, Tensor], Tensor]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast, root: Path) -> ModelSection:
    return model_section(make_loud_llm(tokenizer, root / "llm"), make_encoder(root / "encoder"), lora=LORA)


@pytest.fixture(scope="module")
def results(root: Path, model: ModelSection) -> dict[str, Result]:
    """By name of the run: all splits on two ranks, and one with dropout on two ranks and on one."""
    shards = make_shards(root / "data", "continue", NUM_CLIPS, unlabelled=3)
    noisy = {**model.model_dump(mode="json"), "lora": {**LORA, "dropout": 0.4}}

    def recipe(name: str, micro_batches: int, zero_stage: int, section: Any) -> dict[str, Any]:
        return {
            "kind": "train", "run": str(root / name), "model": section, "stage": ALL_AT_ONCE.model_dump(mode="json"),
            "data": {"shards": str(shards), "clips_per_step": NUM_CLIPS, "micro_batches": micro_batches},
            "optim": {"lr": dict.fromkeys(ALL_AT_ONCE.train, 1e-3), "warmup_steps": 0, "steps": 1, "clip_norm": 1e-3},
            "engine": {
                "checkpoint_every_steps": 1, "zero_stage": zero_stage, "gradient_checkpointing": ["llm", "encoder"]
            },
        }  # fmt: skip

    plain = model.model_dump(mode="json")
    jobs = {
        2: [*(recipe(name, *split, plain) for name, split in SPLITS.items()), recipe("dropout_2", 3, 3, noisy)],
        1: [recipe("dropout_1", 3, 3, noisy)],
    }
    for world_size, recipes in jobs.items():
        listed = root / f"recipes-{world_size}.json"
        listed.write_text(json.dumps(recipes))
        ranks = start(world_size, ["tests.blsp.step_gradients", str(listed), str(root)])
        printed = finish(ranks)
        assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(printed)
    return {path.stem: torch.load(path) for path in root.glob("*.pt")}


@pytest.fixture(scope="module")
def whole(results: object, root: Path, model: ModelSection) -> Result:
    """The same step without plan, reader and DeepSpeed: all clips in one micro-batch, its own counts."""
    torch.manual_seed(1)  # data.seed's default
    built = SpeechLM.build(model, CPU).train()
    shard_set = ShardSet.open(root / "data" / "shards")
    samples = [shard_set.read(row) for row in range(NUM_CLIPS)]
    assert sum(sample.utterance.emotion is None for sample in samples) == 3
    collator = Collator(built.template, built.num_speech_tokens, {"continue": 1}, with_teacher=True)
    tokens = [built.template.response(s.continuation.text, s.continuation.finished) for s in samples]
    batch = collator(samples, ["continue"] * NUM_CLIPS, sum(map(len, tokens)), NUM_CLIPS - 3)
    stage = Stage(built, ALL_AT_ONCE)
    total, table = stage(batch)
    total.backward()
    return {name: parameter.grad for name, parameter in stage.named_parameters()}, table.sum(0)


def assert_same(ours: Result, theirs: Result) -> None:
    assert ours[0].keys() == theirs[0].keys()
    for name, gradient in theirs[0].items():
        assert (ours[0][name] - gradient).norm() <= CLOSE * gradient.norm(), name
    torch.testing.assert_close(ours[1], theirs[1], rtol=CLOSE, atol=0)


@pytest.mark.parametrize("split", SPLITS)
def test_two_ranks_get_the_gradient_of_the_whole_step(results: dict[str, Result], whole: Result, split: str) -> None:
    assert sum(bool(gradient.any()) for gradient in whole[0].values()) > 0.9 * len(whole[0])
    assert_same(results[split], whole)


def test_dropout_draws_the_same_on_one_rank_and_on_two(results: dict[str, Result], whole: Result) -> None:
    assert_same(results["dropout_2"], results["dropout_1"])
    name = next(name for name in whole[0] if name.endswith("v_proj.B.weight"))
    assert (results["dropout_1"][0][name] - whole[0][name]).norm() > 0.1 * whole[0][name].norm()
