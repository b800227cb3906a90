"""ESD: folders of speakers, flat or with folders of splits, and tables in the encodings that they really have."""

from __future__ import annotations

from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "split_folders", "broken_lines", "no_line", "no_table", "foreign_files", "zero_bytes", "another_folder",
    "the_folder_above",
)  # fmt: skip
_ENCODINGS = {"0001": "gb2312", "0003": "utf-16", "0011": "utf-8", "0012": "utf-16", "0016": "latin-1"}
_EMOTIONS = ("Neutral", "Angry", "Happy", "Sad", "Surprise")
_LABELS = ("中立", "生气", "快乐", "伤心", "惊喜")
_NUMBERS = {"0001": (1, 380), "0003": (1750,), "0011": (21, 701), "0012": (1051,), "0016": (1401,)}
_SPLITS = {
    1: "evaluation",
    380: "test",
    1750: "train",
    21: "test",
    701: "evaluation",
    1051: "evaluation",
    1401: "evaluation",
}


def text_of(speaker: str, number: int) -> str:
    """What is said in a clip; Windows' quote in the table of 0016."""
    if speaker < "0011":
        return f"打远一看，它们的确很是美丽，{number}。"
    return f"That{'’' if speaker == '0016' else chr(39)}s number {number}."


def make(root: Path, defect: str | None = None) -> Made:
    """Five speakers with tables in all encodings."""
    top = root / "Emotion Speech Dataset"
    made = Made(root if defect == "the_folder_above" else top, set())
    lines: dict[str, list[str]] = {}
    for speaker, numbers in _NUMBERS.items():
        for number in numbers:
            emotion = (number - 1) // 350
            folder = top / speaker / _EMOTIONS[emotion]
            if defect == "split_folders":
                folder /= _SPLITS.get(number, "evaluation")
            name = f"{speaker}_{number:06d}"
            tone(folder / f"{name}.wav")
            label = (_LABELS if speaker < "0011" else _EMOTIONS)[emotion]
            lines.setdefault(speaker, []).append(f"{name}\t{text_of(speaker, number)}\t{label}")
            made.kept.add(f"esd-{name}")
    _plant(defect, made, top, lines)
    for speaker, found in lines.items():
        text, encoding = "\r\n".join([*found, ""]), _ENCODINGS[speaker]
        (top / speaker / f"{speaker}.txt").write_bytes(text.encode("cp1252" if encoding == "latin-1" else encoding))
    (top / "ReadMe.txt").write_text("ESD")
    return made


def _plant(defect: str | None, made: Made, top: Path, lines: dict[str, list[str]]) -> None:
    extra = top / "0012" / "Neutral" / "0012_000100.wav"
    if defect == "broken_lines":
        lines["0011"] = [line.replace("\t", " ", 1) for line in lines["0011"]]
        lines["0012"] = ["0012_000003", "", *(line.rpartition("\t")[0] for line in lines["0012"])]
    elif defect == "no_line":
        tone(extra)
        made.dropped["no_text"] = 1
    elif defect == "no_table":
        made.kept -= {"esd-0011_000021", "esd-0011_000701"}
        made.dropped["no_text"] = 2
        del lines["0011"]
    elif defect == "foreign_files":
        tone(top / "0011" / "Neutral" / "0012_000021.wav")
        tone(top / "0011" / "0011_000022.wav")
        made.dropped["unreadable"] = 2
    elif defect == "zero_bytes":
        extra.parent.mkdir()
        extra.touch()
        lines["0012"].append("0012_000100\tNothing.\tNeutral")
        made.dropped["empty_audio"] = 1
    elif defect == "another_folder":
        tone(top / "0011" / "Calm" / "0011_000022.wav")
        made.dropped["unknown_emotion"] = 1
