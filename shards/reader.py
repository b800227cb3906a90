"""A rank's micro-batches, step after step, from any global step on.

Each sample is read once, by the rank that needs it. Ranks never talk to each other here, and yet make the same number
of calls in every step: what is missing (W does not divide M, a micro-batch without clips) is a filler of weight 0.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from shards.collate import Batch, Collator
from shards.plan import Plan
from shards.prompts import TRAINED_UNDER
from shards.sample import EMOTIONS
from shards.shard_set import CorruptSample, Sample, ShardSet, no_continuations
from shards.tokens import token_counts

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Order:
    """What a worker has to make: rows with their tasks, and the planned counts of the whole step."""

    rows: NDArray[np.int64]
    tasks: tuple[str, ...]
    step_response_tokens: int
    step_labelled: int


def _outlive_signals(worker: int) -> None:
    """A launcher that stops a run tells every process of it. The rank still needs its readers until it has saved; they
    end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Reader:
    """This rank's share of a plan over a shard set: micro-batches rank, rank + W, rank + 2 W ... of each step."""

    def __init__(
        self,
        shard_set: ShardSet,
        plan: Plan,
        collator: Collator,
        *,
        rank: int,
        world_size: int,
        num_workers: int = 0,
    ) -> None:
        """Raises ValueError when there are more ranks than micro-batches, or the shards do not fit the tasks."""
        if world_size > plan.micro_batches:
            raise ValueError(
                f"{world_size} ranks share {plan.micro_batches} micro-batches per step: raise data.micro_batches to "
                f"{world_size} or more, or use fewer ranks"
            )
        assert 0 <= rank < world_size
        _check_tasks(shard_set, collator)
        self._shard_set, self._plan, self._collator = shard_set, plan, collator
        self._rank, self._world_size, self._num_workers = rank, world_size, num_workers
        self.calls_per_step = -(-plan.micro_batches // world_size)
        self._response_tokens = token_counts(shard_set, collator.template)["num_response_tokens"]
        self._label_tokens = np.array([len(collator.label_response(emotion)) for emotion in EMOTIONS])

    def steps(self, start_global_step: int = 0) -> Iterator[tuple[int, list[Batch]]]:
        """(global step, this rank's micro-batches of it), epoch after epoch without end."""
        options: dict[str, Any] = {}
        if self._num_workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
            # Not spawn: it would copy everything the collator refers to, down to the model that counts speech tokens.
            options = {
                "num_workers": self._num_workers, "multiprocessing_context": "fork", "prefetch_factor": 2,
                "worker_init_fn": _outlive_signals,
            }  # fmt: skip
        loader = DataLoader(
            _Samples(self._shard_set, self._collator),
            batch_size=None,
            sampler=_Orders(self, start_global_step),
            collate_fn=_unchanged,
            **options,
        )
        made = iter(loader)
        for step in itertools.count(start_global_step):
            yield step, [Batch.from_arrays(next(made)) for _ in range(self.calls_per_step)]

    def orders(self, global_step: int) -> list[_Order]:
        """What this rank has to make for a step."""
        epoch, step = self._plan.locate(global_step)
        micro_batches = self._plan.step(epoch, step)
        tasks = [tuple(self._task(row, epoch) for row in rows) for rows in micro_batches]
        response_tokens = sum(map(self._num_response_tokens, np.concatenate(micro_batches), itertools.chain(*tasks)))
        labelled = int((self._shard_set.rows["emotion"][np.concatenate(micro_batches)] >= 0).sum())
        nothing = np.empty(0, np.int64)
        mine = range(self._rank, self.calls_per_step * self._world_size, self._world_size)
        return [
            _Order(micro_batches[i], tasks[i], response_tokens, labelled)
            if i < len(micro_batches)
            else _Order(nothing, (), response_tokens, labelled)
            for i in mine
        ]

    def _task(self, row: int, epoch: int) -> str:
        return self._collator.task(int(self._shard_set.rows["id_hash"][row]), self._plan.seed, epoch)

    def _num_response_tokens(self, row: int, task: str) -> int:
        if task == "identify":
            return int(self._label_tokens[self._shard_set.rows["emotion"][row]])
        return int(self._response_tokens[row])


def _check_tasks(shard_set: ShardSet, collator: Collator) -> None:
    if shard_set.prompt is None:
        raise ValueError(no_continuations(shard_set.url))
    trained = TRAINED_UNDER[shard_set.prompt]
    for task in collator.tasks:
        if task not in (trained, "identify"):
            writing = next(prompt for prompt, under in TRAINED_UNDER.items() if under == task)
            raise ValueError(
                f"{shard_set.url}: its continuations were written under {shard_set.prompt!r} and train {trained!r}, "
                f"not {task!r}; make shards with writer.prompt={writing}, or train {trained!r}"
            )
    unlabelled = int((shard_set.rows["emotion"] < 0).sum())
    if "identify" in collator.tasks and unlabelled:
        raise ValueError(
            f"{shard_set.url}: {unlabelled} of {len(shard_set)} clips have no emotion label, which the prompt "
            "'identify' needs; use shards of emotion corpora only, or leave 'identify' out"
        )


class _Orders:
    """The sampler: runs in the training process, so that a step's counts are computed once."""

    def __init__(self, reader: Reader, start: int) -> None:
        self._reader, self._start = reader, start

    def __iter__(self) -> Iterator[_Order]:
        for global_step in itertools.count(self._start):
            yield from self._reader.orders(global_step)


class _Samples(Dataset[dict[str, Any]]):
    """What runs in a worker: an order in, a micro-batch out."""

    def __init__(self, shard_set: ShardSet, collator: Collator) -> None:
        self._shard_set, self._collator = shard_set, collator

    def __getitem__(self, order: _Order) -> dict[str, Any]:
        samples = [self._read(int(row)) for row in order.rows]
        return self._collator(samples, order.tasks, order.step_response_tokens, order.step_labelled).arrays()

    def _read(self, row: int) -> Sample | None:
        try:
            return self._shard_set.read(row)
        except CorruptSample as error:
            _log.warning("%s; it counts with weight 0", error)
            return None


def _unchanged(item: Any) -> Any:
    return item
