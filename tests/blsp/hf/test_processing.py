from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import PreTrainedTokenizerFast

from blsp.encoder import load_encoder
from blsp.features import AudioWindow
from blsp.hf import BlspEmoProcessor
from tests.blsp.tiny import CPU, clip, make_encoder

WHISPER = {"model_type": "whisper", "max_source_positions": 150}
ADAPTER = {"type": "conv", "bottleneck": 8}


def heard(samples: Any, rate: int | None = 16000) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "audio", "audio": samples, "sampling_rate": rate}]}


@pytest.fixture
def processor(tokenizer: PreTrainedTokenizerFast) -> BlspEmoProcessor:
    return BlspEmoProcessor(tokenizer, WHISPER, ADAPTER, "exact")


def test_a_conversation_of_words_and_clips_is_what_training_sees(processor: BlspEmoProcessor) -> None:
    first, second = clip(16000, 1), clip(9000, 2)
    turns = [heard(first), {"role": "assistant", "content": "I see."}, heard(second)]
    turns[2]["content"].insert(0, {"type": "text", "text": "And this? "})
    inputs = processor(turns)
    template = processor._template
    counts = [processor.num_speech_tokens(len(samples)) for samples in (first, second)]
    contents = [[-1] * counts[0], template.encode("I see."), template.encode("And this? ") + [-1] * counts[1]]
    expected = template.context("chat", None, contents)
    assert inputs["input_ids"].masked_fill(inputs["speech_mask"], -1).tolist() == [expected]
    assert inputs["num_samples"].tolist() == [16000, 9000]
    assert inputs["input_values"].dtype == torch.int16
    assert inputs["input_values"][1, :9000].tolist() == second.tolist()
    assert "labels" not in inputs
    again = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)


def test_positions_are_counted_as_the_encoder_counts_them(processor: BlspEmoProcessor, tmp_path: Path) -> None:
    encoder = load_encoder(str(make_encoder(tmp_path)), AudioWindow("exact"), torch.float32, CPU)
    for num_samples in (1600, 1601, 12345, 48000):
        positions = encoder.num_positions(num_samples)
        assert processor.num_speech_tokens(num_samples) == -(-positions // 8)


def test_files_and_floats_give_the_samples_that_int16_does(processor: BlspEmoProcessor, tmp_path: Path) -> None:
    samples = clip(8000)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    soundfile.write(tmp_path / "b.wav", np.repeat(samples, 3), 48000)
    rows = [samples / 32768, (samples / 32768).astype(np.float32), {"array": samples, "sampling_rate": 16000}]
    expected = processor([heard(samples)])["input_values"]
    for given in (*rows, str(tmp_path / "a.wav"), tmp_path / "a.wav", torch.from_numpy(samples)):
        assert torch.equal(processor([heard(given)])["input_values"], expected)
    assert processor([heard(tmp_path / "b.wav")])["num_samples"].tolist() == [8000]


@pytest.mark.parametrize(
    ("samples", "rate", "complaint"),
    [
        (clip(60000), 16000, r"a clip of 3\.75 s is longer than the 3\.0 s that the encoder hears .*'exact'; cut it"),
        (np.zeros(0, np.int16), 16000, "the clip holds no samples"),
        (clip(800), 16000, r"0\.050 s long, which is shorter than 0\.1 s"),
        (np.array([0.1, np.nan] * 4000), 16000, "holds samples that are not finite numbers"),
        (clip(8000), 44100, "the clip is at 44100 Hz, and 16000 is needed; resample it, or give the path of a file"),
        (clip(8000), None, "no sampling_rate was given, and 16000 is needed"),
        (clip(8000).astype(np.float32), 16000, r"samples reach \d+; float samples lie in -1\.\.1"),
        (np.zeros((2, 8000), np.float32), 16000, r"the clip is float32 \[2, 8000\]; give one channel"),
        ("nowhere.wav", None, "nowhere.wav: no such file"),
    ],
)
def test_audio_that_cannot_be_heard_is_a_sentence(
    processor: BlspEmoProcessor, samples: Any, rate: int | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        processor([heard(samples, rate)])


@pytest.mark.parametrize(
    ("conversation", "complaint"),
    [
        ([{"role": "system", "content": "Be rude."}], "the system message is chosen by `prompt`"),
        ([{"role": "user", "content": "a"}] * 2, "message 1 is of 'user', not of 'assistant'"),
        ([{"role": "user", "content": ""}], "a message of 'user' without content"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of type 'image': known are 'text' and 'audio'"),
        ([{"role": "user", "content": "a"}, heard(clip(8000)) | {"role": "assistant"}], "it answers in words"),
        ([], "no conversation in this batch"),
        ("hello", r"'hello' is not a conversation; give a list of messages \{\"role\": \"user\""),
        ({"role": "user", "content": "a"}, r"\{'role': .* is not a conversation; give a list of messages"),
        ([["hello"]], "message 0 is 'hello'; give a list of messages"),
        ([3], "3 is not a conversation"),
        ([{"role": "user", "content": ["hi"]}], "the part 'hi'; content is words, or a list of"),
        ([{"role": "user", "content": 3}], "the content 3; content is words, or a list of"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "a part of type 'text' without text in it: {'type': 'text'}",
        ),
        ([{"role": "user", "content": [{"type": "audio"}]}], "no sampling_rate was given"),
    ],
)
def test_conversations_that_the_model_was_not_made_for_are_sentences(
    processor: BlspEmoProcessor, conversation: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        processor(conversation)


def test_conversations_to_learn_and_to_answer_are_two_batches(processor: BlspEmoProcessor) -> None:
    asked = [{"role": "user", "content": "Good morning"}]
    answered = [*asked, {"role": "assistant", "content": "Hello"}]
    assert "labels" in processor([answered, answered])
    with pytest.raises(ValueError, match="make two batches of them"):
        processor([asked, answered])


def test_a_users_turn_comes_with_the_start_of_an_answer(processor: BlspEmoProcessor) -> None:
    asked = [{"role": "user", "content": "Good morning"}]
    with pytest.raises(ValueError, match="add_generation_prompt=False: the model only ever saw"):
        processor.apply_chat_template(asked, add_generation_prompt=False)
    answered = [*asked, {"role": "assistant", "content": "Hello"}]
    inputs = processor.apply_chat_template(answered, add_generation_prompt=False)
    assert torch.equal(inputs["labels"], processor(answered)["labels"])


def test_a_prompt_is_one_of_the_models(processor: BlspEmoProcessor) -> None:
    with pytest.raises(ValueError, match="prompt 'sing' is not one of continue, continue_tone, identify, chat"):
        processor(audio=clip(8000), sampling_rate=16000, prompt="sing")


def test_a_template_without_a_users_turn_is_a_sentence(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}hello{% endfor %}"
    with pytest.raises(ValueError, match="its chat template drops the user's message"):
        BlspEmoProcessor(tokenizer, WHISPER, ADAPTER, "exact")(audio=clip(8000), sampling_rate=16000)


def test_a_tokenizer_without_a_pad_token_pads_all_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    inputs = BlspEmoProcessor(tokenizer, WHISPER, ADAPTER, "exact")(
        audio=[clip(8000), clip(16000)], sampling_rate=16000
    )
    assert inputs["attention_mask"][0].tolist() == sorted(inputs["attention_mask"][0].tolist())
    assert not inputs["attention_mask"][0].all()
