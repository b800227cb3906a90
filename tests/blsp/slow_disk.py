"""One rank that trains on a slow disk: `python -m tests.blsp.slow_disk RECIPES.json EVENTS.jsonl`.

RECIPES is [the run, the run that is killed]. An event is [seconds, what, step], what being "step", "write", "written"
or "commit". A file takes 0.1 s longer on rank 0 and 0.6 s on rank 1. In the second run both ranks are killed when half
of a file of their second checkpoint is on the disk.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from blsp import engine, snapshot
from blsp.checkpoint import Saver
from blsp.recipe import TrainRecipe

DELAYS_S = (0.1, 0.6)


def observe(events: list[Any], killed_in_step: int | None) -> None:
    """Wrap the product's own functions."""
    agree, write, commit = engine._agree, snapshot.write_file, Saver._commit

    def tell(what: str, step: int) -> None:
        events.append([time.monotonic(), what, step])

    def agreed(run: Any, losses: Any) -> Any:
        tell("step", run.step)
        return agree(run, losses)

    def slowly(content: Any, path: Path) -> None:
        step = int(re.search(r"step-(\d+)", str(path))[1])  # type: ignore[index]
        if step == killed_in_step:
            write(content, path)
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        tell("write", step)
        time.sleep(DELAYS_S[dist.get_rank()])
        write(content, path)
        tell("written", step)

    def commits(saver: Saver) -> None:
        tell("commit", saver._state.step)  # type: ignore[union-attr]
        commit(saver)

    engine._agree, snapshot.write_file = agreed, slowly
    Saver._commit = commits  # type: ignore[method-assign]


if __name__ == "__main__":
    gc.freeze()  # DeepSpeed collects garbage at each start, and would look through all libraries each time
    dist.destroy_process_group = lambda: None  # DeepSpeed cannot make a second group in a process
    recipes = json.loads(Path(sys.argv[1]).read_text())
    seen: list[Any] = []
    observe(seen, None)
    engine.train(TrainRecipe.model_validate(recipes[0]))
    Path(sys.argv[2]).write_text(json.dumps(seen))
    observe(seen, recipes[1]["optim"]["steps"])
    engine.train(TrainRecipe.model_validate(recipes[1]))
