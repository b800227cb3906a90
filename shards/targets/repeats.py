"""Texts that say again what was said: the transcript once more, or the same words over and over."""

from __future__ import annotations

import re
from collections.abc import Sequence

# A word, or one character of a script that is written without spaces between words.
_UNITS = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]+"
)
_RUN = 4  # units in a row that two texts do not share by chance
_MOST_REPEATED = 0.6  # of a text's units
_LOOP_UNITS, _LOOP_TIMES, _MOST_LOOPED = 12, 4, 0.5  # "no, no, no!" is how people speak
_LONGEST_PERIOD = 16


def units(text: str) -> list[str]:
    """Words in lower case, without punctuation; of Chinese, Japanese and Thai single characters."""
    return _UNITS.findall(text.casefold().replace("\u2019", "'"))


def repeats(text: str, transcript: str) -> bool:
    """Whether most of the text is the transcript again, or one n-gram over and over."""
    said, before = units(text), units(transcript)
    return _says_again(said, before) or _loops(said)


def _says_again(said: Sequence[str], before: Sequence[str]) -> bool:
    """60 % of the units lie in runs of four or more that the transcript has too; or both are the same."""
    if not said:
        return False
    if len(said) < _RUN or len(before) < _RUN:
        return list(said) == list(before)
    known = {tuple(before[i : i + _RUN]) for i in range(len(before) - _RUN + 1)}
    covered = [False] * len(said)
    for i in range(len(said) - _RUN + 1):
        if tuple(said[i : i + _RUN]) in known:
            covered[i : i + _RUN] = [True] * _RUN
    return sum(covered) >= _MOST_REPEATED * len(said)


def _loops(said: Sequence[str]) -> bool:
    """A stretch of at least 12 units, and half of the text, is one n-gram at least four times in a row."""
    for period in range(1, min(_LONGEST_PERIOD, len(said) // _LOOP_TIMES) + 1):
        run = 0
        for i in range(period, len(said)):
            run = run + 1 if said[i] == said[i - period] else 0
            length = run + period
            if length >= max(_LOOP_UNITS, _LOOP_TIMES * period, _MOST_LOOPED * len(said)):
                return True
    return False
