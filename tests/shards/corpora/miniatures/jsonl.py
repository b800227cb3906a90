"""Any corpus as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "bad_lines", "missing_audio", "empty_text", "duplicate_id", "unknown_emotion", "bom_and_crlf", "lfs_pointer",
    "addresses", "bad_addresses",
)  # fmt: skip


def make(root: Path, defect: str | None = None) -> Made:
    """The authors' three fields, and a conversation."""
    rows = [
        {"audio": f"wav/{i}.flac", "text": f"Number {i}.", "emotion": emotion}
        for i, emotion in enumerate(("neutral", "happy", "angry", "sad", "surprise"))
    ]
    for row in rows:
        tone(root / row["audio"])
    turns = [{"role": "user", "audio": "wav/0.flac", "text": "Well?"}, {"role": "assistant", "text": "I see."}]
    rows.append({"id": "talk", "audio": "wav/1.flac", "text": "And now?", "messages": turns})  # type: ignore[dict-item]
    made = Made(root / "corpus.jsonl", {"talk", *(f"corpus/wav/{i}" for i in range(5))})
    lines = [json.dumps(row) for row in rows]
    if defect == "bad_lines":
        lines += ["not json", "[]", '{"text": "no audio"}', '{"audio": "wav/0.flac", "text": "x", "age": 3}']
        made.dropped["bad_json"] = 4
    elif defect == "missing_audio":
        lines.append('{"audio": "wav/gone.flac", "text": "x"}')
        lines.append('{"id": "nul", "audio": "wav/\\u0000.flac", "text": "x"}')
        made.dropped["missing_audio"] = 2
    elif defect == "empty_text":
        lines.append('{"id": "mute", "audio": "wav/0.flac", "text": " \\ufeff"}')
        made.dropped["no_text"] = 1
    elif defect == "duplicate_id":
        lines.append(lines[0])
        made.dropped["duplicate_id"] = 1
    elif defect == "unknown_emotion":
        lines.append('{"id": "bored", "audio": "wav/0.flac", "text": "x", "emotion": "bored"}')
        made.dropped["unknown_emotion"] = 1
    elif defect == "lfs_pointer":
        (root / "wav" / "pointer.flac").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        lines.append('{"audio": "wav/pointer.flac", "text": "x"}')
        made.dropped["lfs_pointer"] = 1
    elif defect == "addresses":
        lines += ['{"audio": "wav/0.flac:1600:8000", "text": "x"}', '{"audio": "wav/0.flac:0:-1", "text": "x"}']
        made.kept |= {"corpus/wav/0-1600-8000", "corpus/wav/0-0--1"}
    elif defect == "bad_addresses":
        (root / "wav" / "noise.flac").write_bytes(b"no audio")
        lines += [json.dumps({"audio": audio, "text": "x"}) for audio in ("a.zip:40:900", "wav/noise.flac:0:9")]
        lines += ['{"audio": "wav/gone.flac:0:9", "text": "x"}', '{"audio": "wav/0.flac:0:0", "text": "x"}']
        lines.append('{"audio": "wav/0.flac:0:800", "start_s": 1, "text": "x"}')
        made.dropped.update(unreadable=2, missing_audio=1, bad_json=2)
    end = "\r\n" if defect == "bom_and_crlf" else "\n"
    made.root.write_bytes((("\ufeff" if defect == "bom_and_crlf" else "") + end.join(lines) + end).encode())
    return made
