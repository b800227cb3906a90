"""From an audio file of any common format to int16 samples at 16 kHz mono, and to FLAC and back.

A bad file is an `AudioError` with a short reason code, never a crash and never a silent repair. The header is checked
before samples are read, so that a huge or lying file costs nothing.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 16000
MAX_DURATION_S = 30.0  # Whisper's window
MIN_DURATION_S = 0.1
SILENCE_PEAK = 1e-4  # of full scale, -80 dBFS

_SLACK_S = 0.05  # transcripts round the end of a span; more than this is a wrong span
_MAX_CHANNELS = 32
_MAX_RATE = 384_000
_FLAC_LEVEL_5 = 5 / 8  # soundfile maps 0..1 to libFLAC's levels 0..8


class AudioError(ValueError):
    """Audio that cannot be used. `reason` is one of the codes of `shards.manifest.Reject`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def load_audio(
    path: Path, start_s: float = 0.0, duration_s: float | None = None, max_duration_s: float = MAX_DURATION_S
) -> NDArray[np.int16]:
    """The span of the file as int16 [num_samples], 16 kHz mono. `duration_s=None` reads to the end of the file.

    16-bit 16 kHz mono input comes back bit by bit. Raises AudioError: `missing_audio`, `unreadable`, `empty_audio`,
    `too_short`, `too_long`, `nan` or `silent`.
    """
    if not path.is_file():
        raise AudioError("missing_audio", f"{path}: no such file")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            frames = _read_span(file, path, start_s, duration_s, max_duration_s)
    except (soundfile.LibsndfileError, TypeError, RuntimeError) as error:
        raise AudioError("unreadable", f"{path}: not an audio file that libsndfile can read ({error})") from None
    if not np.isfinite(frames).all():
        raise AudioError("nan", f"{path}: holds samples that are not finite numbers")
    mono = frames.mean(axis=1) if frames.shape[1] > 1 else frames[:, 0]
    if np.abs(mono).max() < SILENCE_PEAK:
        raise AudioError("silent", f"{path}: silence (peak below {SILENCE_PEAK:g} of full scale)")
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    samples: NDArray[np.int16] = np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)
    return samples


def _read_span(
    file: soundfile.SoundFile, path: Path, start_s: float, duration_s: float | None, max_duration_s: float
) -> NDArray[np.float32]:
    """float32 [frames, channels] of the span, after every check that the header allows."""
    rate = file.samplerate
    if not 0 < rate <= _MAX_RATE or not 0 < file.channels <= _MAX_CHANNELS:
        raise AudioError("unreadable", f"{path}: {rate} Hz, {file.channels} channels is not speech")
    start = round(start_s * rate)
    if file.frames <= start:
        held = f"holds {file.frames / rate:.2f} s" if file.frames > 0 else "holds no samples"
        raise AudioError("empty_audio", f"{path}: {held}, the span starts at {start_s:g} s")
    rest = file.frames - start
    wanted = rest if duration_s is None else round(duration_s * rate)
    if wanted > rest + _SLACK_S * rate:
        end_s = start_s + wanted / rate
        raise AudioError("unreadable", f"{path}: the span ends at {end_s:g} s, the file at {file.frames / rate:.2f} s")
    wanted = min(wanted, rest)
    if wanted < MIN_DURATION_S * rate:
        raise AudioError("too_short", f"{path}: {wanted / rate:.3f} s is shorter than {MIN_DURATION_S:g} s")
    if wanted > max_duration_s * rate:
        raise AudioError("too_long", f"{path}: {wanted / rate:.2f} s is longer than {max_duration_s:g} s")
    file.seek(start)
    frames: NDArray[np.float32] = file.read(wanted, dtype="float32", always_2d=True)
    if len(frames) < wanted - _SLACK_S * rate:
        raise AudioError("unreadable", f"{path}: cut off after {len(frames) / rate:.2f} of {wanted / rate:.2f} s")
    return frames


def encode_flac(samples: NDArray[np.int16]) -> bytes:
    """int16 [num_samples] at 16 kHz as a lossless FLAC file, level 5."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", SAMPLE_RATE, channels=1, format="FLAC", subtype="PCM_16", compression_level=_FLAC_LEVEL_5
    ) as file:
        file.write(samples)
    return buffer.getvalue()


def decode_flac(data: bytes) -> NDArray[np.int16]:
    """The samples that `encode_flac` was given. Raises AudioError `unreadable` when `data` is no such file."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.samplerate != SAMPLE_RATE or file.channels != 1:
                found = f"{file.samplerate} Hz, {file.channels} channels"
                raise AudioError("unreadable", f"FLAC of {found}, not 16 kHz mono")
            samples: NDArray[np.int16] = file.read(dtype="int16")
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError("unreadable", f"not a FLAC file ({error})") from None
    return samples


def is_own_flac(data: bytes) -> bool:
    """Whether `data` is a FLAC file of 16-bit samples, 16 kHz mono, as shards hold them."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            found = (file.format, file.subtype, file.samplerate, file.channels)
    except (soundfile.LibsndfileError, RuntimeError):
        return False
    return found == ("FLAC", "PCM_16", SAMPLE_RATE, 1)
