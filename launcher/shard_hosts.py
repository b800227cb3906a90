"""`blsp shard` over many hosts: a Ray cluster that is brought up for the job, through an agent on each host."""

from __future__ import annotations

import math
import os
import secrets
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from blsp.recipe import ShardRecipe
from cluster.agent_link import Place
from cluster.supervise import Job, Limits, supervise
from shards.pipeline.actors import GOES_ON
from shards.sets.store import open_store

_RESTARTS = 20


def shard(recipe: ShardRecipe, config: Path, overrides: Sequence[str], places: Sequence[Place], debug: bool) -> int:
    """Runs to the end of the job and returns its exit code. A host that is lost is done without: the others begin its
    unfinished shards again. One of a hostfile that does not answer in the beginning is an error."""
    if recipe.ray_address is not None:
        raise ValueError(
            f"ray_address = {recipe.ray_address} names a cluster that is there; leave it out, or the hosts"
        )
    # Whoever holds the token may run code on all hosts; it goes to them through the agents' stdin.
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    places = [replace(place, ranks=1, environment={**place.environment, **known}) for place in places]
    arguments = ["--config", str(config), *overrides, *(["--debug"] if debug else [])]
    store = open_store(recipe.out)
    with tempfile.TemporaryDirectory() as folder:  # a set has no failure.json
        job = Job(
            argv=(sys.executable, "-u", "-m", "launcher.shard_rank", *arguments),
            folder=Path.cwd(),
            run=Path(folder),
            resume=shlex.join(["blsp", *sys.argv[1:]]),
            progress=lambda: len(store.names("commits")),
            goes_on=GOES_ON,
        )
        forever = math.inf  # the pipeline watches its own work
        limits = Limits(forever, forever, forever, restarts=_RESTARTS, host_timeout_s=0)
        named = all(place.where for place in places)  # by a person, who may have mistyped one
        return supervise(job, places, limits, min_hosts=1, all_at_first=named)


def in_allocation() -> bool:
    """Whether this is a SLURM job of several hosts."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES") or 1) > 1
