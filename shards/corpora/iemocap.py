r"""IEMOCAP: ten actors in pairs, five sessions, dialogues played from a script or made up.

    Session1/dialog/EmoEvaluation/Ses01F_impro01.txt     [6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5, 2.5, 2.5]
    Session1/dialog/transcriptions/Ses01F_impro01.txt    Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
    Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav

A turn's name ends in who speaks and its number; the letter after the session says who wore the sensors. Excited counts
as happy, as everywhere. What listeners did not agree on (`xxx`), frustration and the rare others are rejected.

Splits: session 5 is `test`, as in the paper, the others are `train-1` to `train-4`, together `train`; no actor is in
two sessions. One of the four can so be held out to watch a training with, for there is no `dev`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, other_emotion
from shards.corpora.text import decoded
from shards.manifest import Reject
from shards.sample import Utterance

_LABEL = re.compile(
    r"\[(?P<start>\d+\.\d+) - \d+\.\d+\]\s+"
    r"(?P<id>Ses(?P<session>\d\d)\w+_(?P<speaker>[FM])\w+)\s+(?P<label>\w+)\s+\[.*\]"
)
_WORDS = re.compile(r"(?P<id>Ses\w+) \[[\d.]+-[\d.]+\]:(?P<text>.*)")
_NOISE = re.compile(r"\[[A-Za-z]+\]")  # [LAUGHTER], [BREATHING], [GARBAGE]
_EMOTIONS = {"neu": "neutral", "hap": "happy", "exc": "happy", "ang": "angry", "sad": "sad", "sur": "surprise"}
_OTHERS = {"fru": "frustrated", "fea": "fear", "dis": "disgust", "oth": "other", "xxx": "no two listeners agree"}
_TEST_SESSION = "05"
_LAYOUT = "IEMOCAP_full_release holds Session1 to Session5, each with the folders dialog and sentences"


@dataclass(frozen=True)
class _Turn:
    start_s: float
    name: str
    session: str
    speaker: str
    label: str
    source: str  # file:line


def read(root: Path) -> Items:
    """Yields an utterance or a reject per labelled turn, dialogue by dialogue, in order of time. Raises ValueError when
    there are no sessions in `root` or in its folder IEMOCAP_full_release."""
    root = root.absolute()
    sessions = [*root.glob("Session[1-5]"), *root.glob("IEMOCAP_full_release/Session[1-5]")]
    labels = [path for session in sessions for path in session.glob("dialog/EmoEvaluation/[!.]*.txt")]
    if not labels:
        raise ValueError(f"{root}: no Session1/dialog/EmoEvaluation with files in it; {_LAYOUT}")
    for path in sorted(labels):
        yield from _read_dialogue(path)


def _read_dialogue(path: Path) -> Items:
    session, dialogue = path.parents[2], path.stem
    turns: list[_Turn] = []
    for item in _labels(path):
        if isinstance(item, Reject):
            yield item
        else:
            turns.append(item)
    turns.sort(key=lambda turn: (turn.start_s, turn.name))
    texts = _transcript(session / "dialog" / "transcriptions" / path.name)
    for number, turn in enumerate(turns):
        audio = session / "sentences" / "wav" / turn.name.rpartition("_")[0] / f"{turn.name}.wav"
        if turn.label not in _EMOTIONS:
            what = _OTHERS.get(turn.label, "a label that IEMOCAP does not have")
            yield other_emotion(turn.source, f"{turn.label!r} ({what})")
        elif turn.name not in texts:
            yield Reject(turn.source, "no_text", f"{turn.name} is not in dialog/transcriptions/{path.name}")
        elif fault := audio_fault(audio):
            yield fault
        else:
            split = "test" if turn.session == _TEST_SESSION else f"train-{int(turn.session)}"
            yield Utterance(
                id=f"iemocap-{turn.name}", audio=str(audio), text=texts[turn.name], corpus="iemocap",
                emotion=_EMOTIONS[turn.label], speaker=f"Ses{turn.session}{turn.speaker}", language="en",
                split=split, session=turn.session, dialogue=dialogue, turn=number, licence=CORPUS.licence,
            )  # fmt: skip


def _labels(path: Path) -> Iterator[_Turn | Reject]:
    """The turns of a dialogue. Between their lines stand those of each listener (`C-E2: ...`), first a header (`%`)."""
    for number, line in enumerate(decoded(path.read_bytes()).splitlines(), start=1):
        found = _LABEL.match(line)
        if found:
            start_s, source = float(found["start"]), f"{path}:{number}"
            yield _Turn(start_s, found["id"], found["session"], found["speaker"], found["label"], source)
        elif line.startswith("["):
            yield Reject(
                f"{path}:{number}", "bad_line", "begins as a turn, and is not [start - end] name label [v, a, d]"
            )


def _transcript(path: Path) -> dict[str, str]:
    """Words by turn. Lines of who is not heard by the sensors (`M: ...`) belong to no turn."""
    if not path.is_file():
        return {}
    found = map(_WORDS.match, decoded(path.read_bytes()).splitlines())
    return {words["id"]: _NOISE.sub(" ", words["text"]) for words in found if words}


CORPUS = Corpus(
    title="IEMOCAP",
    url="https://sail.usc.edu/iemocap",
    licence="IEMOCAP licence of USC: research only, no redistribution",
    read=read,
    official={"train-1": 1819, "train-2": 1811, "train-3": 2136, "train-4": 2103, "test": 2170},
    official_emotions={"neutral": 1708, "happy": 1636, "angry": 1103, "sad": 1084, "surprise": 107},
)
