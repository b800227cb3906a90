"""MER2023: films in four folders, tables of labels, and the transcripts of the processed release."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.shards.corpora.miniatures import Made, tone
from tests.shards.films import write_film

DEFECTS = (
    "worried", "no_line", "film_missing", "zero_bytes", "short_row", "bad_name", "chinese_encoding", "only_sound",
    "name_twice", "empty_words",
)  # fmt: skip
_CLIPS = {
    "train": ("mer2023train/train", "mer2023train/train-label.csv", ["sample_00000001", "sample_00000002"]),
    "test1": ("test1", "test-labels/test1-label.csv", ["samplenew_00000001"]),
    "test2": ("test2", "test-labels/test2-label.csv", ["samplenew_00000007"]),
    "test3": ("mer2023train/test3", "test-labels/test3-label.csv", ["sample_00000009"]),
}
_EMOTIONS = ("neutral", "happy", "angry", "sad", "surprise")


def make(root: Path, defect: str | None = None) -> Made:
    """Five clips of five emotions, .avi and .mp4."""
    made, emotions = Made(root, set()), iter(_EMOTIONS)
    words = ["name,chinese,english"]
    sound = 0.3 * np.sin(np.arange(8000) / 10)
    for split, (folder, table, names) in _CLIPS.items():
        lines = ["name,discrete" + ("" if split == "test3" else ",valence")]
        for name in names:
            lines.append(f"{name},{next(emotions)}" + ("" if split == "test3" else ",-1.5"))
            words.append(f'{name},"你好，{name}。",hello')
            made.kept.add(f"mer2023-{split}-{name}")
            if defect == "only_sound":
                tone(root / "audio" / f"{name}.wav")
            else:
                write_film(
                    root / folder / f"{name}{'.mp4' if split == 'test3' else '.avi'}", sound, 16000, pictures=False
                )
        if split == "train":
            lines += _plant(defect, made, root, words)
        (root / table).parent.mkdir(parents=True, exist_ok=True)
        (root / table).write_text("\n".join(lines) + "\n", "utf-8")
    encoding = "gb18030" if defect == "chinese_encoding" else "utf-8-sig"
    (root / "transcription.csv").write_bytes("\n".join(words).encode(encoding))
    return made


def _plant(defect: str | None, made: Made, root: Path, words: list[str]) -> list[str]:
    """Rows that are added to the labels of `train`."""
    if defect == "worried":
        made.dropped["unknown_emotion"] = 1
        return ["sample_00000005,worried,-2.0"]
    if defect == "no_line":
        made.dropped["no_text"] = 1
        return ["sample_00000005,happy,2.0"]
    if defect in ("film_missing", "zero_bytes"):
        if defect == "zero_bytes":
            (root / "mer2023train/train/sample_00000005.avi").touch()
        words.append("sample_00000005,你好,hello")
        made.dropped["missing_audio" if defect == "film_missing" else "empty_audio"] = 1
        return ["sample_00000005,happy,2.0"]
    if defect in ("short_row", "bad_name"):
        made.dropped["bad_line"] = 1
        return ["sample_00000005" if defect == "short_row" else "../sample_00000001,happy,1.0"]
    if defect == "name_twice":
        made.dropped["duplicate_id"] = 1
        return ["sample_00000001,neutral,-1.5"]
    if defect == "empty_words":
        tone(root / "mer2023train/train/sample_00000005.wav")
        words.append("sample_00000005,,")
        made.dropped["no_text"] = 1
        return ["sample_00000005,happy,2.0"]
    return []
