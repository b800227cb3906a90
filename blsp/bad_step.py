"""What becomes of a step that was not taken: its clips are written down, and the run goes on or ends."""

from __future__ import annotations

import json
import math

import torch
import torch.distributed as dist
from torch import Tensor

from blsp.heard import write_clips
from blsp.run import Run
from cluster.files import write_atomically
from shards.batches.collate import FILLER_ID, Batch

_MOST_FILES, _NAMED = 32, 4


class BadStepError(FloatingPointError):
    """The loss or gradient of `step` (from 1) is not to be learnt from; `ids` are the clips that it may be due to, and
    `culprit` the rank that had the dearest of them."""

    def __init__(self, sentence: str, step: int, ids: list[str], culprit: int) -> None:
        super().__init__(sentence)
        self.step, self.ids, self.culprit = step, ids, culprit


def record(run: Run, step: int, fault: str, batches: list[Batch], tables: list[Tensor]) -> None:
    """Write down what the model heard in a step that was left out, in `RUN/failures/step-000012`: the micro-batches
    whose losses are not finite, or all if those of all are. Every rank calls it.

    Raises BadStepError on all ranks alike when the recipe says so or too many were left out.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    heard = [
        (index * world + rank, batch, table) for index, (batch, table) in enumerate(zip(batches, tables, strict=True))
    ]
    guilty = [each for each in heard if not torch.isfinite(each[2]).all()]
    any_guilty = torch.tensor(len(guilty), device=run.device)
    dist.all_reduce(any_guilty)
    chosen = guilty if any_guilty else heard
    folder = run.recipe.run / "failures" / f"step-{step:06d}"
    problem, dearest = "", -math.inf
    try:
        clips = write_clips(folder, run.recipe.stage, chosen, _MOST_FILES) if chosen else []
        ids = [clip["id"] for clip in clips]
        if clips:  # a loss that is not finite is None
            dearest = math.inf if clips[0]["loss"] is None else clips[0]["loss"]
        if chosen:
            content = {"step": step, "fault": fault, "rank": rank, "clips": clips}
            write_atomically(folder / f"rank-{rank}.json", json.dumps(content, indent=1).encode())
    except OSError as error:
        problem = f" (not all of it: {error.strerror or error})"
        ids = [name for _, batch, _ in chosen for name in batch.ids if name != FILLER_ID]
    told: list[tuple[list[str], float, str]] = [([], dearest, "")] * world
    dist.all_gather_object(told, (ids, dearest, problem))
    ranked = [names for names, _, _ in told]
    culprit = max(range(world), key=lambda rank: (told[rank][1], bool(ranked[rank])))
    problem = next((problem for _, _, problem in told if problem), "")
    where = f" {_named(ranked)}" if any_guilty else ""
    if not any_guilty and ranked[culprit]:
        where = f" (the dearest clip is {ranked[culprit][0]}, on rank {culprit})"
    sentence = f"step {step}: {fault}{where}; no weight was changed. What the model heard is in {folder}{problem}"
    if run.guard.budget:
        more = "engine.leap_sigmas: null or " if "leaps" in fault else ""
        raise BadStepError(
            f"{sentence}. The run ends ({run.guard.budget}): look at the clips, lower optim.lr, or allow more with "
            f"{more}engine.bad_step: skip; the checkpoints in {run.checkpoints} are from before",
            step,
            [name for names in ranked for name in names],
            culprit,
        )
    if rank == 0:
        print(f"{sentence}. Left out: {run.guard.in_a_row} in a row, {run.guard.in_all} in all", flush=True)


def _named(ids: list[list[str]]) -> str:
    """By rank: `on rank 1 (a, b and 3 more)`."""
    parts = []
    for rank, names in enumerate(ids):
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            parts.append(f"on rank {rank} ({', '.join(names[:_NAMED])}{more})")
    return " and ".join(parts)
