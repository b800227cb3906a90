"""One rank whose disk, data and readers fail while it trains: `python -m tests.blsp.faulty_runs RECIPES.json
RESULTS.json MOUNT`. Where it may, it has a file system of its own at MOUNT, small enough to be filled, that nobody else
sees.

RECIPES has the runs by name; RESULTS {name: {"error", "message"}}. What becomes of "disturbed", whose folder lies at
MOUNT, is copied beside RESULTS.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch.distributed as dist

from blsp import engine
from blsp import run as run_module
from blsp.recipe import TrainRecipe
from shards.batches import loading

_NEW_MOUNTS, _PRIVATE, _RECURSIVE, _BIND, _READ_ONLY, _REMOUNT, _DETACH = 0x20000, 1 << 18, 16384, 4096, 1, 32, 2
MOUNT_BYTES = 12 * 2**20

OnStep = Callable[[int, int, str], None]


def mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    """As mount(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def small_disk(target: Path) -> None:
    """An empty file system that only this process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    mount("none", Path("/"), "", _RECURSIVE | _PRIVATE)
    target.mkdir(exist_ok=True)
    mount("tmpfs", target, "tmpfs", 0, f"size={MOUNT_BYTES}")


def read_only(folder: Path) -> None:
    """Nothing can be written there any more; waits until nobody does."""
    mount(str(folder), folder, "", _BIND)
    until_s = time.monotonic() + 10
    while True:
        try:
            return mount("none", folder, "", _REMOUNT | _BIND | _READ_ONLY)
        except OSError:
            if time.monotonic() > until_s:
                raise
        time.sleep(0.02)


def disturbed(run: Path) -> OnStep:
    """A disk that is full in steps 4 to 6, a folder that is read-only in 9 and 10, and one that is removed in 13."""
    filler, checkpoints = run.parent / "filler", run / "checkpoints"

    def on_step(done: int, total: int, note: str) -> None:
        if done == 4:
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    print("FILLED", flush=True)
        if done == 7:
            filler.unlink()
        if done == 9:
            read_only(checkpoints)
        if done == 11:
            ctypes.CDLL(None).umount2(os.fsencode(checkpoints), _DETACH)
        if done == 13:
            # Renamed first: the log is being written, and `rmtree` alone may meet a file that has just come.
            shutil.rmtree(run.rename(run.with_name("removed")), ignore_errors=True)

    return on_step


def losing_readers(done: int, total: int, note: str) -> None:
    """All reader processes are killed in step 3 and stopped in step 6."""
    number = {3: signal.SIGKILL, 6: signal.SIGSTOP}.get(done)
    for child in psutil.Process().children() if number else []:
        child.send_signal(number)


@contextmanager
def rival_while_it_prepares() -> Iterator[None]:
    """Another host claims the run folder when all but the log is there."""
    resume = run_module._resume

    def claimed(run: Any) -> None:
        (run.recipe.run / ".owner" / "999999.json").write_text("{}")
        resume(run)

    with mock.patch.object(run_module, "_resume", claimed):
        yield


def trained(recipe: dict[str, Any], on_step: OnStep = lambda done, total, note: None) -> dict[str, str | None]:
    """How a training ends."""
    try:
        engine.train(TrainRecipe.model_validate(recipe), on_step)
    except (ValueError, OSError) as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {"error": None, "message": ""}


def main(recipes: dict[str, Any], out: Path, at: Path) -> None:
    """All of them, one after the other."""
    dist.destroy_process_group = lambda: None  # DeepSpeed cannot make a second group in a process
    loading._PATIENCE_S, loading._LOOK_EVERY_S = 0.5, 0.1
    results = {}
    for name, recipe in recipes.items():
        print(f"RUN {name}", flush=True)
        if name == "disturbed":
            try:
                small_disk(at)
            except OSError as error:
                results[name] = {"error": "no small disk", "message": str(error)}
                continue
            results[name] = trained(recipe, disturbed(at / "disturbed"))
            shutil.copytree(at / "disturbed", out.parent / "disturbed")
        elif name == "rival":
            with rival_while_it_prepares():
                results[name] = trained(recipe)
        else:
            results[name] = trained(recipe, losing_readers if name == "losing_readers" else lambda *_: None)
    out.write_text(json.dumps(results))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), Path(sys.argv[3]))
