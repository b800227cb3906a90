"""The sound of .m4a, .mp4, .mov, .avi, .mkv and .webm files, which libsndfile does not read: through PyAV, an extra.

FFmpeg knows hundreds of formats, and some have it open other files and addresses that a file names. Only three of them
are tried here, and only codecs of sound: pictures are not decoded, nor read where the format lets them be skipped.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SUFFIXES = (".avi", ".m4a", ".mkv", ".mov", ".mp4", ".webm")
NEEDS_PYAV = "a film, or .m4a, whose sound is read through PyAV: pip install 'blsp-emo[av]'"

_CODECS = (
    "aac", "ac3", "adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "alac", "amrnb", "amrwb", "eac3", "flac", "mp2",
    "mp2float", "mp3", "mp3float", "opus", "pcm_alaw", "pcm_f32be", "pcm_f32le", "pcm_f64le", "pcm_mulaw", "pcm_s16be",
    "pcm_s16le", "pcm_s24be", "pcm_s24le", "pcm_s32be", "pcm_s32le", "pcm_u8", "vorbis", "wmav1", "wmav2",
)  # fmt: skip
_OPTIONS = {"codec_whitelist": ",".join(_CODECS), "protocol_whitelist": "none", "max_streams": "64"}
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # one of them is first in a file of MP4 or QuickTime
_RUN_UP_S = 0.5  # a codec that is entered in the middle needs what came before: MP3 up to a quarter of a second
_SHORTER_S = 1.0  # sound may end before the pictures by as much
_NONSENSE = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)  # PyAV's own, over absurd fields


class ContainerError(Exception):
    """A file whose sound cannot be read; the message says why."""


def container_of(begin: bytes) -> str | None:
    """FFmpeg's name for the format of a file that begins so, if it is one of those that are read here."""
    if begin[4:8] in _BOXES:
        return "mov"
    if begin.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    return "avi" if begin[:4] == b"RIFF" and begin[8:12] == b"AVI " else None


def pyav_is_there() -> bool:
    """Whether PyAV is installed; it is not loaded."""
    return importlib.util.find_spec("av") is not None


class ContainerSound:
    """The first stream of sound in a file, with as much of soundfile.SoundFile's interface as is needed here.

    Samples are counted from the first that is decoded, at `samplerate`; `frames` is their number as the file tells it.
    Any method raises ContainerError for what is wrong with the file, OSError for what is with the disk.
    """

    subtype = format = ""

    def __init__(self, file: IO[bytes], form: str) -> None:
        self._file, self._form = file, form
        with _told():
            self._open()
            length = self._stream.duration
            if length is None:  # as in Matroska: the packets tell, and need not be decoded
                length = _end(self._container, self._stream) - self._origin
                self._check_cut(float(length * self._base))
                self._open()
            self.frames = int(length * self._base * self.samplerate)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def _open(self) -> None:
        """Stand before the first sample. Only what is decoded says what rate and how many channels it really has."""
        self._file.seek(0)
        self._container = _opened(self._file, self._form)
        self._stream = _stream_of(self._container)
        self._base = self._stream.time_base or Fraction(1)
        self._decoded = self._container.decode(self._stream)
        first = next(self._decoded, None)
        if first is None:
            raise ContainerError("its stream of sound is empty")
        self.samplerate, self.channels, self._origin = first.sample_rate, len(first.layout.channels), first.pts or 0
        self._block = self._samples(first)

    def seek(self, frame: int) -> None:
        """Stand before the sample of that number; what is long before it is not decoded where the file has an index."""
        with _told():
            behind = frame
            if frame > _RUN_UP_S * self.samplerate:
                behind -= self._enter(frame / self.samplerate - _RUN_UP_S)
            if behind < 0:  # there is nowhere to enter before it
                self._open()
                behind = frame
            while behind and self._more():
                skipped, self._block = self._block[:behind], self._block[behind:]
                behind -= len(skipped)

    def _check_cut(self, sound_s: float) -> None:
        """A file that ends too soon still tells how long it was, all streams together."""
        whole_s = (self._container.duration or 0) / 1e6
        if sound_s < whole_s - _SHORTER_S:
            raise ContainerError(f"its sound ends after {sound_s:.2f} of {whole_s:.2f} s; it is cut off")

    def _enter(self, time_s: float) -> int:
        """Stand at or before that time, if the file can be entered there. Returns the number of the next sample."""
        self._container.seek(int(time_s / self._base) + self._origin, stream=self._stream)
        self._decoded = self._container.decode(self._stream)
        first = next(self._decoded, None)
        if first is None or first.pts is None:
            self._open()
            return 0
        self._block = self._samples(first)
        return round((first.pts - self._origin) * self._base * self.samplerate)

    def read(self, frames: int, dtype: str, always_2d: bool) -> NDArray[np.float32]:
        """float32 [up to `frames`, channels] in -1..1; fewer only where the sound ends."""
        assert dtype == "float32" and always_2d
        blocks, missing = [np.empty((0, self.channels), np.float32)], frames
        with _told():
            while missing and self._more():
                blocks.append(self._block[:missing])
                self._block = self._block[missing:]
                missing -= len(blocks[-1])
        return np.concatenate(blocks)

    def _more(self) -> bool:
        """Whether there are samples left; they are in `_block`."""
        while not len(self._block):
            frame = next(self._decoded, None)
            if frame is None:
                return False
            self._block = self._samples(frame)
        return True

    def _samples(self, frame: AudioFrame) -> NDArray[np.float32]:
        """float32 [num_samples, channels]."""
        found = (frame.sample_rate, len(frame.layout.channels))
        if found != (self.samplerate, self.channels):
            raise ContainerError(f"its sound changes to {found[0]} Hz, {found[1]} channels in the middle")
        values = frame.to_ndarray()
        values = values.T if frame.format.is_planar else values.reshape(-1, self.channels)
        if values.dtype.kind == "f":
            return values.astype(np.float32)
        full_scale, middle = 2.0 ** (8 * values.dtype.itemsize - 1), 128 if values.dtype == np.uint8 else 0
        return ((values.astype(np.float64) - middle) / full_scale).astype(np.float32)


def _opened(file: IO[bytes], form: str) -> InputContainer:
    import av  # an extra

    return av.open(file, "r", format=form, container_options=_OPTIONS, metadata_errors="replace")


def _stream_of(container: InputContainer) -> AudioStream:
    from av.stream import Discard

    if not container.streams.audio:
        raise ContainerError("it holds no sound")
    stream = container.streams.audio[0]
    codec = stream.codec_context.codec.name if stream.codec_context else "of a kind that FFmpeg does not know"
    if codec not in _CODECS:
        raise ContainerError(f"its sound is {codec}, which is not read here")
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    stream.codec_context.thread_count = 1
    return stream


def _end(container: InputContainer, stream: AudioStream) -> int:
    """When the last packet of the stream ends, in its own unit of time."""
    times = (packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None)
    return max(times, default=0)


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong in PyAV as a ContainerError. An error of the disk, which PyAV passes on, stays what it is."""
    try:
        from av.error import FFmpegError
    except ImportError:
        raise ContainerError(NEEDS_PYAV) from None
    try:
        yield
    except FFmpegError as error:
        raise ContainerError(f"FFmpeg cannot read it ({error.strerror})") from None
    except _NONSENSE as error:
        raise ContainerError(f"PyAV cannot read it ({error})") from None
