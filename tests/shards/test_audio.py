from __future__ import annotations

import errno
import os
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from shards.audio import AudioError, decode_flac, encode_clip, encode_flac, load_audio


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
        ("span_past_end", tone(1), {"start_s": 1.5}),
        ("span_past_end", tone(1), {"start_s": 1e300}),
        ("span_past_end", tone(1), {"start_s": 0.5, "duration_s": 1.0}),
        ("span_past_end", tone(1), {"duration_s": 1e300}),
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


def lying_flac(path: Path, num_samples: int) -> None:
    """Half a second of FLAC whose header says another length; 0 stands for unknown."""
    soundfile.write(path, tone(0.5), 16000)
    data = bytearray(path.read_bytes())
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36 | num_samples
    data[18:26] = packed.to_bytes(8, "big")
    path.write_bytes(data)


def lying_wav(path: Path) -> None:
    """A second of WAV that claims 2 GB, 32 channels of them."""
    soundfile.write(path, tone(1), 16000)
    data = bytearray(path.read_bytes())
    data[22:24] = (32).to_bytes(2, "little")
    data[40:44] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(data)


def bad_files(folder: Path) -> dict[str, str]:
    """One file of each kind that corpora are known to hold, and the reason that it is rejected with."""
    noise = np.random.default_rng(0).normal(0, 0.1, 48000)
    soundfile.write(folder / "whole.flac", noise, 16000)
    whole = (folder / "whole.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[:20000])
    (folder / "stub.flac").write_bytes(whole[:30])
    (folder / "lfs.wav").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "noise.raw").write_bytes(b"1234" * 1000)
    (folder / "._apple.wav").write_bytes(b"\x00\x05\x16\x07" + bytes(100))
    soundfile.write(folder / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(folder / "bomb.flac", np.zeros(16000 * 3600, np.int16), 16000)  # 110 MB in 0.2
    lying_flac(folder / "endless.flac", 0)
    lying_flac(folder / "lying.flac", 2**36 - 1)
    lying_flac(folder / "longer.flac", 16000 * 20)
    lying_wav(folder / "lying.wav")
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")
    (folder / "loop.wav").symlink_to("loop.wav")
    return {
        "cut.flac": "unreadable", "stub.flac": "unreadable", "lfs.wav": "lfs_pointer", "empty.wav": "empty_audio",
        "noise.raw": "unreadable", "._apple.wav": "unreadable", "silent.wav": "silent", "bomb.flac": "too_long",
        "endless.flac": "unreadable", "lying.flac": "too_long", "longer.flac": "unreadable", "lying.wav": "too_short",
        "folder.wav": "missing_audio", "pipe.wav": "missing_audio", "loop.wav": "missing_audio",
        "absent.wav": "missing_audio", "absent.wav/x": "missing_audio", "a\0b.wav": "missing_audio",
        "n" * 300: "missing_audio",
    }  # fmt: skip


def test_every_known_kind_of_bad_file_has_a_reason(tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(AudioError) as error:
            load_audio(tmp_path / name)
        assert (name, error.value.reason) == (name, reason)
        assert str(tmp_path / name) in str(error.value)


def test_what_a_file_takes_is_bounded_whatever_its_header_says(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "wide.wav", np.tile(tone(29, 44100)[:, None], (1, 16)), 44100)  # 39 MB as it lies there
    tracemalloc.start()
    assert len(load_audio(tmp_path / "wide.wav")) == 29 * 16000
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()
    soundfile.write(tmp_path / "fast.wav", np.zeros((1000, 30)), 192_000)
    with pytest.raises(AudioError, match="192000 Hz, 30 channels is not speech"):
        load_audio(tmp_path / "fast.wav")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("name", ["a b.flac", "e\u0301.flac", "\u00e9.flac", "\u2028;$(x)'.flac"])
def test_unusual_names_and_24_bits_are_fine(tmp_path: Path, name: str, subtype: str) -> None:
    soundfile.write(tmp_path / name, tone(1), 16000, subtype=subtype)
    assert np.abs(load_audio(tmp_path / name) / 32768 - tone(1)).max() < 1e-4


@pytest.mark.parametrize(("on_disk", "named"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_name_may_be_written_in_either_unicode_form(tmp_path: Path, on_disk: str, named: str) -> None:
    soundfile.write(tmp_path / unicodedata.normalize(on_disk, "Fräulein é.wav"), tone(1), 16000)
    assert len(load_audio(tmp_path / unicodedata.normalize(named, "Fräulein é.wav"))) == 16000


def test_flac_of_16_khz_mono_keeps_its_bytes_and_anything_else_is_encoded(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 16000).astype(np.int16)
    kept, other = tmp_path / "kept.flac", tmp_path / "other.flac"
    soundfile.write(kept, samples, 16000, compression_level=0.0)
    clip = encode_clip(kept)
    assert (clip.flac, clip.num_samples) == (kept.read_bytes(), 16000)
    for data, rate, options in [
        (samples, 8000, {}),
        (np.stack([samples, samples], axis=1), 16000, {}),
        (samples, 16000, {"subtype": "PCM_24"}),
    ]:
        soundfile.write(other, data, rate, **options)
        clip = encode_clip(other)
        assert clip.flac != other.read_bytes() and len(decode_flac(clip.flac)) == clip.num_samples
    assert np.array_equal(decode_flac(encode_clip(kept, 0.25, 0.5).flac), samples[4000:12000])


def test_a_flac_file_that_is_mostly_something_else_is_encoded_again(tmp_path: Path) -> None:
    path = tmp_path / "picture.flac"
    soundfile.write(path, tone(1), 16000)
    data = path.read_bytes()
    picture = bytes([1]) + (200_000).to_bytes(3, "big") + bytes(200_000)  # a block of padding behind STREAMINFO
    path.write_bytes(data[:42] + picture + data[42:])
    clip = encode_clip(path)
    assert clip.num_samples == 16000 and len(clip.flac) < 40_000


def test_a_file_that_this_user_may_not_read_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1), 16000)

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    with pytest.raises(AudioError, match="this user may not read it"):
        load_audio(tmp_path / "a.wav")


def test_a_failing_disk_is_no_property_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str, flags: int) -> int:
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match="Input/output"):
        load_audio(tmp_path / "a.wav")


def test_a_flac_that_claims_hours_costs_nothing(tmp_path: Path) -> None:
    lying_flac(tmp_path / "a.flac", 2**36 - 1)
    with pytest.raises(AudioError, match="which no clip does"):
        decode_flac((tmp_path / "a.flac").read_bytes())


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_bytes_that_are_no_flac_are_unreadable(data: bytes) -> None:
    with pytest.raises(AudioError):
        decode_flac(data)
