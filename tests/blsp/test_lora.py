from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from blsp.lora import LoraGate, add_lora
from blsp.packing import attention_implementation, bounds
from tests.blsp.tiny import CPU

LENGTHS = [9, 6]
SPEECH = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0], dtype=torch.bool)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_llm() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=1, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    return Qwen2ForCausalLM._from_config(
        config, attn_implementation=attention_implementation(CPU, torch.float32)
    ).eval()


@pytest.fixture
def base() -> Qwen2ForCausalLM:
    return make_llm()


@pytest.fixture(params=["speech"])
def adapted(request: pytest.FixtureRequest) -> tuple[Qwen2ForCausalLM, torch.nn.ModuleDict, LoraGate]:
    """The same LLM with LoRA whose delta is far from zero."""
    llm = make_llm()
    layers, gate = add_lora(llm, rank=4, alpha=8, dropout=0.0, targets=TARGETS, scope=request.param)
    torch.manual_seed(1)
    for parameter in layers.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return llm, layers, gate


def decode(llm: Qwen2ForCausalLM, embeddings: Tensor) -> Tensor:
    """Last hidden states [T, H] of the packed sequences."""
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    output = llm.model(
        inputs_embeds=embeddings[None], position_ids=positions[None], use_cache=False, **bounds(LENGTHS, CPU)
    )
    return output.last_hidden_state[0]


def test_a_closed_gate_is_the_base_model_bit_for_bit(base: Qwen2ForCausalLM, adapted: tuple) -> None:
    llm, _, gate = adapted
    embeddings = torch.randn(sum(LENGTHS), 16)
    assert torch.equal(decode(llm, embeddings), decode(base, embeddings))
    gate.open(SPEECH[None])
    assert not torch.equal(decode(llm, embeddings), decode(base, embeddings))
    gate.close()
    assert torch.equal(decode(llm, embeddings), decode(base, embeddings))


def test_an_open_gate_changes_only_from_speech_on(base: Qwen2ForCausalLM, adapted: tuple) -> None:
    llm, _, gate = adapted
    embeddings = torch.randn(sum(LENGTHS), 16)
    gate.open(SPEECH[None])
    changed = (decode(llm, embeddings) != decode(base, embeddings)).any(-1)
    heard = torch.cat([(sequence.cumsum(0) > 0) for sequence in SPEECH.split(LENGTHS)])
    assert torch.equal(changed, heard)


def test_the_delta_itself_acts_at_speech_positions_only(base: Qwen2ForCausalLM, adapted: tuple) -> None:
    llm, _, gate = adapted
    gate.open(SPEECH[None])
    hidden = torch.randn(1, sum(LENGTHS), 16)
    ours, theirs = (model.model.layers[0].mlp.up_proj(hidden)[0] for model in (llm, base))
    assert torch.equal((ours != theirs).any(-1), SPEECH)


@pytest.mark.parametrize("adapted", ["all"], indirect=True)
def test_scope_all_acts_everywhere(base: Qwen2ForCausalLM, adapted: tuple) -> None:
    llm, _, gate = adapted
    embeddings = torch.randn(sum(LENGTHS), 16)
    gate.open(SPEECH[None])
    assert (decode(llm, embeddings) != decode(base, embeddings)).any(-1).all()
    gate.close()
    assert torch.equal(decode(llm, embeddings), decode(base, embeddings))


OTHER = SPEECH.roll(2)


def two_passes(adapted: tuple, first: Tensor, then: Callable[[LoraGate], None]) -> tuple[Tensor, ...]:
    """LoRA's gradient through a pass with `first` as its mask, when `then` is done to the gate before backward."""
    llm, layers, gate = adapted
    torch.manual_seed(3)
    embeddings, weights = torch.randn(2, sum(LENGTHS), 16)
    llm.train()
    gate.close()
    with torch.no_grad():
        decode(llm, embeddings)  # the teacher
    gate.open(first[None])
    loss = (decode(llm, embeddings) * weights).sum()
    then(gate)
    return torch.autograd.grad(loss, list(layers.parameters()))


@pytest.mark.parametrize(
    "then",
    [lambda gate: None, LoraGate.close, lambda gate: gate.open(OTHER[None]), lambda gate: gate.open(SPEECH[None, :9])],
    ids=["nothing", "closed", "another_mask", "another_length"],
)
def test_recomputation_sees_the_mask_of_its_own_pass_whatever_happened_since(
    adapted: tuple, then: Callable[[LoraGate], None]
) -> None:
    llm, _, gate = adapted
    plain = two_passes(adapted, SPEECH, lambda gate: None)
    llm.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": gate.remembered})
    torch.testing.assert_close(two_passes(adapted, SPEECH, then), plain, rtol=0, atol=0)
    assert all(gradient.any() for gradient in plain[-4:-2])
    # The gate itself is left as `then` made it.
    after = gate._gate
    then(gate)
    assert (after is None) == (gate._gate is None)


def test_two_students_in_flight_each_get_their_own_gradient(adapted: tuple) -> None:
    """Two forwards before one backward: the second's mask must not leak into the first's recomputation."""
    llm, layers, gate = adapted
    torch.manual_seed(4)
    embeddings, weights = torch.randn(2, sum(LENGTHS), 16)
    llm.train()
    parameters = list(layers.parameters())

    def loss(mask: Tensor) -> Tensor:
        gate.open(mask[None])
        return (decode(llm, embeddings) * weights).sum()

    apart = [torch.autograd.grad(loss(mask), parameters) for mask in (SPEECH, OTHER)]
    llm.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": gate.remembered})
    losses = [loss(mask) for mask in (SPEECH, OTHER)]
    for together, alone in zip(losses, apart, strict=True):
        torch.testing.assert_close(torch.autograd.grad(together, parameters), alone, rtol=0, atol=0)
    assert not all(torch.allclose(a, b) for a, b in zip(*apart, strict=True))


@pytest.mark.parametrize(("adapted", "base_decodes"), [("speech", True), ("all", False)], indirect=["adapted"])
def test_steps_of_decoding_use_the_base_unless_the_scope_is_all(adapted: tuple, base_decodes: bool) -> None:
    llm, _, gate = adapted
    gate.open(SPEECH[None, :9])
    with torch.no_grad():
        cache = llm(inputs_embeds=torch.randn(1, 9, 16), use_cache=True).past_key_values
        step = {"input_ids": torch.tensor([[7]]), "use_cache": True}
        heard = llm(**step, past_key_values=copy.deepcopy(cache)).logits
        gate.close()
        plain = llm(**step, past_key_values=copy.deepcopy(cache)).logits
    assert torch.equal(heard, plain) == base_decodes


def test_every_target_of_every_block_is_returned(adapted: tuple) -> None:
    llm, layers, _ = adapted
    assert len(layers) == 3 * len(TARGETS)
    injected = {id(p) for name, p in llm.named_parameters() if "lora_" in name}
    assert injected == {id(p) for p in layers.parameters()}


def test_a_new_lora_changes_nothing(base: Qwen2ForCausalLM) -> None:
    llm = make_llm()
    _, gate = add_lora(llm, rank=4, alpha=8, dropout=0.0, targets=TARGETS, scope="all")
    embeddings = torch.randn(sum(LENGTHS), 16)
    gate.open(SPEECH[None])
    assert torch.equal(decode(llm, embeddings), decode(base, embeddings))


def test_unknown_targets_are_refused(base: Qwen2ForCausalLM) -> None:
    with pytest.raises(ValueError, match="nothing_proj"):
        add_lora(base, rank=4, alpha=8, dropout=0.0, targets=["nothing_proj"], scope="speech")


def test_every_beam_of_a_sequence_is_gated_as_the_sequence(adapted: tuple) -> None:
    llm, _, gate = adapted
    embeddings = torch.randn(2, 6, 16)
    gate.open(torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.bool))
    alone = llm(inputs_embeds=embeddings).logits
    beams = llm(inputs_embeds=embeddings.repeat_interleave(3, 0)).logits
    torch.testing.assert_close(beams, alone.repeat_interleave(3, 0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("target", "what"), [("lm_head", "head"), ("embed_tokens", "embedding table")])
@pytest.mark.parametrize("tied", [True, False])
def test_lora_on_embeddings_which_may_be_tied_is_refused(target: str, what: str, tied: bool) -> None:
    config = make_llm().config
    config.tie_word_embeddings = tied
    llm = Qwen2ForCausalLM(config)
    with pytest.raises(ValueError, match=f"model.lora.targets: {target} is the LLM's {what}, which may be tied"):
        add_lora(llm, rank=2, alpha=2, dropout=0.0, targets=["q_proj", target], scope="all")
