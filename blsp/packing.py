"""Sequences laid end to end: the attention that keeps them apart, and the way to a padded view and back.

One call serves every device, whichever of blsp/kernels.py runs; a sequence never sees another. Sequences that begin
alike may share their beginning: it lies there once, as a sequence of its own, which the others go on from.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from blsp.kernels import Bounds, Reach, flash_attention, sdpa, torch_varlen

_Kernel = Callable[[Tensor, Tensor, Tensor, Bounds, Reach], Tensor]
# Not by names that hold "flash": transformers would make its own of them.
_KERNELS: dict[str, _Kernel] = {"packed_sdpa": sdpa, "packed_varlen": torch_varlen, "packed_fa2": flash_attention}
# What some models add to the scores of attention, and none of the kernels does: Gemma 2's cap, GPT-OSS' sinks.
_CHANGES_SCORES = ("softcap", "s_aux", "position_bias", "indices", "block_indices")
_log = logging.getLogger(__name__)


def _packed_attention(
    kernel: _Kernel,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Bounds | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, T, d], key and value [1, kv heads, T, d] -> [1, T, heads, d]. Raises ValueError for a layer that
    wants more of attention than the kernels do."""
    for name in _CHANGES_SCORES:
        if kwargs.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} asks attention for {name!r}, which attention over packed sequences does not "
                "know: without it this would be another model; choose a pretrained model without it"
            )
    causal, window = bool(getattr(module, "is_causal", False)), kwargs.get("sliding_window")
    if packed is not None:
        packed.readers.add(id(module))
        key, value = _with_prefixes(key, packed), _with_prefixes(value, packed)
        reach = Reach(causal, window, kwargs.get("scaling"), kwargs.get("dropout", 0.0))
        return kernel(query, key, value, packed, reach), None
    # Generation, or one plain sequence.
    if attention_mask is None and window is not None and query.shape[2] > window:
        length = query.shape[2]
        attention_mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output, None


def _with_prefixes(tensor: Tensor, packed: Bounds) -> Tensor:
    """[1, g, T, d] -> what each sequence sees, end to end: the prefix that it goes on from, if any, and itself."""
    if packed.key_lengths == packed.query_lengths:
        return tensor
    pieces = tensor.split(packed.query_lengths, 2)
    seen = [
        piece
        for before, own in zip(packed.prefix_of, pieces, strict=True)
        for piece in ((pieces[before], own) if before >= 0 else (own,))
    ]
    return torch.cat(seen, 2)


def _packed_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    # Packed training passes no 2-D mask: the bounds do its work. Generation passes one, for its left padding.
    if attention_mask is None:
        return None
    kwargs["attention_mask"] = attention_mask
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


for _name, _kernel in _KERNELS.items():
    AttentionInterface.register(_name, partial(_packed_attention, _kernel))
    AttentionMaskInterface.register(_name, _packed_mask)


def attention_implementation(device: torch.device, dtype: torch.dtype) -> str:
    """The name to give transformers as `attn_implementation`; says once when the fast kernel is missing."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "packed_sdpa"
    if torch.cuda.get_device_capability(device) < (8, 0):
        _announce("this GPU is older than the varlen kernels take: torch's attention runs each sequence apart")
        return "packed_sdpa"
    if importlib.util.find_spec("flash_attn") is None:
        _announce(
            "flash-attn is not installed: torch's own varlen attention runs instead; "
            "pip install flash-attn --no-build-isolation"
        )
        return "packed_varlen"
    return "packed_fa2"


@cache
def _announce(warning: str) -> None:
    _log.warning(warning)


def bounds(lengths: list[int], device: torch.device, prefix_of: list[int] | None = None) -> dict[str, Any]:
    """The keyword argument that tells packed attention where each of the sequences ends, and for each the number of the
    sequence that it goes on from, or -1. A sequence that others go on from goes on from none itself."""
    prefix_of = [-1] * len(lengths) if prefix_of is None else prefix_of
    assert all(before < 0 or prefix_of[before] < 0 for before in prefix_of)
    key_lengths = [n + (lengths[before] if before >= 0 else 0) for n, before in zip(lengths, prefix_of, strict=True)]
    ends = (functional.pad(torch.tensor(sizes).cumsum(0), (1, 0)) for sizes in (lengths, key_lengths))
    cu_q, cu_k = (tensor.to(device=device, dtype=torch.int32) for tensor in ends)
    return {"packed": Bounds(lengths, key_lengths, prefix_of, cu_q, cu_k)}


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
