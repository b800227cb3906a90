"""Any corpus that is described by one JSON object per line.

    {"audio": "wav/0001.flac", "text": "I saw it.", "emotion": "happy"}

The three fields are the authors' own format; `emotion` may be left out, and every other field of `Utterance` may be
given. Among them is `messages`: the turns before this one, if it is the last of a conversation.

    {"audio": "wav/0003.flac", "text": "And now?", "messages": [
        {"role": "user", "audio": "wav/0002.flac", "text": "I saw it."}, {"role": "assistant", "text": "What was it?"}]}

Audio paths are relative to the file's folder. A piece of a file is `start_s` and `duration_s`, or the authors' address
`talk.wav:16000:48000`: the first frame and the number of frames, at the file's own rate, -1 for all that follow. Their
`corpus.zip:OFFSET:LENGTH` is refused: unzip the archive and name the file.

Without a `corpus` the name of the file is; without an `id` it is the corpus and the path without its ending, with the
numbers of its address: the same path in two corpora is two clips.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path, PurePosixPath
from typing import TypeVar

import soundfile

from shards.audio import AudioError
from shards.corpora.corpus import Corpus, Items, audio_fault
from shards.manifest import Reject, parse_line
from shards.sample import EMOTIONS, Message, Utterance

_Turn = TypeVar("_Turn", Utterance, Message)
_ADDRESS = re.compile(
    r"(?P<path>.+\.(?P<ending>wav|flac|ogg|mp3|opus|zip)):(?P<start>\d{1,15}):(?P<count>-1|\d{1,15})", re.IGNORECASE
)


def read(root: Path) -> Items:
    """Yields an utterance or a reject per line, in file order. Raises ValueError when `root` is not a file."""
    if not root.is_file():
        raise ValueError(f"{root}: not a file; the reader 'jsonl' takes a .jsonl file")
    with root.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _read_line(line, f"{root}:{number}", root)


def _read_line(line: bytes, source: str, root: Path) -> Utterance | Reject:
    try:
        record = parse_line(line)
    except ValueError as error:
        return Reject(source, "bad_json", str(error))
    return read_record(record, source, root, "bad_json")


def read_record(record: dict[str, object], source: str, root: Path, bad: str) -> Utterance | Reject:
    """The utterance of one record of the file `root`, or why there is none: reason `bad` for what is no utterance."""
    emotion, audio = record.get("emotion"), record.get("audio")
    if isinstance(emotion, str) and emotion not in EMOTIONS:
        return Reject(source, "unknown_emotion", f"unknown emotion {emotion!r}; known are {', '.join(EMOTIONS)}")
    if isinstance(audio, str):
        record = {"corpus": root.stem} | record
        record = {"id": f"{record['corpus']}/{_name_of(audio)}"} | record
    try:
        utterance = Utterance.from_json(record).with_paths(lambda audio: str(root.absolute().parent / audio))
        utterance = _with_span(utterance)
        turns = tuple(turn if turn.audio is None else _with_span(turn) for turn in utterance.messages)
        utterance = dataclasses.replace(utterance, messages=turns)
    except AudioError as error:
        return Reject(source, error.reason, str(error))
    except ValueError as error:
        return Reject(source, bad, str(error))
    for path, *_ in utterance.spans:
        if fault := audio_fault(Path(path)):
            return Reject(source, fault.reason, f"{path}: {fault.detail}")
    return utterance


def _name_of(audio: str) -> str:
    address = _ADDRESS.fullmatch(audio)
    if address is None:
        return str(PurePosixPath(audio).with_suffix(""))
    return f"{PurePosixPath(address['path']).with_suffix('')}-{address['start']}-{address['count']}"


def _with_span(turn: _Turn) -> _Turn:
    """With path, start and duration for an address. Raises AudioError for a file whose rate cannot be had, ValueError
    for a turn that has its span twice."""
    address = _ADDRESS.fullmatch(turn.audio or "")
    if address is None:
        return turn
    path, start, count = address["path"], int(address["start"]), int(address["count"])
    if address["ending"].lower() == "zip":
        raise AudioError("unreadable", f"{path}: audio inside of an archive; unzip it, and give the file's own path")
    if turn.start_s or turn.duration_s is not None:
        raise ValueError("field 'audio' holds a span (path:start:frames), so leave start_s and duration_s out")
    if fault := audio_fault(Path(path)):
        raise AudioError(fault.reason, f"{path}: {fault.detail}")
    rate = _rate(path)
    return dataclasses.replace(turn, audio=path, start_s=start / rate, duration_s=None if count < 0 else count / rate)


@functools.lru_cache(maxsize=1024)  # pieces of one file mostly follow each other
def _rate(path: str) -> int:
    """Frames per second, from the header alone."""
    try:
        return int(soundfile.info(path).samplerate)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError("unreadable", f"{path}: not an audio file that libsndfile can read ({error})") from None


CORPUS = Corpus(title="any corpus as JSON lines", url="", licence="", read=read)
