"""Runs of stand-in ranks: a few lines of Python in place of a training, so that a launch costs tenths of a second.

`python -m tests.cluster.standin RUN CODE HOSTS LIMITS` coordinates such a run from a process of its own. One of LIMITS
may be "stop_grace_s", how long the other ranks have after the first one has stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cluster import supervise as supervision
from cluster.agent_link import here
from cluster.supervise import Job, Limits, supervise

LIMITS = Limits(start_timeout_s=20, hang_timeout_s=1, aside_timeout_s=20, restarts=9, host_timeout_s=20)
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from cluster.heartbeat import beat, tell_failure
rank, run = int(os.environ["RANK"]), Path(sys.argv[1])
first = not (run / f"{rank}.began").exists()
(run / f"{rank}.began").touch()
(run / f"{rank}.pid").write_text(str(os.getpid()))
def checkpoint(step):
    (run / "newest").write_text(str(step))
"""


READY = "(run / f'{rank}.ready').touch()\n"


def coordinate(run: Path, code: str, hosts: Sequence[int] = (2,), limits: Limits = LIMITS) -> int:
    """Exit code of a run whose ranks do `code`, on stand-in hosts with so many ranks each."""
    newest = run / "newest"
    job = Job(
        argv=(sys.executable, "-c", PRELUDE + code, str(run)), folder=Path.cwd(), run=run, resume="blsp train recipe",
        progress=lambda: newest.read_text() if newest.exists() else None,
    )  # fmt: skip
    places = [replace(here(f"host-{i}", ranks, {"A": "1"}), address="127.0.0.1") for i, ranks in enumerate(hosts)]
    return supervise(job, places, limits)


def in_time(condition: Callable[[], bool], limit_s: float = 20) -> bool:
    """Whether it comes true."""
    until_s = time.monotonic() + limit_s
    while not condition() and time.monotonic() < until_s:
        time.sleep(0.02)
    return condition()


def started(run: Path, code: str, limits: str = "{}") -> subprocess.Popen[str]:
    """A coordinator of its own with two ranks that have come to `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.standin", str(run), code, "[2]", limits],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert in_time(lambda: (run / "0.ready").exists() and (run / "1.ready").exists())
    return process


if __name__ == "__main__":
    folder, lines, ranks = sys.argv[1:4]
    fields = json.loads(sys.argv[4])
    supervision._STOP_GRACE_S = fields.pop("stop_grace_s", supervision._STOP_GRACE_S)
    sys.exit(coordinate(Path(folder), lines, json.loads(ranks), replace(LIMITS, **fields)))
