"""The paper's adapter: strided convolutions and a bottleneck, from encoder positions to LLM embeddings.

P encoder positions (50 per second), S speech tokens (6.25 per second), D encoder width, H LLM width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from blsp.packing import convolve, pad_packed


class ConvAdapter(nn.Module):
    """Conv1d(odd kernel k, stride 2, padding k // 2) with GLU, three of width 5 in the paper, then
    LayerNorm(x + fc2(gelu(fc1(x)))) (arXiv 2406.03872)."""

    def __init__(self, width: int, llm_width: int, bottleneck: int, kernels: tuple[int, ...] = (5, 5, 5)) -> None:
        super().__init__()
        widths = [width] * len(kernels) + [llm_width]
        self.convs = nn.ModuleList(
            nn.Conv1d(before, 2 * after, kernel_size=kernel, stride=2, padding=kernel // 2)
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
        padded, _ = pad_packed(encoded, lengths)
        for conv in self.convs:
            assert isinstance(conv, nn.Conv1d)
            hidden, lengths = convolve(conv, padded, lengths)
            padded = functional.glu(hidden, dim=-1)
        packed = torch.cat([clip[:length] for clip, length in zip(padded, lengths, strict=True)])
        return self.norm(packed + self.fc2(functional.gelu(self.fc1(packed)))), lengths
