"""Which clips form which micro-batch of which step: a pure function of (costs, seed, epoch).

One random order per epoch is cut into steps at equal cumulative cost, and each step's clips are dealt to M
micro-batches so that their costs are equal too. Ranks and workers appear nowhere: W ranks take the micro-batches in
turn, so the order of the data survives any change of W. The state to resume from is one integer, the global step.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.audio import SAMPLE_RATE

Step = tuple[NDArray[np.int64], ...]


@dataclass(frozen=True)
class CostWeights:
    """Relative compute of a clip's parts; one unit is a student token forward and backward.

    The defaults are for Whisper-large and a 7B LLM: a second of speech is 2.3 in the encoder and 6.25 tokens in the
    LLM; a teacher's token is a forward only; a response token passes both; a clip brings some 50 tokens of prompt.
    """

    second: float = 8.5
    text_token: float = 0.5
    response_token: float = 1.5
    clip: float = 75.0


def sample_costs(
    num_samples: NDArray[np.integer],
    num_text_tokens: NDArray[np.integer],
    num_response_tokens: NDArray[np.integer],
    weights: CostWeights | None = None,
) -> NDArray[np.float64]:
    """float64 [n]: what each clip costs to train on, in units of CostWeights."""
    weights = weights or CostWeights()
    seconds = num_samples.astype(np.float64) / SAMPLE_RATE
    tokens = weights.text_token * num_text_tokens + weights.response_token * num_response_tokens
    costs: NDArray[np.float64] = weights.clip + weights.second * seconds + tokens
    return costs


class Plan:
    """Steps of about `clips_per_step` clips, each of M = `micro_batches` arrays of row numbers.

    Every epoch has the same number of steps, and every row is in exactly one of them.
    """

    def __init__(
        self, costs: NDArray[np.float64], *, seed: int, clips_per_step: float, micro_batches: int, dataset_id: str
    ) -> None:
        """Raises ValueError when there are no rows, or fewer than one clip per step or one micro-batch is asked for."""
        if not len(costs):
            raise ValueError("no clips to train on")
        if clips_per_step < 1 or micro_batches < 1:
            raise ValueError(f"clips_per_step={clips_per_step}, micro_batches={micro_batches}: both must be at least 1")
        assert bool(np.all(costs > 0)) and bool(np.all(np.isfinite(costs)))
        self._costs = costs
        self.seed = seed
        self.micro_batches = micro_batches
        self.steps_per_epoch = max(1, round(len(costs) / clips_per_step))
        settings = f"{dataset_id} {seed} {clips_per_step} {micro_batches} ".encode()
        self.hash = hashlib.blake2b(settings + costs.astype("<f8").tobytes(), digest_size=8).hexdigest()
        self._steps = functools.lru_cache(maxsize=2)(self._cut)

    def num_steps(self, epoch: int) -> int:
        """The number of steps of an epoch; the same for all, so that a global step has one meaning."""
        assert epoch >= 0
        return self.steps_per_epoch

    def locate(self, global_step: int) -> tuple[int, int]:
        """(epoch, step within it)."""
        return divmod(global_step, self.steps_per_epoch)

    def epoch(self, epoch: int) -> list[Step]:
        """All steps of an epoch."""
        return [self.step(epoch, step) for step in range(self.steps_per_epoch)]

    def step(self, epoch: int, step: int) -> Step:
        """The M micro-batches of a step; some are empty when M exceeds its clips."""
        return self._deal(self._steps(epoch)[step])

    def _cut(self, epoch: int) -> list[NDArray[np.int64]]:
        """The random order of the epoch, cut where the cumulative cost passes equal shares; no step is empty."""
        n, steps = len(self._costs), self.steps_per_epoch
        random = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], np.uint64)))
        order = random.permutation(n)
        total = np.cumsum(self._costs[order])
        number = np.arange(1, steps)
        middle = total - self._costs[order] / 2
        cuts = np.searchsorted(middle, total[-1] * number / steps)
        cuts = np.maximum.accumulate(np.maximum(cuts, 1) - number) + number  # one clip or more in each ...
        cuts = np.minimum(cuts, n - steps + number)  # ... also in the last ones
        return np.split(order, cuts)

    def _deal(self, rows: NDArray[np.int64]) -> Step:
        """From dear to cheap, each clip to the micro-batch that is lightest so far; the random order stays inside."""
        lightest = [(0.0, i) for i in range(self.micro_batches)]
        place = np.empty(len(rows), np.int64)
        for j in np.argsort(-self._costs[rows], kind="stable"):
            load, i = lightest[0]
            place[j] = i
            heapq.heapreplace(lightest, (load + self._costs[rows[j]], i))
        return tuple(rows[place == i] for i in range(self.micro_batches))
