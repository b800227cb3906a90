"""The paper's adapter: three strided convolutions and a bottleneck, from encoder positions to LLM embeddings.

P encoder positions (50 per second), S speech tokens (6.25 per second), D encoder width, H LLM width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from blsp.packing import convolve, pad_packed

_NUM_CONVS = 3


class ConvAdapter(nn.Module):
    """3 x Conv1d(kernel 5, stride 2, padding 2) with GLU, then LayerNorm(x + fc2(gelu(fc1(x)))) (arXiv 2406.03872)."""

    def __init__(self, width: int, llm_width: int, bottleneck: int) -> None:
        super().__init__()
        widths = [width] * _NUM_CONVS + [llm_width]
        self.convs = nn.ModuleList(
            nn.Conv1d(before, 2 * after, kernel_size=5, stride=2, padding=2) for before, after in pairwise(widths)
        )
        self.fc1 = nn.Linear(llm_width, bottleneck, bias=False)
        self.fc2 = nn.Linear(bottleneck, llm_width, bias=False)
        self.norm = nn.LayerNorm(llm_width)

    @staticmethod
    def num_tokens(num_positions: int) -> int:
        """S for P encoder positions."""
        for _ in range(_NUM_CONVS):
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
