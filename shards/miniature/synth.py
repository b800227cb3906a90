"""Speech from espeak-ng, through its C library: text and prosody in, samples with phone and word times out.

espeak-ng keeps one global state per process, so one process speaks one utterance at a time; several processes may
speak side by side. The library and its voices come with the `espeakng-loader` wheel: nothing is installed system-wide.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from shards.audio import SAMPLE_RATE

# Constants of espeak-ng's speak_lib.h (1.52).
_SYNCHRONOUS = 2
_PHONEME_EVENTS = 1
_UTF8 = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Prosody:
    """espeak's own units: pitch, range and volume 0-100 (volume to 200), rate in words per minute (80-450)."""

    pitch: float
    range: float
    rate: float
    volume: float
    end: str = "."


@dataclass(frozen=True)
class Mark:
    """A phone or word that starts at `start_s` seconds; `kind` is "phone" or "word"."""

    kind: str
    name: str
    start_s: float


@dataclass(frozen=True)
class Speech:
    """16 kHz float samples in [-1, 1] without leading and trailing silence, and what was spoken when."""

    samples: NDArray[np.float32]
    marks: list[Mark]


class _Espeak:
    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ValueError("espeak-ng is not installed; run: pip install 'blsp-emo[miniature]'") from error
        self.library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self.variants = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
        self.sample_rate = self.library.espeak_Initialize(
            _SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), _PHONEME_EVENTS
        )
        if self.sample_rate <= 0:
            raise OSError(f"espeak-ng does not start: espeak_Initialize returned {self.sample_rate}")
        self.library.espeak_ng_SetRandSeed(0)  # of breath; it would be the time of day
        self.chunks: list[NDArray[np.int16]] = []
        self.marks: list[tuple[str, str | int, float]] = []
        self._callback = _Callback(self._receive)
        self.library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if count > 0:
            self.chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END:
            event = events[index]
            if event.type == _EVENT_PHONEME:
                name = event.id.string.split(b"\0")[0].decode("utf-8", "replace")
                self.marks.append(("phone", name, event.audio_position / 1000))
            elif event.type == _EVENT_WORD:
                self.marks.append(("word", event.text_position, event.audio_position / 1000))
            index += 1
        return 0

    def set_voice(self, voice: str) -> None:
        variant = voice.partition("+")[2]
        # espeak-ng itself passes over a variant that it does not know.
        known = not variant or (self.variants / variant).is_file()
        if not known or self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")

    def speak(self, text: str, prosody: Prosody) -> None:
        self.chunks, self.marks = [], []
        for parameter, value in (
            (_RATE, np.clip(prosody.rate, 80, 450)),
            (_VOLUME, np.clip(prosody.volume, 0, 200)),
            (_PITCH, np.clip(prosody.pitch, 0, 99)),
            (_RANGE, np.clip(prosody.range, 0, 99)),
        ):
            self.library.espeak_SetParameter(parameter, round(float(value)), 0)
        data = (text + prosody.end).encode()
        result = self.library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        if result != 0:
            raise OSError(f"espeak-ng cannot speak {text!r}: error {result}")


@cache
def _espeak() -> _Espeak:
    return _Espeak()


def restart() -> None:
    """Forget what was spoken so far. espeak-ng's wave generator goes on where the last utterance left it, so only what
    is spoken in the same order after a restart comes out the same, bit for bit."""
    if not _espeak.cache_info().currsize:
        return
    library = _espeak().library
    _espeak.cache_clear()
    library.espeak_Terminate()
    # That alone keeps the generator's phases; unloading the library does not.
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))


def speak(text: str, voice: str, prosody: Prosody) -> Speech:
    """Speak `text` with espeak's `voice`. Raises ValueError for an unknown voice, OSError when espeak-ng fails."""
    engine = _espeak()
    engine.set_voice(voice)
    engine.speak(text, prosody)
    raw = np.concatenate(engine.chunks).astype(np.float32) / 32768
    loud = np.flatnonzero(np.abs(raw) > 0.005)
    if not len(loud):
        raise OSError(f"espeak-ng gave no sound for {text!r} in voice {voice!r}")
    first, last = int(loud[0]), int(loud[-1]) + 1
    samples = np.clip(soxr.resample(raw[first:last], engine.sample_rate, SAMPLE_RATE, quality="HQ"), -1, 1)
    lead_s = first / engine.sample_rate
    marks = []
    for kind, name, at_s in engine.marks:
        if isinstance(name, int):
            name = text[name - 1 :].split(" ")[0].strip(".,!?")
        if name:
            marks.append(Mark(kind, name, max(0.0, at_s - lead_s)))
    return Speech(samples.astype(np.float32), marks)
