"""A clip's numbers are its own, whatever lies beside it; a step's gradient is its own, however the step is split.

Random mixes of 1 to 16 clips of 0.1 to 30 s, through models whose weights are large enough for a leak to show: logits
are about 5, rows of the losses up to 10. What ranks do to it is in test_ranks.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import HubertConfig, PreTrainedTokenizerFast, WavLMConfig

from blsp.model import SpeechLM
from blsp.run import Stage
from shards.audio import SAMPLE_RATE
from shards.batches.collate import Batch, Collator
from shards.sample import EMOTIONS, Continuation, Utterance
from shards.sets.shard_set import Sample
from tests.blsp.tiny import (
    ALL_AT_ONCE,
    CPU,
    LORA,
    WAVE_SIZES,
    clip,
    make_encoder,
    make_loud_llm,
    make_wave_encoder,
    model_section,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
CLOSE = 1e-5
WHISPER = None
CONV = {"type": "conv", "bottleneck": 8}
STACK_MLP = {"type": "stack_mlp", "stack": 4, "hidden": 8}
QFORMER = {"type": "qformer", "window": 7, "queries": 2, "hidden": 8, "heads": 2}
# The window, the encoder and the adapter; how many mixes are tried, and their longest clip in seconds.
FORMS: dict[str, tuple[str, HubertConfig | WavLMConfig | None, dict[str, Any], int, int]] = {
    "exact": ("exact", WHISPER, CONV, 4, 30),
    "tail": ("tail:0.5", WHISPER, STACK_MLP, 2, 30),
    "30s": ("30s", WHISPER, CONV, 1, 30),
    "wavlm": ("exact", WavLMConfig(**WAVE_SIZES), QFORMER, 1, 6),
    "hubert": ("exact", HubertConfig(**WAVE_SIZES), CONV, 1, 30),
}
MIXES = [(name, seed) for name, (*_, mixes, _) in FORMS.items() for seed in range(mixes)]
every_mix = pytest.mark.parametrize(("form", "seed"), MIXES)


@pytest.fixture(scope="module")
def models(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SpeechLM]:
    """One model of each form, as if all its parts had trained."""
    llm = make_loud_llm(tokenizer, tmp_path_factory.mktemp("llm"))
    made = {}
    for name, (window, wave, adapter, *_) in FORMS.items():
        folder = tmp_path_factory.mktemp(name)
        encoder = make_wave_encoder(folder, wave) if wave else make_encoder(folder, max_source_positions=1500)
        section = model_section(llm, encoder, lora=LORA, audio_window=window, adapter=adapter)
        made[name] = SpeechLM.build(section, CPU).train()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in made[name].parts.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return made


@pytest.fixture
def model(models: dict[str, SpeechLM], form: str) -> SpeechLM:
    return models[form]


@pytest.fixture
def samples(model: SpeechLM, form: str, seed: int) -> list[Sample]:
    """1 to 16 clips, as many short as long; mix 0 is of 16, with one of 0.1 s and one of as much as the model hears."""
    random = np.random.default_rng(seed)
    number = 16 if seed == 0 else int(random.integers(1, 17))
    longest = min(FORMS[form][-1] * SAMPLE_RATE, model.encoder.max_samples)
    lengths = np.exp(random.uniform(np.log(0.1 * SAMPLE_RATE), np.log(longest), number)).astype(int)
    if seed == 0:
        lengths[[3, 7]] = SAMPLE_RATE // 10, longest
    samples = []
    for i, length in enumerate(lengths):
        emotion = EMOTIONS[i % 5] if random.random() < 0.7 else None
        utterance = Utterance(
            id=f"{i}", audio="", text="word " * int(random.integers(1, 20)), corpus="x", emotion=emotion
        )
        text, finished = "more " * int(random.integers(1, 20)), bool(random.random() < 0.8)
        answer = Continuation(prompt="continue", text=text, finished=finished, writer="x")
        samples.append(Sample(utterance, answer, clip(int(length), 100 * seed + i)))
    return samples


def partition(number: int, seed: int) -> list[list[int]]:
    """The numbers below `number` in random order, in up to three parts and an empty one: a filler."""
    random = np.random.default_rng(seed)
    cuts = np.sort(random.integers(0, number + 1, 2))
    return [part.tolist() for part in np.split(random.permutation(number), cuts)] + [[]]


def batch_of(model: SpeechLM, samples: Sequence[Sample]) -> Batch:
    """A micro-batch of a step that was planned with 300 response tokens and 9 labelled clips."""
    collator = Collator(model.template, model.num_speech_tokens, {"continue": 1}, with_teacher=True)
    return collator(samples, ["continue"] * len(samples), 300, 9)


def numbers(model: SpeechLM, samples: Sequence[Sample]) -> list[dict[str, Tensor]]:
    """Per clip what the model makes of it in one micro-batch."""
    batch = batch_of(model, samples)
    tokens = [len(model.template.response(s.continuation.text, s.continuation.finished)) for s in samples]
    speech, lengths = model.hear(batch.waveform, batch.num_samples)
    student, teacher = model.response_logits(batch)
    # Each row's loss is what the sum moves by with the row's weight.
    batch.row_weight.requires_grad_()
    losses = model(batch, ALL_AT_ONCE)
    rows = {
        name: torch.autograd.grad(getattr(losses, name).sum(), batch.row_weight, retain_graph=True)[0]
        for name in ("ce_sum", "kl_sum", "kl_t1_sum")
    }
    values = {"student": student, "teacher": teacher, **rows}
    pieces: dict[str, Sequence[Tensor]] = {name: value.detach().split(tokens) for name, value in values.items()}
    pieces["speech"] = speech.detach().split(lengths)
    pieces["emotion"] = model.emotion_logits(speech, lengths).detach()
    return [{name: piece[i] for name, piece in pieces.items()} for i in range(len(samples))]


@every_mix
def test_each_clip_gets_the_same_numbers_alone_in_any_batch_and_in_any_packing(
    model: SpeechLM, samples: list[Sample], seed: int
) -> None:
    alone = [numbers(model, [sample])[0] for sample in samples]
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    for packing in ([order], partition(len(samples), seed)):
        for part in filter(None, packing):
            for i, together in zip(part, numbers(model, [samples[i] for i in part]), strict=True):
                for name, value in together.items():
                    assert value.shape == alone[i][name].shape
                    assert (value - alone[i][name]).abs().max() <= CLOSE, (name, i, part)


@pytest.mark.parametrize(("form", "seed"), [(form, 0) for form in FORMS])
def test_what_the_neighbours_say_changes_no_bit(model: SpeechLM, samples: list[Sample]) -> None:
    samples = samples[2:6]
    loud = [Sample(sample.utterance, sample.continuation, 32767 * np.sign(sample.waveform)) for sample in samples]
    loud[1] = samples[1]
    before, after = (numbers(model, group)[1] for group in (samples, loud))
    assert all(torch.equal(before[name], after[name]) for name in before)


def gradient(model: SpeechLM, samples: Sequence[Sample], split: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Of the step's loss, over its micro-batches."""
    stage = Stage(model, ALL_AT_ONCE)
    stage.zero_grad()
    for part in split:
        stage(batch_of(model, [samples[i] for i in part]))[0].backward()
    return {name: parameter.grad.clone() for name, parameter in stage.named_parameters()}


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes, forward and backward."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = (value.numel() for value in tree_leaves(made) if isinstance(value, Tensor))
        self.numel = max(self.numel, *sizes, 0)
        return made


@pytest.mark.parametrize("form", ["exact", "wavlm", "hubert"])
def test_no_tensor_grows_with_the_square_of_a_pack(model: SpeechLM) -> None:
    """No mask and no bias between all positions of a long pack, in any part."""
    utterance = Utterance(id="a", audio="", text="word " * 10, corpus="x", emotion=None)
    answer = Continuation(prompt="continue", text="more " * 10, finished=True, writer="x")
    largest = []
    for number in (30, 60):
        batch = batch_of(model, [Sample(utterance, answer, clip(SAMPLE_RATE, i)) for i in range(number)])
        with Largest() as seen:
            Stage(model, ALL_AT_ONCE)(batch)[0].backward()
        largest.append(seen.numel)
    squares = [number**2 for number in (60 * model.encoder.num_positions(SAMPLE_RATE), len(batch.input_ids))]
    assert largest[1] <= 2 * largest[0]
    assert largest[1] < min(squares) / 2


@every_mix
def test_a_steps_gradient_is_the_same_for_any_split_into_micro_batches(
    model: SpeechLM, samples: list[Sample], seed: int
) -> None:
    whole = gradient(model, samples, [range(len(samples))])
    assert sum(bool(value.any()) for value in whole.values()) > 0.9 * len(whole)
    for split in ([[i] for i in range(len(samples))], partition(len(samples), seed)):
        for name, value in gradient(model, samples, split).items():
            if name.endswith(("k_proj.bias", "key.bias")):
                # It moves all scores of a query alike, which changes nothing: a gradient of zero, but for rounding.
                assert value.norm() <= CLOSE * whole[name.replace("bias", "weight")].norm(), name
            else:
                assert (value - whole[name]).norm() <= CLOSE * whole[name].norm(), name
