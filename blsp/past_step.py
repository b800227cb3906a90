"""One past step of a run again, on one process: its clips as the model heard them, what each of them cost, and the
gradient's norm; beside what the log says."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from blsp import elastic, zero
from blsp.checkpoint_folder import checkpoint_name, committed, damage, read_state
from blsp.engine import backward, by_corpus, set_rates, take
from blsp.heard import write_clips
from blsp.meeting import join
from blsp.recipe import recipe_of
from blsp.run import OnStep, Run, prepare
from blsp.scalars import means
from blsp.tracking import read_log
from cluster.files import write_atomically
from cluster.json_files import read_object
from shards.batches.collate import Batch


@dataclass(frozen=True)
class PastStep:
    """A step that was run again. `logged` is its line of the log, {} when it has none; `loss` is over the same steps as
    that line's, or over this step alone."""

    step: int
    since: str  # the checkpoint that it was reached from, or "the beginning"
    loss: float
    grad_norm: float
    logged: dict[str, float]
    clips: list[dict[str, Any]]  # id, corpus, micro_batch, files and losses of each


def replay_step(run: Path, step: int, out: Path, on_step: OnStep = lambda done, total, note: None) -> PastStep:
    """Run `step` (from 1) of the run in folder `run` again and put its clips and `step.json` into `out`. Nothing
    of the run changes: what several ranks saved is put together in a temporary folder.

    It goes on from the newest whole checkpoint before the steps that its line of the log is about, or begins anew, and
    takes all steps between: they are the same ones, because a resumed run repeats an uninterrupted one. Equal to the
    bit where the run had one process, and up to rounding otherwise. Raises ValueError for a step that the log does not
    tell of.
    """
    recipe_path = run / "recipe.json"
    if not recipe_path.exists():
        raise ValueError(f"{run}: no recipe.json here, so it is not the folder of a training run")
    recipe = recipe_of(read_object(recipe_path), recipe_path)
    logged = _logged(run, step)
    every = recipe.engine.log_every_steps
    first = (step - 1) // every * every if "loss" in logged else step - 1  # steps done before its line's first one
    checkpoint = _before(run / "checkpoints", first)
    zero.prepare_environment()
    device = join()
    with tempfile.TemporaryDirectory() as scratch:
        data = recipe.data.model_copy(update={"num_workers": 0})
        again = recipe.model_copy(update={"run": Path(scratch), "validation": None, "data": data})
        if checkpoint is not None:  # of this folder alone, so that `prepare` goes on from it
            elastic.linked(checkpoint, Path(scratch) / "checkpoints")
        prepared = prepare(again, device, on_step)
        try:
            loss, norm, tables, batches = _run_to(prepared, step, first)
        finally:
            if prepared.tracker is not None:
                prepared.tracker.close()
        prepared.engine.destroy()
    dist.destroy_process_group()
    since = "the beginning" if checkpoint is None else checkpoint.name
    numbered = [(number, batch, table) for number, (batch, table) in enumerate(zip(batches, tables, strict=True))]
    result = PastStep(step, since, loss, norm, logged, write_clips(out, recipe.stage, numbered))
    write_atomically(out / "step.json", json.dumps(asdict(result), indent=1).encode())
    return result


def _run_to(run: Run, step: int, first: int) -> tuple[float, float, list[Tensor], list[Batch]]:
    """The mean loss of the steps after `first`; the gradient's norm, tables and micro-batches of step `step`."""
    sums = torch.zeros_like(run.sums)
    for at, batches in run.reader.steps(run.step, step):
        tables = [backward(run, at, index, batch) for index, batch in enumerate(batches)]
        set_rates(run)
        summed = by_corpus(run, batches, tables).cpu()
        fault = take(run, summed)
        run.on_step(run.step, step, "")
        if at >= first and not fault:
            sums += summed
    return means(run.recipe.stage, sums.sum(0))["loss"], run.guard.norm, tables, batches


def _logged(run: Path, step: int) -> dict[str, float]:
    """All that the log says of a step. Raises ValueError when it ends before."""
    path = run / "log.jsonl"
    records = read_log(path)
    last = max((record["step"] for record in records), default=0)
    if not 1 <= step <= last:
        raise ValueError(f"step {step}: the log of {run} tells of steps 1 to {last}; name one of them")
    return {name: value for record in records if record["step"] == step for name, value in record.items()}


def _before(checkpoints: Path, step: int) -> Path | None:
    """The newest whole checkpoint of `step` or earlier."""
    for checkpoint in reversed(committed(checkpoints)):
        if checkpoint.name <= checkpoint_name(step) and damage(checkpoint) is None:
            assert read_state(checkpoint).step <= step
            return checkpoint
    return None
