from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.packing import PackedConv1d, attention_implementation, bounds, pad_packed
from tests.blsp.tiny import CPU, whisper_config

LENGTHS = [5, 1, 17, 8]
PACKED = attention_implementation(CPU, torch.float32)
SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip


def make(name: str, attention: str) -> PreTrainedModel:
    """The same weights under any attention."""
    torch.manual_seed(0)
    if name == "qwen2":
        return Qwen2ForCausalLM._from_config(
            Qwen2Config(**SIZES, num_key_value_heads=2), attn_implementation=attention
        ).eval()
    return LlamaForCausalLM._from_config(
        LlamaConfig(**SIZES, num_key_value_heads=4), attn_implementation=attention
    ).eval()


def gradients(output: Tensor, inputs: list[Tensor], weights: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((output * weights).sum(), inputs)


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_a_packed_llm_equals_each_sequence_alone_forward_and_gradient(name: str) -> None:
    packed_llm, plain_llm = make(name, PACKED), make(name, "sdpa")
    ids = [torch.randint(2, 50, (length,)) for length in LENGTHS]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    where = bounds(LENGTHS, CPU)
    packed = packed_llm.model(
        torch.cat(ids)[None], position_ids=positions[None], use_cache=False, **where
    ).last_hidden_state[0]
    alone = torch.cat([plain_llm.model(one[None], use_cache=False).last_hidden_state[0] for one in ids])
    torch.testing.assert_close(packed, alone, rtol=0, atol=2e-5)
    weights = torch.randn_like(packed)
    torch.testing.assert_close(
        gradients(packed, list(packed_llm.model.parameters()), weights),
        gradients(alone, list(plain_llm.model.parameters()), weights),
        rtol=1e-4, atol=1e-3,
    )  # fmt: skip


def test_packed_whisper_layers_equal_each_sequence_alone_forward_and_gradient() -> None:
    torch.manual_seed(0)
    packed_layers = WhisperEncoder._from_config(whisper_config(), attn_implementation=PACKED).layers.eval()
    plain_layers = WhisperEncoder._from_config(whisper_config(), attn_implementation="sdpa").layers.eval()
    plain_layers.load_state_dict(packed_layers.state_dict())
    clips = [torch.randn(length, 16, requires_grad=True) for length in LENGTHS]
    packed = torch.cat(clips)[None]
    for layer in packed_layers:
        packed = layer(packed, None, **bounds(LENGTHS, CPU))
    alone = []
    for samples in clips:
        hidden = samples[None]
        for layer in plain_layers:
            hidden = layer(hidden, None)
        alone.append(hidden[0])
    torch.testing.assert_close(packed[0], torch.cat(alone), rtol=0, atol=1e-5)
    weights = torch.randn(sum(LENGTHS), 16)
    torch.testing.assert_close(
        gradients(packed[0], [*clips, *packed_layers.parameters()], weights),
        gradients(torch.cat(alone), [*clips, *plain_layers.parameters()], weights),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["qwen2", "llama"])
@pytest.mark.parametrize("embedded", [False, True])
def test_left_padded_generation_equals_transformers(name: str, embedded: bool) -> None:
    mask = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for row, length in zip(mask, LENGTHS, strict=True):
        row[-length:] = 1
    ids = torch.randint(2, 50, mask.shape) * mask
    answers = []
    for attention in (PACKED, "sdpa"):
        llm = make(name, attention)
        prompt = {"inputs_embeds": llm.get_input_embeddings()(ids)} if embedded else {"input_ids": ids}
        answers.append(llm.generate(**prompt, attention_mask=mask, max_new_tokens=12, do_sample=False))
    torch.testing.assert_close(*answers)
    assert answers[0].unique().numel() > 5


def test_one_sequence_without_a_mask_is_causal() -> None:
    ids = torch.randint(2, 50, (1, 9))
    with torch.no_grad():
        torch.testing.assert_close(make("qwen2", PACKED)(ids).logits, make("qwen2", "sdpa")(ids).logits)


@pytest.mark.parametrize("packed", [False, True])
def test_an_llm_that_caps_the_scores_of_attention_is_refused(packed: bool) -> None:
    config = Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8)
    llm = Gemma2ForCausalLM._from_config(config, attn_implementation=PACKED)
    where = bounds([4, 5], CPU) if packed else {}
    with pytest.raises(ValueError, match="Gemma2Attention asks attention for 'softcap'"):
        llm.model(torch.randint(2, 50, (1, 9)), use_cache=False, **where)


def test_bounds_are_cumulative() -> None:
    alone, shared = bounds([3, 1, 4], CPU)["packed"], bounds([3, 1, 4], CPU, [-1, 0, 0])["packed"]
    assert alone.cu_seq_lens_q.tolist() == alone.cu_seq_lens_k.tolist() == [0, 3, 4, 8]
    assert (shared.cu_seq_lens_q.tolist(), shared.cu_seq_lens_k.tolist()) == ([0, 3, 4, 8], [0, 3, 7, 14])
    assert {tensor.dtype for tensor in (alone.cu_seq_lens_q, shared.cu_seq_lens_k)} == {torch.int32}


def test_padding_keeps_every_row_in_its_place() -> None:
    packed = torch.randn(sum(LENGTHS), 3)
    padded, mask = pad_packed(packed, LENGTHS)
    assert padded.shape == (4, 17, 3)
    assert mask.sum(1).tolist() == LENGTHS
    torch.testing.assert_close(padded[mask], packed)
    assert not padded[~mask].any()


CONVOLUTIONS = pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 2, 2)])


@CONVOLUTIONS
def test_a_convolution_of_packed_clips_equals_torchs_of_each_alone_forward_and_gradient(
    kernel: int, stride: int, padding: int
) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(3, 4, kernel, stride, padding)
    packed_conv = PackedConv1d.of(conv)
    assert PackedConv1d.of(packed_conv) is packed_conv
    clips = [torch.randn(length, 3, requires_grad=True) for length in LENGTHS]
    output, lengths = packed_conv(torch.cat(clips), LENGTHS)
    alone = [conv(samples.T[None])[0].T for samples in clips]
    assert lengths == [len(clip) for clip in alone]
    torch.testing.assert_close(output, torch.cat(alone), rtol=0, atol=1e-6)
    weights, inputs = torch.randn_like(output), [*clips, conv.weight, conv.bias]
    torch.testing.assert_close(
        gradients(output, inputs, weights), gradients(torch.cat(alone), inputs, weights), rtol=1e-5, atol=1e-5
    )


@CONVOLUTIONS
def test_a_convolution_never_reads_a_neighbour(kernel: int, stride: int, padding: int) -> None:
    conv = PackedConv1d(3, 4, kernel, stride, padding)
    clips = [torch.randn(length, 3, requires_grad=True) for length in LENGTHS]
    output, lengths = conv(torch.cat(clips), LENGTHS)
    for i, clip in enumerate(output.split(lengths)):
        reached = torch.autograd.grad(clip.abs().sum(), clips, retain_graph=True)
        assert [bool(gradient.any()) for gradient in reached] == [j == i for j in range(len(clips))]
    # Not even what would poison a sum.
    poisoned = [clip if i != 2 else torch.full_like(clip, torch.nan) for i, clip in enumerate(clips)]
    for i, clip in enumerate(conv(torch.cat(poisoned), LENGTHS)[0].split(lengths)):
        assert torch.isnan(clip).all() if i == 2 else torch.isfinite(clip).all()


def test_a_convolutions_gradient_is_exact_over_many_minutes() -> None:
    """What Whisper's first one sees of 16 windows of 30 s mostly silent: torch's own sum is not as exact."""
    torch.manual_seed(0)
    conv = PackedConv1d(8, 4, 3, 1, 1)
    lengths = [3000] * 16
    frames = torch.cat([torch.cat([torch.randn(500, 8), torch.full((2500, 8), -0.7)]) for _ in lengths])
    gradient = torch.randn(sum(lengths), 4) + 0.1
    double = copy.deepcopy(conv).double()
    exact = gradients(double(frames.double(), lengths)[0], [double.weight, double.bias], gradient.double())
    ours = gradients(conv(frames, lengths)[0], [conv.weight, conv.bias], gradient)
    for a, b in zip(ours, exact, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()
