"""Training at real size on one device: random weights, clips of 10 s, both stages, with an optimizer step each time."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from blsp.flops import Flops, peak_flops
from blsp.model import SpeechLM
from blsp.recipe import StageSection
from shards.batches.collate import Batch
from tests.bench.data.timing import Spread
from tests.bench.train.shapes import Shapes
from tests.bench.train.workload import (
    CACHED,
    STAGE_1,
    STAGE_2,
    batch,
    build,
    checkpoint_activations,
    clips,
    with_predictions,
)

CLIP_S = 10.0
# Audio hours per hour of one H200.
TARGETS = {"stage 1, live teacher": 550.0, "stage 1, cached teacher": 730.0}
FORMULA = """
MFU = useful operations (the formula is in blsp/flops.py) / seconds / the card's dense bf16 peak; what is computed a
second time is not counted. The optimizer (AdamW over what learns, in bf16) steps after each micro-batch; a run does so
after many. Tokens are the student's, a common prompt once.
"""
_WARM_UP, _STEPS = 2, 5
_MOST_CLIPS = 256  # more are not faster


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Of one way to train. `mfu` is None on a card whose peak is not known, `peak_bytes` on a CPU."""

    name: str
    num_clips: int
    seconds: Spread
    audio_h_per_h: float
    tokens_per_s: float
    mfu: float | None
    peak_bytes: int | None


@dataclass(frozen=True)
class _Training:
    name: str
    stage: StageSection
    checkpointing: bool


TRAININGS = tuple(
    _Training(f"{name}{', checkpointing' if checkpointing else ''}", stage, checkpointing)
    for name, stage in (("stage 1, live teacher", STAGE_1), ("stage 1, cached teacher", CACHED), ("stage 2", STAGE_2))
    for checkpointing in (False, True)
)


def measure(shapes: Shapes, scratch: Path, device: torch.device, num_clips: int | None) -> list[Throughput]:
    """All trainings, each with `num_clips` per micro-batch or the largest power of two that fits."""
    measured = []
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    for with_lora in (False, True):
        model = build(shapes, scratch, device, dtype, "exact", with_lora)
        for training in TRAININGS:
            if (training.stage is STAGE_2) == with_lora:
                measured.append(_measure(model, training, num_clips))
        del model
        _let_go(device)
    return measured


def _measure(model: SpeechLM, training: _Training, num_clips: int | None) -> Throughput:
    device = next(model.llm.parameters()).device
    learns = ["llm", *({"encoder"} & set(training.stage.train))]
    checkpoint_activations(model, learns if training.checkpointing else [])
    fits = num_clips or _most_that_fit(model, training, device)
    made = _batch(model, training, fits)
    step = _step(model, training, made)
    for _ in range(_WARM_UP):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    spread, peak = Spread.of(list(_seconds(step, device))), peak_flops(device)
    result = Throughput(
        name=training.name,
        num_clips=fits,
        seconds=spread,
        audio_h_per_h=fits * CLIP_S / spread.median,
        tokens_per_s=len(made.input_ids) / spread.median,
        mfu=None if peak is None else Flops(model, training.stage)(made) / spread.median / peak,
        peak_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )
    del step
    model.parts.requires_grad_(False).zero_grad(set_to_none=True)
    _let_go(device)
    return result


def _most_that_fit(model: SpeechLM, training: _Training, device: torch.device) -> int:
    """Doubled until memory is out. On a CPU, which has no memory of its own to fill, one clip."""
    number = 1
    while device.type == "cuda" and number < _MOST_CLIPS:
        fits = _fits(model, training, 2 * number)
        model.parts.zero_grad(set_to_none=True)
        _let_go(device)
        if not fits:
            break
        number *= 2
    return number


def _fits(model: SpeechLM, training: _Training, num_clips: int) -> bool:
    try:
        step = _step(model, training, _batch(model, training, num_clips))
        step()
        step()  # the first has made the optimizer's state
    except torch.cuda.OutOfMemoryError:
        return False
    return True


def _batch(model: SpeechLM, training: _Training, num_clips: int) -> Batch:
    samples = clips([CLIP_S] * num_clips, training.stage)
    if training.stage.teacher == "cached":
        samples = with_predictions(model, samples)
    return batch(model, samples, training.stage)


def _step(model: SpeechLM, training: _Training, made: Batch) -> Callable[[], None]:
    """Forward, backward and optimizer over one micro-batch."""
    learning = torch.nn.ModuleList(model.parts[name] for name in training.stage.train).requires_grad_(True)
    optimizer = torch.optim.AdamW(learning.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        loss = model(made, training.stage).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _seconds(step: Callable[[], None], device: torch.device) -> Iterator[float]:
    for _ in range(_STEPS):
        _wait(device)
        began = time.perf_counter()
        step()
        _wait(device)
        yield time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _let_go(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
