"""EmoDB: `wav/03a01Fa.wav`."""

from __future__ import annotations

from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = ("other_emotions", "foreign_file", "zero_bytes")


def make(root: Path, defect: str | None = None) -> Made:
    """Four speakers, all four emotions that are ours."""
    names = ("03a01Fa", "08a05Nc", "09b02Td", "16b10Wb", "03b01Nb")
    for name in names:
        tone(root / "wav" / f"{name}.wav")
    made = Made(root, {f"emodb-{name}" for name in names})
    if defect == "other_emotions":
        for name in ("03a01Aa", "03a01Ea", "03a01La"):
            tone(root / "wav" / f"{name}.wav")
        made.dropped["unknown_emotion"] = 3
    elif defect == "foreign_file":
        tone(root / "wav" / "03a09Na.wav")  # there is no such sentence
        made.dropped["unreadable"] = 1
    elif defect == "zero_bytes":
        (root / "wav" / "03a02Fa.wav").touch()
        made.dropped["empty_audio"] = 1
    return made
