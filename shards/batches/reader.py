"""A rank's micro-batches, step after step, from any global step on.

Each sample is read once, by the rank that needs it. Ranks never talk to each other here, and yet make the same number
of calls in every step: what is missing (W does not divide M, a micro-batch without clips) is a filler of weight 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from cluster.stop import outlive_signals
from shards.batches.augment import Augment
from shards.batches.collate import FILLER_ID, Batch, Collator
from shards.batches.loading import Loading
from shards.batches.plan import Plan
from shards.prompts import REPLAYED, TRAINED_UNDER, written_for
from shards.sample import EMOTIONS
from shards.sets.shard_set import CorruptSample, Sample, ShardSet, no_continuations
from shards.sets.tokens import token_counts

_log = logging.getLogger(__name__)


# A run goes on without some of its clips, but not without many.
_TOLERATED = 10
_TOLERATED_SHARE = 0.02
_LISTED = 20

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


@dataclass(frozen=True)
class _Order:
    """What a worker has to make: rows with their tasks, and the planned counts of the whole step."""

    rows: NDArray[np.int64]
    tasks: tuple[str, ...]
    epoch: int
    step_response_tokens: int
    step_labelled: int


def _keep_memory() -> None:
    """glibc hands blocks as large as a clip back to the kernel at every turn; to get them anew, page by page, costs a
    sixth of the decoding."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 128 * 2**20)


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
        augment: Augment | None = None,
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
        self._augment = augment
        self.calls_per_step = -(-plan.micro_batches // world_size)
        self._response_tokens = token_counts(shard_set, collator.template)["num_response_tokens"]
        self._label_tokens = np.array([len(collator.label_response(emotion)) for emotion in EMOTIONS])

    def steps(
        self, start_global_step: int = 0, end_global_step: int = sys.maxsize
    ) -> Iterator[tuple[int, list[Batch]]]:
        """(global step, this rank's micro-batches of it), epoch after epoch; nothing is planned or read for the end
        and what comes after it.

        A clip that is not as it was written is logged and counts with weight 0. Raises ValueError when there are too
        many of them or an epoch cannot keep to the caps, and OSError when a store cannot be read in spite of its
        retries or reader processes die or hang again and again.
        """
        _keep_memory()
        loading = Loading(lambda step: self._loader(range(step, end_global_step)))
        losses = _Losses(self._shard_set.url)
        try:
            for step in range(start_global_step, end_global_step):
                batches = [_batch(made) for made in loading.take(step, self.calls_per_step)]
                for batch in batches:
                    losses.count(batch)
                yield step, batches
        finally:
            loading.close()  # its workers end now, and not with the last traceback that knows this frame

    def _loader(self, steps: range) -> DataLoader[Any]:
        options: dict[str, Any] = {}
        if self._num_workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
            # Not spawn: it would copy everything the collator refers to, down to the model that counts speech tokens.
            options = {
                "num_workers": self._num_workers, "multiprocessing_context": "fork", "prefetch_factor": 2,
                "worker_init_fn": lambda worker: outlive_signals(),
            }  # fmt: skip
        return DataLoader(
            _Samples(self._shard_set, self._collator, self._augment, self._plan.seed),
            batch_size=None,
            sampler=_Orders(self, steps),
            collate_fn=_unchanged,
            **options,
        )

    def orders(self, global_step: int) -> list[_Order]:
        """What this rank has to make for a step."""
        epoch, step = self._plan.locate(global_step)
        micro_batches = self._plan.step(epoch, step)
        rows = np.concatenate(micro_batches)
        entries = self._shard_set.rows[rows]
        tasks = [
            REPLAYED if again else self._collator.task(int(hashed), self._plan.seed, epoch)
            for hashed, again in zip(entries["id_hash"], self._shard_set.replayed[rows], strict=True)
        ]
        labels = self._label_tokens[entries["emotion"]]
        counts = np.where(np.array(tasks) == "identify", labels, self._response_tokens[rows])
        planned = epoch, int(counts.sum()), int((entries["emotion"] >= 0).sum())
        first = np.cumsum([0, *map(len, micro_batches)])
        mine = range(self._rank, self.calls_per_step * self._world_size, self._world_size)
        return [
            _Order(micro_batches[i], tuple(tasks[first[i] : first[i + 1]]), *planned)
            if i < len(micro_batches)
            else _Order(np.empty(0, np.int64), (), *planned)
            for i in mine
        ]


class _Losses:
    """Clips of this rank that are not as they were written: logged, counted, and too many are an error."""

    def __init__(self, url: str) -> None:
        self._url, self._read = url, 0
        self._lost: list[str] = []

    def count(self, batch: Batch) -> None:
        self._read += sum(clip != FILLER_ID for clip in batch.ids) + len(batch.unreadable)
        self._lost += batch.unreadable
        for message in batch.unreadable:
            _log.warning("%s; it counts with weight 0", message)
        if len(self._lost) > max(_TOLERATED, _TOLERATED_SHARE * self._read):
            which = list(dict.fromkeys(self._lost))
            more = f"; and {len(which) - _LISTED} more" if len(which) > _LISTED else ""
            raise ValueError(
                f"{self._url}: {len(self._lost)} of the {self._read} clips that this rank has read are not as they were"
                f" written: {'; '.join(which[:_LISTED])}{more}. See `blsp shard verify`, and copy or make the set again"
            )


def _check_tasks(shard_set: ShardSet, collator: Collator) -> None:
    if shard_set.prompt is None:
        raise ValueError(no_continuations(shard_set.url))
    trained = TRAINED_UNDER[shard_set.prompt]
    for task in collator.tasks:
        if task not in (trained, "identify"):
            writing = written_for(task)[0]
            raise ValueError(
                f"{shard_set.url}: its continuations were written under {shard_set.prompt!r} and train {trained!r}, "
                f"not {task!r}; make shards with writer.prompt={writing}, or train {trained!r}"
            )
    labelled = shard_set.rows["emotion"][~shard_set.replayed] >= 0
    unlabelled = int((~labelled).sum())
    if "identify" in collator.tasks and unlabelled:
        raise ValueError(
            f"{shard_set.url}: {unlabelled} of {len(labelled)} clips have no emotion label, which the prompt "
            "'identify' needs; use shards of emotion corpora only, or leave 'identify' out"
        )


class _Orders:
    """The sampler: runs in the training process, so that a step's counts are computed once."""

    def __init__(self, reader: Reader, steps: range) -> None:
        self._reader, self._steps = reader, steps

    def __iter__(self) -> Iterator[_Order]:
        for global_step in self._steps:
            yield from self._reader.orders(global_step)


class _Samples(Dataset[dict[str, Any] | Exception]):
    """What runs in a worker: an order in, a micro-batch out, or the error that hindered it."""

    def __init__(self, shard_set: ShardSet, collator: Collator, augment: Augment | None, seed: int) -> None:
        self._shard_set, self._collator, self._augment, self._seed = shard_set, collator, augment, seed

    def __getitem__(self, order: _Order) -> dict[str, Any] | Exception:
        try:
            samples = self._shard_set.read_many(order.rows.tolist(), self._collator.cached is not None)
            if self._augment is not None:
                samples = [self._augmented(*each, order.epoch) for each in zip(samples, order.rows, strict=True)]
            batch = self._collator(samples, order.tasks, order.step_response_tokens, order.step_labelled)
        except (OSError, ValueError) as error:  # raised by `_batch`: torch would bury its sentence in a traceback
            return error
        return batch.arrays()

    def _augmented(self, sample: Sample | CorruptSample, row: int, epoch: int) -> Sample | CorruptSample:
        if isinstance(sample, CorruptSample) or self._augment is None:
            return sample
        id_hash = int(self._shard_set.rows["id_hash"][row])
        clips = sample.clips
        last = len(clips) - 1
        changed = [self._augment(clip, self._seed, epoch, id_hash, last - i) for i, clip in enumerate(clips)]
        return replace(sample, waveform=np.concatenate(changed))


def _batch(made: dict[str, Any] | Exception) -> Batch:
    if isinstance(made, Exception):
        raise made
    return Batch.from_arrays(made)


def _unchanged(item: Any) -> Any:
    return item
