"""What it costs to let the LLM write the continuations that training needs."""

from __future__ import annotations

from dataclasses import dataclass

from blsp.estimate.families import Llm
from cluster.machines import Gpu

# Transformers' generate starts every kernel from Python: about a millisecond a layer for each token, assumed.
LAYER_S = 1e-3
# Of the memory's rate when all weights are read for each token, assumed.
READING_SHARE = 0.6
_BYTES = 2
_PROMPT_TOKENS = 35


@dataclass(frozen=True)
class Writing:
    """On one GPU."""

    clips_per_s: float

    def hours(self, clips: float) -> float:
        """GPU hours for so many."""
        return clips / self.clips_per_s / 3600


def writing(llm: Llm, gpu: Gpu, transcript: float, batch_size: int, max_new_tokens: int) -> Writing:
    """`batch_size` clips at once, each of `transcript` tokens, up to `max_new_tokens` tokens: the longest of a batch
    takes them nearly always."""
    multiplying = llm.layers * sum(linear.before * linear.after for linear in llm.linears) + llm.embeddings
    reading = 2 * multiplying * batch_size * (_PROMPT_TOKENS + transcript) / gpu.flops(_BYTES)
    weights = multiplying * _BYTES / (gpu.memory_bytes_per_s * READING_SHARE)
    operations = 2 * multiplying * batch_size / gpu.flops(_BYTES)
    token = max(weights, operations, llm.layers * LAYER_S)
    return Writing(batch_size / (reading + max_new_tokens * token))
