"""Interleaved timings: on a machine whose speed drifts, only what ran side by side can be compared."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import psutil


@dataclass(frozen=True)
class Spread:
    """Of some runs: the median, the least and the most."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Seconds:
    """What one run took: by the clock, and of the cores, by this process and its children."""

    wall: float
    cpu: float


def interleaved(operations: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Seconds]]:
    """Each operation once per round, in an order that turns, after one round that is not counted."""
    names = list(operations)
    taken: dict[str, list[Seconds]] = {name: [] for name in names}
    for turn in range(-1, rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall, cpu = time.perf_counter(), _cpu_seconds()
            operations[name]()
            seconds = Seconds(time.perf_counter() - wall, _cpu_seconds() - cpu)
            if turn >= 0:
                taken[name].append(seconds)
    return taken


def _cpu_seconds() -> float:
    ended = os.times()  # of this process, and of children that have ended
    living = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(ended[:4]) + sum(times.user + times.system for times in living)


def share(limit: Sequence[Seconds], measured: Sequence[Seconds], clock: str = "wall") -> Spread:
    """How much of the limit's speed was reached, round by round: 1 is as fast as the limit."""
    pairs = zip(limit, measured, strict=True)
    return Spread.of([getattr(fast, clock) / getattr(slow, clock) for fast, slow in pairs])
