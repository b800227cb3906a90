"""AESDD, acted emotional speech in Greek: six actors, twenty utterances, five emotions.

    anger/a03 (3).wav    emotion a (anger), utterance 03, speaker 3; a letter behind it for another take

It comes without transcripts, and the last utterance of each emotion is improvised. `transcripts.tsv` in its root, which
somebody has to write or let an ASR model write, says what is heard: a line per clip, the name without .wav, a tab, the
words. Fear and disgust are rejected and counted; there is no neutral and no surprise.

Splits: no speaker is in two. `train` are 1 to 3, `dev` 4, `test` 5 and 6. The paper tests on all, which `split=null`
does.
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, audio_files, other_emotion
from shards.corpora.lines import lines
from shards.manifest import Reject
from shards.sample import Utterance

_NAME = re.compile(r"(?P<emotion>[adfhs])(?P<utterance>\d\d) ?\(0?(?P<speaker>\d)\)(?P<take>[a-z]?)")
_EMOTIONS = {"h": "happy", "a": "angry", "s": "sad"}
_OTHER_EMOTIONS = {"f": "fear", "d": "disgust"}
_SPLITS = {"4": "dev", "5": "test", "6": "test"}
_LAYOUT = "AESDD's root holds folders anger, disgust, fear, happiness and sadness with files like 'a03 (3).wav'"


def read(root: Path) -> Items:
    """Yields an utterance or a reject per wav file, by path. Raises ValueError when there is none below `root`, or no
    `transcripts.tsv` in it."""
    paths = audio_files(root, (".wav",), _LAYOUT)
    table = root / "transcripts.tsv"
    if not table.is_file():
        raise ValueError(
            f"{table}: no such file; AESDD comes without transcripts. Write one line per clip: its name without .wav, "
            "a tab, the words. docs/corpora.md shows how an ASR model does it"
        )
    texts: dict[str, str] = {}
    for line in lines(table):
        if isinstance(line, Reject):
            yield line
            continue
        source, (name, *words) = line[0], line[1].split("\t")
        if len(words) == 1:
            texts[name] = words[0]
        else:
            yield Reject(source, "bad_line", f"{len(words) + 1} cells; a line is a name, a tab and the words")
    for path in paths:
        yield _read_clip(path, texts)


def _read_clip(path: Path, texts: dict[str, str]) -> Utterance | Reject:
    name = _NAME.fullmatch(path.stem)
    if name is None:
        return Reject(str(path), "unreadable", f"{path.name!r} is not a name of AESDD's, such as 'a03 (3).wav'")
    if name["emotion"] in _OTHER_EMOTIONS:
        return other_emotion(str(path), _OTHER_EMOTIONS[name["emotion"]])
    if fault := audio_fault(path):
        return fault
    if path.stem not in texts:
        return Reject(str(path), "no_text", f"transcripts.tsv has no line {path.stem!r}")
    speaker = name["speaker"]
    return Utterance(
        id=f"aesdd-{name['emotion']}{name['utterance']}-{speaker}{name['take']}", audio=str(path),
        text=texts[path.stem], corpus="aesdd", emotion=_EMOTIONS[name["emotion"]], speaker=speaker, language="el",
        split=_SPLITS.get(speaker, "train"), licence=CORPUS.licence,
    )  # fmt: skip


CORPUS = Corpus(
    title="AESDD",
    url="http://m3c.web.auth.gr/research/aesdd-speech-emotion-recognition/",
    licence="free for research",
    read=read,
    official={"train": 298, "dev": 99, "test": 207},
    official_emotions={"happy": 119, "angry": 121, "sad": 122},
)
