"""How often each clip is in each epoch: corpora have weights, and over the epochs every clip gets its share."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_MAX_EPOCHS = 10_000  # in which a clip of the smallest weight comes once
_KEY = 2**64 - 1  # of the random order that fractions rotate through; epochs have the keys 0, 1, 2 ...


class Mixture:
    """Corpus weights over n clips. Weight 2 is every clip twice an epoch, 0.25 every clip once in four epochs."""

    def __init__(
        self, corpus: NDArray[np.uint64], corpora: Mapping[str, int], weights: Mapping[str, float], seed: int
    ) -> None:
        """`corpus` is each clip's corpus (uint64 [n]), `corpora` what the names stand for there.

        Raises ValueError for a corpus that is not there, a weight that is too small, or when nothing is left.
        """
        unknown = sorted(set(weights) - set(corpora))
        if unknown:
            raise ValueError(
                f"data.mixture: the shards hold no corpus {unknown[0]!r}; they hold {', '.join(sorted(corpora))}"
            )
        small = [name for name, weight in sorted(weights.items()) if 0 < weight < 1 / _MAX_EPOCHS]
        if small:
            raise ValueError(
                f"data.mixture: {small[0]}: {weights[small[0]]:g} is less than once in {_MAX_EPOCHS:,} epochs, "
                f"{1 / _MAX_EPOCHS:g}; raise it, or say 0 to leave the corpus out"
            )
        self.weights = {name: _fraction(weight) for name, weight in sorted(weights.items()) if weight != 1}
        self._num_clips = len(corpus)
        self._parts: list[tuple[NDArray[np.int64], Fraction]] = []
        random = np.random.Philox(key=np.array([seed, _KEY], np.uint64)).random_raw(len(corpus))
        for name, weight in self.weights.items():
            rows = np.flatnonzero(corpus == np.uint64(corpora[name]))
            self._parts.append((rows[np.argsort(random[rows], kind="stable")], weight))
        plain = len(corpus) - sum(len(rows) for rows, _ in self._parts)
        self.mean_clips = float(plain + sum(len(rows) * weight for rows, weight in self._parts))
        self.fewest_clips = plain + sum(int(len(rows) * weight) for rows, weight in self._parts)
        if not self.fewest_clips:
            raise ValueError("data.mixture: its weights leave epochs without a clip; raise them")

    def copies(self, epoch: int) -> NDArray[np.int64]:
        """int64 [n]: how often each clip is in the epoch, its weight rounded down or up.

        Clip r of m in a corpus of weight w has floor(w (epoch + 1) + r / m) - floor(w epoch + r / m): over E epochs it
        gets w E within 1, and the whole corpus gets w m within 1 in each epoch.
        """
        copies = np.ones(self._num_clips, np.int64)
        for rows, weight in self._parts:
            up, down, count = weight.numerator, weight.denominator, len(rows)
            rank = np.arange(count) * down
            copies[rows] = ((epoch + 1) * up * count + rank) // (down * count) - (epoch * up * count + rank) // (
                down * count
            )
        return copies


def _fraction(weight: float) -> Fraction:
    """0.1 as 1/10, so that ten epochs make exactly one pass."""
    return Fraction(str(weight)).limit_denominator(_MAX_EPOCHS)
