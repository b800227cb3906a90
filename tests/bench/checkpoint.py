"""What a checkpoint costs training: `python -m tests.bench.checkpoint [FOLDER]`. One process, ZeRO-3, made-up weights.

Prints one line of JSON per dtype. `pause` is how long `save` keeps the training thread; `blocking` how long until the
same checkpoint is on the disk, hashed and committed. The first pause also gets the memory for the copies.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import nn

from blsp import zero
from blsp.checkpoint import Saver
from blsp.checkpoint_folder import TrainingState, num_bytes
from blsp.meeting import join

WIDTH, LAYERS, SAVES = 1024, 24, 5  # 25 million parameters, 300 MB


def engine(dtype: str, device: torch.device) -> Any:
    """A stack of linear maps, one step trained."""
    layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    settings = {
        "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {"stage": 3}, "zero_allow_untested_optimizer": True, "steps_per_print": 10**9,
    }  # fmt: skip
    optimizer = torch.optim.AdamW(layers.parameters(), lr=1e-4)
    made, *_ = deepspeed.initialize(model=layers, optimizer=optimizer, config=settings)
    step(made, device)
    return made


def step(engine: Any, device: torch.device) -> float:
    """One step of training. Returns its seconds."""
    began_s = time.monotonic()
    rows = torch.randn(64, WIDTH, device=device, dtype=next(engine.module.parameters()).dtype)
    engine.backward(engine(rows).square().mean())
    engine.step()
    return time.monotonic() - began_s


def measure(dtype: str, folder: Path, device: torch.device) -> dict[str, Any]:
    """Seconds and bytes of checkpoints in `folder`."""
    made = engine(dtype, device)
    num_trained = LAYERS * WIDTH * (WIDTH + 1)
    saver = Saver(made, folder, keep=1)
    pauses, whole, during = [], [], []
    for number in range(1, SAVES + 1):
        began_s = time.monotonic()
        saver.save(TrainingState(number, "bench", 1, {}, {}))
        pauses.append(time.monotonic() - began_s)
        saver.finish()
        whole.append(time.monotonic() - began_s)
    alone = [step(made, device) for _ in range(5)]
    saver.save(TrainingState(SAVES + 1, "bench", 1, {}, {}))
    while saver._thread.is_alive():
        during.append(step(made, device))
    saver.finish()
    (newest,) = folder.glob("step-*")
    pause_s, blocking_s = statistics.median(pauses[1:]), statistics.median(whole[1:])
    return {
        "dtype": dtype, "trained": num_trained, "bytes_per_parameter": round(num_bytes(newest) / num_trained, 3),
        "first_pause_s": round(pauses[0], 3), "pause_s": round(pause_s, 3), "blocking_s": round(blocking_s, 3),
        "pause_of_blocking": round(pause_s / blocking_s, 4), "step_s": round(statistics.median(alone), 3),
        "step_during_write_s": round(statistics.median(during or [0.0]), 3), "steps_during_write": len(during),
    }  # fmt: skip


if __name__ == "__main__":
    zero.prepare_environment()
    place = join()
    for name in ("float32", "bfloat16"):
        root = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
        try:
            print(json.dumps(measure(name, root / "checkpoints", place)), flush=True)
        finally:
            shutil.rmtree(root)
