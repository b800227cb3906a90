"""From sums to the numbers that are logged: means of the losses, accuracies, a confusion matrix.

A sum is a row of the columns that `Losses.table` has. Sums are kept per group (corpus, or corpus and emotion) and
added up over micro-batches and ranks; only then they are divided.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blsp.losses import COLUMNS
from blsp.recipe import StageSection
from shards.sample import EMOTIONS


def grouped(table: Tensor, groups: Sequence[int], num_groups: int) -> Tensor:
    """[num_groups, K]: the rows of a table [m, K] added up by group. A product, whose order of adding is the same every
    time."""
    where = torch.tensor(groups, device=table.device)
    member = torch.arange(num_groups, device=table.device)[:, None] == where
    return member.to(table.dtype) @ table


def means(stage: StageSection, sums: Tensor) -> dict[str, float]:
    """What is logged of a stage's losses, from sums [K] over any number of clips."""
    total = dict(zip(COLUMNS, sums.tolist(), strict=True))
    rows, ends, labelled = (max(1.0, total[name]) for name in ("num_rows", "num_end", "num_labelled"))
    each = {"ce": total["ce_sum"] / rows, "kl": total["kl_sum"] / rows, "emotion": total["emotion_sum"] / labelled}
    scalars: dict[str, float] = {name: each[name] for name in stage.losses}
    scalars["loss"] = sum(weight * each[name] for name, weight in stage.losses.items())
    if "kl" in stage.losses:
        scalars["kl_t1"] = total["kl_t1_sum"] / rows
    if total["num_end"]:
        scalars |= {f"{name}_end": total[f"{name}_end_sum"] / ends for name in ("ce", "kl") if name in stage.losses}
    if "emotion" in stage.losses:
        scalars["emotion_accuracy"] = total["num_correct"] / labelled
    return scalars


def means_by_corpus(stage: StageSection, sums: Tensor, corpora: Sequence[str]) -> dict[str, float]:
    """The loss and its parts of each corpus, as `NAME/CORPUS`, from sums [C, K]; nothing of a corpus without clips, and
    nothing at all when there is but one."""
    if len(corpora) < 2:
        return {}
    heard = [(name, row) for name, row in zip(corpora, sums, strict=True) if row.any()]
    return {f"{key}/{name}": value for name, row in heard for key, value in means(stage, row).items()}


def confusion(sums: Tensor) -> list[list[int]]:
    """Counts [true emotion][what the classifier says], from sums [5, K] by true emotion."""
    first = COLUMNS.index(f"said_{EMOTIONS[0]}")
    counts: list[list[int]] = sums[:, first : first + len(EMOTIONS)].long().tolist()
    return counts
