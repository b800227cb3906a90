"""Tone sensitivity: how much likelier the answer to an emotion becomes when it is heard and not only said.

For a clip with words w in emotion e, and what the text LLM, told e, wrote for it (y_e): log p(y_e | speech of w in e)
less log p(y_e | the same w in another emotion). Positive means that the tone moves the answer the right way, 0 that
only the words are heard. Beside it the same for a second take of w in e: what a voice changes that says the same in the
same tone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from blsp.losses import COLUMNS
from blsp.recipe import StageSection
from blsp.together import together
from shards.batches.collate import Collator
from shards.sample import Utterance
from shards.sets.shard_set import CorruptSample, Sample, ShardSet

_TASK = "continue_tone"
_MOST = 64  # clips


@dataclass(frozen=True)
class Takes:
    """Rows of a shard set: a clip, one with its words in another emotion, and a second take of it if there is one."""

    clip: int
    other_tone: int
    second_take: int | None


def find_takes(utterances: Sequence[Utterance], rows: Sequence[int]) -> list[Takes]:
    """Up to 64 of them, each clip once. Clips of conversations, and without a label, are left out."""
    groups: dict[str, list[tuple[int, Utterance]]] = defaultdict(list)
    for row, utterance in zip(rows, utterances, strict=True):
        if utterance.emotion is not None and not utterance.messages:
            groups[" ".join(utterance.text.lower().split())].append((row, utterance))
    found = []
    for group in groups.values():
        for row, utterance in group:
            others = [other for other, its in group if its.emotion != utterance.emotion]
            again = [other for other, its in group if its.emotion == utterance.emotion and other != row]
            if others:
                # Another speaker's voice must not be what tells the two tones apart, where it can be helped.
                same = {other for other, its in group if its.speaker == utterance.speaker}
                found.append(Takes(row, _nearest(others, same), _nearest(again, same) if again else None))
    return found[:_MOST]


def _nearest(rows: Sequence[int], preferred: set[int]) -> int:
    return next((row for row in rows if row in preferred), rows[0])


class ToneSensitivity:
    """Measures it on the takes of a shard set, the ranks in turn."""

    def __init__(self, shard_set: ShardSet, rows: Sequence[int], collator: Collator) -> None:
        self._shard_set, self._collator = shard_set, collator
        self._takes: list[Takes] = []
        if _TASK in collator.tasks:
            # Rank 0 for all: they make as many calls only with the same takes.
            self._takes = together(lambda: find_takes([utterance for utterance, _ in shard_set.records(rows)], rows))

    def measure(self, engine: Any, stage: StageSection, device: torch.device) -> dict[str, float]:
        """`tone_sensitivity` and `second_take`, in nats per answer, each with its standard error where there are two or
        more; {} without takes.
        Every rank calls it; the engine is in its mode for evaluation."""
        if not self._takes:
            return {}
        world, rank = dist.get_world_size(), dist.get_rank()
        section = stage.model_copy(update={"losses": {"ce": 1.0}})
        log_p = torch.zeros(len(self._takes), 3, dtype=torch.float64, device=device)
        for first in range(0, len(self._takes), world):  # all ranks make as many calls
            mine = first + rank
            samples = self._samples(self._takes[mine]) if mine < len(self._takes) else []
            batch = self._collator(samples, [_TASK] * len(samples), 1, 1)
            _, table = engine(batch.to(device), section)
            if samples:
                log_p[mine, : len(samples)] = -table[:, COLUMNS.index("ce_sum")]
        dist.all_reduce(log_p)
        return self._summed_up(log_p.cpu())

    def _samples(self, takes: Takes) -> list[Sample]:
        """The clip with its answer, and the other two as if they had that answer."""
        rows = [takes.clip, takes.other_tone, *([] if takes.second_take is None else [takes.second_take])]
        read = [sample for sample in self._shard_set.read_many(rows) if not isinstance(sample, CorruptSample)]
        if len(read) < len(rows):
            return []
        return [replace(read[0], waveform=sample.waveform) for sample in read]

    def _summed_up(self, log_p: Tensor) -> dict[str, float]:
        read = log_p[:, 0] != 0
        twice = read & torch.tensor([takes.second_take is not None for takes in self._takes])
        scalars = _mean("tone_sensitivity", (log_p[:, 0] - log_p[:, 1])[read])
        return scalars | _mean("second_take", (log_p[:, 0] - log_p[:, 2])[twice])


def _mean(name: str, differences: Tensor) -> dict[str, float]:
    if not len(differences):
        return {}
    mean = {name: float(differences.mean())}
    if len(differences) == 1:  # they tell nothing of how far they scatter
        return mean
    return mean | {f"{name}_error": float(np.std(differences.numpy(), ddof=1) / len(differences) ** 0.5)}
