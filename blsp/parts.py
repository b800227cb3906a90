"""Which rank is slow, and in which part of a step: the seconds that each spends by itself in data, forward, backward
and update, without those in which it waits for others.

Under ZeRO 3 a rank meets the others in every layer, so whoever is late makes all alike late; only its waiting, which is
less than theirs, gives it away.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed import comm

PARTS = ("data", "forward", "backward", "update")

_MOST_STEPS = 50  # a GPU's events are no use for longer
_JUDGED_STEPS = 5  # in fewer any rank may have been slow by chance
_CLEARLY_SHARE, _CLEARLY_S = 0.1, 0.005  # of a step's median, and at least so long
# DeepSpeed's collectives, as its backends call them.
_COLLECTIVES = (
    "all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_reduce", "all_reduce_coalesced",
    "all_to_all_single", "broadcast", "reduce", "reduce_scatter", "reduce_scatter_tensor",
)  # fmt: skip
_Mark = Any  # seconds, or on a GPU an event of its current stream


@dataclass(frozen=True)
class Slow:
    """A rank that the others wait for: `lead_s` of each step, most of it in `part`."""

    rank: int
    part: str
    lead_s: float

    def clearly(self, step_s: float) -> bool:
        """Whether it is worth a word, where a step takes `step_s`: 10 % of it, and 5 ms."""
        return self.lead_s >= max(_CLEARLY_SHARE * step_s, _CLEARLY_S)


def slowest(own_s: Sequence[Sequence[float]]) -> Slow:
    """Of own seconds in the order of `PARTS`, by rank (two or more): the rank with most of them, beside the median of
    the others."""
    rank = max(range(len(own_s)), key=lambda rank: sum(own_s[rank]))
    others = [seconds for other, seconds in enumerate(own_s) if other != rank]
    lead_s = sum(own_s[rank]) - statistics.median(map(sum, others))
    by_part = [own_s[rank][i] - statistics.median(each[i] for each in others) for i in range(len(PARTS))]
    return Slow(rank, PARTS[by_part.index(max(by_part))], lead_s)


class Stopwatch:
    """This rank's own seconds by part, step by step. On a GPU its streams are asked: a part is what
    the computing one takes for it, and waiting what the one that waits for a collective takes for that."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._part: str | None = None
        self._steps: deque[list[tuple[str, _Mark, _Mark, int]]]  # part, from, to, and +1 or -1 for waiting
        self._steps = deque([[]], maxlen=_MOST_STEPS)
        self._num_new = 0  # steps since they were last told of
        self.is_enough = False  # whether they were enough to judge by

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens in this block belongs to that part of the step."""
        self._part, began = name, self._mark()
        try:
            yield
        finally:
            self._steps[-1].append((name, began, self._mark(), 1))
            self._part = None

    def next_step(self) -> None:
        """The parts to come are of another step."""
        self._steps.append([])
        self._num_new += 1

    def medians(self) -> list[float]:
        """Own seconds of a step in the order of `PARTS`: the median of the steps since the last call, of 50 at most;
        with fewer than 5, of the last 5."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        told = [step for step in self._steps if step][-max(self._num_new, _JUDGED_STEPS) :]
        self._steps, self._num_new = deque([*told[1 - _JUDGED_STEPS :], []], maxlen=_MOST_STEPS), 0
        self.is_enough = len(told) >= _JUDGED_STEPS
        steps = [self._seconds(step) for step in told]
        return [statistics.median(step[i] for step in steps) if steps else 0.0 for i in range(len(PARTS))]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """In this block the time in DeepSpeed's collectives counts as waiting."""
        backend = comm.comm.cdb
        before = {name: getattr(backend, name) for name in _COLLECTIVES if hasattr(backend, name)}
        for name, collective in before.items():
            setattr(backend, name, self._timed(collective))
        try:
            yield
        finally:
            for name in before:
                delattr(backend, name)

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = self._mark()
            handle = collective(*given, **named)
            self._waited(began)
            return handle if handle is None else _Handle(handle, self)

        return call

    def _waited(self, began: _Mark) -> None:
        if self._part is not None:
            self._steps[-1].append((self._part, began, self._mark(), -1))

    def _mark(self) -> _Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, step: list[tuple[str, _Mark, _Mark, int]]) -> list[float]:
        found = dict.fromkeys(PARTS, 0.0)
        for part, began, ended, sign in step:
            seconds = ended - began if isinstance(began, float) else began.elapsed_time(ended) / 1000
            found[part] += sign * seconds
        return list(found.values())


class _Handle:
    """A collective under way, whose `wait` is watched."""

    def __init__(self, handle: Any, watch: Stopwatch) -> None:
        self._handle, self._watch = handle, watch

    def wait(self, *given: Any) -> Any:
        """The collective's own."""
        began = self._watch._mark()
        result = self._handle.wait(*given)
        self._watch._waited(began)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
