from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, HubertConfig, Wav2Vec2FeatureExtractor, WavLMConfig

from blsp.encoder import add_encoder_lora, load_encoder
from blsp.features import AudioWindow
from blsp.generation import pack
from blsp.recipe import EncoderLoraSection
from blsp.wave_encoder import WaveEncoder
from tests.blsp.tiny import CPU, WAVE_SIZES, clip, make_wave_encoder

LENGTHS = [4800, 16000, 7777, 33333, 400]
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
FORMS = {
    "wavlm_base": (WavLMConfig(**WAVE_SIZES), False),
    "wavlm_large": (WavLMConfig(**WAVE_SIZES, **LARGE), True),
    "hubert_base": (HubertConfig(**WAVE_SIZES), True),
    "hubert_large": (HubertConfig(**WAVE_SIZES, **LARGE), True),
}


@pytest.fixture(scope="module", params=FORMS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the base models of the day are built (group norm over time), and as the large ones are."""
    return make_wave_encoder(tmp_path_factory.mktemp(request.param), *FORMS[request.param])


def wave_encoder(folder: Path) -> WaveEncoder:
    encoder = load_encoder(str(folder), AudioWindow("exact"), torch.float32, CPU)
    assert isinstance(encoder, WaveEncoder)
    return encoder


@torch.no_grad()
def test_a_batch_equals_transformers_on_each_clip_alone(folder: Path) -> None:
    clips = [clip(length, i) for i, length in enumerate(LENGTHS)]
    extractor, theirs = Wav2Vec2FeatureExtractor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    encoder = wave_encoder(folder)
    encoded, lengths = encoder(*pack(clips, CPU))
    assert lengths == [encoder.num_positions(length) for length in LENGTHS] == [14, 49, 24, 103, 1]
    for ours, samples in zip(encoded.split(lengths), clips, strict=True):
        values = extractor(samples / 32768, sampling_rate=16000, return_tensors="pt").input_values.float()
        torch.testing.assert_close(ours, theirs(values).last_hidden_state[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours, encoder(*pack([samples], CPU))[0], rtol=0, atol=1e-5)


def test_gradients_do_not_depend_on_the_neighbours_and_reach_all_that_trains(folder: Path) -> None:
    clips = [clip(length, i) for i, length in enumerate(LENGTHS)]
    encoder = wave_encoder(folder).train()
    encoder.requires_grad_(False)
    parts = encoder.trainable().requires_grad_(True)
    together, lengths = encoder(*pack(clips, CPU))
    weights = torch.randn(together.shape, generator=torch.Generator().manual_seed(0))
    whole = torch.autograd.grad((together * weights).sum(), [*parts.parameters()])
    apart: Any = 0.0
    for samples, weight in zip(clips, weights.split(lengths), strict=True):
        apart = apart + (encoder(*pack([samples], CPU))[0] * weight).sum()
    names = dict(parts.named_parameters())
    for name, a, b in zip(names, whole, torch.autograd.grad(apart, [*parts.parameters()]), strict=True):
        assert a.any(), name
        assert (a - b).norm() <= 1e-5 * b.norm() + 3e-6, name  # of k_proj's bias it is 0


def test_training_mode_draws_no_random_numbers(folder: Path) -> None:
    encoder, heard = wave_encoder(folder), pack([clip(8000)], CPU)
    assert torch.equal(encoder.train()(*heard)[0], encoder.eval()(*heard)[0])


@pytest.fixture
def wavlm(tmp_path: Path) -> Path:
    return make_wave_encoder(tmp_path / "wavlm", *FORMS["wavlm_base"])


@pytest.mark.parametrize("spec", ["30s", "tail:1"])
def test_a_window_of_silence_is_refused(wavlm: Path, spec: str) -> None:
    with pytest.raises(ValueError, match=rf"'{spec}' means silence .* set model\.audio_window to exact"):
        load_encoder(str(wavlm), AudioWindow(spec), torch.float32, CPU)


def test_a_clip_too_short_for_the_convolutions_is_refused(wavlm: Path) -> None:
    with pytest.raises(ValueError, match="a clip of 399 samples is too short for wavlm"):
        wave_encoder(wavlm)(*pack([clip(399)], CPU))


def test_a_missing_weight_is_named(wavlm: Path) -> None:
    weights = load_file(wavlm / "model.safetensors")
    del weights["encoder.layers.1.attention.k_proj.weight"]
    save_file(weights, wavlm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks encoder\.layers\.1\.attention\.k_proj"):
        wave_encoder(wavlm)


def test_an_encoder_without_its_feature_extractor_or_of_another_rate_is_refused(wavlm: Path) -> None:
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(wavlm)
    with pytest.raises(ValueError, match="hears 8000 Hz, but clips are at 16000 Hz"):
        wave_encoder(wavlm)
    (wavlm / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json"):
        wave_encoder(wavlm)


def test_a_batch_norm_is_refused(tmp_path: Path) -> None:
    folder = make_wave_encoder(tmp_path / "hubert", HubertConfig(**WAVE_SIZES, conv_pos_batch_norm=True))
    with pytest.raises(ValueError, match="batch norm, through which clips would change one another"):
        wave_encoder(folder)


def test_lora_acts_on_hubert_and_is_refused_where_wavlm_would_not_hear_it(tmp_path: Path, wavlm: Path) -> None:
    hubert = wave_encoder(make_wave_encoder(tmp_path / "hubert", *FORMS["hubert_base"]))
    heard = pack([clip(8000)], CPU)
    before, _ = hubert(*heard)
    layers = add_encoder_lora(hubert, EncoderLoraSection(rank=2))
    assert len(layers) == 2 * 4
    assert torch.equal(hubert(*heard)[0], before)  # new
    for name in layers:
        unmoved, _ = hubert(*heard)
        torch.nn.init.normal_(layers[name]["B"].weight)
        assert not torch.equal(hubert(*heard)[0], unmoved), name
    with pytest.raises(ValueError, match=r"targets: k_proj, q_proj: wavlm's attention reads .* would do nothing"):
        add_encoder_lora(wave_encoder(wavlm), EncoderLoraSection(targets=("q_proj", "k_proj", "output_dense")))
    layers = add_encoder_lora(wave_encoder(wavlm), EncoderLoraSection(targets=("intermediate_dense", "output_dense")))
    assert len(layers) == 2 * 2
