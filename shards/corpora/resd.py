"""RESD, acted dialogues in Russian: fifty of them, in each two voices with an emotion of their own.

    train.csv, test.csv                                             name,path,text,emotion
    train/happiness_enthusiasm_32/32_happiness_enthusiasm_h_120.wav dialogue 32, the voice that is happy

Enthusiasm is not happiness: it is rejected and counted, as fear and disgust are; there is no surprise. On the Hugging
Face hub audio and table lie in parquet files, which have to be unpacked first.

Splits are the official ones. They were drawn clip by clip: both have clips of all fifty dialogues, by the same voices.
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, other_emotion
from shards.corpora.lines import rows
from shards.manifest import Reject
from shards.sample import Utterance

_NAME = re.compile(r"(?P<dialogue>(?P<number>\d+)_[a-z]+_[a-z]+)[_ ](?P<voice>[a-z])_\d+")
_EMOTIONS = {"neutral": "neutral", "happiness": "happy", "anger": "angry", "sadness": "sad"}
_SPLITS = ("train", "test")
_LAYOUT = "RESD's root holds train.csv, test.csv and folders train and test with the files that they name"


def read(root: Path) -> Items:
    """Yields an utterance or a reject per row. Raises ValueError when `root` has no such table, or one without the
    columns that it needs."""
    tables = {split: root.absolute() / f"{split}.csv" for split in _SPLITS if (root / f"{split}.csv").is_file()}
    if not tables:
        if any(root.rglob("*.parquet")):
            raise ValueError(f"{root}: RESD in parquet files; unpack them first, as docs/corpora.md shows under resd")
        raise ValueError(f"{root}: no train.csv or test.csv; {_LAYOUT}")
    for split, table in tables.items():
        try:
            for row in rows(table, ("path", "emotion", "text"), ",", quoted=True):
                yield row if isinstance(row, Reject) else _read_row(root.absolute() / split, split, *row)
        except ValueError as error:
            raise ValueError(f"{error}; `resd` has no transcripts, `resd_annotated` has") from None


def _read_row(folder: Path, split: str, source: str, cells: dict[str, str]) -> Utterance | Reject:
    path, emotion = folder / cells["path"], cells["emotion"]
    if emotion not in _EMOTIONS:
        return other_emotion(source, emotion)
    if fault := audio_fault(path):
        return Reject(source, fault.reason, f"{path}: {fault.detail}")
    name = _NAME.fullmatch(path.stem)
    return Utterance(
        id=f"resd-{path.stem}", audio=str(path), text=cells["text"], corpus="resd", emotion=_EMOTIONS[emotion],
        speaker=name and f"{name['number']}{name['voice']}", language="ru", split=split, licence=CORPUS.licence,
        dialogue=name and name["dialogue"],
    )  # fmt: skip


CORPUS = Corpus(
    title="RESD",
    url="https://huggingface.co/datasets/Aniemore/resd_annotated",
    licence="MIT",
    read=read,
    official={"train": 1116, "test": 280},
    official_emotions={"neutral": 191, "happy": 218, "angry": 219, "sad": 162},
)
