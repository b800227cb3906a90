"""MER2023: clips of Chinese films and series, in six emotions; the data of the challenge and of MERBench.

    mer2023train/train/sample_00000001.avi      mer2023train/train-label.csv     name,discrete,valence
    test1/, test2/, mer2023train/test3/         test-labels/test1-label.csv, ...
    transcription.csv                           name,chinese

Splits: `train`, and as test the three of the challenge: `test-1`, `test-2` (with noise) and `test-3`. Who speaks is not
known, nor whether somebody is in several of them. "Worried" is rejected. The transcripts are not in the corpus itself
but in the processed release of MERTools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, files_below, other_emotion
from shards.corpora.lines import rows
from shards.manifest import Reject
from shards.sample import Utterance

_SPLITS = {"train": "train", "test1": "test-1", "test2": "test-2", "test3": "test-3"}
_SUFFIXES = (".avi", ".mp4", ".wav", ".flac")  # the sound alone is in the processed release
_EMOTIONS = {name: name for name in ("neutral", "happy", "angry", "sad", "surprise")}
_OTHERS = ("gb18030",)  # of tables that were saved in Chinese
_LAYOUT = "MER2023's root holds mer2023train with train-label.csv and the folder train, test1, test2, test-labels"


def read(root: Path) -> Items:
    """Yields an utterance or a reject per row of the tables of labels. Raises ValueError when there is none below
    `root`, or no transcription.csv."""
    root = root.absolute()
    files = sorted(files_below(root))
    tables = {name: next((path for path in files if path.name == f"{name}-label.csv"), None) for name in _SPLITS}
    if not any(tables.values()):
        raise ValueError(f"{root}: no train-label.csv or test1-label.csv in this folder or below; {_LAYOUT}")
    texts: dict[str, str] = {}
    for row in rows(_transcription(root, files), ("name", "chinese"), ",", quoted=True, others=_OTHERS):
        if isinstance(row, Reject):
            yield row
        else:
            texts[row[1]["name"].strip()] = row[1]["chinese"]
    for name, table in tables.items():
        if table is not None:
            folders = _folders(files, name)
            for row in rows(table, ("name", "discrete"), ",", quoted=True, others=_OTHERS):
                yield row if isinstance(row, Reject) else _utterance(row[1], row[0], name, folders, texts)


def _transcription(root: Path, files: Sequence[Path]) -> Path:
    found = next((path for path in files if path.name == "transcription.csv"), None)
    if found is None:
        raise ValueError(
            f"{root}: no transcription.csv, and MER2023 has no transcripts of its own; take that of the processed "
            "release of MERTools, or write one: a line 'name,chinese', then a line per clip"
        )
    return found


def _folders(files: Sequence[Path], name: str) -> list[Path]:
    """Where clips of a split may lie; the processed release has all of them in one folder."""
    places = {path.parent for path in files if path.parent.name in (name, "audio")}
    return sorted(places, key=lambda place: (place.name != name, place))


def _utterance(
    row: Mapping[str, str], source: str, split: str, folders: list[Path], texts: Mapping[str, str]
) -> Utterance | Reject:
    name, emotion = row["name"].strip(), row["discrete"].strip().lower()
    if not name or "/" in name:
        return Reject(source, "bad_line", f"{name!r} is no name of a clip")
    if emotion not in _EMOTIONS:
        return other_emotion(source, repr(emotion))
    if name not in texts:
        return Reject(source, "no_text", f"transcription.csv has no line for {name}")
    paths = [folder / f"{name}{suffix}" for folder in folders for suffix in _SUFFIXES]
    audio = next(filter(Path.exists, paths), None)
    if audio is None:
        return Reject(source, "missing_audio", f"no {name}.avi or .mp4 in {split}")
    return audio_fault(audio) or Utterance(
        id=f"mer2023-{split}-{name}", audio=str(audio), text=texts[name], corpus="mer2023",
        emotion=_EMOTIONS[emotion], language="zh", split=_SPLITS[split], licence=CORPUS.licence,
    )  # fmt: skip


CORPUS = Corpus(
    title="MER2023",
    url="http://www.merchallenge.cn/datasets",
    licence="MER2023 terms: research only, by signed agreement",
    read=read,
    official={"train": 3373, "test-1": 411, "test-2": 412, "test-3": 834},
    official_emotions={"neutral": 1248, "happy": 1038, "angry": 1208, "sad": 730, "surprise": 190},
)
