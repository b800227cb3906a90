"""How often each clip is in each epoch: corpora have weights, replayed clips a share of the whole, and over the epochs
every clip gets its turn."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

_MAX_EPOCHS = 10_000  # in which a clip of the smallest weight comes once
_KEY = 2**64 - 1  # of the random order that fractions rotate through; epochs have the keys 0, 1, 2 ...


class Mixture:
    """Corpus weights over n clips. Weight 2 is every clip twice an epoch, 0.25 every clip once in four epochs.

    The weight of replayed clips follows from their share: beside m others an epoch has share m / (1 - share) of them.
    """

    def __init__(
        self,
        corpus: NDArray[np.uint64],
        corpora: Mapping[str, int],
        weights: Mapping[str, float],
        seed: int,
        replayed: NDArray[np.bool_] | None = None,
        share: float = 0.0,
        left_out: NDArray[np.bool_] | None = None,
    ) -> None:
        """`corpus` is each clip's corpus (uint64 [n]), `corpora` what the names stand for there; `replayed` (bool [n])
        says which clips are replayed, `share` how many of an epoch's clips they are, from 0 to below 1; those of
        `left_out` (bool [n]) are in no epoch.

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
        self._parts: list[tuple[NDArray[np.int64], Fraction]] = []  # rows in their order, and how many an epoch has
        out = np.zeros(len(corpus), bool) if left_out is None else left_out
        apart = out if replayed is None else replayed | out
        self.left_out = np.flatnonzero(out)
        random = np.random.Philox(key=np.array([seed, _KEY], np.uint64)).random_raw(len(corpus))
        for name, weight in self.weights.items():
            rows = np.flatnonzero((corpus == np.uint64(corpora[name])) & ~apart)
            self._parts.append((rows[np.argsort(random[rows], kind="stable")], weight * len(rows)))
        plain = int((~apart).sum()) - sum(len(rows) for rows, _ in self._parts)
        if not plain + sum(int(clips) for _, clips in self._parts):
            what = "data.min_gain, with data.mixture, leaves" if out.any() else "data.mixture: its weights leave"
            raise ValueError(f"{what} epochs without a clip; {'lower it' if out.any() else 'raise them'}")
        self.replay = (int(replayed.sum()), str(share)) if replayed is not None else None
        if replayed is not None:
            rows = np.flatnonzero(replayed & ~out)
            if not len(rows):
                raise ValueError("data.replay: its shards hold no clips; name another set, or leave it out")
            others, of_all = plain + sum(clips for _, clips in self._parts), Fraction(str(share))
            self._parts.append((rows[np.argsort(random[rows], kind="stable")], of_all * others / (1 - of_all)))
        self.mean_clips = float(plain + sum(clips for _, clips in self._parts))
        self.fewest_clips = plain + sum(int(clips) for _, clips in self._parts)

    def copies(self, epoch: int) -> NDArray[np.int64]:
        """int64 [n]: how often each clip is in the epoch, its weight rounded down or up.

        Clip r of m in a part of weight w has floor(w (epoch + 1) + r / m) - floor(w epoch + r / m): over E epochs it
        gets w E within 1, and the whole part gets exactly floor(w m E).
        """
        copies = np.ones(self._num_clips, np.int64)
        copies[self.left_out] = 0
        for rows, clips in self._parts:
            count, before, after = len(rows), int(clips * epoch), int(clips * (epoch + 1))
            rank = np.arange(count)
            copies[rows] = (after + rank) // count - (before + rank) // count
        return copies


def _fraction(weight: float) -> Fraction:
    """0.1 as 1/10, so that ten epochs make exactly one pass."""
    return Fraction(str(weight)).limit_denominator(_MAX_EPOCHS)
