"""Deals the clips of all steps of an epoch to micro-batches of equal cost, none of them over a cap.

n clips in the order of the epoch, cut into S steps of M micro-batches each; `bins` is int64 [n], the micro-batch
step * M + m of each clip. Costs and sizes are whole numbers, so the result is the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_EVEN_ENOUGH = 0.001  # of the dearest micro-batch's cost
_ROUNDS = 16
_PLACES = 48  # clips of a micro-batch that are tried as partners of a swap
_CHUNK_ELEMENTS = 2**20  # bounds the memory of a round
_NEAR_STEPS = 64
_FULL = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Limits:
    """D sizes of each clip, int64 [D, n], and the most that a micro-batch may hold of each, int64 [D]."""

    sizes: Ints
    limits: Ints

    def sums(self, bins: Ints, num_bins: int) -> Ints:
        """int64 [D, num_bins]: what the micro-batches hold; clips of bin -1 are in none."""
        sums = np.zeros((len(self.limits), num_bins), np.int64)
        placed = bins >= 0
        for total, size in zip(sums, self.sizes, strict=True):
            np.add.at(total, bins[placed], size[placed])
        return sums


class NoRoom(Exception):
    """A clip fits no micro-batch of the epoch any more."""


def deal(costs: Ints, bounds: Ints, micro_batches: int, limits: Limits) -> Ints:
    """bins [n] of clips of `costs` [n], where step s has the clips bounds[s] to bounds[s + 1].

    A clip stays in its step, unless no micro-batch there has room for it: then it goes to another step's. Raises NoRoom
    when there is none; each clip alone must be within the limits.
    """
    bins = _by_strata(costs, bounds, micro_batches)
    bins = _evened(bins, costs, len(bounds) - 1, micro_batches, None)
    num_bins = (len(bounds) - 1) * micro_batches
    over = (limits.sums(bins, num_bins) > limits.limits[:, None]).any(0)
    if over.any():
        steps = np.unique(np.flatnonzero(over) // micro_batches)
        _where_there_is_room(bins, costs, bounds, steps, micro_batches, limits)
        _to_other_steps(bins, costs, bounds, micro_batches, limits)
        bins = _evened(bins, costs, len(bounds) - 1, micro_batches, limits)
        assert bool((limits.sums(bins, num_bins) <= limits.limits[:, None]).all())
    return bins


def _dear_to_cheap(costs: Ints, bounds: Ints) -> tuple[Ints, Ints, Ints]:
    """Clips by step and falling cost; the step of each, and its place in the step."""
    counts = np.diff(bounds)
    step = np.repeat(np.arange(len(counts)), counts)
    dearest = int(costs.max())
    by_cost = np.argsort(step * (dearest + 1) + (dearest - costs), kind="stable")  # stays in its step: same counts
    return by_cost, step, np.arange(len(costs)) - bounds[:-1][step]


def _by_strata(costs: Ints, bounds: Ints, micro_batches: int) -> Ints:
    """All steps at once: the dearest M clips of a step, one to each micro-batch, then the next M, and so on, each
    stratum's dearest to the micro-batch that is cheapest so far. What is left over when M does not divide the clips,
    the cheapest of them, is dealt first, so that all strata make up for it."""
    by_cost, step, place = _dear_to_cheap(costs, bounds)
    whole = np.diff(bounds) // micro_batches * micro_batches
    rest = place >= whole[step]
    slot = np.where(rest, place - whole[step], place + micro_batches)
    num_strata, num_steps, nobody = int(whole.max()) // micro_batches + 1, len(whole), len(costs)
    clips = np.full((num_strata, num_steps, micro_batches), nobody)
    clips[slot // micro_batches, step, slot % micro_batches] = by_cost
    with_nobody = np.append(costs, 0)
    load = np.zeros((num_steps, micro_batches), np.int64)
    every_step = np.arange(num_steps)[:, None]
    bins = np.empty(nobody + 1, np.int64)
    for stratum in clips:
        cheapest_first = np.argsort(load, axis=1, kind="stable")
        load[every_step, cheapest_first] += with_nobody[stratum]
        bins[stratum] = every_step * micro_batches + cheapest_first
    return bins[:-1]


def _evened(bins: Ints, costs: Ints, num_steps: int, micro_batches: int, limits: Limits | None) -> Ints:
    table = _Table(bins, costs, num_steps, micro_batches, limits)
    table.even_out()
    return table.bins()


class _Table:
    """Who is in which micro-batch, int64 [S, M, K] with n for nobody, and what that costs and holds.

    In a round the dear half of each step's micro-batches meets the cheap half, and each pair swaps the two clips (or
    moves the one) that bring it closest together; the next round pairs them otherwise.
    """

    def __init__(self, bins: Ints, costs: Ints, num_steps: int, micro_batches: int, limits: Limits | None) -> None:
        by_bin = np.argsort(bins, kind="stable")
        counts = np.bincount(bins, minlength=num_steps * micro_batches)
        starts = np.cumsum(counts) - counts
        members = np.full((num_steps * micro_batches, int(counts.max()) + 1), len(bins))  # one place free for a move
        members[bins[by_bin], np.arange(len(bins)) - starts[bins[by_bin]]] = by_bin
        self._members = members.reshape(num_steps, micro_batches, -1)
        self._costs = np.append(costs, 0)
        self._loads = np.bincount(bins, costs, len(members)).astype(np.int64).reshape(num_steps, micro_batches)
        self._limits = np.empty(0, np.int64) if limits is None else limits.limits
        sizes = np.empty((0, len(bins)), np.int64) if limits is None else limits.sizes
        self._sizes = np.pad(sizes, ((0, 0), (0, 1)))
        held = np.empty((0, len(members)), np.int64) if limits is None else limits.sums(bins, len(members))
        self._held = held.reshape(-1, num_steps, micro_batches)

    def bins(self) -> Ints:
        members = self._members.reshape(-1, self._members.shape[2])
        bins = np.empty(len(self._costs), np.int64)
        bins[members] = np.arange(len(members))[:, None]
        return bins[:-1]

    def even_out(self) -> None:
        """Rounds until the dearest micro-batch of each step costs about the mean, or it helps no more."""
        num_steps, micro_batches, places = self._members.shape
        tried = np.arange(min(places, _PLACES)) * places // min(places, _PLACES)
        chunk = max(1, _CHUNK_ELEMENTS // (max(1, micro_batches // 2) * len(tried) ** 2))
        uneven = np.arange(num_steps)
        for number in range(_ROUNDS):
            dearest, mean = self._loads[uneven].max(1), self._loads[uneven].mean(1)
            uneven = uneven[dearest - mean > _EVEN_ENOUGH * dearest]
            for first in range(0, len(uneven), chunk):
                self._round(uneven[first : first + chunk, None], tried, number)

    def _round(self, steps: Ints, tried: Ints, number: int) -> None:
        loads = self._loads[steps[:, 0]]
        cheap_to_dear = np.argsort(loads, axis=1, kind="stable")
        half = loads.shape[1] // 2
        dear, cheap = cheap_to_dear[:, ::-1][:, :half], np.roll(cheap_to_dear[:, :half], number, axis=1)
        givers, takers = self._members[steps, dear][..., tried], self._members[steps, cheap][..., tried]
        gap = self._loads[steps, dear] - self._loads[steps, cheap]
        left = np.abs(gap[..., None, None] - 2 * (self._costs[givers][..., None] - self._costs[takers][..., None, :]))
        left = left.reshape(*gap.shape, -1)
        best = left.argmin(2)
        given = np.take_along_axis(givers, best[..., None] // len(tried), 2)[..., 0]
        taken = np.take_along_axis(takers, best[..., None] % len(tried), 2)[..., 0]
        better = np.take_along_axis(left, best[..., None], 2)[..., 0] < gap
        for size, limit, held in zip(self._sizes, self._limits, self._held, strict=True):
            moved = size[given] - size[taken]
            better &= (held[steps, cheap] + moved <= limit) & (held[steps, dear] - moved <= limit)
        step, giver, taker = (a[better] for a in (np.broadcast_to(steps, gap.shape), dear, cheap))
        self._members[step, giver, tried[best[better] // len(tried)]] = taken[better]
        self._members[step, taker, tried[best[better] % len(tried)]] = given[better]
        for values, sums in ((self._costs, self._loads), *zip(self._sizes, self._held, strict=True)):
            moved = values[given[better]] - values[taken[better]]
            sums[step, giver] -= moved
            sums[step, taker] += moved


def _where_there_is_room(
    bins: Ints, costs: Ints, bounds: Ints, steps: Ints, micro_batches: int, limits: Limits
) -> None:
    """Deal some steps anew: each clip, from dear to cheap, to the cheapest micro-batch that has room for it, or to none
    (bin -1). Changes `bins`."""
    by_cost, step, place = _dear_to_cheap(costs, bounds)
    nobody = len(costs)
    row_of = np.full(len(bounds) - 1, -1)
    row_of[steps] = np.arange(len(steps))
    mine = row_of[step] >= 0
    clips = np.full((int(np.diff(bounds)[steps].max()), len(steps)), nobody)
    clips[place[mine], row_of[step[mine]]] = by_cost[mine]
    all_costs, all_sizes = np.append(costs, 0), np.pad(limits.sizes, ((0, 0), (0, 1)))
    load = np.zeros((len(steps), micro_batches), np.int64)
    held = np.zeros((len(limits.limits), *load.shape), np.int64)
    rows = np.arange(len(steps))
    for dealt in clips:
        full: NDArray[np.bool] = np.any(held + all_sizes[:, dealt, None] > limits.limits[:, None, None], axis=0)
        chosen = np.where(full, _FULL, load).argmin(1)
        fits = ~full[rows, chosen]
        load[rows[fits], chosen[fits]] += all_costs[dealt[fits]]
        held[:, rows[fits], chosen[fits]] += all_sizes[:, dealt[fits]]
        here = dealt < nobody
        bins[dealt[here]] = np.where(fits, steps * micro_batches + chosen, -1)[here]


def _to_other_steps(bins: Ints, costs: Ints, bounds: Ints, micro_batches: int, limits: Limits) -> None:
    """Clips of bin -1 to the cheapest micro-batch with room in the steps that follow, else to any. Changes `bins`."""
    num_bins = (len(bounds) - 1) * micro_batches
    placed = bins >= 0
    load = np.bincount(bins[placed], costs[placed], num_bins)
    held = limits.sums(bins, num_bins)
    for clip in np.flatnonzero(~placed):
        first = int(np.searchsorted(bounds, clip, side="right")) * micro_batches  # of the step after its own
        size = limits.sizes[:, clip, None]
        for width in (min(num_bins, _NEAR_STEPS * micro_batches), num_bins):
            near = np.arange(first, first + width) % num_bins
            near = near[(held[:, near] + size <= limits.limits[:, None]).all(0)]
            if len(near):
                break
        else:
            raise NoRoom
        chosen = near[load[near].argmin()]
        bins[clip] = chosen
        load[chosen] += costs[clip]
        held[:, chosen] += size[:, 0]
