"""SpeechAlpaca's layout: instructions that a speech synthesiser says in a style, for testing answers.

    audios/00003-en-US-JasonNeural-cheerful.wav    number, voice, style
    test_alpaca.jsonl                              {"audio": ".../00003-en-US-JasonNeural-cheerful.wav", "text": ...,
                                                    "emotion": "cheerful"}

Where a line's path leads does not matter, only the name at its end: the authors' are those of their own machine.
`cheerful` is happy; there is no surprise. All is `test`.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from shards.corpora.corpus import Corpus, Items, audio_fault
from shards.manifest import Reject, parse_line
from shards.sample import EMOTIONS, Utterance

_NAME = re.compile(r"\d+-(?P<language>[a-z]{2,3})-[A-Z]{2}-(?P<voice>\w+)-\w+")
_EMOTIONS = {"cheerful": "happy"} | {emotion: emotion for emotion in EMOTIONS}
_LAYOUT = "SpeechAlpaca's root holds a folder 'audios' and a .jsonl file with lines of audio, text and emotion"


def read(root: Path) -> Items:
    """Yields an utterance or a reject per line of each .jsonl file in `root`. Raises ValueError when it has none, or no
    folder `audios`."""
    root = root.absolute()
    lists = sorted(root.glob("[!.]*.jsonl"))
    if not lists or not (root / "audios").is_dir():
        raise ValueError(f"{root}: no {'such file' if (root / 'audios').is_dir() else 'folder audios'}; {_LAYOUT}")
    for path in lists:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _read_line(line, f"{path}:{number}", root / "audios")


def _read_line(line: bytes, source: str, folder: Path) -> Utterance | Reject:
    try:
        record = parse_line(line)
    except ValueError as error:
        return Reject(source, "bad_json", str(error))
    audio, text, emotion = record.get("audio"), record.get("text"), record.get("emotion")
    if not isinstance(audio, str) or not isinstance(text, str):
        return Reject(source, "bad_json", "audio and text must be there, and be text")
    if not isinstance(emotion, str) or emotion not in _EMOTIONS:
        return Reject(source, "unknown_emotion", f"unknown style {emotion!r}; known are {', '.join(_EMOTIONS)}")
    path = folder / PurePosixPath(audio).name
    if fault := audio_fault(path):
        return Reject(source, fault.reason, f"{path}: {fault.detail}")
    name = _NAME.fullmatch(path.stem)
    try:
        return Utterance(
            id=f"speechalpaca-{path.stem}", audio=str(path), text=text, corpus="speechalpaca",
            emotion=_EMOTIONS[emotion], speaker=name and name["voice"], language=name["language"] if name else "en",
            split="test", licence=CORPUS.licence,
        )  # fmt: skip
    except ValueError as error:
        return Reject(source, "bad_json", str(error))


CORPUS = Corpus(
    title="SpeechAlpaca",
    url="https://github.com/cwang621/blsp-emo",
    licence="not stated; instructions of Alpaca, CC-BY-NC-4.0",
    read=read,
    official={"test": 400},
)
