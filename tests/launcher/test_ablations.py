"""The shipped recipes of the 7B model, each trained for a few steps on tiny parts: one process for all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blsp.export import stages
from blsp.hf.convert import export_run, load_model
from blsp.model import SpeechLM
from blsp.recipe import TrainRecipe
from launcher.recipe_files import load_kind
from tests.blsp.test_engine import World, job, trainings
from tests.blsp.tiny import CPU, clip, make_encoder, make_shards

pytestmark = pytest.mark.slow

EMO = {"adapter", "encoder", "lora", "classifier"}
# What moves, and the losses that are used.
MOVES: dict[str, tuple[set[str], set[str]]] = {
    "stage1": ({"adapter"}, {"kl"}),
    "no_stage1": (EMO, {"ce", "emotion"}),
    "stage2": (EMO, {"ce", "emotion"}),
    "ser": (EMO - {"classifier"}, {"ce"}),
    "chatgpt": (EMO, {"ce", "emotion"}),
    "multitask": (EMO, {"ce", "emotion"}),
    "no_emotion_loss": (EMO - {"classifier"}, {"ce"}),
}
every_recipe = pytest.mark.parametrize("name", MOVES)


def tiny(name: str, root: Path, llm: Path) -> TrainRecipe:
    """The shipped recipe with tiny parts and three steps; stage, losses, prompts and rates are its own."""
    recipe = load_kind(TrainRecipe, f"{name}_whisper-large-v2_qwen2.5-7b")
    words = {"run": root / name, "model.llm": llm, "model.encoder": root / "encoder", "model.dtype": "float32"}
    words |= {"model.audio_window": "exact", "model.adapter.bottleneck": 8, "data.clips_per_step": 8}
    words |= {"data.micro_batches": 2, "data.num_workers": 0, "optim.warmup_steps": 1, "optim.epochs": "null"}
    words |= {"optim.steps": 3, "engine.log_every_steps": 1, "validation": "null"}
    words["data.shards"] = root / ("plain" if name == "stage1" else "toned") / "shards"
    if recipe.model.init is not None:
        words["model.init"] = root / "stage1"
    overrides = [f"{place}={value}" for place, value in words.items()]
    return load_kind(TrainRecipe, f"{name}_whisper-large-v2_qwen2.5-7b", overrides)


@pytest.fixture(scope="module")
def world(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("ablations")
    make_encoder(root / "encoder")
    make_shards(root / "plain", "continue", 24)
    make_shards(root / "toned", "continue_emotion", 24)
    world = World(root, {})
    jobs = [job(tiny(name, root, llm_folder).model_dump(mode="json")) for name in MOVES]
    (results,) = trainings(world, 1, jobs)
    assert [result["error"] for result in results] == [None] * len(jobs), results
    return world


def exported(world: World, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    folder = world.root / name / "export"
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


@every_recipe
def test_it_moves_what_it_says_and_nothing_else(world: World, llm_folder: Path, name: str) -> None:
    recipe = tiny(name, world.root, llm_folder)
    torch.manual_seed(recipe.data.seed)
    before = SpeechLM.build(recipe.model, CPU).parts.state_dict()
    content, after = exported(world, name)
    moved = {key.split(".")[0] for key, value in after.items() if not value.equal(before[key])}
    assert moved == MOVES[name][0]
    assert set(content["parts"]) == moved
    # Nothing of a part that trains is left out of the export.
    assert {key for key in before if key.split(".")[0] in moved} == set(after)


@every_recipe
def test_it_uses_the_losses_that_it_says(world: World, name: str) -> None:
    for line in world.log(name):
        assert {"ce", "kl", "emotion"} & line.keys() == MOVES[name][1]
        weights = exported(world, name)[0]["stage"]["losses"]
        assert line["loss"] == pytest.approx(sum(weights[loss] * line[loss] for loss in weights), rel=1e-5)


def test_stage_2_starts_from_the_adapter_of_stage_1(world: World) -> None:
    _, first = exported(world, "stage1")
    recipe = TrainRecipe.model_validate_json((world.root / "stage2" / "recipe.json").read_text())
    adapter = SpeechLM.build(recipe.model, CPU).parts["adapter"].state_dict()
    assert all(torch.equal(first[f"adapter.{key}"], value) for key, value in adapter.items())


def test_the_export_of_stage_2_as_transformers_has_it_tells_the_data_of_both_stages(world: World) -> None:
    content, _ = exported(world, "stage2")
    assert [stage["stage"]["train"] for stage in stages(content)] == [["adapter"], content["stage"]["train"]]
    assert all(stage["corpora"] == [{"corpus": "clips", "licence": None, "clips": 24}] for stage in stages(content))
    export_run(world.root / "stage2", world.root / "saved")
    card = (world.root / "saved" / "README.md").read_text()
    assert "1. trained adapter with the losses 1 x kl, under the prompt continue, 3 steps" in card
    assert "| clips | unknown | 24 |" in card
    model, saved = SpeechLM.load(world.root / "stage2", CPU), load_model(world.root / "saved", CPU)
    samples = [clip(9000), clip(14000, 1)]
    assert saved.generate(samples, "chat", 6) == model.generate(samples, "chat", 6)
    assert (saved.classify(samples) == model.classify(samples)).all()


def test_each_learns_the_targets_that_it_says(world: World) -> None:
    """The first step of these sees the same clips with the same weights."""
    first = {name: world.log(name)[0]["ce"] for name in MOVES if name not in {"stage1", "no_stage1"}}
    assert first["stage2"] == pytest.approx(first["no_emotion_loss"], abs=1e-6)
    assert abs(first["stage2"] - first["multitask"]) > 1e-4  # some clips are asked for their label
    assert abs(first["multitask"] - first["ser"]) > 1e-4  # all are
