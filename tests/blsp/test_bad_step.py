"""Steps whose loss or gradient is not to be learnt from: on one of two real ranks, and at every ZeRO stage."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from tests.blsp.test_engine import Recipe, World, job, trainings
from tests.blsp.trainings import stage_2

pytestmark = pytest.mark.slow

STEPS = 9
SPOILED = [(2, 1, "gradient"), (3, 1, "loss"), (8, 0, "loss leaps"), (9, 1, "gradient leaps")]
LEAPS = [(6, 0, "gradient leaps"), (8, 1, "loss leaps")]
POISONED = (2, 3)
KINDS = [(zero, dtype) for zero in range(4) for dtype in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def world(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    shared = stage_2(root, llm_folder, clips=12, per_step=6, dropout=0.1, warmup_steps=0, steps=STEPS)
    shared["engine"] = {"checkpoint_every_steps": 1, "keep_checkpoints": 20, "log_every_steps": 1}
    return World(root, shared)


def skipping(world: World, name: str, **engine: Any) -> Recipe:
    recipe = world.recipe(name)
    return {**recipe, "engine": {**recipe["engine"], "bad_step": "skip", **engine}}


@pytest.fixture(scope="module")
def two_ranks(world: World) -> list[list[dict[str, Any]]]:
    """One that ends with its bad step; one that leaves such steps out, and that again stopped after two of them and
    gone on with; one with more of them than it may have. Then one that ends where its loss leaps, and not where its
    gradient does, and that again stopped between and gone on with; one that lets them leap."""
    stopped = skipping(world, "stopped")
    broken_off, unjudged = world.recipe("broken_off"), world.recipe("unjudged")
    unjudged["engine"] = {**unjudged["engine"], "leap_sigmas": None}
    jobs = [
        job(world.recipe("raising"), spoil=[(3, 1, "loss")]),
        job(skipping(world, "skipping"), spoil=SPOILED),
        job(stopped, spoil=SPOILED, stop_in_step=3), job(stopped, spoil=SPOILED),
        job(skipping(world, "many", skipped_in_a_row=1), spoil=[(2, 0, "loss"), (4, 0, "loss"), (5, 1, "gradient")]),
        job(world.recipe("leaping"), spoil=LEAPS),
        job(broken_off, spoil=LEAPS, stop_in_step=6), job(broken_off, spoil=LEAPS),
        job(unjudged, spoil=LEAPS),
    ]  # fmt: skip
    return trainings(world, 2, jobs)


@pytest.fixture(scope="module")
def one_rank(world: World) -> list[dict[str, Any]]:
    """By kind: a run of three steps whose second has a gradient that is not finite. At the end some get a NaN
    into their newest checkpoint and go on."""
    jobs = []
    for zero, dtype in KINDS:
        recipe = skipping(world, f"{dtype}-{zero}", zero_stage=zero)
        recipe["model"], recipe["optim"] = {**recipe["model"], "dtype": dtype}, {**recipe["optim"], "steps": 3}
        jobs.append(job(recipe, spoil=[(2, 0, "gradient")]))
    for zero in POISONED:
        (run,) = (each["recipe"] for each in jobs if each["recipe"]["run"].endswith(f"float32-{zero}"))
        jobs.append(job(run, spoil=[(2, 0, "gradient")], poison=True))
    return trainings(world, 1, jobs)[0]


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from tensors(entry)


def saved(world: World, name: str, step: int) -> list[Tensor]:
    """Weights, moments and the optimizer's count of steps, of all ranks."""
    folder = world.root / name / "checkpoints" / f"step-{step:06d}" / "zero"
    files = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]
    learnt = ("module", "optimizer_state_dict", "optimizer")
    return list(tensors([[file.get(key) for key in learnt] for file in files]))


def moved(world: World, name: str, step: int) -> bool:
    """Whether a step changed anything that is learnt."""
    before, after = saved(world, name, step - 1), saved(world, name, step)
    assert len(before) == len(after) > 3
    return not all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_the_run_ends_on_all_ranks_and_names_rank_and_clips(world: World, two_ranks: Any) -> None:
    for results in two_ranks:
        assert results[0]["error"] == "BadStepError"
        assert results[0]["message"].startswith("step 3: the loss is not finite on rank 1 (")
        folder = world.root / "raising" / "failures" / "step-000003"
        assert f"no weight was changed. What the model heard is in {folder}. The run" in results[0]["message"]
    assert [line["step"] for line in world.log("raising")] == [1, 2]
    assert world.checkpoints("raising") == ["step-000001", "step-000002"]


@pytest.mark.usefixtures("two_ranks")
def test_what_was_heard_lies_beside_with_what_each_clip_cost(world: World) -> None:
    folder = world.root / "raising" / "failures" / "step-000003"
    (path,) = folder.glob("*.json")
    told = json.loads(path.read_text())
    assert (path.name, told["rank"], told["fault"]) == ("rank-1.json", 1, "the loss is not finite")
    first, *others = told["clips"]
    assert first["loss"] is None
    assert others
    assert all(clip["loss"] > 0 for clip in others)
    heard = [json.loads(line) for line in (world.root / "raising" / "heard-2-1.jsonl").read_text().splitlines()]
    assert {clip["id"] for clip in told["clips"]} <= set(heard[2]["ids"])
    for clip in told["clips"]:
        (file,) = clip["files"]
        assert soundfile.info(folder / file).duration == pytest.approx(clip["seconds"])


def test_a_step_that_is_left_out_changes_nothing_and_the_next_ones_do(world: World, two_ranks: Any) -> None:
    assert [result[1]["error"] for result in two_ranks] == [None, None]
    bad = [step for step, _, _ in SPOILED]
    for step in range(2, STEPS + 1):
        assert moved(world, "skipping", step) == (step not in bad)
    log = world.log("skipping")
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert [line["step"] for line in log if "loss" not in line] == bad
    assert [line.get("skipped_steps", 0) for line in log] == [0, 1, 2, 2, 2, 2, 2, 3, 4]
    assert log[-2]["lr_adapter"] > log[-1]["lr_adapter"]
    folder = world.root / "skipping" / "failures"
    written = [next((folder / f"step-{step:06d}").glob("*.json")) for step in bad]
    faults = [json.loads(path.read_text())["fault"] for path in written]
    assert faults[:2] == ["the gradient is not finite, though the loss is", "the loss is not finite"]
    assert faults[2].startswith("the loss, ")
    assert "leaps: in the last 5 steps it was" in faults[2]
    assert faults[3].startswith("the gradient's norm, ")


def test_stopped_between_bad_steps_and_gone_on_with_equals_a_straight_run(world: World, two_ranks: Any) -> None:
    assert [(result[2]["error"], result[3]["error"]) for result in two_ranks] == [("Interrupted", None)] * 2
    assert world.log("stopped") == world.log("skipping")
    assert world.weights("stopped") == world.weights("skipping")


def test_more_bad_steps_than_the_recipe_allows_end_the_run(world: World, two_ranks: Any) -> None:
    for results in two_ranks:
        assert results[4]["error"] == "BadStepError"
        said = (
            r"step 5: the gradient is not finite, though the loss is \(the dearest clip is \S+, on rank \d\); no weight"
        )
        assert re.match(said, results[4]["message"])
        assert "The run ends (engine.skipped_in_a_row = 1)" in results[4]["message"]


def test_a_loss_that_leaps_ends_the_run_and_changes_nothing_and_a_gradients_leap_does_not(
    world: World, two_ranks: Any
) -> None:
    for results in two_ranks:
        assert results[5]["error"] == "BadStepError"
        said = r"step 8: the loss, \S+, leaps: in the last 7 steps it was \S+ ± \S+, and engine.leap_sigmas is auto "
        found = re.match(said + r"\(the dearest clip is (\S+), on rank 1\); no", results[5]["message"])
        assert found is not None, results[5]["message"]
        told = json.loads((world.root / "leaping" / "failures" / "step-000008" / "rank-1.json").read_text())
        assert told["clips"][0]["id"] == found[1]
    assert [line["step"] for line in world.log("leaping")] == [1, 2, 3, 4, 5, 6, 7]
    assert world.checkpoints("leaping")[-1] == "step-000007"
    assert [result[8]["error"] for result in two_ranks] == [None, None]
    assert len(world.log("unjudged")) == STEPS


def test_a_resumed_run_judges_a_leap_by_the_steps_before(world: World, two_ranks: Any) -> None:
    assert [result[6]["error"] for result in two_ranks] == ["Interrupted", "Interrupted"]
    assert two_ranks[0][7]["message"] == two_ranks[0][5]["message"].replace("/leaping/", "/broken_off/")
    assert world.log("broken_off") == world.log("leaping")


@pytest.mark.parametrize("kind", KINDS)
def test_no_way_to_run_deepspeed_moves_with_a_gradient_that_is_not_finite(
    world: World, one_rank: Any, kind: tuple[int, str]
) -> None:
    name = f"{kind[1]}-{kind[0]}"
    assert one_rank[KINDS.index(kind)]["error"] is None
    assert [moved(world, name, step) for step in (2, 3)] == [False, True]
    if kind[1] == "float32":
        norms = [[line["grad_norm"] for line in world.log(run) if "grad_norm" in line] for run in (name, "float32-3")]
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("zero", POISONED)
def test_a_checkpoint_with_a_moment_that_is_not_finite_is_named_and_passed_over(
    world: World, one_rank: Any, zero: int
) -> None:
    name = f"float32-{zero}"
    assert one_rank[len(KINDS) + POISONED.index(zero)]["error"] is None
    printed = (world.root / "printed-1.txt").read_text()
    folder = world.root / name / "checkpoints"
    assert re.search(rf"{folder}/step-000003 is damaged \(exp_avg of \S+: not finite\) and passed over", printed)
    assert f"going on from {folder}/step-000002" in printed
    assert all(tensor.isfinite().all() for tensor in saved(world, name, 3))
