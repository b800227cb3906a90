"""Beside torch's own counter, which sees all that is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from blsp.flops import Flops, peak_flops
from blsp.model import SpeechLM
from blsp.recipe import StageSection
from blsp.run import Stage
from shards.batches.collate import Collator
from shards.sets.shard_set import ShardSet
from tests.bench.train.counting import cost
from tests.blsp.tiny import CPU, LORA, STAGE_1, STAGE_2, make_encoder, make_shards, model_section


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


def test_a_processor_has_no_peak_that_is_known() -> None:
    assert peak_flops(torch.device("cpu")) is None
