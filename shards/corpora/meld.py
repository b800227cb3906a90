"""MELD: dialogues of the television series Friends, a piece of film per utterance.

    train_sent_emo.csv                 "Sr No.",Utterance,Speaker,Emotion,...,Dialogue_ID,Utterance_ID,...
    train_splits/dia0_utt0.mp4         dev_splits_complete/..., output_repeated_splits_test/...

The splits are the official ones; the main characters are in all of them. Names of clips recur in each split, so ids
have it: meld-train-dia0_utt0. Joy is happy; disgust and fear are rejected. What the table says to take longer than 30 s
or no time is a fault of the cutting, and rejected too. Clips that no table names are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from shards.audio import MAX_DURATION_S
from shards.corpora.corpus import Corpus, Items, audio_fault, other_emotion
from shards.corpora.lines import rows
from shards.manifest import Reject
from shards.sample import Utterance

_FOLDERS = {
    "train": ("train_splits", "train/train_splits", "train"),
    "dev": ("dev_splits_complete", "dev/dev_splits_complete", "dev"),
    "test": ("output_repeated_splits_test", "test/output_repeated_splits_test", "test"),
}
_SUFFIXES = (".mp4", ".wav", ".flac")  # many extract the sound once, beside the film or instead of it
_COLUMNS = (
    "Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID", "Season", "Episode", "StartTime", "EndTime",
)  # fmt: skip
_EMOTIONS = {"neutral": "neutral", "joy": "happy", "anger": "angry", "sadness": "sad", "surprise": "surprise"}
_TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})")
_LAYOUT = "MELD.Raw holds train_sent_emo.csv and the folder train_splits, and the like of dev and test"


def read(root: Path) -> Items:
    """Yields an utterance or a reject per row of the tables. Raises ValueError when no split is there, or one has films
    and no table or a table and no films."""
    base = root.absolute()
    if (base / "MELD.Raw").is_dir():
        base /= "MELD.Raw"
    splits = {split: _split(base, split) for split in _FOLDERS}
    if not any(splits.values()):
        raise ValueError(f"{root}: no train_sent_emo.csv and no train_splits, nor those of dev or test; {_LAYOUT}")
    for split, found in splits.items():
        if found is not None:
            table, folder = found
            for row in rows(table, _COLUMNS, ",", quoted=True, others=("cp1252", "latin-1")):
                yield row if isinstance(row, Reject) else _utterance(row[1], row[0], split, folder)


def _split(base: Path, split: str) -> tuple[Path, Path] | None:
    """(table, folder of clips), None where neither is there."""
    places = (base, base / split, base / "data" / "MELD", base.parent, base.parent / "data" / "MELD")
    table = next(filter(Path.is_file, (place / f"{split}_sent_emo.csv" for place in places)), None)
    folder = next((base / name for name in _FOLDERS[split] if _has_clips(base / name)), None)
    if table is not None and folder is not None:
        return table, folder
    if folder is not None:
        raise ValueError(f"{folder}: there is no {split}_sent_emo.csv for it; put it beside. {_LAYOUT}")
    if table is not None and table.is_relative_to(base):
        raise ValueError(f"{table}: there is no {_FOLDERS[split][0]} with its clips; unpack {split}.tar.gz. {_LAYOUT}")
    return None


def _has_clips(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix in _SUFFIXES for path in folder.iterdir())


def _utterance(row: Mapping[str, str], source: str, split: str, folder: Path) -> Utterance | Reject:
    dialogue, turn = row["Dialogue_ID"].strip(), row["Utterance_ID"].strip()
    if not (dialogue.isdecimal() and turn.isdecimal()):
        return Reject(source, "bad_line", f"dialogue {dialogue!r} and utterance {turn!r} must be numbers")
    emotion = row["Emotion"].strip().lower()
    if emotion not in _EMOTIONS:
        return other_emotion(source, repr(emotion))
    if fault := _fault_of_times(row["StartTime"], row["EndTime"], source):
        return fault
    name = f"dia{int(dialogue)}_utt{int(turn)}"
    paths = [folder / f"{name}{suffix}" for suffix in _SUFFIXES]
    audio = next(filter(Path.exists, paths), paths[0])
    if fault := audio_fault(audio):
        return fault
    return Utterance(
        id=f"meld-{split}-{name}", audio=str(audio), text=row["Utterance"], corpus="meld", emotion=_EMOTIONS[emotion],
        speaker=" ".join(row["Speaker"].split()) or None, language="en", split=split,
        session=f"s{row['Season'].strip()}e{row['Episode'].strip()}", dialogue=f"{split}-dia{int(dialogue)}",
        turn=int(turn), licence=CORPUS.licence,
    )  # fmt: skip


def _fault_of_times(start: str, end: str, source: str) -> Reject | None:
    """What the table's times say against a clip; its own length counts where they say nothing."""
    times = [_TIME.fullmatch(time.strip()) for time in (start, end)]
    if None in times:
        return None
    start_s, end_s = (3600 * int(t[1]) + 60 * int(t[2]) + int(t[3]) + int(t[4]) / 1000 for t in times if t)
    if end_s <= start_s:
        return Reject(source, "too_short", f"it begins at {start} and ends at {end}")
    if end_s - start_s > MAX_DURATION_S:
        return Reject(source, "too_long", f"{end_s - start_s:.1f} s by its times, longer than {MAX_DURATION_S:g} s")
    return None


CORPUS = Corpus(
    title="MELD",
    url="https://github.com/declare-lab/MELD",
    licence="GPL-3.0; the films belong to their owners",
    read=read,
    official={"train": 9989, "dev": 1109, "test": 2610},
    official_emotions={"neutral": 6436, "happy": 2308, "angry": 1607, "sad": 1002, "surprise": 1636},
)
