"""`blsp launch` inside a SLURM job: an agent on every host of the allocation, each started by srun."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from blsp.recipe import TrainRecipe
from cluster.agent_link import Place
from cluster.slurm import CONTROLLER_AWAY_S, allocated_hosts, on_host, one_task_has_all
from cluster.supervise import supervise
from launcher import start
from launcher.quiet import num_gpus

_PYTHON_IN_CONTAINER = "python3"
_SLURM_NOTICES_S = 3600.0  # SlurmdTimeout, five minutes unless the site has other plans, is far below


def train(
    recipe: TrainRecipe,
    config: Path,
    overrides: Sequence[str],
    *,
    processes: int | None,
    container: Path | None,
    debug: bool,
) -> int:
    """Runs to the end of the training over all hosts of the job and returns its exit code. `processes` of each host:
    one per GPU of the job there, or one where it has none. Raises ValueError outside of a job.
    """
    hosts = allocated_hosts()
    one_task_has_all()
    ranks = processes or int(os.environ.get("SLURM_GPUS_ON_NODE") or 0) or num_gpus() or 1
    python, environment = sys.executable, start.environment(ranks)
    if container is not None:
        python = _PYTHON_IN_CONTAINER
        del environment["PATH"]  # ours leads to programs that are not in there
    agent = (python, "-m", "cluster.agent")
    places = [Place(host, ranks, (*on_host(host, container), *agent), None, environment) for host in hosts]
    job = start.job(recipe, config, overrides, _again(recipe), debug)
    job = replace(job, argv=(python, *job.argv[1:]))
    # A host that is lost is SLURM's to notice: it ends this job and queues it again, with other hosts if need be.
    limits = replace(start.limits(recipe), host_timeout_s=_SLURM_NOTICES_S, first_answer_s=CONTROLLER_AWAY_S)
    return supervise(job, places, limits)


def places() -> list[Place]:
    """The hosts of the job, for one process on each."""
    one_task_has_all()
    path = {"PATH": start.environment(1)["PATH"]}
    agent = (sys.executable, "-m", "cluster.agent")
    return [Place(host, 1, (*on_host(host), *agent), None, path) for host in allocated_hosts()]


def _again(recipe: TrainRecipe) -> str:
    """The command that goes on, for people."""
    number = os.environ.get("SLURM_JOB_ID", "")
    script = recipe.run / "slurm" / f"{number}.sh"
    return shlex.join(["sbatch", str(script)] if script.exists() else ["blsp", *sys.argv[1:]])
