from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from shards.audio import AudioError, decode_flac, encode_flac, load_audio


def tone(seconds: float, rate: int = 16000) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)


@given(arrays(np.int16, st.integers(1, 4000)))
@settings(max_examples=30, deadline=None)
def test_flac_gives_back_every_sample(samples: NDArray[np.int16]) -> None:
    assert np.array_equal(decode_flac(encode_flac(samples)), samples)


def test_16_bit_16_khz_mono_comes_back_bit_by_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 8000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    loaded = load_audio(tmp_path / "a.wav")
    assert loaded.dtype == np.int16
    assert np.array_equal(loaded, samples)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path: Path, rate: int, channels: int) -> None:
    soundfile.write(tmp_path / "a.flac", np.stack([tone(1, rate)] * channels, axis=1), rate)
    loaded = load_audio(tmp_path / "a.flac")
    middle = slice(4000, 12000)
    assert len(loaded) == 16000
    assert np.abs(loaded[middle] / 32768 - tone(1)[middle]).max() < 2e-3


def test_a_span_is_cut_out(tmp_path: Path) -> None:
    samples = np.arange(1, 32001, dtype=np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16000)
    assert np.array_equal(load_audio(tmp_path / "a.wav", 0.5, 1.0), samples[8000:24000])
    assert np.array_equal(load_audio(tmp_path / "a.wav", 1.5), samples[24000:])


@pytest.mark.parametrize(
    ("reason", "samples", "span"),
    [
        ("too_short", tone(0.05), {}),
        ("too_long", tone(31), {}),
        ("too_long", tone(3), {"max_duration_s": 2.0}),
        ("silent", np.zeros(16000), {}),
        ("nan", np.full(16000, np.nan), {}),
        ("empty_audio", np.zeros(0), {}),
        ("empty_audio", tone(1), {"start_s": 1.5}),
        ("unreadable", tone(1), {"start_s": 0.5, "duration_s": 1.0}),
    ],
)
def test_audio_that_cannot_be_used_has_a_reason(
    tmp_path: Path, reason: str, samples: NDArray[np.float64], span: dict[str, float]
) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=str(path)) as error:
        load_audio(path, **span)
    assert error.value.reason == reason


def test_missing_and_broken_files_have_a_reason(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.flac", np.random.default_rng(0).normal(0, 0.1, 48000), 16000)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "whole.flac").read_bytes()[:20000])
    (tmp_path / "text.wav").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "noise.raw").write_bytes(b"1234" * 1000)
    expected = {"absent.wav": "missing_audio", ".": "missing_audio"}
    for name in ("cut.flac", "text.wav", "empty.wav", "noise.raw", *expected):
        with pytest.raises(AudioError) as error:
            load_audio(tmp_path / name)
        assert error.value.reason == expected.get(name, "unreadable")


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_bytes_that_are_no_flac_are_unreadable(data: bytes) -> None:
    with pytest.raises(AudioError):
        decode_flac(data)
