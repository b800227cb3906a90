"""One rank that runs several trainings in one process: `python -m tests.blsp.trainings JOBS.json RESULTS.jsonl`.

A job is {"recipe": {...}, "stop_in_step": int or null, "rival_in_step": int or null, "break_in": [step, micro-batch] or
null, "plant": [path, file] or null, "spoil": [[step, rank, what], ...], "poison": bool, "slow": [rank, part] or null};
a result is {"error": name or null, "message": str, "random": the state of every generator, hashed}. `stop_in_step`
sends this process a SIGTERM while rank 0 reports that step: after the ranks have agreed about it. In `rival_in_step`
another host claims the run folder. `break_in` ends the training as a crash would in the middle of a step. `plant` first
puts code that would make that path into a file of the newest checkpoint. `spoil` makes a rank's share of a step (from
1) bad: its "loss" is NaN, or only its "gradient", or they leap a thousandfold ("loss leaps", "gradient leaps").
`poison` first makes one number of the newest checkpoint's moments NaN. `slow` makes a rank sleep 150 ms a step, in
"data", "forward" or "backward", or lets its kernel send 1 MB a second at most ("communication"). What each rank heard
in each step, fillers aside, is left in the run folder, in heard-<ranks>-<rank>.jsonl. A job {"replay": [run, step,
folder]} runs a past step again as `blsp replay` does; the result's message is what that printed. Only rank 0 may choose
the clips that a validation asks all ranks about.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import math
import os
import pickle
import random
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from blsp import engine, guard, shown, tone
from blsp.checkpoint_folder import file_hash, write_manifest
from blsp.engine import train
from blsp.losses import COLUMNS
from blsp.recipe import TrainRecipe
from blsp.run import Stage
from launcher.cli import main
from shards.batches.collate import Batch
from shards.batches.reader import Reader
from tests.blsp.tiny import LORA, STAGE_2, make_encoder, make_shards, model_section

_SO_MAX_PACING_RATE, _UNLIMITED = 47, 2**64 - 1  # of Linux
_SLEEP_S = 0.15  # most of a step, so that a busy machine does not hide it


class Payload:
    """Makes the file `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def stage_2(root: Path, llm: Path, *, clips: int, per_step: int, dropout: float, **optim: Any) -> dict[str, Any]:
    """What the runs of a test share: everything that has a state trains, on new shards in `root/data`. A step is three
    micro-batches and a line of the log."""
    model = model_section(llm, make_encoder(root / "encoder"), lora={**LORA, "dropout": dropout})
    shards = make_shards(root / "data", "continue_emotion", clips)
    return {
        "kind": "train", "model": model.model_dump(mode="json"), "stage": STAGE_2.model_dump(mode="json"),
        "data": {"shards": str(shards), "clips_per_step": per_step, "micro_batches": 3},
        "optim": {"lr": dict.fromkeys(STAGE_2.train, 1e-3), "warmup_steps": 2, **optim},
        "engine": {"checkpoint_every_steps": 10, "log_every_steps": 1},
    }  # fmt: skip


def plant(run: Path, marker: Path, file: str) -> None:
    """Put code into a file of the newest checkpoint of a run, and hashes that belong to it."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    manifest = json.loads((newest / "manifest.json").read_text())
    path = newest / file
    if path.suffix == ".pt":
        torch.save({"optimizer_state_dict": Payload(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(marker)))
    if file in manifest:
        manifest[file] = {"bytes": path.stat().st_size, "blake2b": file_hash(path)}
        (newest / "manifest.json").write_text(json.dumps(manifest))


def moments(content: Any) -> Iterator[torch.Tensor]:
    """AdamW's means, wherever in a file of DeepSpeed's they are."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from [value] if name == "exp_avg" else moments(value)
    elif isinstance(content, list):
        for value in content:
            yield from moments(value)


def poison(run: Path) -> None:
    """One number among the moments in the newest checkpoint of a run is NaN, and the hashes belong to it."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    path = sorted((newest / "zero").glob("*optim_states.pt"))[0]
    content = torch.load(path, weights_only=True)
    next(moments(content)).flatten()[3] = math.nan
    torch.save(content, path)
    write_manifest(newest)


def breaking(step: int, micro_batch: int) -> AbstractContextManager[object]:
    """The process comes no further than this."""
    backward = engine.backward

    def break_off(run: Any, at: int, index: int, batch: Any) -> Any:
        if (at, index) == (step, micro_batch):
            raise KeyboardInterrupt("broken off")
        return backward(run, at, index, batch)

    return mock.patch.object(engine, "backward", break_off)


@contextmanager
def spoiling(spoils: list[tuple[int, int, str]]) -> Iterator[None]:
    """The model itself says so, in the first micro-batch of the step."""
    backward, forward = engine.backward, Stage.forward
    found: list[str] = []

    def noted(run: Any, at: int, index: int, batch: Any) -> Any:
        if index == 0:
            found[:] = [what for step, rank, what in spoils if (step, rank) == (at + 1, dist.get_rank())]
        return backward(run, at, index, batch)

    def spoiled(stage: Stage, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        total, table = forward(stage, *given)
        what = found.pop() if found and torch.is_grad_enabled() else ""
        if what.startswith("loss"):
            table = table.clone()
            table[0, COLUMNS.index("ce_sum")] *= 1000 if "leaps" in what else math.nan
        if what.startswith("gradient") or what == "loss":
            total = total * (1000 if "leaps" in what else math.nan)
        return total, table

    with (
        mock.patch.object(engine, "backward", noted), mock.patch.object(Stage, "forward", spoiled),
        mock.patch.object(guard, "_FEWEST", 4),
    ):  # fmt: skip
        yield


def pace(bytes_per_s: int) -> None:
    """How fast the kernel may send what this process writes to other hosts and ranks."""
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError):  # the folder that was just read is closed
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as connection:
                    if connection.family in (socket.AF_INET, socket.AF_INET6):
                        connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("Q", bytes_per_s))


@contextmanager
def slowing(rank: int, part: str) -> Iterator[None]:
    """In the model itself, or in its process' connections; `run` does so for "data"."""
    forward = Stage.forward

    def sleepy(gradient: torch.Tensor) -> None:
        time.sleep(_SLEEP_S)

    def slowly(stage: Stage, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if (part, rank) == ("forward", dist.get_rank()):
            time.sleep(_SLEEP_S)
        if (part, rank) == ("communication", dist.get_rank()):
            pace(1_000_000)  # the connections are there by now
        total, table = forward(stage, *given)
        if (part, rank) == ("backward", dist.get_rank()):
            total.register_hook(sleepy)
        return total, table

    with mock.patch.object(Stage, "forward", slowly):
        yield
    pace(_UNLIMITED)


def generators() -> str:
    """All there are: torch's, numpy's, Python's."""
    states = [torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state(legacy=True)), repr(random.getstate())]
    return hashlib.blake2b(repr(states).encode()).hexdigest()


def blsp(*arguments: str) -> dict[str, str | None]:
    """The command, in this process."""
    printed = io.StringIO()
    with mock.patch.object(sys, "argv", ["blsp", *arguments]), redirect_stdout(printed):
        try:
            main()
        except SystemExit as left:
            return {"error": str(left.code) if left.code else None, "message": printed.getvalue(), "random": ""}
    raise AssertionError("the command left without an exit code")


def rank_0_chooses() -> AbstractContextManager[object]:
    """The others have no eyes for the clips of a validation."""
    stack = ExitStack()
    if os.environ["RANK"] != "0":
        stack.enter_context(mock.patch.object(shown, "_readable", lambda shard_set, rows: []))
        stack.enter_context(mock.patch.object(tone, "find_takes", lambda clips, rows: []))
    return stack


def run(job: dict[str, Any]) -> dict[str, str | None]:
    """Train as the job says, or run a step again."""
    if "replay" in job:
        return blsp("replay", *map(str, job["replay"]))
    random.seed(0)
    np.random.seed(0)

    def on_step(done: int, total: int, note: str) -> None:
        if done == job["stop_in_step"]:
            os.kill(os.getpid(), signal.SIGTERM)
        if done == job["rival_in_step"]:
            (Path(job["recipe"]["run"]) / ".owner" / "999999.json").write_text("{}")

    steps = Reader.steps

    def heard(reader: Reader, start: int, end: int) -> Iterator[tuple[int, list[Batch]]]:
        with Path(job["recipe"]["run"], f"heard-{dist.get_world_size()}-{dist.get_rank()}.jsonl").open("a") as file:
            for step, batches in steps(reader, start, end):
                if job["slow"] == [dist.get_rank(), "data"]:
                    time.sleep(_SLEEP_S)
                file.write(
                    json.dumps(
                        {
                            "step": step,
                            "ids": [clip for batch in batches if batch.row_weight.any() for clip in batch.ids],
                        }
                    )
                    + "\n"
                )
                yield step, batches

    if job["plant"]:
        marker, file = job["plant"]
        plant(Path(job["recipe"]["run"]), Path(marker), file)
    if job["poison"]:
        poison(Path(job["recipe"]["run"]))
    try:
        with (
            mock.patch.object(Reader, "steps", heard),
            breaking(*job["break_in"]) if job["break_in"] else nullcontext(),
            spoiling(job["spoil"]) if job["spoil"] else nullcontext(),
            slowing(*job["slow"]) if job["slow"] else nullcontext(),
            rank_0_chooses(),
        ):
            train(TrainRecipe.model_validate(job["recipe"]), on_step)
    except (ValueError, FloatingPointError, KeyboardInterrupt) as error:
        return {"error": type(error).__name__, "message": str(error), "random": ""}
    return {"error": None, "message": "", "random": generators()}


if __name__ == "__main__":
    gc.freeze()  # DeepSpeed collects garbage at each start, and would look through all libraries each time
    # All trainings of this process share one group: DeepSpeed cannot make a second one.
    dist.destroy_process_group = lambda: None
    with Path(sys.argv[2]).open("w") as results:
        for job in json.loads(Path(sys.argv[1]).read_text()):
            results.write(json.dumps(run(job)) + "\n")
