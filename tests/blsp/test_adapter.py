from __future__ import annotations

import pytest
import torch
from torch import nn

from blsp.adapter import ConvAdapter, QFormerAdapter, StackMlpAdapter, make_adapter
from blsp.recipe import AdapterSection, ConvSection, QFormerSection, StackMlpSection

WIDTH, LLM_WIDTH = 6, 10
SECTIONS = [
    ConvSection(bottleneck=4),
    StackMlpSection(stack=8, hidden=7),
    QFormerSection(window=17, queries=2, hidden=8, layers=2, heads=2),
]
every_adapter = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.type)


def as_if_trained(section: AdapterSection) -> ConvAdapter | StackMlpAdapter | QFormerAdapter:
    torch.manual_seed(0)
    adapter = make_adapter(section, WIDTH, LLM_WIDTH)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return adapter


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
            hidden = torch.nn.functional.glu(torch.nn.Conv1d.forward(conv, hidden), dim=1)
        assert hidden.shape == (1, LLM_WIDTH, adapter.num_tokens(length))


def test_50_positions_a_second_become_6_25_tokens(adapter: ConvAdapter) -> None:
    assert adapter.num_tokens(1500) == 188
    assert adapter.num_tokens(1) == 1


@every_adapter
def test_packed_equals_alone_forward_and_gradient(section: AdapterSection) -> None:
    adapter = as_if_trained(section)
    lengths = [1, 2, 50, 7, 33, 8, 17]
    clips = [torch.randn(length, WIDTH, requires_grad=True) for length in lengths]
    packed, tokens = adapter(torch.cat(clips), lengths)
    assert tokens == [adapter.num_tokens(length) for length in lengths]
    assert packed.shape == (sum(tokens), LLM_WIDTH)
    weights = torch.randn_like(packed)
    together = torch.autograd.grad((packed * weights).sum(), [*clips, *adapter.parameters()])
    alone = torch.cat([adapter(samples, [len(samples)])[0] for samples in clips])
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)
    apart = torch.autograd.grad((alone * weights).sum(), [*clips, *adapter.parameters()])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=3e-5)


@every_adapter
def test_it_ends_in_the_norm_that_sets_the_scale(section: AdapterSection) -> None:
    adapter = make_adapter(section, WIDTH, LLM_WIDTH)
    nn.init.constant_(adapter.norm.weight, 0.25)
    with torch.no_grad():
        packed, _ = adapter(torch.randn(400, WIDTH), [400])
    assert float(packed.square().mean().sqrt()) == pytest.approx(0.25, rel=0.01)


@every_adapter
def test_training_mode_draws_no_random_numbers(section: AdapterSection) -> None:
    adapter, hidden = as_if_trained(section), torch.randn(40, WIDTH)
    assert torch.equal(adapter.train()(hidden, [40])[0], adapter.eval()(hidden, [40])[0])


def test_tokens_per_second_of_each_adapter() -> None:
    assert [make_adapter(section, WIDTH, LLM_WIDTH).num_tokens(1500) for section in SECTIONS] == [188, 188, 178]
    assert [make_adapter(section, WIDTH, LLM_WIDTH).num_tokens(1) for section in SECTIONS] == [1, 1, 2]


def test_stacked_frames_are_ultravoxs_formula() -> None:
    adapter = as_if_trained(SECTIONS[1])
    assert isinstance(adapter, StackMlpAdapter)
    hidden = torch.randn(20, WIDTH)
    packed, _ = adapter(hidden, [20])
    stacked = torch.cat([hidden, torch.zeros(4, WIDTH)]).reshape(3, 8 * WIDTH)
    normed = stacked * torch.rsqrt(stacked.square().mean(-1, keepdim=True) + 1e-6) * adapter.norm_in.weight
    x, gate = (normed @ adapter.fc1.weight.T).chunk(2, dim=-1)
    out = (torch.nn.functional.silu(gate) * x) @ adapter.fc2.weight.T
    expected = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + 1e-6) * adapter.norm.weight
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-5)


def test_the_q_former_looks_at_one_window_at_a_time() -> None:
    adapter = as_if_trained(SECTIONS[2])
    hidden = torch.randn(40, WIDTH)
    before, (num_tokens,) = adapter(hidden, [40])
    hidden[20] *= -1  # in the second of three windows, the last of which is short
    after, _ = adapter(hidden, [40])
    assert (num_tokens, (before != after).any(-1).tolist()) == (6, [False, False, True, True, False, False])
    assert not torch.allclose(before[0], before[1])  # one token per query


@every_adapter
def test_a_state_dict_is_strict_and_names_nothing_twice(section: AdapterSection) -> None:
    adapter = as_if_trained(section)
    state = adapter.state_dict()
    assert state.keys() == dict(adapter.named_parameters()).keys()
    loaded = make_adapter(section, WIDTH, LLM_WIDTH)
    loaded.load_state_dict(state)
    hidden = torch.randn(40, WIDTH)
    assert torch.equal(loaded(hidden, [40])[0], adapter(hidden, [40])[0])
    with pytest.raises(RuntimeError, match="Missing key"):
        loaded.load_state_dict({name: value for name, value in state.items() if name != "norm.weight"})


def test_it_is_the_papers_formula(adapter: ConvAdapter) -> None:
    hidden = torch.randn(1, WIDTH, 40)
    packed, _ = adapter(hidden[0].T, [40])
    for conv in adapter.convs:
        hidden = torch.nn.functional.glu(torch.nn.Conv1d.forward(conv, hidden), dim=1)
    x = hidden[0].T
    expected = adapter.norm(x + adapter.fc2(torch.nn.functional.gelu(adapter.fc1(x))))
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-6)
