"""Which rank is slow, and in which part of a step: the seconds that each spends by itself in data, forward, backward
and update, without those in which it waits for others.

Under ZeRO 3 a rank meets the others in every layer, so whoever is late makes all alike late; only its waiting, which is
less than theirs, gives it away. A collective ends when the last rank has come and the bytes are there, so the least
that any rank has waited in it is what the bytes took, at least: communication. No clocks are compared.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
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
_OWN = -1
_Mark = Any  # seconds, or on a GPU an event of its current stream
_Span = tuple[str, _Mark, _Mark, int]  # part, from, to, and the number of the collective in its step, or _OWN


@dataclass(frozen=True)
class Slow:
    """A rank that the others wait for: `lead_s` of each step, most of it in `part`."""

    rank: int
    part: str
    lead_s: float


def is_clear(seconds: float, step_s: float) -> bool:
    """Whether what holds up a step is worth a word, where one takes `step_s`: 10 % of it, and 5 ms."""
    return seconds >= max(_CLEARLY_SHARE * step_s, _CLEARLY_S)


def slowest(own_s: Sequence[Sequence[float]]) -> Slow:
    """Of own seconds in the order of `PARTS`, by rank (two or more): the rank with most of them, beside the median of
    the others."""
    rank = max(range(len(own_s)), key=lambda rank: sum(own_s[rank]))
    others = [seconds for other, seconds in enumerate(own_s) if other != rank]
    lead_s = sum(own_s[rank]) - statistics.median(map(sum, others))
    by_part = [own_s[rank][i] - statistics.median(each[i] for each in others) for i in range(len(PARTS))]
    return Slow(rank, PARTS[by_part.index(max(by_part))], lead_s)


def communication_s(waits: Sequence[Sequence[float]], device: torch.device) -> float:
    """Seconds of a step in which all ranks had come to a collective and waited for its bytes: the sum of the least
    waits, the median of the steps. `waits` are this rank's by step and collective. Every rank calls it, with as many.

    It is at least so long: through gloo a rank whose kernel still sends goes on to the next collective, and another one
    waits there for it.
    """
    least = torch.tensor([wait for step in waits for wait in step], dtype=torch.float64, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    by_step = least.cpu().split([len(step) for step in waits])
    return statistics.median(float(step.sum()) for step in by_step)


@dataclass
class _Step:
    """What this rank noted of a step."""

    spans: list[_Span] = field(default_factory=list)
    num_collectives: int = 0
    num_bytes: int = 0  # of what they put together


class Stopwatch:
    """This rank's own seconds by part, step by step. On a GPU its streams are asked: a part is what
    the computing one takes for it, and waiting what the one that waits for a collective takes for that."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._part: str | None = None
        self._steps = deque([_Step()], maxlen=_MOST_STEPS)
        self._told: list[_Step] = []
        self._num_new = 0  # steps since they were last told of
        self.is_enough = False  # whether they were enough to judge by

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens in this block belongs to that part of the step."""
        self._part, began = name, self._mark()
        try:
            yield
        finally:
            self._steps[-1].spans.append((name, began, self._mark(), _OWN))
            self._part = None

    def next_step(self) -> None:
        """The parts to come are of another step."""
        self._steps.append(_Step())
        self._num_new += 1

    def medians(self) -> list[float]:
        """Own seconds of a step in the order of `PARTS`: the median of the steps since the last call, of 50 at most;
        with fewer than 5, of the last 5."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        told = [step for step in self._steps if step.spans][-max(self._num_new, _JUDGED_STEPS) :]
        self._steps, self._num_new = deque([*told[1 - _JUDGED_STEPS :], _Step()], maxlen=_MOST_STEPS), 0
        self.is_enough = len(told) >= _JUDGED_STEPS
        self._told = told[-_JUDGED_STEPS:]
        steps = [_own_s(step) for step in told]
        return [statistics.median(step[i] for step in steps) if steps else 0.0 for i in range(len(PARTS))]

    def waits(self) -> list[list[float]]:
        """Of the last 5 steps that `medians` has told of: seconds in each collective, in the order of their beginnings,
        which is the same on all ranks."""
        return [_waits_s(step) for step in self._told]

    def num_bytes(self) -> int:
        """What the collectives of one of these steps put together."""
        return statistics.median_low([step.num_bytes for step in self._told] or [0])

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
            if self._part is None:
                return collective(*given, **named)
            step, began = self._steps[-1], self._mark()
            number, step.num_collectives = step.num_collectives, step.num_collectives + 1
            step.num_bytes += max(map(_num_bytes, (*given, *named.values())), default=0)
            handle = collective(*given, **named)
            self._waited(began, number)
            return handle if handle is None else _Handle(handle, self, number)

        return call

    def _waited(self, began: _Mark, number: int) -> None:
        if self._part is not None:
            self._steps[-1].spans.append((self._part, began, self._mark(), number))

    def _mark(self) -> _Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _own_s(step: _Step) -> list[float]:
    found = dict.fromkeys(PARTS, 0.0)
    for part, began, ended, number in step.spans:
        found[part] += _seconds(began, ended) * (1 if number == _OWN else -1)
    return list(found.values())


def _waits_s(step: _Step) -> list[float]:
    found = [0.0] * step.num_collectives
    for _, began, ended, number in step.spans:
        if _OWN != number < len(found):  # or it was begun in the step before
            found[number] += _seconds(began, ended)
    return found


def _num_bytes(given: object) -> int:
    if isinstance(given, list | tuple):
        return sum(map(_num_bytes, given))
    return given.nbytes if isinstance(given, torch.Tensor) else 0


def _seconds(began: _Mark, ended: _Mark) -> float:
    seconds: float = ended - began if isinstance(began, float) else began.elapsed_time(ended) / 1000
    return seconds


class _Handle:
    """A collective under way, whose `wait` is watched."""

    def __init__(self, handle: Any, watch: Stopwatch, number: int) -> None:
        self._handle, self._watch, self._number = handle, watch, number

    def wait(self, *given: Any) -> Any:
        """The collective's own."""
        began = self._watch._mark()
        result = self._handle.wait(*given)
        self._watch._waited(began, self._number)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
