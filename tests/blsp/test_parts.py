"""Who makes the others wait, and with what: arithmetic, and two real ranks of which one sleeps 50 ms a step."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from blsp.parts import PARTS, Slow, Stopwatch, slowest
from tests.blsp.test_engine import World, job, trainings
from tests.blsp.trainings import stage_2

SLOW = ("data", "forward", "backward")


def test_the_slowest_is_beside_the_median_of_the_others() -> None:
    own_s = [[0.01, 0.1, 0.2, 0.01], [0.01, 0.1, 0.2, 0.01], [0.01, 0.14, 0.21, 0.01], [0.02, 0.1, 0.2, 0.01]]
    slow = slowest(own_s)
    assert (slow.rank, slow.part, slow.lead_s) == (2, "forward", pytest.approx(0.05))


@pytest.mark.parametrize(("lead_s", "step_s", "clear"), [(0.05, 0.4, True), (0.03, 0.4, False), (0.004, 0.01, False)])
def test_a_word_is_said_from_a_tenth_of_a_step_and_5_ms_on(lead_s: float, step_s: float, clear: bool) -> None:
    assert Slow(1, "data", lead_s).clearly(step_s) == clear


def test_own_seconds_are_the_median_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 10.0, 12.0, 20.0, 29.0, 40.0, 45.0, 50.0, 56.0, 60.0, 67.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    watch = Stopwatch(torch.device("cpu"))

    def medians_after(steps: int) -> tuple[list[float], bool]:
        for _ in range(steps):
            with watch.part("forward"):
                pass
            watch.next_step()
        return watch.medians(), watch.is_enough

    assert watch.medians() == [0] * len(PARTS)
    assert medians_after(3) == ([0, 2, 0, 0], False)
    assert medians_after(2) == ([0, 5, 0, 0], True), "the steps of the line before count where a line has few"
    assert medians_after(1) == ([0, 6, 0, 0], True)


@pytest.fixture(scope="module")
def world(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Runs of 24 steps, told of twice: one with equal ranks, and for each part one whose second rank sleeps in it."""
    root = tmp_path_factory.mktemp("world")
    shared = stage_2(root, llm_folder, clips=12, per_step=6, dropout=0.1, warmup_steps=0, steps=24)
    shared["data"]["micro_batches"] = 2
    shared["engine"] = {"checkpoint_every_steps": 100, "log_every_steps": 12}
    world = World(root, shared)
    jobs = [job(world.recipe("equal")), *(job(world.recipe(part), slow=(1, part)) for part in SLOW)]
    trainings(world, 2, jobs)
    return world


@pytest.mark.slow
def test_a_slow_rank_is_named_once_with_its_part_and_equal_ranks_are_not(world: World) -> None:
    told = re.findall(
        r"step (\d+): rank (\d) \(on \S+\) is slow in (\w+): the others", (world.root / "printed-2.txt").read_text()
    )
    assert told == [("12", "1", part) for part in SLOW]


@pytest.mark.slow
@pytest.mark.parametrize("part", SLOW)
def test_the_log_says_how_far_the_others_are_held_up(world: World, part: str) -> None:
    lines = [json.loads(line) for line in (world.root / part / "log.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["pace/slowest_rank"] == 1
        assert line["pace/slowest_lead"] * line["pace/step_s_p50"] > 0.02
