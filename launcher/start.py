"""Starts training processes on one host or many: a `deepspeed` command line around `launcher.train`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.hostfile import read_hostfile
from cluster.ports import free_port
from launcher.quiet import has_gpu


def command(
    config: Path, overrides: Sequence[str], *, hostfile: Path | None, processes: int | None, debug: bool = False
) -> list[str]:
    """The argument list. Without a hostfile: on this host, one process per GPU, or one where there is no GPU.

    Raises ValueError or OSError for a hostfile that is wrong or missing.
    """
    deepspeed = [sys.executable, "-m", "deepspeed.launcher.runner"]
    if hostfile is not None:
        if processes is not None:
            raise ValueError("give --hostfile (its slots are the numbers of processes) or --processes, not both")
        read_hostfile(hostfile)
        deepspeed += ["--hostfile", str(hostfile)]
    else:
        # Two runs on one host must not meet on DeepSpeed's fixed port.
        deepspeed += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
        if processes is None and not has_gpu():
            processes = 1
        if processes is not None:
            deepspeed += ["--num_accelerators", str(processes)]
    training = ["--quiet", "--module", "launcher.train", "--config", str(config), *overrides]
    return [*deepspeed, *training, *(["--debug"] if debug else [])]


def run(arguments: Sequence[str], processes: int | None) -> int:
    """Runs the command to its end and returns its exit code. Ctrl-C reaches all processes; their end is awaited."""
    child = subprocess.Popen(arguments, env=_environment(processes or 1))
    try:
        return child.wait()
    except KeyboardInterrupt:
        # The terminal sent it to the child too; a Ctrl-C sent to this process alone is passed on.
        child.send_signal(signal.SIGINT)
        child.wait()
        raise


def _environment(processes: int) -> dict[str, str]:
    environment = dict(os.environ)
    # DeepSpeed looks for its build tools on PATH, and a virtual environment need not be activated.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    if not has_gpu():
        environment.setdefault("DS_ACCELERATOR", "cpu")
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    return environment
