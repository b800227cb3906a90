"""What `blsp train` hands to the coordinator, and to the ranks through it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from blsp.recipe import TrainRecipe
from cluster.agent_link import Place
from cluster.supervise import Job, Limits
from launcher import quiet, start
from launcher.recipe_files import find, load_kind

OVERRIDES = ["data.seed=2", "supervision.hang_timeout_s=70.0"]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "has_gpu", lambda: False)
    monkeypatch.setattr(start, "num_gpus", lambda: 0)


def started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processes: int | None, debug: bool = False
) -> tuple[Job, Place, Limits]:
    """What `start.train` would have supervised."""
    given: list[Any] = []
    monkeypatch.setattr(start, "supervise", lambda *all_of_it: given.append(all_of_it) or 75)
    recipe = load_kind(TrainRecipe, "mini_stage1", [*OVERRIDES, f"run={tmp_path}"])
    assert start.train(recipe, find("mini_stage1"), OVERRIDES, processes=processes, debug=debug) == 75
    [(job, [place], limits)] = given
    return job, place, limits


def test_every_rank_runs_the_recipe_with_its_overrides(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job, place, limits = started(monkeypatch, tmp_path, 2, debug=True)
    assert job.argv[:4] == (sys.executable, "-u", "-m", "launcher.train")
    assert job.argv[4:] == ("--config", str(find("mini_stage1")), *OVERRIDES, "--debug")
    assert job.resume == f"blsp train {find('mini_stage1')} {' '.join(OVERRIDES)} --processes 2"
    assert (place.ranks, place.is_here, job.run) == (2, True, tmp_path)
    assert (limits.hang_timeout_s, limits.restarts) == (70.0, 20)


def test_there_is_one_process_per_gpu_or_one(no_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert started(monkeypatch, tmp_path, None)[1].ranks == 1
    monkeypatch.setattr(start, "num_gpus", lambda: 8)
    assert started(monkeypatch, tmp_path, None)[1].ranks == 8


def test_a_newer_checkpoint_is_progress(no_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job, _, _ = started(monkeypatch, tmp_path, 1)
    seen = [job.progress()]
    for step in (9, 10):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f".step-{step + 1:06d}.tmp").mkdir()
        seen.append(job.progress())
    assert len(set(map(str, seen))) == 3 and seen[0] is None
    assert job.progress() == seen[-1]


def test_gpus_are_counted_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "has_gpu", lambda: False)
    assert quiet.num_gpus() == 0
    monkeypatch.setattr(quiet, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    assert quiet.num_gpus() == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-8d0b1e,MIG-8d0b1f")
    assert quiet.num_gpus() == 2


def test_threads_are_shared_out_and_the_environment_of_the_user_wins(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    found = start.environment(2)
    assert (found["OMP_NUM_THREADS"], found["DS_ACCELERATOR"]) == ("4", "cpu")
    assert found["PATH"].startswith(str(Path(sys.executable).parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert start.environment(2)["OMP_NUM_THREADS"] == "1"
