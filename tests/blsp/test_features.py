from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from blsp.features import HOP, AudioWindow, log_mel, num_frames
from blsp.generation import pack
from tests.blsp.tiny import CPU, clip

LENGTHS = [4800, 16000, 7777, 33333]


def mel(clips: list[np.ndarray], spec: str, num_mel: int = 80) -> list[torch.Tensor]:
    packed, lengths = log_mel(*pack(clips, CPU), AudioWindow(spec), num_mel)
    return list(packed.split(lengths))


def theirs(samples: np.ndarray, num_mel: int = 80, **options: object) -> torch.Tensor:
    """[F, num_mel] by transformers, of one clip."""
    extractor = WhisperFeatureExtractor(feature_size=num_mel)
    features = extractor(samples / np.float32(32768), sampling_rate=16000, return_tensors="pt", **options)
    return features.input_features[0].T


@pytest.mark.parametrize("num_mel", [80, 128])
def test_the_30_s_window_equals_transformers(num_mel: int) -> None:
    clips = [clip(length, i) for i, length in enumerate(LENGTHS)]
    for ours, samples in zip(mel(clips, "30s", num_mel), clips, strict=True):
        torch.testing.assert_close(ours, theirs(samples, num_mel), rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [320, 4800, 16000, 33280])
def test_an_exact_clip_of_whole_hops_equals_transformers(length: int) -> None:
    samples = clip(length)
    (ours,) = mel([samples], "exact")
    assert len(ours) == length // HOP
    torch.testing.assert_close(ours, theirs(samples, padding="do_not_pad", truncation=False), rtol=0, atol=1e-5)


def test_a_clip_that_ends_within_a_hop_is_filled_with_silence() -> None:
    samples = clip(5000)
    (ours,) = mel([samples], "exact")
    torch.testing.assert_close(ours, mel([np.pad(samples, (0, 120))], "exact")[0], rtol=0, atol=0)
    assert len(ours) == num_frames(5000) == 32


def test_a_tail_is_that_much_silence() -> None:
    samples = clip(16000)
    (ours,) = mel([samples], "tail:0.5")
    torch.testing.assert_close(ours, mel([np.pad(samples, (0, 8000))], "exact")[0], rtol=0, atol=0)


@pytest.mark.parametrize("spec", ["exact", "tail:0.25", "30s"])
def test_frames_do_not_depend_on_neighbours(spec: str) -> None:
    clips = [clip(length, i) // (1 if i % 2 else 100) for i, length in enumerate(LENGTHS)]
    for packed, samples in zip(mel(clips, spec), clips, strict=True):
        torch.testing.assert_close(packed, mel([samples], spec)[0], rtol=0, atol=1e-6)


def test_silence_is_finite() -> None:
    (ours,) = mel([np.zeros(8000, np.int16)], "exact")
    assert torch.isfinite(ours).all()


def test_a_clip_over_30_s_is_a_sentence() -> None:
    assert len(mel([clip(30 * 16000)], "30s")[0]) == 3000
    with pytest.raises(ValueError, match=r"a clip of 30\.1 s does not fit the 30 s audio window"):
        mel([clip(30 * 16000 + 1600)], "30s")
