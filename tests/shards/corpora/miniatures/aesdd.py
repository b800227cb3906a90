"""AESDD: `anger/a03 (3).wav`, at 44.1 kHz, and the transcripts that somebody wrote for it."""

from __future__ import annotations

from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = ("other_emotions", "two_digit_speaker", "no_transcript", "bad_transcripts", "zero_bytes", "foreign_file")
_TEXTS = {
    "a03 (1)": "Το παιδί ήρθε.",
    "a06 (5)b": "Πού πάμε;",
    "h01 (4)": "Το παιδί ήρθε.",
    "s20 (6)": 'Είπε "όχι.',
}
_IDS = {"a03 (1)": "a03-1", "a06 (5)b": "a06-5b", "h01 (4)": "h01-4", "s20 (6)": "s20-6"}
_FOLDERS = {"a": "anger", "d": "disgust", "f": "fear", "h": "happiness", "s": "sadness"}


def make(root: Path, defect: str | None = None) -> Made:
    """Four speakers of all splits, the three emotions that are ours."""
    for name in _TEXTS:
        _clip(root, name)
    lines = [f"{name}\t{text}" for name, text in _TEXTS.items()]
    made = Made(root, {f"aesdd-{name}" for name in _IDS.values()})
    if defect == "other_emotions":
        _clip(root, "f10 (2)")
        _clip(root, "d03 (2)")
        made.dropped["unknown_emotion"] = 2
    elif defect == "two_digit_speaker":
        _clip(root, "h10 (01)")
        lines.append("h10 (01)\tΝαι.")
        made.kept.add("aesdd-h10-1")
    elif defect == "no_transcript":
        _clip(root, "s05 (3)")
        made.dropped["no_text"] = 1
    elif defect == "bad_transcripts":
        lines += ["a03 (1) no tab", "h01 (4)\ttoo\tmany", ""]
        made.dropped["bad_line"] = 2
    elif defect == "zero_bytes":
        _clip(root, "s05 (3)").write_bytes(b"")
        made.dropped["empty_audio"] = 1
    elif defect == "foreign_file":
        _clip(root, "a03")
        made.dropped["unreadable"] = 1
    (root / "transcripts.tsv").write_text("\n".join(lines), "utf-8")
    return made


def _clip(root: Path, name: str) -> Path:
    return tone(root / _FOLDERS[name[0]] / f"{name}.wav", seconds=0.2, rate=44100)
