"""Texts in another language than what they continue: an LLM that is asked in English slips into it."""

from __future__ import annotations

import re
from functools import lru_cache

_MIN_BYTES = 25  # of letters in UTF-8: some five English words, or nine Chinese characters; less says too little
_SURE_NATS = 20.0  # by which the other language must be likelier; those that nobody mistakes differ by 40 and more
# Languages that resemble each other, or that the classifier has twice: within a group nothing is ever dropped.
_RELATED = (
    {"zh", "yue", "wuu"}, {"en", "pcm"}, {"de", "lb"}, {"es", "gl", "ext", "an", "ca", "pt"}, {"fr", "oc", "wa", "gcf",
    "gcr", "ht"}, {"it", "vec", "lij"}, {"no", "nn", "da", "sv"}, {"hr", "bs", "sr", "sl"}, {"cs", "sk"}, {"id", "ms"},
    {"ru", "uk", "be", "bg", "mk"}, {"el", "grc"}, {"nl", "af", "fy"}, {"ar", "ary", "arz"}, {"he", "hbo"},
    {"hi", "ne", "mr", "sa"}, {"az", "tr", "tk", "uz", "uzs", "crh"}, {"fa", "ps"},
)  # fmt: skip


def in_another_language(text: str, transcript: str, language: str | None) -> bool:
    """Whether `text` surely is in another language than the transcript, which is in `language` (ISO 639-1) where that
    is known. By character n-grams (py3langid); a text too short to tell is in none."""
    if _letter_bytes(text) < _MIN_BYTES:
        return False
    expected = re.split("[-_]", language.lower())[0] if language else None
    expected = "zh" if expected in ("cmn", "mandarin", "chinese") else expected
    spoken = _log_probabilities(transcript)
    if expected is None:
        if _letter_bytes(transcript) < _MIN_BYTES:
            return False
        expected = max(spoken, key=spoken.__getitem__)
        others = [value for name, value in spoken.items() if not _related(name, expected)]
        if spoken[expected] - max(others) < _SURE_NATS:
            return False
    written = _log_probabilities(text)
    found = max(written, key=written.__getitem__)
    if expected not in written or _related(found, expected):
        return False
    alike = [value for name, value in written.items() if _related(name, expected)]
    # A speaker who mixes languages, or a wrong language in the manifest, is no fault of the LLM.
    spoken_too = spoken[found] >= spoken[expected]
    return written[found] - max(alike) >= _SURE_NATS and not spoken_too


def _letter_bytes(text: str) -> int:
    return sum(len(character.encode()) for character in text if character.isalpha())


def _related(one: str, other: str) -> bool:
    return one == other or any(one in group and other in group for group in _RELATED)


@lru_cache(1024)  # a transcript comes again in other voices
def _log_probabilities(text: str) -> dict[str, float]:
    """The log-likelihood of the text in each language."""
    import py3langid

    return dict(py3langid.rank(text))
