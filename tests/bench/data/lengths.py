"""Corpora of which only the lengths matter: seconds of audio, and tokens of transcript and response."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shards.audio import SAMPLE_RATE
from shards.batches.sizes import Sizes

_SPEECH_TOKENS_PER_S = 6.25
_PROMPT_TOKENS = 50


def librispeech_like(number: int, seed: int = 0) -> Sizes:
    """Mean 12 s: a broad mass below 12 s, a peak near 15 s, nothing above 17 s."""
    random = np.random.default_rng(seed)
    broad = np.clip(random.lognormal(np.log(7.0), 0.6, number), 1.4, 17.0)
    peak = np.clip(random.normal(14.6, 1.1, number), 2.0, 17.0)
    return _with_tokens(np.where(random.random(number) < 0.38, broad, peak), random)


def mixed(number: int, seed: int = 0) -> Sizes:
    """Several corpora of 1 to 30 s, median 5 s."""
    random = np.random.default_rng(seed)
    return _with_tokens(np.clip(random.lognormal(np.log(5), 0.75, number), 1.0, 30.0), random)


def _with_tokens(seconds: NDArray[np.float64], random: np.random.Generator) -> Sizes:
    """Transcripts of about 3.3 tokens a second, responses of 4 to 48 tokens."""
    text = np.maximum(1, seconds * 3.3 * random.lognormal(0, 0.2, len(seconds))).astype(np.int64)
    response = np.clip(random.lognormal(np.log(28), 0.4, len(seconds)), 4, 48).astype(np.int64)
    return Sizes(
        heard_samples=np.rint(seconds * SAMPLE_RATE).astype(np.int64),
        tokens=_PROMPT_TOKENS + np.ceil(seconds * _SPEECH_TOKENS_PER_S).astype(np.int64) + response,
        teacher_tokens=_PROMPT_TOKENS + text + response,
        response_tokens=response,
    )
