"""Three ways to attend within packed sequences, behind one call: torch's SDPA, torch's varlen and FlashAttention's.

h heads of width d, g key heads (h a multiple of g), Tq queries and Tk keys of all bounds. A sequence's queries are
the last of its keys: query i of q sees key j of k when j <= i + k - q, and with a window w only the w nearest of those.
Only SDPA takes dropout, other widths than multiples of 8 up to 256, and other numbers than bfloat16 and float16.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Bounds:
    """How many queries and keys each packed sequence has: as tensors for the varlen kernels, and as plain numbers for
    SDPA, which would otherwise wait for the device in every layer."""

    query_lengths: list[int]
    key_lengths: list[int]
    prefix_of: list[int]  # the number of the sequence that each goes on from, or -1
    cu_seq_lens_q: Tensor  # int32 [n + 1]
    cu_seq_lens_k: Tensor  # int32 [n + 1]
    readers: set[int] = field(default_factory=set)  # which layers, by `id`, kept to these bounds
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def mask(self, num_queries: int, num_keys: int, window: int | None, like: Tensor) -> Tensor:
        """What SDPA adds to the scores of one sequence, [num_queries, num_keys]: 0 or -inf. A view: all sequences and
        layers share one matrix, as long as the longest sequence."""
        before = num_keys - num_queries
        if (before, window) not in self._masks:
            longest = max(self.query_lengths)
            seen = torch.ones(longest, before + longest, dtype=torch.bool, device=like.device).tril(before)
            if window is not None:
                seen = seen.triu(before + 1 - window)
            self._masks[before, window] = like.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return self._masks[before, window][:num_queries, :num_keys]


@dataclass(frozen=True)
class Reach:
    """What a layer asks of attention."""

    causal: bool
    window: int | None
    scale: float | None
    dropout: float = 0.0


def sdpa(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, reach: Reach) -> Tensor:
    """query [1, h, Tq, d], key and value [1, g, Tk, d] -> [1, Tq, h, d]; each sequence apart."""
    lengths = bounds.query_lengths, bounds.key_lengths, bounds.key_lengths
    split = (tensor.split(sizes, 2) for tensor, sizes in zip((query, key, value), lengths, strict=True))
    outputs = []
    for q, k, v in zip(*split, strict=True):
        num_queries, num_keys = q.shape[2], k.shape[2]
        window = reach.window if reach.window is not None and num_keys > reach.window else None
        # SDPA's own causal mask puts the first query at the first key.
        masked = window is not None or (reach.causal and num_keys > num_queries)
        outputs.append(
            functional.scaled_dot_product_attention(
                q, k, v, dropout_p=reach.dropout, scale=reach.scale, enable_gqa=q.shape[1] != k.shape[1],
                attn_mask=bounds.mask(num_queries, num_keys, window, q) if masked else None,
                is_causal=reach.causal and not masked,
            )
        )  # fmt: skip
    return torch.cat(outputs, 2).transpose(1, 2)


def torch_varlen(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, reach: Reach) -> Tensor:
    """As `sdpa`, in one call of torch's own kernel (CUDA)."""
    if not _varlen_takes(query, reach):
        return sdpa(query, key, value, bounds, reach)
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    output = varlen_attn(
        q, k, v, bounds.cu_seq_lens_q, bounds.cu_seq_lens_k,
        max(bounds.query_lengths), max(bounds.key_lengths),
        scale=reach.scale, window_size=_window(reach), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(output, Tensor)
    return output[None]


def flash_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, reach: Reach) -> Tensor:
    """As `sdpa`, in one call of flash-attn's kernel (CUDA)."""
    if not _varlen_takes(query, reach):
        return sdpa(query, key, value, bounds, reach)
    from flash_attn import flash_attn_varlen_func

    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    output: Tensor = flash_attn_varlen_func(
        q, k, v, bounds.cu_seq_lens_q, bounds.cu_seq_lens_k,
        max(bounds.query_lengths), max(bounds.key_lengths),
        softmax_scale=reach.scale, causal=reach.causal, window_size=_window(reach),
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return output[None]


def _varlen_takes(query: Tensor, reach: Reach) -> bool:
    width = query.shape[-1]
    return not reach.dropout and query.dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256


def _window(reach: Reach) -> tuple[int, int]:
    """How many keys to the left and right of its own a query sees; -1 for all."""
    left = -1 if reach.window is None else reach.window - 1
    return left, 0 if reach.causal else -1
