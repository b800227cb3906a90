"""LLMs of four families, each with another encoder and adapter: pairs, not the whole product."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GenerationConfig,
    HubertConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    WavLMConfig,
)

from blsp.model import SpeechLM, load_llm
from blsp.packing import attention_implementation, bounds
from blsp.run import Stage
from shards.batches.collate import Batch, Collator
from shards.prompts import PROMPTS, ChatTemplate
from shards.sample import Continuation, Utterance
from shards.sets.shard_set import Sample
from shards.writers.protocol import Request
from shards.writers.with_transformers import TransformersWriter
from tests.blsp.tiny import CPU, LORA, STAGE_1, WAVE_SIZES, clip, make_encoder, make_wave_encoder, model_section
from tests.conftest import CHAT_TEMPLATE

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 512, "initializer_range": 0.1,
}  # fmt: skip
# As the models of these families have them, but for the names of the special tokens.
QWEN3 = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}<|im_start|>\n\n{{ m.content | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_start|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any], str]] = {
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}, CHAT_TEMPLATE),
    "qwen3": (Qwen3Config, {"head_dim": 16}, QWEN3),
    "llama": (LlamaConfig, {}, LLAMA),
    "mistral": (MistralConfig, {"sliding_window": 24}, MISTRAL),  # shorter than the prompt
}
QFORMER = {"type": "qformer", "window": 7, "queries": 2, "hidden": 8, "heads": 2}


def make_llm(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    config, changes, template = FAMILIES[family]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template, tokenizer.bos_token = template, "<|endoftext|>"
    tokenizer.pad_token = None
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer), **SIZES, **ids, **changes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def model(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> SpeechLM:
    family, root = request.param, tmp_path_factory.mktemp(request.param)
    encoder, changes = {
        "qwen2": lambda: (make_encoder(root / "encoder"), {}),
        "qwen3": lambda: (make_encoder(root / "encoder", num_mel_bins=128), {"adapter": {"type": "stack_mlp"}}),
        "llama": lambda: (make_wave_encoder(root / "encoder", WavLMConfig(**WAVE_SIZES)), {"adapter": QFORMER}),
        "mistral": lambda: (make_wave_encoder(root / "encoder", HubertConfig(**WAVE_SIZES)), {}),
    }[family]()
    torch.manual_seed(0)
    llm = make_llm(root / "llm", family, tokenizer)
    return SpeechLM.build(model_section(llm, encoder, lora={**LORA, "scope": "all"}, **changes), CPU)


@pytest.fixture
def plain(model: SpeechLM) -> Any:
    """The LLM by transformers' own ways, one sequence at a time."""
    return AutoModelForCausalLM.from_pretrained(model.config.llm, attn_implementation="eager").eval()


def batch_of(model: SpeechLM) -> Batch:
    samples = []
    for i, length in enumerate((5000, 16000, 9000)):
        utterance = Utterance(id=f"clip-{i}", audio="", text=f"Words of {i}", corpus="x")
        answer = Continuation(prompt="continue", text=f"and {i} more", finished=i != 1, writer="x")
        samples.append(Sample(utterance, answer, clip(length, i)))
    collator = Collator(model.template, model.num_speech_tokens, {"continue": 1}, with_teacher=True)
    return collator(samples, ["continue"] * 3, 30, 0)


@torch.no_grad()
def test_packed_sequences_equal_transformers_on_each_alone(model: SpeechLM, plain: Any) -> None:
    batch = batch_of(model)
    model.gate.close()
    packed = model.llm.get_decoder()(
        input_ids=batch.text_input_ids[None], position_ids=batch.text_position_ids[None], use_cache=False,
        **bounds(batch.text_seq_lens, CPU, batch.text_prefix_of),
    ).last_hidden_state[0]  # fmt: skip
    assert batch.text_prefix_of == [-1, 0, 0, 0]
    prefix, *own = batch.text_input_ids.split(batch.text_seq_lens)
    for ours, ids in zip(packed.split(batch.text_seq_lens)[1:], own, strict=True):
        theirs = plain.get_decoder()(input_ids=torch.cat([prefix, ids])[None]).last_hidden_state[0]
        torch.testing.assert_close(ours, theirs[len(prefix) :], rtol=0, atol=2e-5)


def test_steps_of_stage_1_lower_its_loss_and_move_the_adapter_alone(model: SpeechLM) -> None:
    before = {name: value.clone() for name, value in model.parts.state_dict().items()}
    stage, batch = Stage(model, STAGE_1), batch_of(model)
    model.train()
    optimizer = torch.optim.AdamW(stage.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        total, _ = stage(batch)
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < losses[0]
    moved = {name for name, value in model.parts.state_dict().items() if not value.equal(before[name])}
    assert {name.split(".")[0] for name in moved} == {"adapter"}
    stage.requires_grad_(False)


def test_a_greedy_answer_to_words_is_transformers_own_and_clips_are_answered_as_alone(
    model: SpeechLM, plain: Any
) -> None:
    model.eval()
    ids = model.template.prefix("chat") + model.template.encode("Good morning") + model.template.suffix()
    asked = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    theirs = plain.generate(**asked, do_sample=False, max_new_tokens=8, pad_token_id=0)[0]
    assert model.answer("Good morning", "chat", 8) == model.template.decode(theirs[len(ids) :].tolist())
    clips = [clip(length, i) for i, length in enumerate((5000, 16000, 9000))]
    assert model.generate(clips, "chat", 8) == [model.generate([samples], "chat", 8)[0] for samples in clips]


@torch.no_grad()
def test_a_writers_batch_is_what_transformers_generates_for_each_alone(model: SpeechLM, plain: Any) -> None:
    writer = TransformersWriter(model.config.llm, max_new_tokens=6, batch_size=4)
    requests = [Request("a " * n, None, "continue") for n in (1, 30, 9, 4)]
    end = writer.template.end_of_turn_id
    settings = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=end, pad_token_id=end)
    for request, answer in zip(requests, writer.write(requests), strict=True):
        ids = torch.tensor([writer.prompt(request)])
        new = plain.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0, ids.shape[1] :]
        assert answer.text == writer.template.decode([token for token in new.tolist() if token != end])


def test_lora_of_scope_all_acts_on_text_and_in_decoding_only_where_speech_is_heard(model: SpeechLM) -> None:
    model.eval()
    clips, words = [clip(9000)], model.answer("Good morning", "chat", 8)
    heard = model.generate(clips, "chat", 8)
    before = {name: value.clone() for name, value in model.parts["lora"].state_dict().items()}
    for parameter in model.parts["lora"].parameters():
        parameter += torch.randn_like(parameter)
    assert model.answer("Good morning", "chat", 8) == words
    assert model.generate(clips, "chat", 8) != heard
    model.parts["lora"].load_state_dict(before)


@pytest.mark.parametrize(
    ("family", "begins", "ends"),
    [
        ("qwen3", "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nContinue",
         "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("mistral", "<|endoftext|>[INST] You are a helpful assistant.\n\nContinue", " [/INST]"),
        ("llama", "<|endoftext|><|im_start|>system<|im_start|>\n\nYou are a helpful assistant.<|im_end|>",
         "<|im_end|><|im_start|>assistant<|im_start|>\n\n"),
    ],
)  # fmt: skip
def test_a_prompt_follows_the_familys_template(
    tokenizer: PreTrainedTokenizerFast, family: str, begins: str, ends: str
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template, tokenizer.bos_token = FAMILIES[family][2], "<|endoftext|>"
    template = ChatTemplate(tokenizer)
    prefix = tokenizer.decode(template.prefix("continue"))
    assert prefix.startswith(begins)
    assert prefix.endswith(PROMPTS["continue"].instruction)
    assert tokenizer.decode(template.suffix()) == ends


@pytest.mark.parametrize(
    ("chat_template", "complaint"),
    [
        ("{{ messages[0].content }}", "drops the user's message"),
        ("{% for m in messages %}{{ m.content }} {{ m.content }}{% endfor %}", "repeats the user's message"),
        ("{{ raise_exception('no') }}", "drops the user's message"),
    ],
)
def test_a_template_without_one_place_for_the_speech_is_refused(
    tokenizer: PreTrainedTokenizerFast, chat_template: str, complaint: str
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = chat_template
    with pytest.raises(ValueError, match=complaint):
        ChatTemplate(tokenizer).prefix("continue")


def test_an_llm_whose_layers_do_more_than_attend_is_refused(model: SpeechLM) -> None:
    llm = copy.copy(model.llm)
    llm.config = copy.deepcopy(model.llm.config)
    llm.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match=r"has layers of the kind linear_attention, through which clips"):
        SpeechLM(model.config, llm, model.encoder, model.template)


def test_an_llm_that_does_not_hand_on_where_sequences_end_is_refused_in_its_first_pass(model: SpeechLM) -> None:
    config = RecurrentGemmaConfig(vocab_size=model.llm.config.vocab_size, lru_width=32, **SIZES)
    llm = RecurrentGemmaForCausalLM._from_config(
        config, attn_implementation=attention_implementation(CPU, torch.float32)
    )
    section = model.config.model_copy(update={"lora": None})
    with pytest.raises(ValueError, match="RecurrentGemmaForCausalLM told 0 of its 2 layers where sequences end"):
        SpeechLM(section, llm, model.encoder, model.template)._read(batch_of(model))


def test_an_llm_that_attends_by_code_of_its_own_is_refused(tmp_path: Path) -> None:
    config = FalconConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    FalconForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="attends by code of its own"):
        load_llm(model_section(tmp_path, tmp_path), CPU)
