"""Texts that several splits have in common.

Actors speak the same scripts session after session, and parallel corpora have every speaker say every sentence: a model
that has learnt a sentence in training is then asked about it again. Which texts are shared is told, and on demand each
of them is left to one split.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.sample import Utterance

_NO_LETTERS = re.compile(r"[\W_]+")
_PRECEDENCE = ("test", "dev")  # where they come first, training loses what they have too
_LEAST_KEPT = 0.5  # of the clips of the split that loses most


@dataclass(frozen=True)
class Overlap:
    """`clips` of the `total` in `split` have a text that is in `other` too; `texts` is the number of such texts."""

    split: str
    other: str
    texts: int
    clips: int
    total: int


def plain(text: str) -> str:
    """A text without case, accents' form, punctuation and spaces: what two transcripts of the same words agree in."""
    return _NO_LETTERS.sub("", unicodedata.normalize("NFKC", text).casefold())


class SplitTexts:
    """The texts of each split: 8 bytes per utterance. `train-clean-100` counts as `train`."""

    def __init__(self) -> None:
        self._hashes: dict[str, array[int]] = {}

    def add(self, utterance: Utterance) -> None:
        """Counts its text to its split."""
        self._hashes.setdefault(_base(utterance), array("Q")).append(_hash(utterance))

    def overlaps(self) -> list[Overlap]:
        """One for each pair of splits that share a text, the one with fewer clips first."""
        found = []
        for first, second in itertools.combinations(self._by_size(), 2):
            mine, theirs = self._array(first), self._array(second)
            shared = np.intersect1d(mine, theirs)
            if len(shared):
                found.append(Overlap(first, second, len(shared), int(np.isin(mine, shared).sum()), len(mine)))
        return found

    def owners(self) -> Owners:
        """To which split each shared text is left.

        To test first, then to dev, as long as every split keeps half of its clips; where texts are parallel, and
        training would lose them all, they are dealt among the splits that have them by their hash, in proportion to the
        splits' sizes.
        """
        unique = {split: np.unique(self._array(split)) for split in self._hashes}
        texts, numbers = np.unique(np.concatenate([*unique.values(), np.empty(0, np.uint64)]), return_counts=True)
        shared = texts[numbers > 1].tolist()
        having = {text: [split for split in sorted(unique) if _has(unique[split], text)] for text in shared}
        order = [*_PRECEDENCE, *(split for split in sorted(unique) if split not in _PRECEDENCE)]
        by_rank = {text: min(splits, key=order.index) for text, splits in having.items()}
        if self._least_kept(by_rank) >= _LEAST_KEPT:
            return Owners(by_rank)
        sizes = Counter({split: len(hashes) for split, hashes in self._hashes.items()})
        return Owners({text: _dealt(text, splits, sizes) for text, splits in having.items()})

    def _least_kept(self, owners: dict[int, str]) -> float:
        """The share of its clips that the split keeps which keeps the smallest share."""
        shares = [1.0]
        for split in self._hashes:
            lost = np.array([text for text, owner in owners.items() if owner != split], np.uint64)
            shares.append(1 - float(np.isin(self._array(split), lost).mean()))
        return min(shares)

    def _array(self, split: str) -> NDArray[np.uint64]:
        return np.frombuffer(self._hashes[split], np.uint64)

    def _by_size(self) -> list[str]:
        return sorted(self._hashes, key=lambda split: (len(self._hashes[split]), split))


@dataclass(frozen=True)
class Owners:
    """The split that each shared text, by its hash, belongs to."""

    of: dict[int, str]

    def other(self, utterance: Utterance) -> str | None:
        """The split that the utterance's text is left to, when that is not its own."""
        if not self.of:
            return None
        owner = self.of.get(_hash(utterance), _base(utterance))
        return None if owner == _base(utterance) else owner


def _base(utterance: Utterance) -> str:
    return utterance.split.split("-")[0]


def _hash(utterance: Utterance) -> int:
    return int.from_bytes(hashlib.blake2b(plain(utterance.text).encode(), digest_size=8).digest())


def _has(sorted_texts: NDArray[np.uint64], text: int) -> bool:
    place = int(np.searchsorted(sorted_texts, np.uint64(text)))
    return place < len(sorted_texts) and int(sorted_texts[place]) == text


def _dealt(text: int, splits: list[str], sizes: Counter[str]) -> str:
    """One of the splits, by the hash of the text alone."""
    place = text % sum(sizes[split] for split in splits)
    for split in splits:
        place -= sizes[split]
        if place < 0:
            return split
    raise AssertionError("the sizes add up")
