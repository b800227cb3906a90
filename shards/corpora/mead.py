"""MEAD: 48 actors say sentences in eight emotions, at up to three levels; seen from all sides, and heard.

    M003/audio/angry/level_2/017.m4a     speaker, emotion, level, number

There are no transcripts on the disk, so one must be made: `transcripts.tsv` in the root, with the columns speaker,
emotion, level, number and text, by a model that recognises speech, or from the lists of sentences in the paper's
supplement, whose numbers do not fit the files of each speaker.

Splits: no speaker is in two. `test` are M041, M042, W038 and W040, `dev` M039, M040, W036 and W037, `train` the 40
others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, audio_files, other_emotion, split_of
from shards.corpora.lines import rows
from shards.manifest import Reject
from shards.sample import Utterance

_PLACE = re.compile(r"(?P<speaker>[MW]\d{3})/audio/(?P<emotion>[a-z]+)/level_(?P<level>[123])/(?P<number>\d+)")
_SUFFIXES = (".m4a", ".wav", ".flac")  # .wav and .flac where they were converted
_EMOTIONS = {"neutral": "neutral", "happy": "happy", "angry": "angry", "sad": "sad", "surprised": "surprise"}
_TEST_SPEAKERS = ("M041", "M042", "W038", "W040")
_DEV_SPEAKERS = ("M039", "M040", "W036", "W037")
_COLUMNS = ("speaker", "emotion", "level", "number", "text")
_LAYOUT = "MEAD's root holds folders like M003/audio/angry/level_2 with files like 017.m4a"

_Place = tuple[str, str, int, int]  # speaker, emotion, level, number


def read(root: Path) -> Items:
    """Yields an utterance or a reject per clip, by path, and a reject per line of transcripts.tsv that says nothing.
    Raises ValueError when there is no clip below `root`, or no transcripts.tsv in it."""
    clips = audio_files(root, _SUFFIXES, _LAYOUT)
    texts: dict[_Place, str] = {}
    for item in _texts(root.absolute() / "transcripts.tsv"):
        if isinstance(item, Reject):
            yield item
        else:
            texts[item[0]] = item[1]
    for path in clips:
        found = _PLACE.fullmatch("/".join(path.with_suffix("").parts[-5:]))
        if found is None:
            yield Reject(str(path), "unreadable", "its path is not one like M003/audio/angry/level_2/017.m4a")
            continue
        place = (found["speaker"], found["emotion"], int(found["level"]), int(found["number"]))
        if found["emotion"] not in _EMOTIONS:
            yield other_emotion(str(path), repr(found["emotion"]))
        elif place not in texts:
            yield Reject(str(path), "no_text", "transcripts.tsv has no line for it")
        elif fault := audio_fault(path):
            yield fault
        else:
            speaker = found["speaker"]
            split = split_of(speaker, _DEV_SPEAKERS, _TEST_SPEAKERS)
            yield Utterance(
                id=f"mead-{speaker}-{found['emotion']}-{found['level']}-{found['number']}", audio=str(path),
                text=texts[place], corpus="mead", emotion=_EMOTIONS[found["emotion"]], speaker=speaker, language="en",
                split=split, licence=CORPUS.licence,
            )  # fmt: skip


def _texts(table: Path) -> Iterator[tuple[_Place, str] | Reject]:
    if not table.is_file():
        raise ValueError(
            f"{table}: no such file, and MEAD has no transcripts of its own; write one, for example with a model that "
            f"recognises speech: a line of names, {', '.join(_COLUMNS)}, then a line per clip, tabs between its cells"
        )
    for row in rows(table, _COLUMNS):
        if isinstance(row, Reject):
            yield row
            continue
        source, cells = row
        try:
            yield (cells["speaker"], cells["emotion"], int(cells["level"]), int(cells["number"])), cells["text"]
        except ValueError:
            yield Reject(source, "bad_line", "level and number must be whole numbers")


CORPUS = Corpus(
    title="MEAD",
    url="https://wywu.github.io/projects/MEAD/MEAD.html",
    licence="MEAD terms: research only",
    read=read,
    official_emotions={"neutral": 1916, "happy": 4294, "angry": 4193, "sad": 4306, "surprise": 4270},
)
