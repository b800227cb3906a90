from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.encoder import SpeechEncoder, load_whisper_encoder
from blsp.features import AudioWindow
from blsp.generation import pack
from tests.blsp.tiny import CPU, clip, whisper_config

LENGTHS = [4800, 16000, 7777, 33333, 330]


@pytest.fixture(scope="module")
def whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(whisper_config(max_source_positions=1500)).eval()


@pytest.fixture
def folder(whisper: WhisperForConditionalGeneration, tmp_path: Path) -> Path:
    """The encoder alone."""
    whisper.model.encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def speech_encoder(folder: Path, spec: str) -> SpeechEncoder:
    return SpeechEncoder(load_whisper_encoder(str(folder), torch.float32, CPU).eval(), AudioWindow(spec))


@torch.no_grad()
def test_the_30_s_window_equals_transformers(whisper: WhisperForConditionalGeneration, folder: Path) -> None:
    clips = [clip(length, i) for i, length in enumerate(LENGTHS)]
    encoded, lengths = speech_encoder(folder, "30s")(*pack(clips, CPU))
    assert lengths == [15, 50, 25, 105, 2]
    for ours, samples in zip(encoded.split(lengths), clips, strict=True):
        features = WhisperFeatureExtractor()(samples / 32768, sampling_rate=16000, return_tensors="pt").input_features
        theirs = whisper.model.encoder(features).last_hidden_state[0]
        torch.testing.assert_close(ours, theirs[: len(ours)], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("spec", ["exact", "tail:0.5"])
def test_packed_equals_alone(folder: Path, spec: str) -> None:
    encoder = speech_encoder(folder, spec)
    clips = [clip(length, i) for i, length in enumerate(LENGTHS)]
    encoded, lengths = encoder(*pack(clips, CPU))
    for ours, samples in zip(encoded.split(lengths), clips, strict=True):
        alone, (length,) = encoder(*pack([samples], CPU))
        assert length == SpeechEncoder.num_positions(len(samples)) == len(ours)
        torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("length", [1600, 16000, 33280, 480000])
def test_the_exact_window_equals_transformers_at_full_length(
    whisper: WhisperForConditionalGeneration, folder: Path, length: int
) -> None:
    """transformers' own forward insists on the length that the model was built for: it is built for the clip's."""
    positions = length // 320
    built = WhisperEncoder(whisper_config(max_source_positions=positions)).eval()
    state = whisper.model.encoder.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][:positions]
    built.load_state_dict(state)
    samples = clip(length)
    features = WhisperFeatureExtractor()(
        samples / 32768, sampling_rate=16000, return_tensors="pt", padding="do_not_pad", truncation=False
    ).input_features
    theirs = built(features).last_hidden_state[0]
    ours, _ = speech_encoder(folder, "exact")(*pack([samples], CPU))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_tail_lies_between_the_exact_and_the_30_s_window(folder: Path) -> None:
    samples = clip(16000)

    def encoded(spec: str) -> torch.Tensor:
        return speech_encoder(folder, spec)(*pack([samples], CPU))[0]

    assert torch.equal(encoded("tail:0"), encoded("exact"))
    assert torch.equal(encoded("tail:29"), encoded("30s"))
    distances = [float((encoded(spec) - encoded("30s")).norm()) for spec in ("exact", "tail:2", "tail:20", "30s")]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > distances[1] > distances[2] > 1e-2


@torch.no_grad()
def test_silence_after_the_clip_is_heard_and_then_cut_off(folder: Path) -> None:
    samples = clip(8000)
    exact, _ = speech_encoder(folder, "exact")(*pack([samples], CPU))
    tail, _ = speech_encoder(folder, "tail:1")(*pack([samples], CPU))
    assert exact.shape == tail.shape
    assert not torch.allclose(exact, tail, atol=1e-3)


def test_a_whisper_saved_whole_or_in_part_gives_the_same_encoder(
    whisper: WhisperForConditionalGeneration, folder: Path, tmp_path: Path
) -> None:
    whisper.save_pretrained(tmp_path / "whole")
    whisper.model.save_pretrained(tmp_path / "without_head")
    assert isinstance(whisper.model, WhisperModel)
    expected = whisper.model.encoder.state_dict()
    for saved in (folder, tmp_path / "whole", tmp_path / "without_head"):
        loaded = load_whisper_encoder(str(saved), torch.float32, CPU)
        assert isinstance(loaded, WhisperEncoder)
        state = loaded.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("lost", ["layers.1.fc1.weight", "conv1.bias", "embed_positions.weight"])
def test_a_missing_weight_is_named(folder: Path, lost: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks {lost}"):
        load_whisper_encoder(str(folder), torch.float32, CPU)


@torch.no_grad()
def test_an_encoder_of_128_mels_equals_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = WhisperEncoder(whisper_config(num_mel_bins=128, max_source_positions=1500)).eval()
    theirs.save_pretrained(tmp_path)
    samples = clip(20000)
    ours, (length,) = speech_encoder(tmp_path, "30s")(*pack([samples], CPU))
    features = WhisperFeatureExtractor(feature_size=128)(samples / 32768, sampling_rate=16000, return_tensors="pt")
    expected = theirs(features.input_features).last_hidden_state[0, :length]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_another_model_is_refused(llm_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.encoder: .* is a qwen2 model, not a Whisper"):
        load_whisper_encoder(str(llm_folder), torch.float32, CPU)


def test_a_clip_longer_than_the_position_table_is_refused(tmp_path: Path) -> None:
    WhisperEncoder(whisper_config(max_source_positions=100)).save_pretrained(tmp_path)
    encoder = speech_encoder(tmp_path, "exact")
    assert encoder(*pack([clip(32000)], CPU))[1] == [100]
    with pytest.raises(ValueError, match=r"a clip of 2\.1 s is longer than the encoder's 2 s"):
        encoder(*pack([clip(8000), clip(33600)], CPU))
