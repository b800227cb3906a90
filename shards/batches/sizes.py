"""What each clip brings to a micro-batch, what it costs, and how much one micro-batch may hold.

All in whole numbers: sums of them are the same on every machine in every order, so ranks agree on the plan to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from shards.audio import SAMPLE_RATE

COST_UNIT = 1 / 64  # costs are whole multiples of it


@dataclass(frozen=True)
class CostWeights:
    """Relative compute of a clip's parts; 1 is a student token, forward and backward.

    The defaults are for Whisper-large and a 7B LLM with a frozen backbone: a second that the encoder hears is 2.3; a
    teacher's token is a forward only; a response token also has logits over the vocabulary.
    """

    second: float = 2.3
    token: float = 1.0
    teacher_token: float = 0.5
    response_token: float = 0.1


@dataclass(frozen=True)
class Caps:
    """The most that one micro-batch may hold of each; None for no limit."""

    audio_s: float | None = None
    tokens: int | None = None
    response_tokens: int | None = None


@dataclass(frozen=True)
class Sizes:
    """Of each of n clips; all int64 [n]."""

    heard_samples: NDArray[np.int64]  # what the encoder hears at 16 kHz, its window's silence included
    tokens: NDArray[np.int64]  # of the student's sequence from the speech on
    teacher_tokens: NDArray[np.int64]  # of the teacher's from the transcript on; 0 without one
    response_tokens: NDArray[np.int64]  # rows of logits
    prompt_tokens: int = 0  # before the speech: of all prompts together, which a micro-batch holds once at most

    def __len__(self) -> int:
        return len(self.tokens)

    def costs(self, weights: CostWeights) -> NDArray[np.int64]:
        """int64 [n]: what each clip costs to train on, in COST_UNITs; at least 1."""
        cost = weights.second * (self.heard_samples / SAMPLE_RATE) + weights.token * self.tokens
        cost = cost + weights.teacher_token * self.teacher_tokens + weights.response_token * self.response_tokens
        units: NDArray[np.int64] = np.maximum(1, np.rint(cost / COST_UNIT)).astype(np.int64)
        return units

    def capped(self, caps: Caps) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], list[str]]:
        """(sizes [D, n], what micro-batches hold besides [D], limits of both together [D], fields of Caps) of the D
        caps that are set."""
        sizes: dict[str, tuple[NDArray[np.int64], int, float]] = {
            "audio_s": (self.heard_samples, 0, SAMPLE_RATE),
            "tokens": (self.tokens, self.prompt_tokens, 1),
            "response_tokens": (self.response_tokens, 0, 1),
        }
        names = [field.name for field in fields(caps) if getattr(caps, field.name) is not None]
        stacked = [sizes[name][0] for name in names]
        besides = [sizes[name][1] for name in names]
        limits = [int(getattr(caps, name) * sizes[name][2]) for name in names]
        empty = np.empty((0, len(self)), np.int64)
        return np.stack(stacked) if names else empty, np.array(besides, np.int64), np.array(limits, np.int64), names
