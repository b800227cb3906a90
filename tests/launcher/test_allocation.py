"""What `blsp launch` starts inside a SLURM job; a real one is in test_slurm.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from blsp.recipe import TrainRecipe
from launcher import allocation
from launcher.recipe_files import load_kind


def launched(monkeypatch: pytest.MonkeyPatch, folder: Path, **options: Any) -> Any:
    """(job, places, limits) of a launch in a job of two hosts."""
    given: list[Any] = []

    def supervise(*arguments: Any) -> int:
        given.extend(arguments)
        return 0

    monkeypatch.setattr(allocation, "supervise", supervise)
    fake = folder / "scontrol"
    fake.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[7,9]" ] && printf "n7\\nn9\\n"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[7,9]")
    recipe = load_kind(TrainRecipe, "mini_stage1")
    asked = {"processes": None, "container": None, "debug": False, **options}
    assert allocation.train(recipe, Path("mini_stage1"), ["data.seed=2"], **asked) == 0
    return given


def test_every_host_of_the_job_has_an_agent_and_a_rank_per_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.setenv(name, "12")  # which srun would take for its step's
    job, places, limits = launched(monkeypatch, tmp_path)
    assert [(place.name, place.ranks) for place in places] == [("n7", 4), ("n9", 4)]
    command = places[1].command
    assert command[0] == "srun"
    assert {"--nodelist=n9", "--nodes=1", "--ntasks=1", "--overlap", "--cpu-bind=none"} <= set(command)
    assert command[-3:] == (sys.executable, "-m", "cluster.agent")
    assert not [name for name in os.environ if name.endswith(("_PER_TASK", "_PER_NODE"))]
    assert job.argv[-3:] == ("--config", "mini_stage1", "data.seed=2")
    assert limits.host_timeout_s > 300, "SLURM's own patience with a host is over first"
    assert limits.first_answer_s >= 60, "srun starts nothing while SLURM's controller is restarted"
    _, places, _ = launched(monkeypatch, tmp_path, processes=2)
    assert [place.ranks for place in places] == [2, 2]


def test_in_a_container_agents_and_ranks_use_its_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job, places, _ = launched(monkeypatch, tmp_path, container=Path("--a b.sif"))
    image = str(Path.cwd() / "--a b.sif")  # never an option
    assert places[0].command[-7:] == ("apptainer", "exec", "--nv", image, "python3", "-m", "cluster.agent")
    assert job.argv[0] == "python3"
    assert "PATH" not in places[0].environment


def test_outside_of_a_job_a_launch_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(ValueError, match="no SLURM job; start it with `blsp submit`"):
        allocation.train(load_kind(TrainRecipe, "mini_stage1"), Path(), [], processes=None, container=None, debug=False)
