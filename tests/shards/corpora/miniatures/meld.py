"""MELD: tables in CSV, films in a folder per split, and the faults that are known of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.shards.corpora.miniatures import Made, tone
from tests.shards.films import write_film

DEFECTS = (
    "other_emotions", "film_missing", "zero_bytes", "times_too_long", "no_time", "films_without_row", "windows_1252",
    "short_row", "no_numbers", "table_in_its_folder", "the_folder_above", "sound_extracted", "half_a_film",
)  # fmt: skip
_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
_HEAD = '"Sr No.",Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime'
_ROWS = {
    "train": [
        '1,"also I was the point person, on it",Chandler,neutral,neutral,0,0,8,21,"00:16:16,059","00:16:17,000"',
        '2,"You’ve had your ""hands"" full.",The Interviewer,surprise,neutral,0,1,8,21,"00:16:21,940","00:16:23,442"',
    ],
    "dev": ['1,"Oh my God!",Phoebe,joy,positive,0,0,4,7,"00:20:57,256","00:20:58,049"'],
    "test": [
        '1,"Why do all you’re coffee mugs have numbers?",Mark,anger,negative,0,0,3,19,"00:14:38,127","00:14:40,000"',
        '2,Oh.,Rachel,sadness,negative,0,1,3,19,"00:14:40,378","00:14:42,000"',
    ],
}  # fmt: skip
_MORE = '3,Hey.,Joey,{emotion},neutral,{dialogue},{turn},8,21,"00:17:00,000","{end}"'
_IDS = ("train-dia0_utt0", "train-dia0_utt1", "dev-dia0_utt0", "test-dia0_utt0", "test-dia0_utt1")


def film(path: Path) -> Path:
    """A second of a tone, in stereo, with pictures."""
    return write_film(path, 0.3 * np.sin(np.arange(16000) / 10), 16000, 2)


def more(
    text: str = "Hey.", emotion: str = "joy", dialogue: object = 9, turn: object = 0, end: str = "00:17:01,5"
) -> str:
    """One more row of `train`."""
    return _MORE.format(emotion=emotion, dialogue=dialogue, turn=turn, end=end)


def make(root: Path, defect: str | None = None) -> Made:
    """Five films in three splits; the same names in each."""
    top = root / "MELD.Raw"
    tables = {split: top / f"{split}_sent_emo.csv" for split in _ROWS}
    if defect == "table_in_its_folder":
        tables["train"] = top / "train" / "train_sent_emo.csv"
    made = Made(root if defect == "the_folder_above" else top, {f"meld-{name}" for name in _IDS})
    extra, encoding = _plant(defect, made, top), "cp1252" if defect == "windows_1252" else "utf-8"
    one = film(root / "film.mp4")
    for split, rows in _ROWS.items():
        for turn in range(len(rows)):
            clip = top / _FOLDERS[split] / f"dia0_utt{turn}.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            if defect == "sound_extracted":
                tone(clip.with_suffix(".wav"))
            else:
                clip.write_bytes(one.read_bytes())
        tables[split].parent.mkdir(parents=True, exist_ok=True)
        text = "\r\n".join([_HEAD, *rows, *(extra if split == "train" else [])]) + "\r\n"
        tables[split].write_bytes(text.encode(encoding))
    if defect in ("films_without_row", "half_a_film"):
        (top / "train_splits" / "dia49_utt4.mp4").write_bytes(one.read_bytes()[:2000])
        (top / "train_splits" / "final_videos_testdia49_utt5.mp4").write_bytes(one.read_bytes())
    return made


def _plant(defect: str | None, made: Made, top: Path) -> list[str]:
    """Rows that are added to the table of `train`."""
    if defect == "other_emotions":
        made.dropped["unknown_emotion"] = 2
        return [more(emotion="fear"), more(emotion="disgust", turn=1)]
    if defect == "film_missing":
        made.dropped["missing_audio"] = 1
        return [more(dialogue=110, turn=7)]
    if defect == "zero_bytes":
        (top / "train_splits").mkdir(parents=True)
        (top / "train_splits" / "dia9_utt0.mp4").touch()
        made.dropped["empty_audio"] = 1
        return [more()]
    if defect == "times_too_long":
        made.dropped["too_long"] = 1
        return [more(end="00:21:44,100")]
    if defect == "no_time":
        made.dropped["too_short"] = 1
        return [more(end="00:17:00,000")]
    if defect in ("short_row", "no_numbers"):
        made.dropped["bad_line"] = 1
        return ["3,Hey.,Joey,joy" if defect == "short_row" else more(dialogue="nan")]
    if defect == "half_a_film":  # decoding finds that
        made.kept.add("meld-train-dia49_utt4")
        return [more(dialogue=49, turn=4)]
    return []
