"""Decoding in a process of its own: a file that crashes or hangs the decoder costs that one clip, not the worker.

The other side of two pipes runs `serve`, which imports nothing but `shards.audio`. While the worker writes one clip the
decoder is at work on the next. A request is a line of JSON; a reply is a header, then a FLAC file or a reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from shards.audio import AudioError, EncodedClip, encode_clip, load_audio

_HEADER = struct.Struct("<BII")  # kind, number of samples, bytes that follow
_FLAC, _REJECT, _FAILURE, _DEFECT = range(4)
_READY = b"ready"
_KILLED = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
_TRIES = 2  # a clip whose decoder dies this often by itself is at fault
_MAX_KILLS = 5  # somebody else ends it: too little memory on the machine, mostly
_IN_FLIGHT = 3
_PIPE_BYTES = 2**20  # a clip fits, so that the decoder need not wait for the worker; what a user may ask for
_MAX_PATH = 4200  # characters; the kernel takes fewer. The requests in flight always fit into a pipe
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Span:
    """A piece of an audio file: absolute path, start and length in seconds (None: to the end)."""

    path: str
    start_s: float = 0.0
    duration_s: float | None = None


@dataclass(frozen=True)
class Limits:
    """What one clip may cost in the decoder: seconds of CPU, seconds in all, and bytes of memory for the process."""

    cpu_s: float = 60.0
    wall_s: float = 300.0
    memory_bytes: int = 2**30


class Decoder:
    """`with Decoder() as decoder: for result in decoder.encode(spans): ...`.

    With `only_lengths` a clip's `flac` is empty, which spares encoding it where only its length is asked for.
    """

    def __init__(self, limits: Limits | None = None, *, only_lengths: bool = False) -> None:
        self._limits, self._only_lengths = limits or Limits(), only_lengths
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; whoever asks for more gets a new one."""
        self._end()

    def encode(self, spans: Iterable[Span]) -> Iterator[EncodedClip | AudioError]:
        """One result per span, in order. Raises OSError when the disk fails or something keeps ending the decoder."""
        asked: deque[Span] = deque()
        try:
            for span in spans:
                asked.append(span)
                self._ask([span])
                if len(asked) == _IN_FLIGHT:
                    yield self._answer(asked)
            while asked:
                yield self._answer(asked)
        finally:
            if asked:
                self._end()  # an answer that nobody waits for must not be taken for the next one's

    def _ask(self, spans: Iterable[Span]) -> None:
        self._process = self._process or _start(self._limits, self._only_lengths)
        assert self._process.stdin is not None
        try:
            for span in spans:
                line = json.dumps([span.path[:_MAX_PATH], span.start_s, span.duration_s], ensure_ascii=False)
                self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; whoever waits for the answer finds out why

    def _answer(self, asked: deque[Span]) -> EncodedClip | AudioError:
        """The answer to the first of `asked`, which leaves the queue; after a death all of it is asked again."""
        faults = kills = 0
        while True:
            assert self._process is not None and self._process.stdout is not None
            answer = _read_answer(self._process.stdout)
            if answer is not None:
                asked.popleft()
                return answer
            code = self._process.wait()
            self._end()
            killed = code in _KILLED
            faults, kills = faults + (not killed), kills + killed
            if kills >= _MAX_KILLS:
                raise OSError(f"the decoder was killed {kills} times at {asked[0].path}; too little memory?")
            if faults >= _TRIES:
                fault = _fault(asked.popleft(), code, self._limits)
                self._ask(asked)
                return fault
            self._ask(asked)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _fault(span: Span, code: int, limits: Limits) -> AudioError:
    if code == -signal.SIGPROF:
        return AudioError("decoder_hang", f"{span.path}: not decoded after {limits.cpu_s:g} s of computing")
    if code == -signal.SIGALRM:
        return AudioError("decoder_hang", f"{span.path}: not decoded after {limits.wall_s:g} s")
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return AudioError("decoder_crash", f"{span.path}: ends the decoder ({how})")


def _start(limits: Limits, only_lengths: bool) -> subprocess.Popen[bytes]:
    """A decoder that is ready. Raises OSError with what it said when it does not come up, or is killed each time."""
    for _ in range(_MAX_KILLS):
        process = _launch(limits, only_lengths)
        assert process.stdout is not None
        if process.stdout.read(len(_READY)) == _READY:
            return process
        said = process.communicate()[1].decode(errors="replace").strip()
        if process.returncode not in _KILLED:
            break
    raise OSError(f"the decoder's process does not start: {said or f'exit code {process.returncode}'}")


def _launch(limits: Limits, only_lengths: bool) -> subprocess.Popen[bytes]:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    process = subprocess.Popen(
        [sys.executable, "-c", f"from shards.decoder import serve, Limits; serve({limits!r}, {only_lengths})"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **threads},
    )  # fmt: skip
    assert process.stdout is not None
    with contextlib.suppress(OSError):  # only speed
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process


def _read_answer(pipe: IO[bytes]) -> EncodedClip | AudioError | None:
    """None when the decoder died."""
    header = pipe.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    kind, num_samples, size = _HEADER.unpack(header)
    data = pipe.read(size)
    if len(data) < size:
        return None
    if kind == _FLAC:
        return EncodedClip(data, num_samples)
    words = json.loads(data)
    if kind == _REJECT:
        return AudioError(*words)
    if kind == _FAILURE:
        raise OSError(*words)
    raise RuntimeError(f"a defect in decoding:\n{words}")


def serve(limits: Limits, only_lengths: bool) -> None:
    """The decoder's side: answers requests on stdin until it ends."""
    replies = os.fdopen(os.dup(1), "wb")
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's business, and it closes our pipe
    replies.write(_READY)
    replies.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # libraries print what they think of a file
        os.dup2(nowhere, descriptor)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_s)  # unhandled: they end this process
        signal.setitimer(signal.ITIMER_REAL, limits.wall_s)
        path, start_s, duration_s = json.loads(line)
        kind, num_samples, data = _encode(path, start_s, duration_s, only_lengths)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(_HEADER.pack(kind, num_samples, len(data)))
        replies.write(data)
        replies.flush()


def _encode(path: str, start_s: float, duration_s: float | None, only_lengths: bool) -> tuple[int, int, bytes]:
    words: object
    try:
        if only_lengths:
            return _FLAC, len(load_audio(Path(path), start_s, duration_s)), b""
        clip = encode_clip(Path(path), start_s, duration_s)
        return _FLAC, clip.num_samples, clip.flac
    except AudioError as error:
        kind, words = _REJECT, (error.reason, str(error))
    except MemoryError:
        kind, words = _REJECT, ("unreadable", f"{path}: takes more memory than a clip may")
    except OSError as error:
        kind, words = _FAILURE, (error.errno, error.strerror, path)
    except Exception:
        kind, words = _DEFECT, traceback.format_exc()
    return kind, 0, json.dumps(words).encode()
