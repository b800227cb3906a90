"""Saves of a real ZeRO-3 state that are killed, or fail, at every call that changes the disk: `python -m
tests.blsp.failing_saves FOLDER RESULTS.json`.

The calls of an undisturbed save, and for each fault {"what", "at", "newest": the checkpoint that is then the newest
valid one, "weights": the hash of what DeepSpeed loads from it, "said", "after": what lies there after one more save}.
Step 5 is saved when the save of step 10 begins; of step 3 there is an unfinished one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from blsp import checkpoint, zero
from blsp.checkpoint import Saver
from blsp.checkpoint_folder import TrainingState, newest_valid, temporary_name
from blsp.meeting import join
from cluster import files
from tests.blsp import syscalls
from tests.blsp.syscalls import Fault


def make_engine() -> Any:
    """Two small weights under ZeRO 3."""
    torch.manual_seed(0)
    module = nn.Linear(40, 30)
    settings = {
        "train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }  # fmt: skip
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    return engine


def train(engine: Any) -> str:
    """One step. Returns the hash of the weights and moments after it."""
    engine.backward(engine(torch.ones(1, 40)).square().sum())
    engine.step()
    return digest(engine)


def digest(engine: Any) -> str:
    """Of all that trains."""
    optimizer = engine.optimizer
    tensors = [*optimizer.fp32_partitioned_groups_flat]
    for state in optimizer.optimizer.state.values():
        tensors += [state["exp_avg"], state["exp_avg_sq"]]
    return hashlib.blake2b(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def without_threads() -> None:
    """A forked process has none of gloo's; it is a world of one, and what it tells itself needs none."""

    def gather(told: list[Any], mine: Any, *_: Any) -> None:
        told[0] = mine

    dist.all_gather_object = gather
    dist.broadcast_object_list = dist.barrier = dist.all_reduce = lambda *arguments, **options: None


def save(engine: Any, folder: Path, step: int) -> str:
    """Returns what was said of it."""
    said = StringIO()
    with redirect_stdout(said):
        saver = Saver(engine, folder, keep=1)
        saver.save(TrainingState(step, "plan", 1, {}, {}))
        saver.flush()
    return said.getvalue()


def follow_up(engine: Any, folder: Path, out: Path) -> None:
    """What a new start finds, and what its next save leaves."""
    newest = newest_valid(folder)
    assert newest is not None
    checkpoint.load(engine, newest)
    found = {"newest": newest.name, "weights": digest(engine)}
    save(engine, folder, 15)
    out.write_text(json.dumps({**found, "after": sorted(path.name for path in folder.iterdir())}))


def apart(action: Callable[[], object]) -> None:
    """In a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.waitpid(pid, 0)


def main(root: Path, out: Path) -> None:
    """All of it; the collectives of this process are no more to be used afterwards."""
    zero.prepare_environment()
    join()
    engine = make_engine()
    weights = {5: train(engine)}
    template = root / "template"
    save(engine, template, 5)
    leftover = template / temporary_name(3, 0) / "zero"
    leftover.mkdir(parents=True)
    (leftover / "weights.pt").write_text("half of it")
    weights[10] = train(engine)
    without_threads()
    files._PAUSES_S = (0.0, 0.0)  # type: ignore[assignment]
    checkpoint._PATIENCE_S = 0.02
    number = 0

    def tried(fault: Fault | None) -> tuple[list[syscalls.Call], dict[str, Any]]:
        nonlocal number
        number += 1
        folder, said, found = root / str(number), root / f"{number}.txt", root / f"{number}.json"
        shutil.copytree(template, folder)
        calls = syscalls.run(
            lambda: said.write_text(save(engine, folder, 10)), folder, fault, lambda: follow_up(engine, folder, found)
        )
        if not said.exists():
            apart(lambda: follow_up(engine, folder, found))
        shutil.rmtree(folder)
        return calls, {**json.loads(found.read_text()), "said": said.read_text() if said.exists() else None}

    calls, undisturbed = tried(None)
    results = []
    began_s = time.monotonic()
    for at, call in enumerate(calls):
        for what in ("kill", "half", "EIO", "ENOSPC"):
            if what != "half" or call.name == "write":
                results.append({"what": what, "at": at, **tried(Fault(what, at))[1]})
    out.write_text(
        json.dumps(
            {
                "calls": [asdict(call) for call in calls], "undisturbed": undisturbed, "weights": weights,
                "results": results, "seconds": time.monotonic() - began_s,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)
