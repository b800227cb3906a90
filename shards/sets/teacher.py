"""What the text LLM itself predicts at each token of a continuation: its likeliest tokens and their probabilities.

With it in the shards, training on the LLM's distribution needs no second pass of the LLM. A row is one response token;
the log-partition at every temperature that training may use makes the kept probabilities exact, however few they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TeacherSpec:
    """How many tokens are kept of each distribution, and the temperatures that it can be used at."""

    top_k: int
    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raises ValueError when nothing would be kept, or for a temperature that is not positive."""
        if self.top_k < 1 or not self.temperatures or not all(t > 0 for t in self.temperatures):
            raise ValueError(
                f"top_k={self.top_k}, temperatures={list(self.temperatures)}: give at least one token and one "
                "temperature, all above 0"
            )

    @property
    def row(self) -> np.dtype[np.void]:
        """One response token. p(token i) at temperature t is exp(logits[i] / temperatures[t] - log_z[t])."""
        return np.dtype(
            [
                ("ids", "<u4", (self.top_k,)),  # likeliest first
                ("logits", "<f2", (self.top_k,)),  # less the largest one
                ("log_z", "<f4", (len(self.temperatures),)),  # log of the sum of exp((logit - largest) / temperature)
            ]
        )
