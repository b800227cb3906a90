"""AISHELL-1: `data_aishell/wav/train/S0002/BAC009S0002W0122.wav` and one transcript for all."""

from __future__ import annotations

import tarfile
from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = ("clip_without_line", "line_without_clip", "packed_speaker", "zero_bytes", "full_width_letters", "line_twice")
SPEAKERS = {"train": "S0002", "dev": "S0724", "test": "S0764"}


def make(root: Path, defect: str | None = None) -> Made:
    """Two clips by one speaker in each split."""
    folder = root / "data_aishell"
    lines = []
    for split, speaker in SPEAKERS.items():
        for number in range(2):
            name = f"BAC009{speaker}W012{number}"
            tone(folder / "wav" / split / speaker / f"{name}.wav")
            lines.append(f"{name} 而 对 楼市 成交 抑制 作用 最 大 的 限购")
    made = Made(root, {f"aishell-{line.split()[0]}" for line in lines})
    if defect == "clip_without_line":
        made.drop(f"aishell-{lines.pop().split()[0]}", "no_text")
    elif defect == "line_without_clip":
        lines.append("BAC009S0002W0999 天 气")
        made.dropped["missing_audio"] = 1
    elif defect == "packed_speaker":
        lines.append("BAC009S0003W0121 天 气")
        clip = tone(root / "BAC009S0003W0121.wav")
        with tarfile.open(folder / "wav" / "S0003.tar.gz", "w:gz") as archive:
            archive.add(clip, "train/S0003/BAC009S0003W0121.wav")
        made.dropped["missing_audio"] = 1
    elif defect == "zero_bytes":
        (folder / "wav" / "dev" / "S0724" / "BAC009S0724W0120.wav").write_bytes(b"")
        made.drop("aishell-BAC009S0724W0120", "empty_audio")
    elif defect == "full_width_letters":
        lines[0] = "BAC009S0002W0120 ｋ 歌 和 ｔ 恤"
    elif defect == "line_twice":
        lines.append(lines[0])
        made.dropped["duplicate_id"] = 1
    (folder / "transcript").mkdir(parents=True, exist_ok=True)
    (folder / "transcript" / "aishell_transcript_v0.8.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return made
