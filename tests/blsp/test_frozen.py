"""Frozen weights whole on two real ranks, and in shares: the same training, and what travels for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, WavLMConfig

from blsp import frozen
from blsp.estimate.families import NoFormula
from blsp.estimate.job import job
from blsp.estimate.parts import read_parts
from blsp.estimate.workload import read_workload
from blsp.model import SpeechLM
from blsp.recipe import StageSection, TrainRecipe
from cluster.forecast import memory
from cluster.sharding import Zero
from shards.sets.teacher import TeacherSpec
from tests.blsp.frozen_steps import STEPS
from tests.blsp.test_engine import finish, start
from tests.blsp.tiny import (
    ALL_AT_ONCE,
    CPU,
    LORA,
    STAGE_1,
    WAVE_SIZES,
    make_encoder,
    make_loud_llm,
    make_shards,
    make_wave_encoder,
    model_section,
)

# As with an LLM of 7 B: nothing stays gathered until it is used again.
NOTHING_KEPT = {"zero_optimization": {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}}
CHOICES = ("resident", "partitioned")
# WavLM, LoRA on it, and what the teacher says from the shards.
WAVE = StageSection.model_validate(
    {
        **ALL_AT_ONCE.model_dump(mode="json"),
        "train": ["adapter", "encoder_lora", "lora", "classifier"], "teacher": "cached",
    }
)  # fmt: skip
STAGES = {"all": ALL_AT_ONCE, "stage_1": STAGE_1, "tied": STAGE_1, "wave": WAVE}
KINDS = {**STAGES, "bfloat16": ALL_AT_ONCE}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture(scope="module")
def results(root: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[str, Any]]:
    """By name of the run."""
    shards = make_shards(root / "data", "continue", 11)
    section = model_section(make_loud_llm(tokenizer, root / "llm"), make_encoder(root / "encoder"), lora=LORA)
    wavlm = make_wave_encoder(root / "wavlm", WavLMConfig(**WAVE_SIZES))
    others = {
        "tied": {"llm": str(make_loud_llm(tokenizer, root / "tied", tied=True))},
        "wave": {"encoder": str(wavlm), "encoder_lora": {**LORA, "targets": ["intermediate_dense", "output_dense"]}},
    }
    cached = make_shards(root / "cached", "continue", 11, llm=root / "llm", teacher=TeacherSpec(32, (1.0, 2.0)))
    recipes = []
    for name, stage in KINDS.items():
        model = section.model_dump(mode="json") | others.get(name, {})
        model |= {} if "lora" in stage.train else {"lora": None}
        model["dtype"] = "bfloat16" if name == "bfloat16" else "float32"
        for choice in CHOICES:
            checkpointing = ["llm", "encoder"] if name == "all" else []
            recipes.append(
                {
                    "kind": "train", "run": str(root / f"{name}_{choice}"), "model": model,
                    "stage": stage.model_dump(mode="json"),
                    "data": {
                        "shards": str(cached if name == "wave" else shards), "clips_per_step": 11, "micro_batches": 3
                    },
                    "optim": {"lr": dict.fromkeys(stage.train, 1e-3), "warmup_steps": 0, "steps": 2 * STEPS},
                    "engine": {
                        "checkpoint_every_steps": 9, "frozen": choice, "gradient_checkpointing": checkpointing,
                        "deepspeed": NOTHING_KEPT,
                    },
                }
            )  # fmt: skip
    listed = root / "recipes.json"
    listed.write_text(json.dumps(recipes))
    ranks = start(2, ["tests.blsp.frozen_steps", str(listed), str(root)])
    printed = finish(ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(printed)
    return {path.stem: json.loads(path.read_text()) for path in root.glob("*_*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_both_learn_the_same(results: dict[str, dict[str, Any]], root: Path, name: str) -> None:
    ours, theirs = results[f"{name}_partitioned"], results[f"{name}_resident"]
    for one, other in zip(ours["steps"], theirs["steps"], strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-5, abs=1e-6)
    exports = [
        load_file(root / f"{name}_{kind}" / "export" / "model.safetensors") for kind in ("partitioned", "resident")
    ]
    # AdamW steps as far for a gradient that is little more than rounding.
    torch.testing.assert_close(*exports, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_both_begin_the_same_in_bfloat16(results: dict[str, dict[str, Any]]) -> None:
    """What is no weight, such as the frequencies of positions, is as precise in both."""
    ours, theirs = (results[f"bfloat16_{choice}"]["steps"][0]["losses"] for choice in CHOICES)
    assert ours == pytest.approx(theirs, rel=1e-6)


def gathered(result: dict[str, Any]) -> list[int]:
    """Weights gathered per micro-batch, in each step after the first of a start; float32, two micro-batches a rank."""
    steps = [step["carried"]["all_gather_into_tensor"] for i, step in enumerate(result["steps"]) if i % STEPS]
    assert all(num_bytes % 8 == 0 for num_bytes in steps)
    return [num_bytes // 8 for num_bytes in steps]


@pytest.mark.slow
def test_resident_weights_never_travel(results: dict[str, dict[str, Any]]) -> None:
    """What trains is gathered for the forward and again for the backward, and its gradients travel once."""
    result = results["stage_1_resident"]
    trained = sum(result["trained"])
    assert result["held"] == trained
    assert gathered(result) == [2 * trained] * len(gathered(result))
    assert {step["carried"]["reduce_scatter_tensor"] for step in result["steps"]} == {2 * 4 * trained}


@pytest.mark.slow
def test_what_is_computed_again_is_gathered_again(results: dict[str, dict[str, Any]]) -> None:
    trained = sum(results["all_resident"]["trained"])
    for once in gathered(results["all_resident"]):
        assert 2 * trained <= once < 3 * trained


@pytest.mark.slow
def test_partitioned_weights_travel_once_for_each_use(results: dict[str, dict[str, Any]], root: Path) -> None:
    """The teacher's pass, the student's forward and its backward need the decoder's layers; the last layer is needed
    forward and backward, the embeddings for both texts, the encoder once."""
    llm = {name: value.numel() for name, value in load_file(root / "llm" / "model.safetensors").items()}
    encoder = {name: value.numel() for name, value in load_file(root / "encoder" / "model.safetensors").items()}
    layers = sum(numel for name, numel in llm.items() if ".layers." in name or ".norm." in name)
    heard = sum(numel for name, numel in encoder.items() if "embed_positions" not in name)
    frozen_uses = 3 * layers + 2 * llm["lm_head.weight"] + 2 * llm["model.embed_tokens.weight"] + heard
    expected = frozen_uses + 2 * sum(results["stage_1_partitioned"]["trained"])
    assert gathered(results["stage_1_partitioned"]) == pytest.approx([expected] * 4, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_checkpoint_of_partitioned_weights_holds_what_trains(
    results: dict[str, dict[str, Any]], root: Path, name: str
) -> None:
    del results
    folders = [root / f"{name}_{choice}" / "checkpoints" / f"step-{STEPS:06d}" / "zero" for choice in CHOICES]
    sizes = [[path.stat().st_size for path in sorted(folder.glob("*optim_states.pt"))] for folder in folders]
    assert sizes[0] == sizes[1]
    for folder in folders:
        state = torch.load(next(folder.glob("*model_states.pt")), weights_only=True)
        assert all(key.startswith("parts.") for key in state["module"])
        assert not state.get("frozen_param_shapes")


def recipe(root: Path, tokenizer: PreTrainedTokenizerFast, **engine: Any) -> TrainRecipe:
    model = model_section(make_loud_llm(tokenizer, root / "llm"), make_encoder(root / "encoder"), lora=LORA)
    return TrainRecipe.model_validate(
        {
            "kind": "train", "run": "run", "model": model.model_dump(), "stage": ALL_AT_ONCE.model_dump(),
            "data": {"shards": "shards", "clips_per_step": 4, "micro_batches": 4},
            "optim": {"lr": dict.fromkeys(ALL_AT_ONCE.train, 1e-3), "warmup_steps": 0, "steps": 4},
            "engine": {"checkpoint_every_steps": 2, **engine},
        }
    )  # fmt: skip


def decided(asked: TrainRecipe, card_bytes: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `auto` comes to on two ranks, one with a card of so much memory and one with twice that, by what it says."""
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda found, own: found.__setitem__(slice(None), [2 * own, own]))
    monkeypatch.setattr(frozen, "together", lambda action: action())
    card = mock.Mock(total_memory=card_bytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    said: list[str] = []
    partitioned = frozen.is_partitioned(asked, torch.device("cuda"), said.append)
    (line,) = said
    choice = line.removeprefix("frozen: ").partition(", because with frozen weights on every GPU each would need ")[0]
    assert choice == ("partitioned" if partitioned else "resident")
    return choice


def test_auto_cuts_what_a_card_cannot_hold_by_the_estimates_arithmetic(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(tmp_path, tokenizer)
    parts = read_parts(asked)
    needed = memory(job(asked, parts, read_workload(asked, parts)), Zero(3, 2)).total
    assert decided(asked, needed * 1.001, monkeypatch) == "resident"
    assert decided(asked, needed * 0.999, monkeypatch) == "partitioned"
    assert not frozen.is_partitioned(asked, CPU, print)


def test_auto_leaves_room_for_activations_that_there_is_no_formula_for(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(tmp_path, tokenizer)
    monkeypatch.setattr(frozen, "read_parts", mock.Mock(side_effect=NoFormula("gemma")))
    held = SpeechLM.build(asked.model, CPU)
    of_encoder = sum(p.numel() for p in held.encoder.pretrained.parameters())
    of_llm = sum(p.numel() for name, p in held.llm.named_parameters() if "lora" not in name)
    needed = 4 * of_llm + 18 * of_encoder / 2  # the encoder trains; two ranks
    assert decided(asked, needed / 0.59, monkeypatch) == "resident"
    assert decided(asked, needed / 0.61, monkeypatch) == "partitioned"


@pytest.mark.parametrize("choice", ["resident", "partitioned"])
def test_a_recipe_may_decide(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, choice: str) -> None:
    decided = frozen.is_partitioned(recipe(tmp_path, tokenizer, frozen=choice), CPU, lambda said: None)
    assert decided == (choice == "partitioned")


def test_only_zero_3_cuts_weights(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValidationError, match=r"only ZeRO-3 cuts weights, not zero_stage = 2"):
        recipe(tmp_path, tokenizer, frozen="partitioned", zero_stage=2)


@pytest.mark.usefixtures("alone")
def test_the_other_ranks_hear_of_any_error_in_reading(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(dist, "broadcast_object_list", lambda outcome, src: heard.extend(outcome))
    monkeypatch.setattr(frozen, "load_llm", mock.Mock(side_effect=RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        frozen.read_once(recipe(tmp_path, tokenizer).model, CPU, None)
    assert str(heard[1]) == "out of memory"
