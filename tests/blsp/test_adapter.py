from __future__ import annotations

import pytest
import torch

from blsp.adapter import ConvAdapter

WIDTH, LLM_WIDTH = 6, 10


@pytest.fixture
def adapter() -> ConvAdapter:
    torch.manual_seed(0)
    return ConvAdapter(WIDTH, LLM_WIDTH, 4)


@pytest.mark.parametrize("kernels", [(5, 5, 5), (3,), (7, 1, 3, 5)])
def test_the_length_formula_equals_the_convolutions(kernels: tuple[int, ...]) -> None:
    adapter = ConvAdapter(WIDTH, LLM_WIDTH, 4, kernels)
    lengths = list(range(1, 201))
    packed, tokens = adapter(torch.randn(sum(lengths), WIDTH), lengths)
    assert tokens == [adapter.num_tokens(length) for length in lengths]
    assert packed.shape == (sum(tokens), LLM_WIDTH)
    for length in lengths:
        hidden = torch.randn(1, WIDTH, length)
        for conv in adapter.convs:
            hidden = torch.nn.functional.glu(conv(hidden), dim=1)
        assert hidden.shape == (1, LLM_WIDTH, adapter.num_tokens(length))


def test_50_positions_a_second_become_6_25_tokens(adapter: ConvAdapter) -> None:
    assert adapter.num_tokens(1500) == 188
    assert adapter.num_tokens(1) == 1


def test_packed_equals_alone_forward_and_gradient(adapter: ConvAdapter) -> None:
    lengths = [1, 2, 50, 7, 33, 8]
    clips = [torch.randn(length, WIDTH, requires_grad=True) for length in lengths]
    packed, tokens = adapter(torch.cat(clips), lengths)
    weights = torch.randn_like(packed)
    together = torch.autograd.grad((packed * weights).sum(), [*clips, *adapter.parameters()])
    alone = torch.cat([adapter(samples, [len(samples)])[0] for samples in clips])
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-6)
    apart = torch.autograd.grad((alone * weights).sum(), [*clips, *adapter.parameters()])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert tokens == [1, 1, 7, 1, 5, 1]


def test_it_is_the_papers_formula(adapter: ConvAdapter) -> None:
    hidden = torch.randn(1, WIDTH, 40)
    packed, _ = adapter(hidden[0].T, [40])
    for conv in adapter.convs:
        hidden = torch.nn.functional.glu(conv(hidden), dim=1)
    x = hidden[0].T
    expected = adapter.norm(x + adapter.fc2(torch.nn.functional.gelu(adapter.fc1(x))))
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-6)
