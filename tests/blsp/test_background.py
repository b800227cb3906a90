"""Two real ranks whose disks are slow: training goes on meanwhile, and a kill in the middle loses only what was new."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from blsp.checkpoint_folder import newest_valid
from tests.blsp.test_engine import World, finish, job, start, trainings
from tests.blsp.trainings import stage_2

pytestmark = pytest.mark.slow

STEPS, FIRST = 16, 8
Events = list[tuple[float, str, int]]


@pytest.fixture(scope="module")
def world(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    engine = {"checkpoint_every_steps": FIRST, "log_every_steps": 1}
    return World(root, stage_2(root, llm_folder, clips=24, per_step=6, dropout=0.1, steps=STEPS) | {"engine": engine})


@pytest.fixture(scope="module")
def events(world: World) -> list[Events]:
    """By rank: what happened in the run "slow". The run "killed" has been, too."""
    (world.root / "recipes.json").write_text(json.dumps([world.recipe("slow"), world.recipe("killed")]))
    seen = f"{world.root}/events-{{rank}}.jsonl"
    ranks = start(2, ["tests.blsp.slow_disk", str(world.root / "recipes.json"), seen])
    printed = finish(ranks)
    # One dies of the kill, the other of that or of the first one's silence.
    assert -signal.SIGKILL in [rank.returncode for rank in ranks], "\n".join(printed)
    assert 0 not in [rank.returncode for rank in ranks]
    return [json.loads(Path(seen.format(rank=rank)).read_text()) for rank in range(2)]


def time_s(events: Events, what: str, step: int) -> list[float]:
    return [at_s for at_s, event, of in events if (event, of) == (what, step)]


def test_steps_go_on_while_a_checkpoint_is_written(events: list[Events]) -> None:
    began_s, written_s = min(time_s(events[1], "write", FIRST)), max(time_s(events[1], "written", FIRST))
    steps = [step for at_s, event, step in events[0] if event == "step" and began_s < at_s < written_s]
    assert len(steps) >= 2
    assert steps[0] == FIRST  # the one after: eight are done


def test_a_checkpoint_is_committed_once_all_ranks_have_written(events: list[Events]) -> None:
    assert not [event for event in events[1] if event[1] == "commit"]
    (committed_s,) = time_s(events[0], "commit", FIRST)
    written_s = max(time_s(events[1], "written", FIRST))
    assert max(time_s(events[0], "written", FIRST)) < written_s < committed_s


def test_the_last_checkpoint_is_there_when_the_run_ends(world: World, events: object) -> None:
    assert (
        newest_valid(world.root / "slow" / "checkpoints") == world.root / "slow" / "checkpoints" / f"step-{STEPS:06d}"
    )


def test_a_kill_in_the_middle_of_a_write_leaves_the_checkpoint_before(world: World, events: object) -> None:
    folder = world.root / "killed" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [f".step-{STEPS:06d}.000001.tmp", f"step-{FIRST:06d}"]
    assert newest_valid(folder) == folder / f"step-{FIRST:06d}"


def test_and_the_rest_from_there_equals_a_run_that_was_not_killed(world: World, events: object) -> None:
    results: list[list[dict[str, Any]]] = trainings(world, 2, [job(world.recipe("killed"))])
    assert [result["error"] for (result,) in results] == [None, None]
    assert world.log("killed") == world.log("slow")
    assert world.weights("killed") == world.weights("slow")
    assert world.checkpoints("killed") == world.checkpoints("slow")
