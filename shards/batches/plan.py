"""Which clips form which micro-batch of which step: a pure function of (sizes, settings, seed, epoch).

One random order per epoch is cut into steps at equal cumulative cost, and each step's clips are dealt to M
micro-batches so that their costs are equal too and none exceeds a cap. Ranks and workers appear nowhere: W ranks take
the micro-batches in turn, so the order of the data survives any change of W. The state to resume from is one integer,
the global step.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.audio import SAMPLE_RATE
from shards.batches.deal import Limits, NoRoom, deal
from shards.batches.mixture import Mixture
from shards.batches.sizes import Caps, CostWeights, Sizes

Step = tuple[NDArray[np.int64], ...]

_STATE_VERSION = 1
_KEPT_EPOCHS = 2  # readers run ahead of the training into the next one


@dataclass(frozen=True)
class PlanSummary:
    """One epoch in numbers. `unused` is the share of the ranks' time that waits for the dearest micro-batch of each
    step, as the mean over steps and in the worst."""

    clips: int
    steps: int
    clips_per_step_mean: float
    clips_per_step_std: float
    clips_per_step_min: int
    clips_per_step_max: int
    step_cost_std: float  # relative to the mean
    unused_mean: float
    unused_worst: float
    largest_audio_s: float  # of a micro-batch
    largest_tokens: int
    largest_response_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.clips:,} clips in {self.steps:,} steps of {self.clips_per_step_mean:.1f} ± "
            f"{self.clips_per_step_std:.1f} clips; the largest micro-batch hears {self.largest_audio_s:.0f} s and has "
            f"{self.largest_tokens:,} tokens, {self.largest_response_tokens:,} of them responses; micro-batches of a "
            f"step differ in cost by {self.unused_mean:.2%} (worst {self.unused_worst:.2%})"
        )


@dataclass(frozen=True)
class _Epoch:
    rows: NDArray[np.int64]  # micro-batch after micro-batch
    ends: NDArray[np.int64]  # [steps * M]


class Plan:
    """Steps of about `clips_per_step` clips, each of M = `micro_batches` arrays of row numbers.

    Every epoch has the same number of steps and holds every row once, or as often as `mixture` says; what is replayed
    lies evenly among the others.
    """

    def __init__(
        self,
        sizes: Sizes,
        *,
        dataset_id: str,
        seed: int,
        clips_per_step: float,
        micro_batches: int,
        weights: CostWeights | None = None,
        caps: Caps | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        """Raises ValueError when there are no rows, fewer than one clip per step or one micro-batch is asked for, or
        a clip alone exceeds a cap."""
        if not len(sizes):
            raise ValueError("no clips to train on")
        if clips_per_step < 1 or micro_batches < 1:
            raise ValueError(f"clips_per_step={clips_per_step}, micro_batches={micro_batches}: both must be at least 1")
        self.seed = seed
        self.micro_batches = micro_batches
        self._sizes, self._mixture, self._caps = sizes, mixture, caps or Caps()
        self._costs = sizes.costs(weights or CostWeights())
        capped, self._besides, limits, self._capped_names = sizes.capped(self._caps)
        self._limits = Limits(capped, limits - self._besides)
        self._refuse_large_clips()
        mean_clips, fewest = (mixture.mean_clips, mixture.fewest_clips) if mixture else (len(sizes), len(sizes))
        self.steps_per_epoch = min(max(1, round(mean_clips / clips_per_step)), fewest)
        settings = [dataset_id, seed, clips_per_step, micro_batches, asdict(self._caps)]
        settings.append({name: str(weight) for name, weight in mixture.weights.items()} if mixture else {})
        settings += [mixture.replay] if mixture and mixture.replay else []
        settings += [{"left_out": mixture.left_out.tolist()}] if mixture and len(mixture.left_out) else []
        digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8)
        for numbers in (self._costs, capped, self._besides):
            digest.update(numbers.astype("<i8").tobytes())
        self.hash = digest.hexdigest()
        self._epochs: dict[int, _Epoch] = {}

    def num_steps(self, epoch: int) -> int:
        """The number of steps of an epoch; the same for all, so that a global step has one meaning."""
        assert epoch >= 0
        return self.steps_per_epoch

    def locate(self, global_step: int) -> tuple[int, int]:
        """(epoch, step within it)."""
        return divmod(global_step, self.steps_per_epoch)

    def state(self, global_step: int) -> dict[str, int | str]:
        """Where a run stands and in which plan: all that is needed to go on, at any number of ranks and workers."""
        epoch, step = self.locate(global_step)
        return {"version": _STATE_VERSION, "plan": self.hash, "seed": self.seed, "epoch": epoch, "step": step}

    def global_step(self, state: dict[str, Any]) -> int:
        """The global step of a `state`. Raises ValueError for the state of another plan."""
        if state != self.state(here := state["epoch"] * self.steps_per_epoch + state["step"]):
            raise ValueError(
                f"the state is of plan {state['plan']} with seed {state['seed']}, this is plan {self.hash} with seed "
                f"{self.seed}: the shards, the seed or the section data have changed"
            )
        return int(here)

    def epoch(self, epoch: int) -> list[Step]:
        """All steps of an epoch."""
        return [self.step(epoch, step) for step in range(self.steps_per_epoch)]

    def step(self, epoch: int, step: int) -> Step:
        """The M micro-batches of a step; some are empty when M exceeds its clips. Raises ValueError as `check`."""
        dealt = self._in_caps(epoch, epoch + 1)
        first = step * self.micro_batches
        start = int(dealt.ends[first - 1]) if first else 0
        ends = dealt.ends[first : first + self.micro_batches].tolist()
        return tuple(dealt.rows[a:b] for a, b in itertools.pairwise([start, *ends]))

    def check(self, epochs: int) -> None:
        """Raises ValueError, naming the field and a number that works, when some epoch cannot keep to the caps."""
        for epoch in range(epochs if self._capped_names else 0):
            self._in_caps(epoch, epochs)

    def summary(self, epoch: int = 0) -> PlanSummary:
        """What the epoch looks like. Raises ValueError as `check`."""
        self.check(epoch + 1)
        dealt = self._dealt(epoch)
        starts = np.append(0, dealt.ends[:-1])

        def per_micro_batch(values: NDArray[np.int64]) -> NDArray[np.int64]:
            sums = np.append(0, np.cumsum(values[dealt.rows]))
            held: NDArray[np.int64] = sums[dealt.ends] - sums[starts]
            return held.reshape(self.steps_per_epoch, self.micro_batches)

        clips, costs = per_micro_batch(np.ones_like(self._costs)).sum(1), per_micro_batch(self._costs)
        unused = 1 - costs.mean(1) / costs.max(1)
        return PlanSummary(
            clips=len(dealt.rows),
            steps=self.steps_per_epoch,
            clips_per_step_mean=float(clips.mean()),
            clips_per_step_std=float(clips.std()),
            clips_per_step_min=int(clips.min()),
            clips_per_step_max=int(clips.max()),
            step_cost_std=float(costs.sum(1).std() / costs.sum(1).mean()),
            unused_mean=float(unused.mean()),
            unused_worst=float(unused.max()),
            largest_audio_s=float(per_micro_batch(self._sizes.heard_samples).max() / SAMPLE_RATE),
            largest_tokens=int(per_micro_batch(self._sizes.tokens).max()) + self._sizes.prompt_tokens,
            largest_response_tokens=int(per_micro_batch(self._sizes.response_tokens).max()),
        )

    def _in_caps(self, epoch: int, epochs: int) -> _Epoch:
        """An epoch; the remedy, when it has none, is for the first `epochs`."""
        try:
            return self._dealt(epoch)
        except NoRoom:
            raise ValueError(self._remedy(epochs)) from None

    def _dealt(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            dealt = self._deal(epoch)
            while len(self._epochs) >= _KEPT_EPOCHS:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = dealt
        return self._epochs[epoch]

    def _deal(self, epoch: int) -> _Epoch:
        rows = np.arange(len(self._costs))
        if self._mixture is not None:
            rows = np.repeat(rows, self._mixture.copies(epoch))
        # Not Generator.permutation: another numpy may make another order of the same random numbers.
        random = np.random.Philox(key=np.array([self.seed, epoch], np.uint64)).random_raw(len(rows))
        rows = rows[np.argsort(random, kind="stable")]
        costs = self._costs[rows]
        limits = Limits(self._limits.sizes[:, rows], self._limits.limits)
        bins = deal(costs, self._cut(costs), self.micro_batches, limits)
        ends = np.cumsum(np.bincount(bins, minlength=self.steps_per_epoch * self.micro_batches))
        return _Epoch(rows[np.argsort(bins, kind="stable")], ends)

    def _cut(self, costs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the cumulative cost passes equal shares; no step is empty. int64 [steps + 1], the ends included."""
        n, steps = len(costs), self.steps_per_epoch
        total = np.cumsum(costs)
        number = np.arange(1, steps)
        middle = total - costs // 2
        cuts = np.searchsorted(middle, total[-1] // steps * number + total[-1] % steps * number // steps)
        cuts = np.maximum.accumulate(np.maximum(cuts, 1) - number) + number  # one clip or more in each ...
        cuts = np.minimum(cuts, n - steps + number)  # ... also in the last ones
        return np.concatenate([[0], cuts, [n]])

    def _refuse_large_clips(self) -> None:
        for d, (name, sizes) in enumerate(zip(self._capped_names, self._limits.sizes, strict=True)):
            largest, limit = int(sizes.max()), self._limits.limits[d]
            if largest > limit:
                cap, needed = getattr(self._caps, name), largest + self._besides[d]
                raise ValueError(
                    f"data.caps.{name} = {cap:g} is too small: {int((sizes > limit).sum())} clips alone exceed it; "
                    f"raise it to {_shown(name, needed)} or more, or leave long clips out of the shards"
                )

    def _remedy(self, epochs: int) -> str:
        """The tightest cap, and what to raise it to, or micro_batches: numbers that were tried on all epochs.

        A micro-batch is full for some clip by cap d only when it holds at least `full[d]` of it, and of such there are
        at most total[d] / full[d]. When these shares sum to less than 1 there is room for sure; mostly far less does.
        """
        total = np.zeros(len(self._capped_names))
        for epoch in range(epochs):
            copies = self._mixture.copies(epoch) if self._mixture else 1
            total = np.maximum(total, (self._limits.sizes * copies).sum(1))
        mean = total / (self.steps_per_epoch * self.micro_batches)
        largest, least, limits = self._limits.sizes.max(1), self._limits.sizes.min(1), self._limits.limits
        full = np.maximum(limits - largest + 1, limits // np.maximum(1, largest) * least)
        shares = mean / full
        d = int(shares.argmax())
        name, others = self._capped_names[d], float(shares.sum() - shares[d])
        sure = math.floor(self.micro_batches * shares.sum()) + 1
        wider = next(n for n in _growing(self.micro_batches, sure) if self._keeps_caps(epochs, n, limits))
        raised = f"raise data.micro_batches to {wider}"
        unit, besides = SAMPLE_RATE if name == "audio_s" else 1, self._besides[d]
        sure = math.ceil((largest[d] + mean[d] / max(0.01, 1 - others) + besides) / unit)
        for cap in _growing(math.ceil((max(limits[d], mean[d]) + besides) / unit), sure):
            higher = np.where(np.arange(len(limits)) == d, cap * unit - besides, limits)
            if self._keeps_caps(epochs, self.micro_batches, higher):
                raised += f", or the cap to {cap}"
                break
        return (
            f"data.caps.{name} = {getattr(self._caps, name):g} is too small: micro-batches hold "
            f"{_shown(name, mean[d] + besides)} on average and the largest clip {_shown(name, largest[d])}; {raised}"
        )

    def _keeps_caps(self, epochs: int, micro_batches: int, limits: NDArray[np.int64]) -> bool:
        other = copy.copy(self)
        other.micro_batches, other._limits, other._epochs = micro_batches, Limits(self._limits.sizes, limits), {}
        try:
            for epoch in range(epochs):
                other._dealt(epoch)
        except NoRoom:
            return False
        return True


def _growing(now: int, sure: int) -> Iterator[int]:
    """Above `now` by 5 %, 10 %, 22 %, 46 %, 114 % ... and at last `sure`."""
    factor = 1.05
    while (number := math.ceil(now * factor) + 1) < sure:
        yield number
        factor *= factor
    yield max(sure, now + 1)


def _shown(name: str, value: float) -> str:
    """In the field's unit, rounded up."""
    return str(math.ceil(value / SAMPLE_RATE if name == "audio_s" else value))
