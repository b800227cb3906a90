"""Any corpus that is described by one JSON object per line.

    {"audio": "wav/0001.flac", "text": "I saw it.", "emotion": "happy"}

The three fields are the authors' own format; `emotion` may be left out, and every other field of `Utterance` may be
given. Among them is `messages`: the turns before this one, if it is the last of a conversation.

    {"audio": "wav/0003.flac", "text": "And now?", "messages": [
        {"role": "user", "audio": "wav/0002.flac", "text": "I saw it."}, {"role": "assistant", "text": "What was it?"}]}

Audio paths are relative to the file's folder. Without an `id` the path without its ending is the id; without a `corpus`
the name of the file is.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from shards.corpora.corpus import Corpus, Items, audio_fault
from shards.manifest import Reject, parse_line
from shards.sample import EMOTIONS, Utterance


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
        emotion = record.get("emotion")
        if isinstance(emotion, str) and emotion not in EMOTIONS:
            return Reject(source, "unknown_emotion", f"unknown emotion {emotion!r}; known are {', '.join(EMOTIONS)}")
        audio = record.get("audio")
        if isinstance(audio, str):
            record = {"id": str(PurePosixPath(audio).with_suffix("")), "corpus": root.stem} | record
        utterance = Utterance.from_json(record)
    except ValueError as error:
        return Reject(source, "bad_json", str(error))
    utterance = utterance.with_paths(lambda audio: str(root.absolute().parent / audio))
    for path, *_ in utterance.spans:
        if fault := audio_fault(Path(path)):
            return Reject(source, fault.reason, f"{path}: {fault.detail}")
    return utterance


CORPUS = Corpus(title="any corpus as JSON lines", url="", licence="", read=read)
