"""Every kernel beside one dense mask over the whole pack, in double precision.

The CUDA kernels run where there is such a GPU. Elsewhere what they are asked is answered by the documented meaning of
their arguments.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from blsp.kernels import Bounds, Reach, flash_attention, sdpa, torch_varlen
from blsp.packing import _announce, _with_prefixes, attention_implementation, bounds
from tests.blsp.tiny import CPU

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS, WIDTH = 4, 16
CLOSE = 0.01  # of numbers in bfloat16
LENGTHS = [5, 1, 17, 8, 2, 30]
SHARED = [-1, 0, -1, 2, 0, 2]  # 1 and 4 go on from 0, 3 and 5 from 2
REACHES = {
    "causal": (True, None), "both_ways": (False, None), "window": (True, 6), "window_of_one": (True, 1),
    "wide_window": (True, 20),
}  # fmt: skip
every_reach = pytest.mark.parametrize("reach", [Reach(*asked, 0.3) for asked in REACHES.values()], ids=REACHES)
every_kind_of_heads = pytest.mark.parametrize("key_heads", [HEADS, 2], ids=["mha", "gqa"])
every_layout = pytest.mark.parametrize("prefix_of", [None, SHARED], ids=["apart", "shared"])
KERNELS = {"torch": torch_varlen, "flash-attn": flash_attention}


def missing(kernel: str) -> str | None:
    """Why a CUDA kernel cannot run here."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return "no GPU with the varlen kernels"
    found = kernel != "flash-attn" or importlib.util.find_spec("flash_attn") is not None
    return None if found else "flash-attn is not installed"


def dense(query: Tensor, key: Tensor, value: Tensor, packed: Bounds, reach: Reach) -> Tensor:
    """[1, h, T, d] -> [1, T, h, d]: softmax of all scores, at -inf what is out of reach or another's."""
    key, value = (tensor.repeat_interleave(HEADS // tensor.shape[1], 1) for tensor in (key, value))
    whose = torch.cat([torch.full((n,), i) for i, n in enumerate(packed.query_lengths)])
    starts = [packed.query_lengths[i] if i >= 0 else 0 for i in packed.prefix_of]
    where = torch.cat([a + torch.arange(n) for a, n in zip(starts, packed.query_lengths, strict=True)])
    prefix = torch.tensor(packed.prefix_of)[whose]
    seen = (whose[:, None] == whose) | (prefix[:, None] == whose)
    if reach.causal:
        seen &= where[:, None] >= where
    if reach.window is not None:
        seen &= where[:, None] - where < reach.window
    scores = (query @ key.transpose(2, 3)) * reach.scale
    return (scores.masked_fill(~seen.to(query.device), -torch.inf).softmax(-1) @ value).transpose(1, 2)


def tensors(key_heads: int, dtype: torch.dtype, device: torch.device = CPU, width: int = WIDTH) -> list[Tensor]:
    """Query, key and value, to differentiate, and weights of the output; all of them bfloat16 in value."""
    torch.manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), width) for heads in (HEADS, key_heads, key_heads)]
    made = [torch.randn(shape).bfloat16().to(device, dtype).requires_grad_() for shape in shapes]
    return [*made, torch.randn(1, sum(LENGTHS), HEADS, width).bfloat16().to(device, dtype)]


def run(kernel: Any, packed: Bounds, reach: Reach, inputs: list[Tensor]) -> list[Tensor]:
    """Output and gradients, in double precision."""
    query, key, value, weights = inputs
    if kernel is dense:
        output = dense(query, key, value, packed, reach)
    else:
        output = kernel(query, _with_prefixes(key, packed), _with_prefixes(value, packed), packed, reach)
    gradients = torch.autograd.grad((output * weights).sum(), [query, key, value])
    return [tensor.double().cpu() for tensor in (output.detach(), *gradients)]


@every_reach
@every_kind_of_heads
@every_layout
def test_our_sdpa_equals_one_dense_mask_over_the_pack(
    reach: Reach, key_heads: int, prefix_of: list[int] | None
) -> None:
    packed = bounds(LENGTHS, CPU, prefix_of)["packed"]
    ours = run(sdpa, packed, reach, tensors(key_heads, torch.float32))
    exact = run(dense, packed, reach, tensors(key_heads, torch.float64))
    torch.testing.assert_close(ours, exact, rtol=0, atol=5e-6)


@pytest.mark.parametrize("length", range(1, 9))
def test_a_sequence_cut_anywhere_and_shared_is_the_sequence(length: int) -> None:
    query, key, value, _ = (tensor[:, :, : 2 * length] for tensor in tensors(2, torch.float64))
    reach = Reach(causal=True, window=5, scale=None)
    whole = sdpa(query, key, value, bounds([2 * length], CPU)["packed"], reach)
    cut = bounds([length, length], CPU, [-1, 0])["packed"]
    shared = sdpa(query, _with_prefixes(key, cut), _with_prefixes(value, cut), cut, reach)
    torch.testing.assert_close(shared, whole)


def as_documented(
    query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, window: tuple[int, int], scale: float | None
) -> Tensor:
    """[Tq, h, d] -> [Tq, h, d], "causal is aligned to the bottom right corner", windows with both ends included."""
    outputs = []
    for (a, b), (c, d) in zip(*(itertools.pairwise(ends.tolist()) for ends in (cu_q, cu_k)), strict=True):
        i, j = torch.arange(b - a)[:, None] + (d - c) - (b - a), torch.arange(d - c)
        seen = torch.ones(b - a, d - c, dtype=torch.bool)
        seen &= (j >= i - window[0]) if window[0] >= 0 else seen
        seen &= (j <= i + window[1]) if window[1] >= 0 else seen
        q, k, v = (tensor.transpose(0, 1) for tensor in (query[a:b], key[c:d], value[c:d]))
        outputs.append(functional.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True))
    return torch.cat(outputs, 1).transpose(0, 1)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """CUDA kernels that answer on the CPU, and the names of those that were called."""
    called: list[str] = []

    def varlen_attn(q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, *,
                    scale: float | None, window_size: tuple[int, int], enable_gqa: bool) -> Tensor:  # fmt: skip
        assert (max_q, max_k) == (int(cu_q.diff().max()), int(cu_k.diff().max()))
        assert enable_gqa or q.shape[1] == k.shape[1]
        called.append("torch")
        return as_documented(q, k, v, cu_q, cu_k, window_size, scale)

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, *, softmax_scale: float | None, causal: bool, window_size: tuple[int, int],
        deterministic: bool,
    ) -> Tensor:  # fmt: skip
        called.append("flash-attn")
        window = (window_size[0], 0) if causal else window_size
        return as_documented(q, k, v, cu_seqlens_q, cu_seqlens_k, window, softmax_scale)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    flash_attn = SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attn)
    return called


@every_reach
@every_layout
@pytest.mark.parametrize("kernel", KERNELS)
def test_what_a_varlen_kernel_is_asked_means_what_sdpa_computes(
    answered: list[str], kernel: str, reach: Reach, prefix_of: list[int] | None
) -> None:
    packed = bounds(LENGTHS, CPU, prefix_of)["packed"]
    asked = run(KERNELS[kernel], packed, reach, tensors(2, torch.bfloat16))
    assert answered == [kernel]
    exact = run(dense, packed, reach, tensors(2, torch.float64))
    assert all((a - truth).norm() <= CLOSE * truth.norm() for a, truth in zip(asked, exact, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "width", "dropout"),
    [(torch.float32, 16, 0.0), (torch.bfloat16, 12, 0.0), (torch.bfloat16, 264, 0.0), (torch.bfloat16, 16, 0.5)],
    ids=["float32", "odd_width", "too_wide", "dropout"],
)
def test_what_a_varlen_kernel_cannot_do_is_left_to_sdpa(
    answered: list[str], kernel: str, dtype: torch.dtype, width: int, dropout: float
) -> None:
    packed, reach = bounds(LENGTHS, CPU)["packed"], Reach(True, None, None, dropout)
    inputs = tensors(2, dtype, width=width)
    results = []
    for one in (KERNELS[kernel], sdpa):
        torch.manual_seed(1)
        results.append(run(one, packed, reach, inputs))
    assert answered == []
    torch.testing.assert_close(*results, rtol=0, atol=0)


PAIRS = [("torch", None), ("flash-attn", None), ("torch", "flash-attn")]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda name: name or "sdpa")
def test_each_pair_of_kernels_gives_the_same_on_a_gpu(one: str, other: str | None, dtype: torch.dtype) -> None:
    for name in filter(None, (one, other)):
        if reason := missing(name):
            pytest.skip(reason)
    device = torch.device("cuda")
    for asked, key_heads, prefix_of in itertools.product(REACHES.values(), (HEADS, 2), (None, SHARED)):
        reach, packed = Reach(*asked, 0.3), bounds(LENGTHS, device, prefix_of)["packed"]
        inputs = tensors(key_heads, dtype, device)
        exact = run(dense, packed, reach, [tensor.detach().double().requires_grad_() for tensor in inputs])
        ours, theirs = (run(KERNELS[name] if name else sdpa, packed, reach, inputs) for name in (one, other))
        for pair in ((ours, exact), (theirs, exact), (ours, theirs)):
            assert all((a - b).norm() <= CLOSE * truth.norm() for a, b, truth in zip(*pair, exact, strict=True)), asked


def test_the_best_kernel_of_the_hardware_is_chosen_and_what_is_missing_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _announce.cache_clear()
    gpu, half = torch.device("cuda"), torch.bfloat16
    capability, installed = (9, 0), True
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    assert attention_implementation(CPU, half) == attention_implementation(gpu, torch.float32) == "packed_sdpa"
    assert attention_implementation(gpu, half) == "packed_fa2"
    assert caplog.messages == []
    installed = False
    assert [attention_implementation(gpu, half) for _ in range(2)] == ["packed_varlen"] * 2
    (said,) = caplog.messages
    assert "pip install flash-attn" in said and "torch's own varlen attention" in said
    capability = (7, 5)
    assert [attention_implementation(gpu, half) for _ in range(2)] == ["packed_sdpa"] * 2
    assert len(caplog.messages) == 2
