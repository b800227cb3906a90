"""One rank that runs several trainings in one process: `python -m tests.blsp.trainings JOBS.json RESULTS.jsonl`.

A job is {"recipe": {...}, "stop_in_step": int or null, "plant": path or null}; a result is
{"error": name or null, "message": str}. `stop_in_step` sends this process a SIGTERM while rank 0 reports that step:
after the ranks have agreed about it. `plant` first puts code into the newest checkpoint that would make that file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from blsp.checkpoint_folder import file_hash
from blsp.engine import train
from blsp.recipe import TrainRecipe


class Payload:
    """Makes the file `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def plant(run: Path, marker: Path) -> None:
    """Put code into the newest checkpoint of a run, and hashes that belong to it."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    path = next((newest / "zero").glob("*optim_states.pt"))
    torch.save({"optimizer_state_dict": Payload(marker)}, path)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest[f"zero/{path.name}"] = {"bytes": path.stat().st_size, "blake2b": file_hash(path)}
    (newest / "manifest.json").write_text(json.dumps(manifest))


def run(job: dict[str, Any]) -> dict[str, str | None]:
    """Train as the job says."""

    def on_step(done: int, total: int, note: str) -> None:
        if done == job["stop_in_step"]:
            os.kill(os.getpid(), signal.SIGTERM)

    if job["plant"]:
        plant(Path(job["recipe"]["run"]), Path(job["plant"]))
    try:
        train(TrainRecipe.model_validate(job["recipe"]), on_step)
    except (ValueError, FloatingPointError, KeyboardInterrupt) as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": None, "message": ""}


if __name__ == "__main__":
    # All trainings of this process share one group: DeepSpeed cannot make a second one.
    dist.destroy_process_group = lambda: None
    with Path(sys.argv[2]).open("w") as results:
        for job in json.loads(Path(sys.argv[1]).read_text()):
            results.write(json.dumps(run(job)) + "\n")
