"""k steps, a new start and n - k steps are n steps, bit for bit: weights, moments, random numbers, logged losses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.blsp.test_engine import Recipe, World, job, trainings
from tests.blsp.tiny import STAGE_1, make_shards
from tests.blsp.trainings import stage_2

pytestmark = pytest.mark.slow

STEPS, LOG_EVERY = 7, 3
BF16_AFTER = (1, 4, 6)
# ZeRO stage and dtype; 3 is every other run here.
STAGES = {"zero0": (0, "float32"), "zero1": (1, "bfloat16"), "zero2": (2, "float32"), "zero2_bf16": (2, "bfloat16")}
BREAK_IN = (4, 2)  # the last micro-batch of the fifth step
FILES = (
    "zero/zero_pp_rank_0_mp_rank_00_model_states.pt", "zero/zero_pp_rank_0_mp_rank_00_optim_states.pt", "state.json",
    "manifest.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def world(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Epochs of four steps. Each step is a checkpoint, and a line of the log means three steps."""
    root = tmp_path_factory.mktemp("world")
    make_shards(root / "plain", "continue", 16)
    engine = {"checkpoint_every_steps": 1, "keep_checkpoints": 20, "log_every_steps": LOG_EVERY}
    return World(root, stage_2(root, llm_folder, clips=16, per_step=4, dropout=0.2, steps=STEPS) | {"engine": engine})


def bf16(recipe: Recipe) -> Recipe:
    return {**recipe, "model": {**recipe["model"], "dtype": "bfloat16"}}


def staged(world: World, name: str, kind: str) -> Recipe:
    stage, dtype = STAGES[kind]
    recipe = world.recipe(name)
    return {
        **recipe, "engine": {**recipe["engine"], "zero_stage": stage}, "model": {**recipe["model"], "dtype": dtype}
    }  # fmt: skip


def first_stage(world: World, name: str) -> Recipe:
    recipe = world.recipe(name, lr={"adapter": 1e-3})
    data = {**world.shared["data"], "shards": str(world.root / "plain" / "shards")}
    stage = {"stage": STAGE_1.model_dump(mode="json"), "model": {**world.shared["model"], "lora": None}}
    return {**recipe, **stage, "data": data}


def second_stage(world: World, name: str, before: str) -> Recipe:
    recipe = world.recipe(name)
    return {**recipe, "model": {**recipe["model"], "init": str(world.root / before)}}


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def moved(world: World, recipe: Recipe) -> Recipe:
    """All that it begins with lies elsewhere."""
    shutil.copytree(world.root / "stage_1", world.root / "stage_1_moved")
    for part in ("llm", "encoder"):
        name = Path(recipe["model"][part]).name
        shutil.copytree(recipe["model"][part], world.root / "elsewhere" / name)
        recipe = {**recipe, "model": {**recipe["model"], part: str(world.root / "elsewhere" / name)}}
    return recipe


def after(world: World, name: str, step: int) -> str:
    """A run folder as it is when its process is gone after `step`."""
    source, copy = world.root / name, world.root / f"{name}-{step}"
    copy.mkdir()
    for file in ("log.jsonl", "recipe.json", "plan.json"):
        shutil.copy(source / file, copy / file)
    for done in range(1, step + 1):
        checkpoint = f"checkpoints/step-{done:06d}"
        shutil.copytree(source / checkpoint, copy / checkpoint)
    return copy.name


@pytest.fixture(scope="module")
def straight(world: World) -> list[dict[str, Any]]:
    """Runs that nothing stops, one of them without checkpoints; and runs that are broken off within a step."""
    rare = world.recipe("rare")
    rare["engine"] = {**rare["engine"], "checkpoint_every_steps": 1000}
    jobs = [
        job(world.recipe("fp32")), job(bf16(world.recipe("bf16"))), job(rare),
        job(first_stage(world, "stage_1")), job(second_stage(world, "stage_2", "stage_1")),
        *(job(staged(world, kind, kind)) for kind in STAGES),
        job(world.recipe("broken"), break_in=BREAK_IN),
        job(first_stage(world, "stage_1_broken"), break_in=BREAK_IN),
        job(world.recipe("taken_over"), rival_in_step=LOG_EVERY),
    ]  # fmt: skip
    (results,) = trainings(world, 1, jobs)
    assert [result["error"] for result in results] == [None] * 9 + ["KeyboardInterrupt"] * 2 + ["TakenOverError"]
    return results


@pytest.fixture(scope="module")
def resumed(world: World, straight: object) -> dict[str, dict[str, Any]]:
    """By name of the run: the rest of each, and what code in a file of a checkpoint comes to."""
    jobs = {after(world, "fp32", step): world.recipe for step in range(1, STEPS)}
    recipes = {name: recipe(name) for name, recipe in jobs.items()}
    recipes |= {name: bf16(world.recipe(name)) for name in [after(world, "bf16", step) for step in BF16_AFTER]}
    recipes |= {name: staged(world, name, kind) for kind in STAGES for name in [after(world, kind, 4)]}
    recipes |= {"broken": world.recipe("broken"), "stage_1_broken": first_stage(world, "stage_1_broken")}
    recipes["stage_2_after_broken"] = second_stage(world, "stage_2_after_broken", "stage_1_broken")
    shutil.copytree(world.root / "stage_1", world.root / "stage_1_other")
    flip_last_byte(world.root / "stage_1_other" / "export" / "model.safetensors")
    recipes["stage_2-3"] = second_stage(world, after(world, "stage_2", 3), "stage_1_other")
    recipes["stage_2-5"] = moved(world, second_stage(world, after(world, "stage_2", 5), "stage_1_moved"))
    listed = {name: job(recipe) for name, recipe in recipes.items()}
    for number, file in enumerate(FILES):
        name = f"planted-{number}"
        planted = world.root / name / "checkpoints" / "step-000003"
        shutil.copytree(world.root / "fp32" / "checkpoints" / "step-000003", planted)
        listed[name] = job(world.recipe(name), plant=(str(world.root / "it_ran"), file))
    (results,) = trainings(world, 1, list(listed.values()))
    return dict(zip(listed, results, strict=True))


def assert_same(world: World, ours: str, theirs: str) -> None:
    """All that two runs logged and exported, and every byte of weights and moments after every step they share."""
    assert world.log(ours) == world.log(theirs)
    assert world.weights(ours) == world.weights(theirs)
    names = world.checkpoints(ours)
    assert names == world.checkpoints(theirs)
    for name in names:
        assert state_hashes(world, ours, name) == state_hashes(world, theirs, name), name


def heard(world: World, run: str) -> dict[int, list[str]]:
    """The clips of each step, in their order."""
    lines = (world.root / run / "heard-1-0.jsonl").read_text().splitlines()
    return {line["step"]: line["ids"] for line in map(json.loads, lines)}


def state_hashes(world: World, run: str, checkpoint: str) -> dict[str, Any]:
    """Of the files with weights and moments."""
    manifest = json.loads((world.root / run / "checkpoints" / checkpoint / "manifest.json").read_text())
    hashes = {file: entry for file, entry in manifest.items() if file.startswith("zero/")}
    assert hashes
    return hashes


@pytest.mark.parametrize("step", range(1, STEPS))
def test_after_every_step_a_new_start_changes_no_bit(
    world: World, straight: Any, resumed: dict[str, Any], step: int
) -> None:
    assert resumed[f"fp32-{step}"] == straight[0]
    assert_same(world, f"fp32-{step}", "fp32")
    ids, all_ids = heard(world, f"fp32-{step}"), heard(world, "fp32")
    assert set(ids) >= set(range(step, STEPS))
    assert ids == {at: all_ids[at] for at in ids}


@pytest.mark.parametrize("step", BF16_AFTER)
def test_in_bfloat16_as_well(world: World, straight: Any, resumed: dict[str, Any], step: int) -> None:
    assert resumed[f"bf16-{step}"] == straight[1]
    assert_same(world, f"bf16-{step}", "bf16")


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.usefixtures("resumed")
def test_with_the_other_stages_of_zero_as_well(world: World, kind: str) -> None:
    assert_same(world, f"{kind}-4", kind)


@pytest.mark.usefixtures("straight")
def test_a_line_of_the_log_means_the_steps_since_the_one_before(world: World) -> None:
    assert [line["step"] for line in world.log("fp32")] == [3, 6, 7]


@pytest.mark.usefixtures("resumed")
def test_a_step_that_was_broken_off_between_two_micro_batches_is_run_again_from_its_start(world: World) -> None:
    assert_same(world, "broken", "fp32")


@pytest.mark.usefixtures("resumed")
def test_the_second_stage_does_not_see_that_the_first_was_broken_off(world: World) -> None:
    assert_same(world, "stage_1_broken", "stage_1")
    assert_same(world, "stage_2_after_broken", "stage_2")


def test_a_run_goes_on_when_what_it_begins_with_has_moved(world: World, resumed: dict[str, Any]) -> None:
    assert resumed["stage_2-5"]["error"] is None
    assert_same(world, "stage_2-5", "stage_2")


def test_a_run_does_not_go_on_when_the_earlier_stage_has_another_export(resumed: dict[str, Any]) -> None:
    assert resumed["stage_2-3"]["error"] == "ValueError"
    assert "step-000003 was made with the init stage_1@" in resumed["stage_2-3"]["message"]


def test_a_run_whose_folder_another_host_has_taken_over_ends_and_commits_no_more(world: World, straight: Any) -> None:
    assert f"{world.root / 'taken_over'}: taken over by another process" in straight[-1]["message"]
    assert world.checkpoints("taken_over") == ["step-000001", "step-000002"]  # nothing begun after the claim
    assert not (world.root / "taken_over" / "export").exists()


@pytest.mark.usefixtures("straight")
def test_writing_checkpoints_changes_nothing(world: World) -> None:
    assert world.checkpoints("rare") == [f"step-{STEPS:06d}"]
    assert world.log("rare") == world.log("fp32")
    assert world.weights("rare") == world.weights("fp32")


def test_the_place_in_the_plan_is_the_whole_state_of_the_random_numbers(world: World, straight: Any) -> None:
    """Nothing draws from numpy's or Python's generator, and torch's starts anew in each micro-batch: after the last
    one it is the same, whatever was drawn before."""
    assert straight[0]["random"] == straight[2]["random"]


@pytest.mark.parametrize("name", ["fp32", "bf16", *STAGES])
@pytest.mark.usefixtures("straight")
def test_a_checkpoint_is_as_small_as_what_it_must_hold(world: World, name: str) -> None:
    """Weights and two moments in float32, once."""
    checkpoint = world.root / name / "checkpoints" / f"step-{STEPS:06d}"
    num_trained = sum(value.numel() for value in load_file(world.root / name / "export" / "model.safetensors").values())
    held = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert 12 * num_trained < held < 12 * num_trained + 80_000  # names and headers; once more would be 84 000


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, "model_states.pt: refused, because it names getattr; nothing of it was run"),
        (1, "optim_states.pt: refused, because it names getattr; nothing of it was run"),
        (2, "state.json: is not the state of a training run"),
        (3, "none of its checkpoints is whole"),
    ],
)
def test_code_in_any_file_of_a_checkpoint_never_runs(
    world: World, resumed: dict[str, Any], number: int, message: str
) -> None:
    assert resumed[f"planted-{number}"]["error"] == "ValueError"
    assert message in resumed[f"planted-{number}"]["message"]
    assert not (world.root / "it_ran").exists()


def test_the_planted_code_would_have_run(world: World, resumed: object) -> None:
    torch.load(world.root / "planted-0" / "checkpoints" / "step-000003" / FILES[0], weights_only=False)
    assert (world.root / "it_ran").exists()
    (world.root / "it_ran").unlink()


def test_a_checkpoint_holds_no_file_but_these(world: World, straight: object) -> None:
    checkpoint = world.root / "fp32" / "checkpoints" / "step-000003"
    assert {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()} == set(FILES)
