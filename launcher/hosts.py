"""`blsp launch --hostfile`: the ranks of a run on the hosts of a hostfile, through an agent on each that ssh starts."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import cluster
from blsp.recipe import TrainRecipe
from cluster.agent_link import Place
from cluster.hostfile import Host, read_hostfile
from cluster.ssh import carried, over_ssh
from cluster.supervise import supervise
from launcher import start


def train(
    recipe: TrainRecipe, config: Path, overrides: Sequence[str], *, hostfile: Path, min_hosts: int | None, debug: bool
) -> int:
    """Runs to the end of the training over all hosts and returns its exit code. With `min_hosts` so many may go on
    without the others. Raises ValueError for a hostfile that is wrong or missing.
    """
    hosts = read(hostfile)
    if min_hosts is not None and min_hosts > len(hosts):
        raise ValueError(f"--min-hosts {min_hosts}: {hostfile} names only {len(hosts)}")
    fewer = [] if min_hosts is None else ["--min-hosts", str(min_hosts)]
    again = shlex.join(["blsp", "launch", str(config), *overrides, "--hostfile", str(hostfile), *fewer])
    job = start.job(recipe, config, overrides, again, debug)
    return supervise(job, [place(host) for host in hosts], start.limits(recipe), min_hosts)


def read(hostfile: Path) -> list[Host]:
    """The hosts of a hostfile. Raises ValueError when it is wrong or missing."""
    try:
        return read_hostfile(hostfile)
    except FileNotFoundError:
        raise ValueError(f"{hostfile}: there is no such hostfile; hostfile.example explains every line") from None


def place(host: Host) -> Place:
    """Where the ranks of one host run."""
    # The agent is of the same files as this process, wherever they lie; the ranks start in this process's folder.
    files = Path(cluster.__file__).resolve().parent.parent
    agent = over_ssh(host.name, [sys.executable, "-m", "cluster.agent"], files)
    environment = carried(os.environ)
    # DeepSpeed looks for its build tools on PATH, and a virtual environment need not be activated.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    return Place(host.name, host.slots, tuple(agent), environment=environment, where=host.where)
