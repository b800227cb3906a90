"""From an audio file of any common format to int16 samples at 16 kHz mono, and to FLAC and back.

A bad file is an `AudioError` with a short reason code, never a crash and never a silent repair. The header is checked
before samples are read, and they are mixed to mono block by block, so that a huge or lying file costs nothing.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from shards.containers import ContainerError, ContainerSound, container_of

SAMPLE_RATE = 16000
MAX_DURATION_S = 30.0  # Whisper's window
MIN_DURATION_S = 0.1
SILENCE_PEAK = 1e-4  # of full scale, -80 dBFS
_LOUDEST = 2.0  # resampling and mixing overshoot full scale a little; int16 kept as float is far beyond

_SLACK_S = 0.05  # transcripts round the end of a span; more than this is a wrong span
_MAX_CHANNELS = 32
_MAX_RATE = 384_000
_MAX_VALUES_PER_S = 8 * 384_000  # rate x channels: with the longest span it bounds the time that a file can take
_BLOCK_FRAMES = 2**16
_FLAC_LEVEL_5 = 5 / 8  # soundfile maps 0..1 to libFLAC's levels 0..8
_MAX_FLAC_S = 600.0  # of a clip in a shard, also of one that others wrote
_UNKNOWN_FRAMES = 2**60  # libsndfile says more of a FLAC stream that was written to a pipe: its header has no length
_SPARE_BYTES = 2**16  # a FLAC file is kept as it is unless tags and pictures make it larger than its samples by this
_NO_SUCH_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_CLOSED = {errno.EACCES, errno.EPERM}
_NOT_AUDIO = {
    b"version https://git-lfs": ("lfs_pointer", "a pointer of git-lfs, not the file; fetch it with `git lfs pull`"),
    b"\x00\x05\x16\x07": ("unreadable", "an AppleDouble file of macOS, which holds no audio"),
}


_Sound = Any  # a soundfile.SoundFile, which has no types, or a ContainerSound, which has its methods


class AudioError(ValueError):
    """Audio that cannot be used. `reason` is one of the codes of `shards.manifest.Reject`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class EncodedClip:
    """A clip as a shard holds it: a whole FLAC file, and its length in samples at 16 kHz."""

    flac: bytes
    num_samples: int


def load_audio(
    path: Path, start_s: float = 0.0, duration_s: float | None = None, max_duration_s: float = MAX_DURATION_S
) -> NDArray[np.int16]:
    """The span of the file as int16 [num_samples], 16 kHz mono. `duration_s=None` reads to the end of the file.

    16-bit 16 kHz mono input comes back bit by bit. Raises AudioError: `missing_audio`, `lfs_pointer`, `unreadable`,
    `empty_audio`, `span_past_end`, `too_short`, `too_long`, `nan` or `silent`; OSError when the disk fails.
    """
    with _opened(path) as descriptor, _sound(descriptor, path) as file:
        return _load(file, path, start_s, duration_s, max_duration_s)


def length_s(path: Path) -> float:
    """Seconds of sound in the file, as its header tells. Raises as `load_audio`."""
    with _opened(path) as descriptor, _sound(descriptor, path) as file:
        return float(file.frames / max(file.samplerate, 1))


def encode_clip(path: Path, start_s: float = 0.0, duration_s: float | None = None) -> EncodedClip:
    """The span as FLAC, 16 kHz mono. A whole file that is just that keeps its bytes. Raises as `load_audio`."""
    with _opened(path) as descriptor, _sound(descriptor, path) as file:
        samples = _load(file, path, start_s, duration_s, MAX_DURATION_S)
        whole = file.frames == len(samples)
        fits = whole and (file.format, file.subtype, file.channels) == ("FLAC", "PCM_16", 1)
        size = os.fstat(descriptor).st_size
        if fits and file.samplerate == SAMPLE_RATE and size <= samples.nbytes + _SPARE_BYTES:
            data = os.pread(descriptor, size, 0)
            if len(data) == size and data.startswith(b"fLaC"):  # some have an ID3 tag in front
                return EncodedClip(data, len(samples))
    return EncodedClip(encode_flac(samples), len(samples))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of the file, whose first bytes do not say that it is something else."""
    descriptor = _open(path)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise AudioError("missing_audio", f"{path}: not a file")
        if status.st_size == 0:
            raise AudioError("empty_audio", f"{path}: holds no bytes")
        begin = os.pread(descriptor, 64, 0)
        for magic, (reason, words) in _NOT_AUDIO.items():
            if begin.startswith(magic):
                raise AudioError(reason, f"{path}: {words}")
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """macOS writes accents as letter and mark (NFD), others as one sign (NFC): the same name in either form is it."""
    forms = dict.fromkeys([str(path), *(unicodedata.normalize(form, str(path)) for form in ("NFC", "NFD"))])
    for form in forms:
        try:
            return os.open(form, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe in its place must not hang us
        except ValueError:  # a NUL in the name
            break
        except OSError as error:
            if error.errno in _CLOSED:
                raise AudioError("unreadable", f"{path}: this user may not read it") from None
            if error.errno not in _NO_SUCH_FILE:
                raise
    raise AudioError("missing_audio", f"{path}: no such file")


@contextmanager
def _sound(source: int | io.BytesIO, path: Path) -> Iterator[_Sound]:
    try:
        with _unread(source) as file:
            yield file
    except (soundfile.LibsndfileError, TypeError, RuntimeError) as error:
        raise AudioError("unreadable", f"{path}: not an audio file that libsndfile can read ({error})") from None
    except ContainerError as error:
        raise AudioError("unreadable", f"{path}: {error}") from None
    except MemoryError:
        raise AudioError("unreadable", f"{path}: takes more memory than a clip may") from None


@contextmanager
def _unread(source: int | io.BytesIO) -> Iterator[_Sound]:
    """The file, whichever of the two libraries reads its format."""
    with os.fdopen(source, "rb", 0, closefd=False) if isinstance(source, int) else nullcontext(source) as file:
        form = container_of(file.read(64))
        file.seek(0)
        if form is None:
            with soundfile.SoundFile(source, closefd=False) as sound:
                yield sound
        else:
            with ContainerSound(file, form) as container:
                yield container


def _load(
    file: _Sound, path: Path, start_s: float, duration_s: float | None, max_duration_s: float
) -> NDArray[np.int16]:
    rate = file.samplerate
    start, wanted = _span(file, path, start_s, duration_s, max_duration_s)
    file.seek(start)
    if (rate, file.channels, file.subtype) == (SAMPLE_RATE, 1, "PCM_16"):
        as_it_is: NDArray[np.int16] = file.read(wanted, dtype="int16")
        _check_cut(len(as_it_is), wanted, rate, path)
        _check_peak(max(int(as_it_is.max()), -int(as_it_is.min())) / 32768, path)
        return as_it_is
    mono = _read_mono(file, wanted)
    _check_cut(len(mono), wanted, rate, path)
    if not np.isfinite(mono).all():
        raise AudioError("nan", f"{path}: holds samples that are not finite numbers")
    peak = float(np.abs(mono).max())
    _check_peak(peak, path)
    if peak > _LOUDEST:
        raise AudioError("unreadable", f"{path}: its samples reach {peak:g}; such as are no integers lie in -1..1")
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    return _to_int16(mono)


def _span(file: _Sound, path: Path, start_s: float, duration_s: float | None, max_duration_s: float) -> tuple[int, int]:
    """(first frame, number of frames) of the span, after every check that the header allows."""
    rate, held_s = file.samplerate, file.frames / max(file.samplerate, 1)
    if not 0 < rate <= _MAX_RATE or not 0 < file.channels <= _MAX_CHANNELS or rate * file.channels > _MAX_VALUES_PER_S:
        raise AudioError("unreadable", f"{path}: {rate} Hz, {file.channels} channels is not speech")
    if file.frames <= 0:
        raise AudioError("empty_audio", f"{path}: holds no samples")
    if file.frames >= _UNKNOWN_FRAMES:
        raise AudioError("unreadable", f"{path}: its header does not say how long it is; encode it again")
    if start_s >= held_s:
        raise AudioError("span_past_end", f"{path}: the span starts at {start_s:g} s, the file ends at {held_s:.2f} s")
    if duration_s is not None and start_s + duration_s > held_s + _SLACK_S:
        end_s = start_s + duration_s
        raise AudioError("span_past_end", f"{path}: the span ends at {end_s:g} s, the file at {held_s:.2f} s")
    start = round(start_s * rate)
    rest = file.frames - start
    wanted = rest if duration_s is None else min(round(duration_s * rate), rest)
    if wanted < MIN_DURATION_S * rate:
        raise AudioError("too_short", f"{path}: {wanted / rate:.3f} s is shorter than {MIN_DURATION_S:g} s")
    if wanted > max_duration_s * rate:
        raise AudioError("too_long", f"{path}: {wanted / rate:.2f} s is longer than {max_duration_s:g} s")
    return start, wanted


def _check_cut(frames: int, wanted: int, rate: int, path: Path) -> None:
    if frames < wanted - _SLACK_S * rate or not frames:
        raise AudioError("unreadable", f"{path}: cut off after {frames / rate:.2f} of {wanted / rate:.2f} s")


def _check_peak(peak: float, path: Path) -> None:
    if peak < SILENCE_PEAK:
        raise AudioError("silent", f"{path}: silence (peak below {SILENCE_PEAK:g} of full scale)")


def _read_mono(file: _Sound, wanted: int) -> NDArray[np.float32]:
    """float32 [up to `wanted`], the mean over the channels."""
    mono, filled = np.empty(wanted, np.float32), 0
    while filled < wanted:
        block = file.read(min(_BLOCK_FRAMES, wanted - filled), dtype="float32", always_2d=True)
        if not len(block):
            break
        mono[filled : filled + len(block)] = block.mean(axis=1) if file.channels > 1 else block[:, 0]
        filled += len(block)
    return mono[:filled]


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
            if file.frames > _MAX_FLAC_S * SAMPLE_RATE:
                raise AudioError("unreadable", f"says that it holds {file.frames} samples, which no clip does")
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


def samples_of(samples: NDArray[Any], rate: int | None) -> NDArray[np.int16]:
    """A clip from memory, int16 or float in -1..1, as int16. Raises AudioError: `unreadable` for another rate than
    16 kHz or another shape than [num_samples], `empty_audio`, `too_short` or `nan`."""
    if rate != SAMPLE_RATE:
        given = "no sampling_rate was given" if rate is None else f"the clip is at {rate} Hz"
        raise AudioError("unreadable", f"{given}, and {SAMPLE_RATE} is needed; resample it, or give the path of a file")
    if samples.ndim != 1 or (samples.dtype.kind != "f" and samples.dtype != np.int16):
        found = f"{samples.dtype} {list(samples.shape)}"
        raise AudioError("unreadable", f"the clip is {found}; give one channel of int16, or of float in -1..1")
    if not len(samples):
        raise AudioError("empty_audio", "the clip holds no samples")
    if len(samples) < MIN_DURATION_S * SAMPLE_RATE:
        seconds = len(samples) / SAMPLE_RATE
        raise AudioError("too_short", f"the clip is {seconds:.3f} s long, which is shorter than {MIN_DURATION_S:g} s")
    if samples.dtype == np.int16:
        return samples
    if not np.isfinite(samples).all():
        raise AudioError("nan", "the clip holds samples that are not finite numbers")
    peak = float(np.abs(samples).max())
    if peak > _LOUDEST:
        raise AudioError("unreadable", f"the clip's samples reach {peak:g}; float samples lie in -1..1, so divide them")
    return _to_int16(samples)


def _to_int16(samples: NDArray[Any]) -> NDArray[np.int16]:
    rounded: NDArray[np.int16] = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)
    return rounded


def load_audio_bytes(data: bytes, name: str) -> NDArray[np.int16]:
    """As `load_audio` of a whole file that holds `data`; `name` is for messages."""
    with _sound(io.BytesIO(data), Path(name)) as file:
        return _load(file, Path(name), 0.0, None, MAX_DURATION_S)


def decode_audio(data: bytes) -> NDArray[np.int16]:
    """The samples of an audio file of any common format at 16 kHz mono. Raises AudioError."""
    return decode_flac(data) if is_own_flac(data) else load_audio_bytes(data, "the audio")
