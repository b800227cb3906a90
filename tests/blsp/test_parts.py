"""Who makes the others wait, and with what: arithmetic, and two real ranks of which one sleeps 150 ms a step, or whose
kernel sends slowly."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from blsp.parts import PARTS, Stopwatch, is_clear, slowest
from tests.blsp.test_engine import World, job, trainings
from tests.blsp.trainings import stage_2

SLOW = ("data", "forward", "backward")


def test_the_slowest_is_beside_the_median_of_the_others() -> None:
    own_s = [[0.01, 0.1, 0.2, 0.01], [0.01, 0.1, 0.2, 0.01], [0.01, 0.14, 0.21, 0.01], [0.02, 0.1, 0.2, 0.01]]
    slow = slowest(own_s)
    assert (slow.rank, slow.part, slow.lead_s) == (2, "forward", pytest.approx(0.05))


@pytest.mark.parametrize(("lead_s", "step_s", "clear"), [(0.05, 0.4, True), (0.03, 0.4, False), (0.004, 0.01, False)])
def test_a_word_is_said_from_a_tenth_of_a_step_and_5_ms_on(lead_s: float, step_s: float, clear: bool) -> None:
    assert is_clear(lead_s, step_s) == clear


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
    """Runs of 16 steps, told of twice: one with equal ranks, for each part one whose second rank sleeps in it, and one
    whose second rank sends 1 MB a second."""
    root = tmp_path_factory.mktemp("world")
    shared = stage_2(root, llm_folder, clips=12, per_step=6, dropout=0.1, warmup_steps=0, steps=16)
    shared["data"]["micro_batches"] = 2
    shared["engine"] = {"checkpoint_every_steps": 100, "log_every_steps": 8}
    world = World(root, shared)
    slow = [job(world.recipe(part), slow=(1, part)) for part in (*SLOW, "communication")]
    jobs = [job(world.recipe("equal")), *slow]
    trainings(world, 2, jobs)
    return world


@pytest.mark.slow
def test_a_slow_rank_is_named_once_with_its_part_and_equal_ranks_are_not(world: World) -> None:
    said = [re.findall(r"step (\d+): rank (\d) \(on \S+\) is slow in (\w+)", run) for run in printed(world)]
    assert said[1:4] == [[("8", "1", part)] for part in SLOW]
    # Where other work holds one of them up, it is slow in truth; the log then has it.
    assert len(said[0]) <= sum(line["pace/slowest_lead"] >= 0.1 for line in log(world, "equal"))


@pytest.mark.slow
def test_a_rank_that_sends_slowly_is_named_once_with_what_that_costs(world: World) -> None:
    said = r"step 8: rank 1 \(on \S+\) is slow in communication: its link costs about (\d+) ms of a step's (\d+) ms; "
    ((costs_ms, step_ms, took_ms, others_ms),) = re.findall(
        said + r"1 MiB from rank 1 to rank 0 takes (\d+) ms, elsewhere (\S+) ms", printed(world)[4]
    )
    assert int(costs_ms) == pytest.approx(80, rel=0.3), "160 kB of a step's, at 1 MB/s"
    assert int(step_ms) > int(costs_ms)
    assert int(took_ms) == pytest.approx(1000, rel=0.2)
    assert float(others_ms) < 200
    assert printed(world)[4].count("slow in communication") == 1
    assert min(line["pace/communication"] for line in log(world, "communication")) > 0.1


def printed(world: World) -> list[str]:
    """By each run."""
    return (world.root / "printed-2.txt").read_text().split("plan: ")[1:]


def log(world: World, name: str) -> list[dict[str, float]]:
    """With how fast it was."""
    return [json.loads(line) for line in (world.root / name / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("part", SLOW)
def test_the_log_says_how_far_the_others_are_held_up(world: World, part: str) -> None:
    for line in log(world, part):
        assert line["pace/slowest_rank"] == 1
        assert line["pace/slowest_lead"] * line["pace/step_s_p50"] > 0.06
