"""The gradient of one step on two real processes under DeepSpeed, beside that of plain torch over the whole step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from blsp.engine import dropout_seed
from blsp.model import SpeechLM
from blsp.recipe import ModelSection
from blsp.run import Stage
from shards.batches.collate import Collator
from shards.batches.plan import Plan
from shards.batches.reader import Reader
from shards.sets.shard_set import ShardSet
from shards.sets.tokens import token_counts
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
    """By name of the run: all splits on two ranks, one of them also with dropout."""
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
    recipes = [*(recipe(name, *split, plain) for name, split in SPLITS.items()), recipe("dropout", 3, 3, noisy)]
    (root / "recipes.json").write_text(json.dumps(recipes))
    ranks = start(2, ["tests.blsp.step_gradients", str(root / "recipes.json"), str(root)])
    printed = finish(ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(printed)
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


def test_dropout_draws_on_two_ranks_what_one_would_draw(
    results: dict[str, Result], whole: Result, root: Path, model: ModelSection
) -> None:
    """One without DeepSpeed, which hears one micro-batch after the other."""
    lora = model.lora.model_copy(update={"dropout": 0.4}) if model.lora else None
    torch.manual_seed(1)
    built = SpeechLM.build(model.model_copy(update={"lora": lora}), CPU).train()
    shard_set = ShardSet.open(root / "data" / "shards")
    collator = Collator(built.template, built.num_speech_tokens, {"continue": 1}, with_teacher=True)
    counts = token_counts(shard_set, built.template)
    sizes = collator.sizes(shard_set.clips, counts, built.encoder.window.padded, shard_set.replayed)
    plan = Plan(sizes, dataset_id=shard_set.dataset_id, seed=1, clips_per_step=NUM_CLIPS, micro_batches=3)
    stage = Stage(built, ALL_AT_ONCE)
    tables = []
    for index, batch in enumerate(next(Reader(shard_set, plan, collator, rank=0, world_size=1).steps())[1]):
        torch.manual_seed(dropout_seed(1, 0, index))
        total, table = stage(batch)
        total.backward()
        tables.append(table.sum(0))
    alone = {name: parameter.grad for name, parameter in stage.named_parameters()}
    assert_same(results["dropout"], (alone, torch.stack(tables).sum(0)))
    name = next(name for name in whole[0] if name.endswith("v_proj.B.weight"))
    assert (alone[name] - whole[0][name]).norm() > 0.1 * whole[0][name].norm()
