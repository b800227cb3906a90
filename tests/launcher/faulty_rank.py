"""A rank of a training to which things happen: `python -m tests.launcher.faulty_rank FAULTS.json --config RECIPE`.

A fault is {"rank", "step" (from 0), "what"} and happens once in a run, whatever is started again: "kill" ends the rank
as the kernel does when memory is short, "sleep" keeps it from ever getting on, "slow save" makes that step's save slow.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from blsp import engine
from launcher.train import main

SLOW_S = 6.0


def happens(what: str, step: int) -> bool:
    """Whether this fault is due here and now, for the first time."""
    for fault in json.loads(faults.read_text()):
        done = faults.with_name(f"{fault['what']}.done")
        if fault == {"rank": int(os.environ["RANK"]), "step": step, "what": what} and not done.exists():
            done.touch()
            return True
    return False


def backward(run: Any, step: int, index: int, batch: Any) -> Any:
    if happens("kill", step):
        os.kill(os.getpid(), signal.SIGKILL)
    if happens("sleep", step):
        time.sleep(600)
    return real_backward(run, step, index, batch)


def save(run: Any) -> None:
    if happens("slow save", run.step):
        time.sleep(SLOW_S)
    real_save(run)


if __name__ == "__main__":
    faults = Path(sys.argv.pop(1))
    real_backward, real_save = engine.backward, engine.save
    engine.backward, engine.save = backward, save
    sys.exit(main())
