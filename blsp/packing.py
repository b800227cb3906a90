"""Sequences laid end to end: the attention that keeps them apart, and the way to a padded view and back.

One call serves every device: FlashAttention's varlen kernel where flash-attn is installed, otherwise torch's scaled
dot product attention on each sequence. Both get the same `cu_seq_lens_*` arguments; a sequence never sees another.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_PACKED = "packed_sdpa"
_log = logging.getLogger(__name__)


def _packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """query [1, heads, T, d], key and value [1, kv heads, T, d] -> [1, T, heads, d]."""
    causal, window = bool(getattr(module, "is_causal", False)), kwargs.get("sliding_window")
    lengths = kwargs.get("sequence_lengths")
    if lengths is None:
        if attention_mask is None:
            attention_mask = _reach(query, causal, window).get("attn_mask")
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    outputs = [
        functional.scaled_dot_product_attention(
            q, k, v, dropout_p=kwargs.get("dropout", 0.0), scale=kwargs.get("scaling"),
            enable_gqa=q.shape[1] != k.shape[1], **_reach(q, causal, window),
        )
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]  # fmt: skip
    return torch.cat(outputs, 2).transpose(1, 2), None


def _reach(query: Tensor, causal: bool, window: int | None) -> dict[str, Any]:
    """How far back a position looks: Mistral's and some of Qwen's layers see the last `window` positions only."""
    length = query.shape[2]
    if window is None or length <= window:
        return {"is_causal": causal}
    mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    return {"attn_mask": mask}


def _packed_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    # Packed training passes no 2-D mask: the bounds do its work. Generation passes one, for its left padding.
    if attention_mask is None:
        return None
    kwargs["attention_mask"] = attention_mask
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


AttentionInterface.register(_PACKED, _packed_attention)
AttentionMaskInterface.register(_PACKED, _packed_mask)


def attention_implementation(device: torch.device, dtype: torch.dtype) -> str:
    """The name to give transformers as `attn_implementation`; says once when the fast kernel is missing."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return _PACKED
    if importlib.util.find_spec("flash_attn") is None:
        _announce_missing_flash_attention()
        return _PACKED
    return "flash_attention_2"


@cache
def _announce_missing_flash_attention() -> None:
    _log.warning(
        "flash-attn is not installed: torch's attention runs each sequence apart, which is slower; "
        "pip install flash-attn --no-build-isolation"
    )


def bounds(lengths: list[int], device: torch.device) -> dict[str, Any]:
    """The keyword arguments that tell packed attention where each of the sequences ends: tensors for FlashAttention,
    plain numbers for torch's, which would otherwise wait for the device in every layer."""
    cumulative = functional.pad(torch.tensor(lengths, device=device).cumsum(0), (1, 0)).to(torch.int32)
    longest = max(lengths)
    return {
        "cu_seq_lens_q": cumulative, "cu_seq_lens_k": cumulative, "max_length_q": longest, "max_length_k": longest,
        "sequence_lengths": lengths,
    }  # fmt: skip


def pad_packed(packed: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """[sum L, C] -> zero-padded [n, max L, C] and its mask [n, max L]."""
    sizes = torch.tensor(lengths, device=packed.device)
    mask = torch.arange(max(lengths), device=packed.device) < sizes[:, None]
    padded = packed.new_zeros(*mask.shape, packed.shape[-1])
    padded[mask] = packed
    return padded, mask


class PackedConv1d(nn.Conv1d):
    """A strided convolution over packed clips, each as if it were alone: zeros before and behind it, never a neighbour.

    One matrix product over all windows: its gradient is as exact as that of a linear layer however many clips there
    are, in float32 (a convolution's own sums over minutes of audio are not) and in bfloat16 (nor are sums over clips).
    """

    @classmethod
    def of(cls, conv: nn.Conv1d) -> Self:
        """The same convolution, with the same parameters."""
        if isinstance(conv, cls):
            return conv
        kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
        assert isinstance(padding, int) and (conv.dilation, conv.groups) == ((1,), 1)
        packed = cls(conv.in_channels, conv.out_channels, kernel, stride, padding, device="meta")
        packed.weight, packed.bias = conv.weight, conv.bias
        return packed

    def forward(self, packed: Tensor, lengths: list[int]) -> tuple[Tensor, list[int]]:  # type: ignore[override]
        """[sum L, C] and L of each clip -> [sum L', C'] and L' of each clip."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], self.padding[0]
        assert isinstance(padding, int)
        windows = [
            functional.pad(clip, (0, 0, padding, padding)).unfold(0, kernel, stride)  # [L', C, kernel]
            for clip in packed.split(lengths)
        ]
        after = [len(clip) for clip in windows]
        return functional.linear(torch.cat(windows).flatten(1), self.weight.flatten(1), self.bias), after
