"""The learning rate as a pure function of the step: nothing of it has to be saved."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """What the peak rate is multiplied by in `step` (from 0): a linear rise over `warmup_steps`, then a fall towards 0,
    straight ("linear", as the authors) or along half a cosine ("cosine")."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
