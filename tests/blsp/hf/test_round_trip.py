"""save_pretrained, a fresh process, from_pretrained: pairs of LLM, encoder and adapter, not the whole product."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoProcessor,
    GenerationConfig,
    HubertConfig,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
    WavLMConfig,
)

from blsp.hf import BlspEmoConfig, BlspEmoForConditionalGeneration, BlspEmoProcessor
from blsp.hf.convert import as_transformers, config_of, load_model
from blsp.model import SpeechLM
from tests.blsp.test_llms import QFORMER, batch_of, make_llm
from tests.blsp.tiny import CPU, LORA, WAVE_SIZES, clip, make_encoder, make_wave_encoder, model_section

CLIPS = [clip(length, i) for i, length in enumerate((5000, 16000, 9000))]
PAIRS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "qwen2": (make_encoder, {"lora": LORA, "audio_window": "tail:0.5"}),
    "qwen3": (lambda path: make_encoder(path, num_mel_bins=128), {"adapter": {"type": "stack_mlp", "hidden": 8}}),
    "llama": (
        lambda path: make_wave_encoder(path, WavLMConfig(**WAVE_SIZES)),
        {"adapter": QFORMER, "lora": {**LORA, "scope": "all"}},
    ),
    "mistral": (
        lambda path: make_wave_encoder(path, HubertConfig(**WAVE_SIZES)),
        {"encoder_lora": {**LORA, "targets": ["q_proj", "output_dense"]}},
    ),
}


def make(root: Path, family: str, tokenizer: PreTrainedTokenizerFast) -> SpeechLM:
    """A model all of whose parts are as if they had trained."""
    encoder, changes = PAIRS[family]
    torch.manual_seed(0)
    section = model_section(make_llm(root / "llm", family, tokenizer), encoder(root / "encoder"), **changes)
    model = SpeechLM.build(section, CPU).eval()
    with torch.no_grad():
        for parameter in model.parts.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def save(model: SpeechLM, folder: Path) -> Path:
    hf = as_transformers(model, config_of(model, classifier=True))
    hf.save_pretrained(folder)
    BlspEmoProcessor.of(hf.config, model.template.tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=PAIRS)
def live(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SpeechLM, Path]:
    """A model, and the folder that it was saved to."""
    root = tmp_path_factory.mktemp(request.param)
    model = make(root, request.param, tokenizer)
    return model, save(model, root / "saved")


@pytest.fixture(scope="module")
def saved(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of them."""
    root = tmp_path_factory.mktemp("one")
    return save(make(root, "qwen2", tokenizer), root / "saved")


@pytest.mark.slow
def test_a_saved_model_computes_bit_for_bit_what_it_computed(live: tuple[SpeechLM, Path]) -> None:
    model, folder = live
    loaded = load_model(folder, CPU)
    for ours, theirs in zip(
        model.response_logits(batch_of(model)), loaded.response_logits(batch_of(loaded)), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert loaded.generate(CLIPS, "chat", 8) == model.generate(CLIPS, "chat", 8)
    assert loaded.answer("Good morning", "chat", 8) == model.answer("Good morning", "chat", 8)
    assert (loaded.classify(CLIPS) == model.classify(CLIPS)).all()


@pytest.mark.slow
def test_transformers_own_calls_compute_it_too(live: tuple[SpeechLM, Path]) -> None:
    model, folder = live
    hf = AutoModelForMultimodalLM.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert isinstance(hf, BlspEmoForConditionalGeneration)
    assert isinstance(processor, BlspEmoProcessor)
    inputs = processor(audio=CLIPS, sampling_rate=16000)
    assert processor.batch_decode(hf.generate(**inputs, max_new_tokens=8)) == model.generate(CLIPS, "chat", 8)
    emotions = hf.emotions(inputs["input_values"], inputs["num_samples"]).numpy()
    assert (emotions == model.classify(CLIPS)).all()
    logits = hf(**inputs).logits
    for row, samples in enumerate(CLIPS):
        alone = hf(**processor(audio=samples, sampling_rate=16000)).logits[0]
        torch.testing.assert_close(logits[row, -len(alone) :], alone, rtol=0, atol=2e-5)


_FRESH = """
import sys, torch, blsp.hf
from transformers import AutoModelForCausalLM, AutoProcessor
inputs = torch.load(sys.argv[2], weights_only=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
torch.save({"logits": model(**inputs).logits, "ids": model.generate(**inputs, max_new_tokens=6)}, sys.argv[3])
"""


@pytest.mark.slow
def test_a_fresh_process_computes_the_same_bits(saved: Path, tmp_path: Path) -> None:
    inputs = dict(AutoProcessor.from_pretrained(saved)(audio=CLIPS, sampling_rate=16000))
    torch.save(inputs, tmp_path / "inputs.pt")
    arguments = [str(saved), str(tmp_path / "inputs.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", _FRESH, *arguments], check=True, capture_output=True)
    there = torch.load(tmp_path / "out.pt", weights_only=True)
    model = BlspEmoForConditionalGeneration.from_pretrained(saved)
    assert torch.equal(there["logits"], model(**inputs).logits)
    assert torch.equal(there["ids"], model.generate(**inputs, max_new_tokens=6))


def test_the_folder_holds_what_users_expect_and_no_pickle(saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", "README.md",
            "tokenizer.json", "chat_template.jinja"} <= names  # fmt: skip
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".md", ".jinja"}
    config = AutoConfig.from_pretrained(saved)
    assert isinstance(config, BlspEmoConfig)
    assert (config.audio_window, config.lora["rank"], config.text_config.model_type) == ("tail:0.5", 4, "qwen2")
    assert "auto_map" not in json.loads((saved / "config.json").read_text())


def test_shards_load_as_one_file(saved: Path, tmp_path: Path) -> None:
    model = BlspEmoForConditionalGeneration.from_pretrained(saved)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    again = BlspEmoForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def lose(weights: dict[str, Tensor]) -> None:
    del weights["adapter.fc1.weight"]


def add(weights: dict[str, Tensor]) -> None:
    weights["adapter.fc3.weight"] = torch.zeros(2)


def reshape(weights: dict[str, Tensor]) -> None:
    weights["classifier.weight"] = torch.zeros(5, 3)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lose, r"lacks adapter\.fc1\.weight"),
        (add, r"holds adapter\.fc3\.weight, which such a model has not"),
        (reshape, r"holds classifier\.weight as \[5, 3\], not \[5, 32\]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    saved: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None], complaint: str
) -> None:
    weights = load_file(saved / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    with pytest.raises(ValueError, match=complaint):
        BlspEmoForConditionalGeneration.from_pretrained(tmp_path)


def test_generation_streams_samples_and_searches_with_beams(saved: Path) -> None:
    model, processor = BlspEmoForConditionalGeneration.from_pretrained(saved), AutoProcessor.from_pretrained(saved)
    one = processor(audio=CLIPS[:1], sampling_rate=16000)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_special_tokens=True)
    ids = model.generate(**one, max_new_tokens=8, streamer=streamer)
    assert "".join(streamer).strip() == processor.decode(ids[0])
    model.generation_config.eos_token_id = int(ids[0, 2])
    ended = model.generate(**one, generation_config=GenerationConfig(max_new_tokens=8))
    assert ended.tolist() == ids[:, : ids[0].tolist().index(int(ids[0, 2])) + 1].tolist()
    inputs = processor(audio=CLIPS, sampling_rate=16000)
    beams = model.generate(**inputs, max_new_tokens=6, num_beams=3, num_return_sequences=2)
    assert len(beams) == 6
    alone = model.generate(**one, max_new_tokens=6, num_beams=3, num_return_sequences=2)
    assert processor.batch_decode(beams)[:2] == processor.batch_decode(alone)
    torch.manual_seed(0)
    drawn = model.generate(**one, max_new_tokens=6, do_sample=True, temperature=3.0, num_return_sequences=4)
    assert len({tuple(row) for row in drawn.tolist()}) > 1


@pytest.mark.parametrize(
    "option", [{"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 16}, {"assistant_model": object()}]
)
def test_ways_to_generate_that_read_the_ids_of_speech_are_refused(saved: Path, option: dict[str, Any]) -> None:
    model, processor = BlspEmoForConditionalGeneration.from_pretrained(saved), AutoProcessor.from_pretrained(saved)
    inputs = processor(audio=CLIPS[:1], sampling_rate=16000)
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name}: reads the token ids of what was asked, and speech has none"):
        model.generate(**inputs, max_new_tokens=2, **option)
    if name != "assistant_model":
        with pytest.raises(ValueError, match=f"^{name}: reads"):
            model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=2, **option))
        model.generation_config.update(**option)
        with pytest.raises(ValueError, match=f"^{name}: reads"):
            model.generate(**inputs, max_new_tokens=2)


def test_decoding_by_hand_with_a_cache_writes_what_generate_does(saved: Path) -> None:
    model, processor = BlspEmoForConditionalGeneration.from_pretrained(saved), AutoProcessor.from_pretrained(saved)
    inputs = processor(audio=CLIPS, sampling_rate=16000)
    expected = model.generate(**inputs, max_new_tokens=6, eos_token_id=None)
    attended, written = inputs["attention_mask"], []
    with torch.inference_mode():
        output = model(**inputs, use_cache=True)
        for _ in range(6):
            written.append(output.logits[:, -1:].argmax(-1))
            attended = torch.cat([attended, attended.new_ones(len(CLIPS), 1)], 1)
            cache = output.past_key_values
            output = model(written[-1], attention_mask=attended, past_key_values=cache, use_cache=True)
        assert torch.equal(torch.cat(written, 1), expected)
        with pytest.raises(ValueError, match=r"attention_mask has 1 positions, but past_key_values hold \d+ and"):
            model(written[-1], attention_mask=attended[:, -1:], past_key_values=cache)
        model.speech.gate.scope = "all"
        with pytest.raises(ValueError, match="leave it out, or call generate"):
            model(written[-1], attention_mask=attended, past_key_values=cache)


def test_nothing_is_uploaded_under_a_card_that_is_not_ours(saved: Path, tmp_path: Path) -> None:
    model = BlspEmoForConditionalGeneration.from_pretrained(saved)
    with pytest.raises(ValueError, match="not the one that tells the licences of the data"):
        model.save_pretrained(tmp_path / "out", push_to_hub=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="run `hf upload REPOSITORY FOLDER`"):
        model.push_to_hub("somebody/something")


def test_emotions_of_no_clips_is_a_sentence(saved: Path) -> None:
    model = BlspEmoForConditionalGeneration.from_pretrained(saved)
    with pytest.raises(ValueError, match="there are no clips to hear"):
        model.emotions(torch.zeros(0, 0, dtype=torch.int16), torch.zeros(0, dtype=torch.int64))


def test_gradient_checkpointing_computes_the_same_gradients(saved: Path) -> None:
    model, processor = BlspEmoForConditionalGeneration.from_pretrained(saved), AutoProcessor.from_pretrained(saved)
    audio = {"type": "audio", "audio": CLIPS[0], "sampling_rate": 16000}
    inputs = processor([{"role": "user", "content": [audio]}, {"role": "assistant", "content": "Oh dear."}])
    model.train()(**inputs).loss.backward()
    plain = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    assert model.language_model.is_gradient_checkpointing
    model(**inputs).loss.backward()
    assert plain
    for name, value in model.named_parameters():
        if name in plain:
            torch.testing.assert_close(value.grad, plain[name], rtol=0, atol=1e-7)


def test_labels_give_the_loss_that_trains_what_is_not_frozen(saved: Path) -> None:
    model, processor = BlspEmoForConditionalGeneration.from_pretrained(saved), AutoProcessor.from_pretrained(saved)
    audio = {"type": "audio", "audio": CLIPS[0], "sampling_rate": 16000}
    inputs = processor([{"role": "user", "content": [audio]}, {"role": "assistant", "content": "Oh dear."}])
    answer = inputs["labels"][inputs["labels"] != -100].tolist()
    assert answer == [*processor.tokenizer.encode("Oh dear."), processor.tokenizer.eos_token_id]
    output = model(**inputs)
    logits = output.logits[0, -len(answer) - 1 : -1]
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))
    output.loss.backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    assert {name.split(".")[0] for name in trained} == {"adapter", "language_model"}
    assert all("lora_" in name for name in trained if name.startswith("language_model"))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"emotions": ["neutral", "bored"]}, r"emotions: \['neutral', 'bored'\] are not the classifier's labels"),
        ({"audio_config": {"model_type": "bert"}}, "bert is not a Whisper, a WavLM or a HuBERT"),
        ({"audio_config": {"model_type": "wavlm"}}, "audio_window: '30s' is Whisper's way; wavlm takes 'exact'"),
        ({"adapter": {"type": "conv", "kernels": [4]}}, "must all be odd"),
        ({"lora": {"rank": 0}}, "rank"),
    ],
)
def test_a_configuration_that_cannot_be_is_a_sentence(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        BlspEmoConfig(**changes)
