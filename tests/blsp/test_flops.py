"""Beside torch's own counter, which sees all that is computed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3MoeConfig,
)

from blsp.flops import Flops, _attention_width, _passed, peak_flops
from blsp.model import SpeechLM
from blsp.recipe import StageSection
from blsp.run import Stage
from shards.batches.collate import Collator
from shards.sets.shard_set import ShardSet
from tests.bench.train.counting import cost
from tests.blsp.test_llms import SIZES as TINY
from tests.blsp.tiny import CPU, LORA, STAGE_1, STAGE_2, make_encoder, make_shards, model_section

SIZES = {**TINY, "vocab_size": 100}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [STAGE_1, STAGE_2], ids=["stage1", "stage2"])
def test_useful_operations_are_those_of_torchs_counter(
    stage: StageSection, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Here the LLM's layers are most of the model, as in a real one. Left out: the first convolutions, and
    the adapter's higher rates."""
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    section = model_section(tmp_path / "llm", make_encoder(tmp_path / "encoder"), lora=LORA)
    model = SpeechLM.build(section, CPU)
    (task,) = stage.prompts
    prompt = {"continue": "continue", "continue_tone": "continue_emotion"}[task]
    shard_set = ShardSet.open(make_shards(tmp_path / "data", prompt, 6))
    collator = Collator(model.template, model.num_speech_tokens, {task: 1}, with_teacher="kl" in stage.losses)
    batch = collator(shard_set.read_many(range(6)), [task] * 6, 100, 6)
    ours, trained = Flops(model, stage)(batch), Stage(model, stage)
    theirs = cost(lambda: trained(batch)[0], model.parameters()).flops
    assert ours == pytest.approx(theirs, rel=0.05)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_a_gpu_has_the_peak_of_its_own_data_sheet(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == peak


@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(**SIZES, head_dim=48),  # wider than its hidden states
        Qwen3MoeConfig(**SIZES, head_dim=16, moe_intermediate_size=64, num_experts=8, num_experts_per_tok=2),
    ],
    ids=["wide heads", "experts"],
)
def test_an_llms_heads_and_experts_count_as_far_as_they_are_used(config: Any) -> None:
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    length = 64
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        llm(input_ids=torch.arange(length)[None], use_cache=False)
    # The embeddings are looked up, but the head, of the same shape, multiplies.
    attention = 4 * config.num_hidden_layers * _attention_width(config) * length**2
    ours = 2 * length * _passed(llm.model, config) + attention
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_experts_of_which_nobody_says_how_many_are_used_are_not_counted() -> None:
    config = Qwen3MoeConfig(**SIZES, head_dim=16, moe_intermediate_size=64, num_experts=8)
    llm = AutoModelForCausalLM.from_config(config)
    assert math.isnan(_passed(llm.model, Qwen3Config(**SIZES)))


def test_a_processor_has_no_peak_that_is_known() -> None:
    assert peak_flops(torch.device("cpu")) is None
