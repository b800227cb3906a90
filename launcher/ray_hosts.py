"""`blsp shard` and `blsp eval` over many hosts: a Ray cluster brought up for the job, through an agent on each host."""

from __future__ import annotations

import math
import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from blsp.evaluate import kept
from blsp.recipe import EvalRecipe, ShardRecipe
from cluster.agent_link import Place
from cluster.slurm import CONTROLLER_AWAY_S
from cluster.supervise import Job, Limits, supervise
from launcher import allocation, hosts
from shards.pipeline import actors
from shards.sets.store import open_store

_RESTARTS = 20


def places(recipe: ShardRecipe | EvalRecipe, hostfile: Path | None) -> list[Place] | None:
    """The hosts of the hostfile, or of the SLURM job; None when the recipe is for this process. Raises ValueError for
    a hostfile that is wrong, or beside another cluster."""
    if hostfile is not None:
        if recipe.ray_address is not None:
            raise ValueError(
                f"ray_address = {recipe.ray_address} names a cluster that is there; leave it out, or the hostfile"
            )
        return [hosts.place(host) for host in hosts.read(hostfile)]
    in_allocation = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1) > 1
    return allocation.places() if in_allocation and recipe.ray_address is None else None


def run(
    recipe: ShardRecipe | EvalRecipe, config: Path, overrides: Sequence[str], places: Sequence[Place], debug: bool
) -> int:
    """Runs to the end of the job and returns its exit code. A host that is lost is done without: the others do what is
    unfinished. One of a hostfile that does not answer in the beginning is an error."""
    # Whoever holds the token may run code on all hosts; it goes to them through the agents' stdin.
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    places = [replace(place, ranks=1, environment={**place.environment, **known}) for place in places]
    arguments = ["--config", str(config), *overrides, *(["--debug"] if debug else [])]
    progress, goes_on = _progress(recipe)
    with tempfile.TemporaryDirectory() as folder:  # such a job has no failure.json
        job = Job(
            argv=(sys.executable, "-u", "-m", "launcher.ray_rank", *arguments),
            folder=Path.cwd(),
            run=Path(folder),
            resume=shlex.join(["blsp", *sys.argv[1:]]),
            progress=progress,
            goes_on=goes_on,
        )
        forever = math.inf  # the job watches its own work
        named = all(place.where for place in places)  # by a person, who may have mistyped one
        first_answer_s = 0.0 if named else CONTROLLER_AWAY_S
        limits = Limits(forever, forever, forever, _RESTARTS, host_timeout_s=0, first_answer_s=first_answer_s)
        return supervise(job, places, limits, min_hosts=1, all_at_first=named)


def _progress(recipe: ShardRecipe | EvalRecipe) -> tuple[Callable[[], int], str]:
    """How much is finished, and what becomes of it."""
    if isinstance(recipe, EvalRecipe):
        answers = kept.KeptAnswers(recipe.out)
        return lambda: len(answers), kept.GOES_ON
    store = open_store(recipe.out)
    return lambda: len(store.names("commits")), actors.GOES_ON
