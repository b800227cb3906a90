"""Runs that two ranks begin, one goes on with and three end, beside runs that two ranks see through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from blsp.checkpoint_folder import newest_valid, read_state, unlike_manifest
from blsp.elastic import load, universal
from blsp.export import export_config
from blsp.handover import begin
from blsp.recipe import TrainRecipe
from tests.blsp.test_engine import Recipe, World, job, trainings
from tests.blsp.trainings import Payload, stage_2

pytestmark = pytest.mark.slow

STEPS = 6
RATES = {"adapter": 1e-3, "classifier": 3e-3, "encoder": 1e-4, "lora": 2e-3}
# ZeRO stage and dtype.
KINDS = {
    "zero3": (3, "float32"), "zero2": (2, "float32"), "zero1": (1, "float32"), "zero0": (0, "float32"),
    "bf16": (3, "bfloat16"),
}  # fmt: skip
FLOAT32 = [kind for kind in KINDS if kind != "bf16"]


@pytest.fixture(scope="module")
def world(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("a[1]+(b)")
    return World(root, stage_2(root, llm_folder, clips=24, per_step=6, dropout=0.3, lr=RATES, steps=STEPS))


def recipe(world: World, kind: str, name: str) -> Recipe:
    stage, dtype = KINDS[kind]
    base = world.recipe(f"{name}_{kind}")
    engine = {**base["engine"], "zero_stage": stage}
    return {**base, "engine": engine, "model": {**base["model"], "dtype": dtype}}


def passed(results: list[list[dict[str, Any]]], stopped: bool) -> None:
    for result in (result for rank in results for result in rank):
        assert result["error"] == ("Interrupted" if stopped else None), result


@pytest.fixture(scope="module")
def moved(world: World) -> dict[str, Path]:
    """The newest checkpoint of each moved run as the one rank left it, with what the three made of it, by kind."""
    straight = [job(recipe(world, kind, "straight")) for kind in ("zero3", "bf16")]
    by_two = [job(recipe(world, kind, "moved"), stop_in_step=1) for kind in KINDS]
    results = trainings(world, 2, straight + by_two)
    passed([ran[: len(straight)] for ran in results], stopped=False)
    passed([ran[len(straight) :] for ran in results], stopped=True)
    passed(trainings(world, 1, [job(recipe(world, kind, "moved"), stop_in_step=3) for kind in KINDS]), stopped=True)
    passed(trainings(world, 3, [job(recipe(world, kind, "moved")) for kind in KINDS]), stopped=False)
    return {kind: world.root / f"moved_{kind}" / "checkpoints" / "step-000004" for kind in KINDS}


@pytest.mark.usefixtures("moved")
@pytest.mark.parametrize("kind", FLOAT32)
def test_two_then_one_then_three_ranks_log_what_two_would_have(world: World, kind: str) -> None:
    ours, theirs = world.log(f"moved_{kind}"), world.log("straight_zero3")
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():  # norms of single groups feel the rounding of a few small gradients
            assert value == pytest.approx(other[key], rel=1e-4 if "norm" in key or "ratio" in key else 1e-5, abs=1e-7)


def heard(world: World, name: str) -> dict[int, list[str]]:
    """The clips of each step of a run, whichever rank heard them."""
    clips: dict[int, list[str]] = {}
    for path in (world.root / name).glob("heard-*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            clips.setdefault(line["step"], []).extend(line["ids"])
    return {step: sorted(clips[step]) for step in range(STEPS)}


@pytest.mark.usefixtures("moved")
def test_every_step_hears_the_clips_that_it_would_have_heard(world: World) -> None:
    assert heard(world, "moved_zero3") == heard(world, "straight_zero3")


@pytest.mark.usefixtures("moved")
@pytest.mark.parametrize("kind", FLOAT32)
def test_the_weights_end_where_two_ranks_would_have_left_them(world: World, kind: str) -> None:
    ours, theirs = (
        load_file(world.root / name / "export" / "model.safetensors") for name in (f"moved_{kind}", "straight_zero3")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("moved")
def test_in_bfloat16_the_losses_stay_as_close_as_its_rounding(world: World) -> None:
    for one, other in zip(world.log("moved_bf16"), world.log("straight_bf16"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)
        assert {key: one[key] for key in one if key.startswith("lr_")} == {
            key: other[key] for key in other if key.startswith("lr_")
        }


def test_what_was_put_together_is_kept_with_its_checkpoint_and_is_none(moved: dict[str, Path]) -> None:
    folder = moved["zero3"]
    assert read_state(folder).world_size == 1
    assert unlike_manifest(folder / "universal") is None
    assert not moved["zero0"].joinpath("universal").exists()  # every rank had everything
    newest = newest_valid(folder.parent)
    assert newest is not None
    assert newest.name == f"step-{STEPS:06d}"


def test_it_is_made_once_and_again_when_damaged(moved: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "step-000004"
    shutil.copytree(moved["zero3"], folder)
    said: list[str] = []
    made = universal(folder, said.append)
    assert not said
    tensor = next((made / "zero" / "zero").glob("*/exp_avg.pt"))
    before = tensor.read_bytes()
    tensor.write_bytes(before[:-1])
    assert universal(folder, said.append) == made
    assert f"(zero/zero/{tensor.parent.name}/exp_avg.pt is not as it was written)" in said[0]
    assert tensor.read_bytes() == before


@pytest.mark.usefixtures("moved")
@pytest.mark.parametrize("kind", KINDS)
def test_a_later_stage_begins_with_what_a_checkpoint_holds(world: World, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(world.root / f"moved_{kind}", run)
    shutil.rmtree(run / "export")
    before = sorted(run.rglob("*"))
    later = recipe(world, kind, "later")
    later = {**later, "run": str(tmp_path / "later"), "model": {**later["model"], "init": str(run)}}
    made = begin(TrainRecipe.model_validate(later), lambda said: None).model.init
    assert made == tmp_path / "later" / "init"
    assert sorted(run.rglob("*")) == before
    exports = [made / "export", world.root / f"moved_{kind}" / "export"]
    torch.testing.assert_close(*(load_file(folder / "model.safetensors") for folder in exports), rtol=0, atol=0)
    ours, theirs = (export_config(folder) for folder in exports)
    told = ("parts", "corpora", "dataset_id", "steps", "stage", "frozen", "history")
    assert [ours[name] for name in told] == [theirs[name] for name in told]


def test_code_in_the_checkpoint_is_refused_and_does_not_run(
    moved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # as in every training
    for pattern in ("*optim_states.pt", "*model_states.pt"):
        folder = tmp_path / pattern[1:-3] / "step-000004"
        shutil.copytree(moved["zero3"], folder, ignore=shutil.ignore_patterns("universal"))
        torch.save({"optimizer_state_dict": Payload(tmp_path / "it_ran")}, next((folder / "zero").glob(pattern)))
        with pytest.raises(ValueError, match=r"refused, because it names .*; nothing of it was run"):
            universal(folder, lambda said: None)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.usefixtures("alone")
def test_code_in_what_was_put_together_is_refused_and_does_not_run(moved: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(moved["zero3"] / "universal", tmp_path / "made")
    torch.save(Payload(tmp_path / "it_ran"), next((tmp_path / "made" / "zero" / "zero").glob("*/fp32.pt")))
    engine = mock.Mock(optimizer=mock.Mock(param_groups=[], state={}))
    with pytest.raises(ValueError, match="refused, because it names"):
        load(engine, tmp_path / "made")
    engine.load_checkpoint.assert_not_called()
    assert not (tmp_path / "it_ran").exists()
