"""Held-out clips: the same ones every time, divided among the ranks, with the weights as they are.

The clips are dealt to micro-batches that do not depend on the number of ranks, and each micro-batch's sums are added
up in the same order on all of them: the figures are the same to the bit however many ranks there are.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from blsp.data_section import ValidationSection
from blsp.evaluate.metrics import balanced_accuracy
from blsp.losses import COLUMNS
from blsp.model import SpeechLM
from blsp.recipe import StageSection, TrainRecipe
from blsp.scalars import confusion, grouped, means, means_by_corpus
from blsp.shown import Shown, write_confusion
from blsp.tone import ToneSensitivity
from cluster.heartbeat import beat
from shards.batches.collate import Batch, Collator
from shards.batches.mixture import Mixture
from shards.batches.plan import Plan
from shards.batches.reader import Reader
from shards.batches.sizes import Caps, CostWeights
from shards.sample import EMOTIONS
from shards.sets.shard_set import ShardSet
from shards.sets.tokens import token_counts

_HIGHER_IS_BETTER = ("emotion_accuracy", "emotion_ua")
_KINDS = len(EMOTIONS) + 1  # the emotions, and before them none


@dataclass(frozen=True)
class Best:
    """The best validation so far; it travels in the checkpoints."""

    value: float
    step: int
    waited: int  # validations since then
    of: str  # metric and clips: figures of others cannot be compared


@dataclass(frozen=True)
class Measured:
    """One validation: what is logged, the confusion matrix where there is a classifier, and the answers to the clips
    that are shown."""

    scalars: dict[str, float]
    confusion: list[list[int]] | None
    answers: list[str]


class _Chosen(Mixture):
    """Some of n clips, each once an epoch."""

    def __init__(self, rows: NDArray[np.int64], num_clips: int) -> None:
        self.weights, self.replay, self.left_out = {}, None, np.empty(0, np.int64)
        self.mean_clips, self.fewest_clips = float(len(rows)), len(rows)
        self._copies = np.zeros(num_clips, np.int64)
        self._copies[rows] = 1

    def copies(self, epoch: int) -> NDArray[np.int64]:
        """int64 [n]: 1 for the chosen, in every epoch."""
        return self._copies


class Validation:
    """What `validation` in a recipe asks for, ready to be run."""

    def __init__(
        self, recipe: TrainRecipe, model: SpeechLM, collator: Collator, shard_set: ShardSet, trained: ShardSet
    ) -> None:
        """Raises ValueError when a clip is both trained on and held out, or the shards do not fit the stage."""
        assert recipe.validation is not None
        self.section: ValidationSection = recipe.validation
        self.shard_set = shard_set
        self.rows = _chosen(shard_set, self.section.clips)
        both = int(np.isin(_names(shard_set)[self.rows], _names(trained)).sum())
        if both:
            raise ValueError(
                f"validation.shards: {both} of its {len(self.rows)} clips are in data.shards too, so they are not held "
                "out; give it shards of other speakers"
            )
        if self.section.best.startswith("emotion") and not (shard_set.rows["emotion"][self.rows] >= 0).any():
            raise ValueError(
                f"validation.best = {self.section.best}: none of the {len(self.rows)} clips in {shard_set.url} has an "
                "emotion label; choose loss, or shards of an emotion corpus"
            )
        data = recipe.data
        self._plan = Plan(
            collator.sizes(
                shard_set.clips, token_counts(shard_set, model.template), model.encoder.window.padded
            ),
            dataset_id=shard_set.dataset_id, seed=0, micro_batches=data.micro_batches,
            # No micro-batch larger than those of the training.
            clips_per_step=len(self.rows) / -(-len(self.rows) // data.clips_per_step),
            weights=CostWeights(**data.cost.model_dump()), caps=Caps(**data.caps.model_dump()),
            mixture=_Chosen(self.rows, len(shard_set)),
        )  # fmt: skip
        self._plan.check(1)
        self._reader = Reader(shard_set, self._plan, collator, rank=dist.get_rank(), world_size=dist.get_world_size())
        self.corpora = shard_set.all_corpora
        self.tone = ToneSensitivity(shard_set, self.rows.tolist(), collator)
        self.shown = Shown(shard_set, self.rows[: self.section.shown].tolist(), collator)
        clips = hashlib.blake2b(shard_set.rows["id_hash"][self.rows].tobytes(), digest_size=8)
        self.of = f"{self.section.best} {clips.hexdigest()}"

    def __call__(self, engine: Any, model: SpeechLM, stage: StageSection, device: torch.device) -> Measured:
        """Every rank calls it. Weights and random numbers stay as they are: nothing is dropped."""
        engine.eval()
        model.eval()
        try:
            # To begin to read draws from torch's generator.
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                sums = self.measure(engine, device)
                tone = self.tone.measure(engine, stage, device)
                answers = self.shown.ask(model)
        finally:
            engine.train()
            model.train()
        counts = confusion(sums.sum(0)[1:]) if "emotion" in stage.losses else None
        return Measured(self.scalars(stage, sums) | tone, counts, answers)

    def measure(self, engine: Any, device: torch.device) -> Tensor:
        """float64 [C, 6, K] on all ranks: sums by corpus and emotion (none first). Every rank calls it."""
        world, rank, calls = dist.get_world_size(), dist.get_rank(), self._reader.calls_per_step
        num_steps, num_groups = self._plan.num_steps(0), len(self.corpora) * _KINDS
        sums = torch.zeros(num_steps, calls * world, num_groups, len(COLUMNS), dtype=torch.float64, device=device)
        for step, batches in self._reader.steps(0, num_steps):
            for index, batch in enumerate(batches):
                _, table = engine(batch.to(device))
                sums[step, index * world + rank] = grouped(table, self._groups(batch), num_groups)
                beat("validation")
        dist.all_reduce(sums)
        # As many terms at any number of ranks: the order of an addition may depend on that.
        whole = sums[:, : self._plan.micro_batches].cpu().flatten(0, 1).sum(0)
        return whole.view(len(self.corpora), _KINDS, len(COLUMNS))

    def _groups(self, batch: Batch) -> list[int]:
        emotions = batch.emotion[batch.last_clip].clamp(min=-1).tolist()
        corpora = [self.corpora.index(name) if name else 0 for name in batch.corpora]
        return [corpus * _KINDS + emotion + 1 for corpus, emotion in zip(corpora, emotions, strict=True)]

    def scalars(self, stage: StageSection, sums: Tensor) -> dict[str, float]:
        """What is logged of `measure`."""
        found = means(stage, sums.sum((0, 1))) | means_by_corpus(stage, sums.sum(1), self.corpora)
        if "emotion" in stage.losses:
            counts = confusion(sums.sum(0)[1:])
            recalls = {EMOTIONS[i]: row[i] / sum(row) for i, row in enumerate(counts) if sum(row)}
            found |= {f"emotion_recall/{name}": recall for name, recall in recalls.items()}
            if recalls:
                found["emotion_ua"] = balanced_accuracy(counts)
        return found

    def write(self, writer: SummaryWriter, step: int, measured: Measured, first: bool) -> None:
        """What of it is not a number, into TensorBoard."""
        if measured.confusion is not None:
            write_confusion(writer, step, measured.confusion)
        self.shown.write(writer, step, measured.answers, first)

    def better(self, best: Best | None, value: float, step: int) -> Best:
        """The best so far, after one more validation. A first one, and one of other clips, is the best; one that is not
        finite is worse than all that are."""
        if best is None or best.of != self.of:
            return Best(value, step, 0, self.of)
        higher = self.section.best in _HIGHER_IS_BETTER
        worse = -math.inf if higher else math.inf
        ours, theirs = (figure if math.isfinite(figure) else worse for figure in (value, best.value))
        if ours > theirs if higher else ours < theirs:
            return Best(value, step, 0, self.of)
        return replace(best, waited=best.waited + 1)

    def out_of_patience(self, best: Best | None) -> bool:
        """Whether `patience` validations in a row were no better."""
        patience = self.section.patience
        return patience is not None and best is not None and best.of == self.of and best.waited >= patience


def _names(shard_set: ShardSet) -> NDArray[np.uint64]:
    """Ids are unique within a corpus."""
    names: NDArray[np.uint64] = shard_set.rows["id_hash"] ^ shard_set.rows["corpus"]
    return names


def _chosen(shard_set: ShardSet, clips: int | None) -> NDArray[np.int64]:
    """Rows of the clips whose hashes are the smallest: a random choice that is the same in any order of shards."""
    order: NDArray[np.int64] = np.argsort(shard_set.rows["id_hash"], kind="stable")
    return np.sort(order[: len(order) if clips is None else clips])
