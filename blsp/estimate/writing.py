"""What it costs to let the LLM write the continuations that training needs."""

from __future__ import annotations

from dataclasses import dataclass

from blsp.estimate.families import Llm
from cluster.forecast import CONTEXT_BYTES, FRAGMENTATION
from cluster.machines import Gpu

# Every kernel is started from Python: about a millisecond for each pass through a layer, assumed. In transformers'
# generate each token is one.
LAYER_S = 1e-3
# Of the memory's rate when all weights are read for each token, assumed.
READING_SHARE = 0.6
_BYTES, _FLOAT32 = 2, 4
_PROMPT_TOKENS = 35


@dataclass(frozen=True)
class Writing:
    """On one GPU."""

    clips_per_s: float
    weights_bytes: float
    clip_bytes: float  # of each of a batch's clips: its keys and values, and its logits

    def needed(self, batch_size: int) -> float:
        """Bytes for so many clips at once."""
        return (self.weights_bytes + batch_size * self.clip_bytes) * (1 + FRAGMENTATION) + CONTEXT_BYTES

    def most(self, gpu: Gpu) -> int:
        """Clips at once that fit; 0 where the weights alone do not."""
        free = (gpu.memory_bytes - CONTEXT_BYTES) / (1 + FRAGMENTATION) - self.weights_bytes
        return max(0, int(free // self.clip_bytes))

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
    kept = _PROMPT_TOKENS + transcript + max_new_tokens
    cache = 2 * llm.layers * llm.kv_heads * llm.head_width * kept * _BYTES
    logits = llm.vocabulary * (_BYTES + _FLOAT32)
    return Writing(
        batch_size / (reading + max_new_tokens * token), sum(llm.tensors) * _BYTES, cache + logits,
    )  # fmt: skip


def refuse_what_does_not_fit(made: Writing, batch_size: int, name: str, gpu: Gpu) -> None:
    """Raises ValueError, naming the field to change. A writer has one GPU to itself."""
    needed, most = made.needed(batch_size), made.most(gpu)
    if most >= batch_size:
        return
    remedy = (
        f"set writer.batch_size to {most} or fewer" if most
        else "no writer.batch_size is small enough: name a smaller writer.llm, or a --gpu with more memory"
    )  # fmt: skip
    raise ValueError(
        f"writer.llm: {name} with {batch_size} clips at once needs {needed / 1e9:.1f} GB (weights "
        f"{made.weights_bytes / 1e9:.1f} GB, keys, values and logits of a clip {made.clip_bytes / 1e9:.3f} GB), and "
        f"one {gpu.name} has {gpu.memory_bytes / 1e9:.1f} GB; {remedy}"
    )
