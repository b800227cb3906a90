"""A prompt that several sequences of a micro-batch begin with is computed once, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from blsp.model import SpeechLM
from blsp.run import Stage, _checkpoint_activations
from shards.batches.collate import Batch, Collator
from shards.sample import EMOTIONS, Continuation, Utterance
from shards.sets.shard_set import Sample
from tests.blsp.tiny import ALL_AT_ONCE, CPU, LORA, clip, make_encoder, make_loud_llm, model_section
from tests.shards.batches.layout import apart

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = 1e-5


@pytest.fixture(scope="module")
def folders(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("shared")
    return make_loud_llm(tokenizer, root / "llm"), make_encoder(root / "encoder")


def make(folders: tuple[Path, Path], scope: str) -> SpeechLM:
    """A model whose parts, LoRA too, are as if they had trained."""
    model = SpeechLM.build(model_section(*folders, lora={**LORA, "scope": scope}), CPU).train()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parts.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def batch_of(model: SpeechLM) -> Batch:
    """Ten clips under two prompts; the text LLM was told no label (2, 4, 7) or one of four, two of them only once."""
    samples, tasks = [], []
    for i in range(10):
        prompt = "continue" if i in (2, 4, 7) else "continue_emotion"
        tasks.append({"continue": "continue", "continue_emotion": "continue_tone"}[prompt])
        utterance = Utterance(id=f"{i}", audio="", text="word " * (i % 4), corpus="x", emotion=EMOTIONS[i % 4])
        answer = Continuation(prompt=prompt, text="more " * (1 + i % 3), finished=i % 2 == 0, writer="x")
        samples.append(Sample(utterance, answer, clip(5000 + 1500 * i, i)))
    collator = Collator(model.template, model.num_speech_tokens, {"continue": 1, "continue_tone": 1}, with_teacher=True)
    return collator(samples, tasks, 100, 10)


def step(model: SpeechLM, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """All sums of the losses, and the gradient of everything that trains."""
    stage = Stage(model, ALL_AT_ONCE)
    stage.zero_grad()
    total, sums = stage(batch)
    total.backward()
    return sums, {name: parameter.grad.clone() for name, parameter in stage.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("scope", ["speech", "all"])
def test_losses_and_gradients_are_those_of_whole_sequences(
    folders: tuple[Path, Path], scope: str, checkpointing: bool
) -> None:
    """With LoRA everywhere too: then the prompt's own gradient is the sum over all that look at it."""
    model = make(folders, scope)
    if checkpointing:
        _checkpoint_activations(model, ("llm", "encoder"))
    batch = batch_of(model)
    whole = apart(batch)
    assert sum(before >= 0 for before in batch.prefix_of) == 10
    assert sum(before >= 0 for before in batch.text_prefix_of) == 8
    assert len(whole.input_ids) > 1.3 * len(batch.input_ids)
    assert torch.equal(whole.input_ids[whole.rows + 1], batch.targets)
    (sums, gradients), (expected_sums, expected) = step(model, batch), step(model, whole)
    torch.testing.assert_close(sums, expected_sums, rtol=CLOSE, atol=CLOSE)
    for name, gradient in gradients.items():
        if not name.endswith("k_proj.bias"):  # zero but for rounding
            assert (gradient - expected[name]).norm() <= CLOSE * expected[name].norm(), name
    for ours, theirs in zip(model.response_logits(batch), model.response_logits(whole), strict=True):
        assert (ours - theirs).abs().max() <= CLOSE


def test_the_llm_sees_each_prompt_once_and_each_clips_own_tokens(folders: tuple[Path, Path]) -> None:
    model = make(folders, "speech")
    batch = batch_of(model)
    seen: list[int] = []

    def count(module: Any, args: tuple[Tensor, ...], output: Any) -> None:
        seen.append(args[0].shape[1])

    model.llm.model.layers[0].register_forward_hook(count)
    model(batch, ALL_AT_ONCE)
    template, suffix = model.template, len(model.template.suffix())
    responses = len(batch.targets)
    student = [len(template.prefix(task)) for task in ("continue", "continue_tone")]
    told = [("continue", None), *(("continue_emotion", emotion) for emotion in EMOTIONS[:4])]
    teacher = [len(template.prefix(*one)) for one in told]
    words = sum(len(template.encode("word " * (i % 4))) for i in range(10))
    assert seen == [
        sum(teacher) + words + 10 * suffix + responses,
        sum(student) + int(batch.speech_mask.sum()) + 10 * suffix + responses,
    ]
