"""Multilingual LibriSpeech: `mls_french/train/audio/10/20/10_20_000000.flac` beside `transcripts.txt`."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = ("opus", "both_variants", "missing_audio", "zero_bytes", "no_tab", "no_clip_name", "limited_supervision")


def make(root: Path, defect: str | None = None) -> Made:
    """One clip in each split of two languages."""
    made = Made(root, set())
    for place, language in enumerate(("french", "polish")):
        _language(root / (f"mls_{language}_opus" if defect == "opus" else f"mls_{language}"), place * 10, made)
    train = root / "mls_french" / "train"
    if defect == "both_variants":
        _language(root / "mls_french_opus", 0, made)
    elif defect == "missing_audio":
        shutil.rmtree(train / "audio")
        made.drop("mls-1_2_000000", "missing_audio")
    elif defect == "zero_bytes":
        (train / "audio" / "1" / "2" / "1_2_000000.flac").write_bytes(b"")
        made.drop("mls-1_2_000000", "empty_audio")
    elif defect == "no_tab":
        tone(train / "audio" / "1" / "2" / "1_2_000001.flac")
        _append(train / "transcripts.txt", "1_2_000001\n")
        made.dropped["no_text"] = 1
    elif defect == "no_clip_name":
        _append(train / "transcripts.txt", "../../etc/passwd\tbonjour\n")
        made.dropped["bad_line"] = 1
    elif defect == "limited_supervision":
        (train / "limited_supervision" / "9hr").mkdir(parents=True)
        (train / "limited_supervision" / "9hr" / "handles.txt").write_text("1_2_000000\n")
    return made


def _language(folder: Path, first: int, made: Made) -> None:
    opus = folder.name.endswith("_opus")
    for place, split in enumerate(("train", "dev", "test")):
        speaker = first + place + 1
        name = f"{speaker}_2_000000"
        options = {"format": "OGG", "subtype": "OPUS"} if opus else {}
        tone(folder / split / "audio" / f"{speaker}" / "2" / f"{name}.{'opus' if opus else 'flac'}", **options)
        (folder / split / "transcripts.txt").write_text(f"{name}\tvoilà łódź\n", encoding="utf-8")
        (folder / split / "segments.txt").write_text(f"{name}\thttp://archive.org/a.mp3\t1.5\t2.5\n")
        made.kept.add(f"mls-{name}")


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
