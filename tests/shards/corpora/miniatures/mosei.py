"""CMU-MOSEI: two films in pieces; the strengths of emotions in tables of raters, or in a .csd."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "labels_in_csd", "with_folds", "other_emotions", "ties", "no_rating", "rating_without_number", "binary_transcript",
    "no_transcript_lines", "wrong_times", "film_missing", "zero_bytes", "clip_twice", "empty_words", "past_the_end",
    "windows_text", "csd_of_other_shape", "the_folder_raw",
)  # fmt: skip
VIDEOS = ("--qXJuDtHPw", "x_")  # names begin with dashes and end in underscores
# video, clip, start, end, words, then happy, sad, anger, surprise, disgust, fear
_PIECES: list[tuple[str, int, float, float, str, tuple[float, ...]]] = [
    (VIDEOS[0], 0, 0.0, 1.25, "I see that a writer is ___ somebody.", (2, 1, 0, 0, 0, 0)),
    (VIDEOS[0], 1, 1.25, 2.5123, "It was (umm) sad.", (0, 2 / 3, 0, 1 / 3, 0, 0)),
    (VIDEOS[0], 3, 2.6, 3.9, "This is so wrong.", (0, 0, 3, 0, 1, 0)),
    (VIDEOS[1], 7, 0.5, 1.5, "Really?", (0, 0, 0, 1 / 3, 0, 0)),
    (VIDEOS[1], 8, 1.5, 3.0, "It is a film.", (0, 0, 0, 0, 0, 0)),
]
_TABLES = ("5000_batch_raw.csv", "pom_extra_sqa_mono_results.csv")
_ANSWERS = ("happiness", "sadness", "anger", "surprise", "disgust", "fear")


def make(root: Path, defect: str | None = None) -> Made:
    """Five pieces of five emotions."""
    raw = root / "Raw"
    made = Made(raw if defect == "the_folder_raw" else root, {f"mosei-{video}-{clip}" for video, clip, *_ in _PIECES})
    pieces = [*_PIECES, *_more(defect, made)]
    for video in VIDEOS:
        tone(raw / "Audio" / "Full" / "WAV_16000" / f"{video}.wav", 4.0)
        lines = [f"{v}___{clip}___{start}___{end}___{text}" for v, clip, start, end, text, _ in pieces if v == video]
        path = raw / "Transcript" / "Segmented" / "Combined" / f"{video}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", "utf-8")
    if defect in ("labels_in_csd", "csd_of_other_shape"):
        write_csd(root / "CMU_MOSEI_Labels.csd", pieces)
    else:
        _write_tables(raw / "Labels", pieces)
    _plant(defect, made, root, raw)
    return made


def _more(defect: str | None, made: Made) -> list[tuple[str, int, float, float, str, tuple[float, ...]]]:
    video = VIDEOS[1]
    if defect == "other_emotions":
        made.dropped["unknown_emotion"] = 2
        return [(video, 9, 3.0, 3.4, "Eek.", (1, 0, 0, 0, 2, 0)), (video, 10, 3.4, 3.8, "Help.", (0, 0, 0, 0, 0, 1))]
    if defect == "ties":
        made.dropped["unknown_emotion"] = 1
        return [(video, 9, 3.0, 3.4, "Oh.", (1, 1, 0, 0, 0, 0))]
    if defect == "clip_twice":
        made.dropped["duplicate_id"] = 1
        return [(video, 8, 3.0, 3.4, "Oh.", (0, 0, 0, 0, 0, 0))]
    if defect == "empty_words":
        made.dropped["no_text"] = 1
        return [(video, 9, 3.0, 3.4, "", (0, 0, 0, 0, 0, 0))]
    if defect == "wrong_times":
        made.dropped["bad_line"] = 1
        return [(video, 9, 3.4, 3.0, "Oh.", (0, 0, 0, 0, 0, 0))]
    if defect == "past_the_end":  # decoding finds that
        made.kept.add(f"mosei-{video}-9")
        return [(video, 9, 3.0, 9.0, "Oh.", (0, 0, 0, 0, 0, 0))]
    return []


def _plant(defect: str | None, made: Made, root: Path, raw: Path) -> None:
    transcripts, films = raw / "Transcript" / "Segmented" / "Combined", raw / "Audio" / "Full" / "WAV_16000"
    first = f"{transcripts}/{VIDEOS[0]}.txt"
    if defect == "with_folds":
        lists = ([VIDEOS[0]], ["zz"], [VIDEOS[1]])
        names = ("standard_train_fold", "standard_valid_fold", "standard_test_fold")
        text = "".join(f"{name}={videos!r}\n" for name, videos in zip(names, lists, strict=True))
        (root / "cmu_mosei_std_folds.py").write_text(f"raise SystemExit('nobody runs this')\n{text}")
    elif defect == "no_rating":
        with Path(first).open("a") as file:
            file.write(f"{VIDEOS[0]}___99___3.9___3.95___Nobody heard this.\n")
        made.dropped["unknown_emotion"] = 1
    elif defect == "rating_without_number":
        with (raw / "Labels" / _TABLES[0]).open("a") as file:
            file.write(f"HIT,{VIDEOS[0]},0,,0,0,0,0,0,0\nHIT,{VIDEOS[0]}\n")
        made.dropped["bad_line"] = 2
    elif defect == "binary_transcript":
        (transcripts / "bin.txt").write_bytes(bytes(range(256)))
        made.dropped["bad_line"] = 1
    elif defect == "no_transcript_lines":
        (transcripts / "digits.txt").write_text("20\n21\n")
        (transcripts / "._digits.txt").write_bytes(b"\x00\x05\x16\x07")
        made.dropped["bad_line"] = 2
    elif defect in ("film_missing", "zero_bytes"):
        film = films / f"{VIDEOS[1]}.wav"
        film.unlink() if defect == "film_missing" else film.write_bytes(b"")
        made.kept -= {f"mosei-{VIDEOS[1]}-{clip}" for clip in (7, 8)}
        made.dropped["missing_audio" if defect == "film_missing" else "empty_audio"] = 2
    elif defect == "windows_text":
        path = Path(first)
        path.write_bytes(path.read_text().replace("It was", "It’s").replace("\n", "\r\n").encode("cp1252"))
    elif defect == "csd_of_other_shape":
        with h5py.File(root / "CMU_MOSEI_Labels.csd", "a") as file:
            group = file["All Labels/data"].create_group("bad")
            group["features"], group["intervals"] = np.zeros((2, 3)), np.zeros((2, 2))
        made.dropped["bad_line"] = 1


def _write_tables(folder: Path, pieces: list[tuple[str, int, float, float, str, tuple[float, ...]]]) -> None:
    """Three raters each, whole numbers; the mean is what was asked for."""
    folder.mkdir(parents=True)
    head = "HITId,Input.VIDEO_ID,Input.CLIP," + ",".join(f"Answer.{name}" for name in _ANSWERS) + ",Answer.sentiment"
    tables: list[list[str]] = [[head], [head]]
    for number, (video, clip, _, _, _, strengths) in enumerate(pieces):
        for rater in range(3):
            given = [str((round(3 * strength) + rater) // 3) for strength in strengths]
            tables[number % 2].append(f"HIT{rater},{video},{clip},{','.join(given)},0")
    for name, lines in zip(_TABLES, tables, strict=True):
        (folder / name).write_text("\n".join(lines) + "\n")


def write_csd(path: Path, pieces: list[tuple[str, int, float, float, str, tuple[float, ...]]]) -> None:
    """As the makers' SDK."""
    with h5py.File(path, "w") as file:
        data = file.create_group("All Labels/data")
        for video in VIDEOS:
            own = [piece for piece in pieces if piece[0] == video]
            group = data.create_group(video)
            group["features"] = np.array([[0.5, *strengths] for *_, strengths in own], np.float32)
            group["intervals"] = np.array([[start + 1e-5, end] for _, _, start, end, *_ in own])
        names = json.dumps(["sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear"])
        file["All Labels/metadata/dimension names"] = np.array([names.encode()], dtype=object)
