"""From encoder positions to LLM embeddings, in three ways: the paper's convolutions, stacked frames, a Q-Former.

P encoder positions (50 per second), S speech tokens, D encoder width, H LLM width. Clips come packed and none reads a
neighbour. Every adapter ends in a norm called `norm`: its weight sets the scale at which speech enters the LLM.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from blsp.packing import PackedConv1d
from blsp.recipe import AdapterSection, ConvSection, StackMlpSection


def make_adapter(section: AdapterSection, width: int, llm_width: int) -> ConvAdapter | StackMlpAdapter | QFormerAdapter:
    """The adapter that a recipe asks for, D -> H, with new weights."""
    if isinstance(section, ConvSection):
        return ConvAdapter(width, llm_width, section.bottleneck, section.kernels)
    if isinstance(section, StackMlpSection):
        return StackMlpAdapter(width, llm_width, section.stack, section.hidden)
    return QFormerAdapter(
        width, llm_width, section.window, section.queries, section.hidden, section.layers, section.heads
    )


class ConvAdapter(nn.Module):
    """Conv1d(odd kernel k, stride 2, padding k // 2) with GLU, three of width 5 in the paper, then
    LayerNorm(x + fc2(gelu(fc1(x)))) (arXiv 2406.03872)."""

    def __init__(self, width: int, llm_width: int, bottleneck: int, kernels: tuple[int, ...] = (5, 5, 5)) -> None:
        super().__init__()
        widths = [width] * len(kernels) + [llm_width]
        self.convs = nn.ModuleList(
            PackedConv1d(before, 2 * after, kernel_size=kernel, stride=2, padding=kernel // 2)
            for (before, after), kernel in zip(pairwise(widths), kernels, strict=True)
        )
        self.fc1 = nn.Linear(llm_width, bottleneck, bias=False)
        self.fc2 = nn.Linear(bottleneck, llm_width, bias=False)
        self.norm = nn.LayerNorm(llm_width)

    def num_tokens(self, num_positions: int) -> int:
        """S for P encoder positions."""
        for _ in self.convs:
            num_positions = (num_positions - 1) // 2 + 1
        return num_positions

    def forward(self, encoded: Tensor, lengths: list[int]) -> tuple[Tensor, list[int]]:
        """[sum P, D] and P of each clip -> [sum S, H] and S of each clip."""
        packed = encoded
        for conv in self.convs:
            packed, lengths = conv(packed, lengths)
            packed = functional.glu(packed, dim=-1)
        return self.norm(packed + self.fc2(functional.gelu(self.fc1(packed)))), lengths


def _cut(encoded: Tensor, lengths: list[int], size: int) -> Tensor:
    """[sum P, D] -> groups of `size` positions of one clip [G, size, D]; zeros fill up each clip's last group."""
    clips = [functional.pad(clip, (0, 0, 0, -len(clip) % size)) for clip in encoded.split(lengths)]
    return torch.cat(clips).view(-1, size, encoded.shape[1])


class StackMlpAdapter(nn.Module):
    """Ultravox's: `stack` positions side by side, RMSNorm, a linear map, SwiGLU, a linear map, RMSNorm."""

    def __init__(self, width: int, llm_width: int, stack: int, hidden: int) -> None:
        super().__init__()
        self.stack = stack
        self.norm_in = nn.RMSNorm(width * stack, eps=1e-6)
        self.fc1 = nn.Linear(width * stack, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, llm_width, bias=False)
        self.norm = nn.RMSNorm(llm_width, eps=1e-6)

    def num_tokens(self, num_positions: int) -> int:
        """S for P encoder positions."""
        return -(-num_positions // self.stack)

    def forward(self, encoded: Tensor, lengths: list[int]) -> tuple[Tensor, list[int]]:
        """[sum P, D] and P of each clip -> [sum S, H] and S of each clip."""
        value, gate = self.fc1(self.norm_in(_cut(encoded, lengths, self.stack).flatten(1))).chunk(2, dim=-1)
        return self.norm(self.fc2(functional.silu(gate) * value)), [self.num_tokens(length) for length in lengths]


class QFormerAdapter(nn.Module):
    """SALMONN's window-level Q-Former: learnt queries look at one window of positions at a time (arXiv 2310.13289).

    transformers' BLIP-2 class, without its dropout. A clip's last window may be short; SALMONN leaves it out, here the
    queries look at what there is of it.
    """

    def __init__(
        self, width: int, llm_width: int, window: int, queries: int, hidden: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        config = Blip2QFormerConfig(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * hidden,
            encoder_hidden_size=width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.window, self.num_queries = window, queries
        self.norm_in = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(queries, hidden) * config.initializer_range)
        self.qformer = Blip2QFormerModel._from_config(config, attn_implementation="sdpa")
        self.fc = nn.Linear(hidden, llm_width)
        self.norm = nn.LayerNorm(llm_width)

    def num_tokens(self, num_positions: int) -> int:
        """S for P encoder positions."""
        return -(-num_positions // self.window) * self.num_queries

    def forward(self, encoded: Tensor, lengths: list[int]) -> tuple[Tensor, list[int]]:
        """[sum P, D] and P of each clip -> [sum S, H] and S of each clip."""
        windows = _cut(self.norm_in(encoded), lengths, self.window)
        there = _cut(encoded.new_ones(len(encoded), 1), lengths, self.window)[..., 0].long()
        heard = self.qformer(
            self.queries.expand(len(windows), -1, -1),
            encoder_hidden_states=windows,
            encoder_attention_mask=there,
        ).last_hidden_state
        return self.norm(self.fc(heard.flatten(0, 1))), [self.num_tokens(length) for length in lengths]
