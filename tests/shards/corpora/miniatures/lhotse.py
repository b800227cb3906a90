"""lhotse's manifests, as its version 1.33 writes them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "supervisions", "one_file", "plain", "cuts_with_offsets", "mixed", "perturbed", "resampled", "one_of_two_channels",
    "file_per_channel", "url", "unknown_emotion", "missing_audio", "no_supervision", "bad_lines", "features_only",
    "no_recording", "empty_text",
)  # fmt: skip


def make(root: Path, defect: str | None = None) -> Made:
    """Two speakers in two splits, one of them in several pieces of a file."""
    for name in ("a", "b", "c"):
        tone(root / "wav" / f"{name}.wav", seconds=2.0)
    spans = {"a": [("a-1", 0.0, 0.5), ("a-2", 0.5, 1.25)], "b": [("b-1", 0.0, 2.0)]}
    cuts = {name: _cut(name, [_supervision(*span, name) for span in found]) for name, found in spans.items()}
    train, test = [cuts["a"]], [cuts["b"]]
    made = Made(root, {"a-1", "a-2", "b-1"})
    if defect == "supervisions":
        _write(root / "mini_recordings_train.jsonl.gz", [cut["recording"] for cut in (*train, *test)])
        _write(root / "mini_supervisions_train.jsonl.gz", [s for cut in (*train, *test) for s in cut["supervisions"]])
        return made
    _plant(defect, root, train, made)
    ending = ".jsonl" if defect == "plain" else ".jsonl.gz"
    _write(root / f"mini_cuts_train-clean{ending}", train)
    if defect == "bad_lines":
        with gzip.open(root / "mini_cuts_train-clean.jsonl.gz", "ab") as file:
            file.write(b"{\n\xff\n[]\n" + b'{"type": "MonoCut"}\n')
    _write(root / f"mini_cuts_test{ending}", test)
    if defect == "one_file":
        made.root, made.kept = root / f"mini_cuts_test{ending}", {"b-1"}
    return made


def _plant(defect: str | None, root: Path, train: list[dict[str, Any]], made: Made) -> None:
    cut = _cut("c", [_supervision("c-1", 0.0, 1.0, "c")])
    recording, (supervision,) = cut["recording"], cut["supervisions"]
    dropped = {
        "mixed": "unreadable", "perturbed": "unreadable", "one_of_two_channels": "unreadable", "url": "unreadable",
        "features_only": "unreadable", "unknown_emotion": "unknown_emotion", "missing_audio": "missing_audio",
        "no_supervision": "no_text", "empty_text": "no_text", "no_recording": "bad_json",
    }  # fmt: skip
    if defect == "mixed":
        cut = {"id": "m", "tracks": [{"cut": cut, "type": "MonoCut", "offset": 0.0}], "type": "MixedCut"}
    elif defect in ("perturbed", "resampled"):
        name = "Speed" if defect == "perturbed" else "Resample"
        recording["transforms"] = [{"name": name, "kwargs": {}}]
    elif defect == "one_of_two_channels":
        recording["sources"][0]["channels"] = [0, 1]
    elif defect == "file_per_channel":
        recording["sources"].insert(0, {"type": "file", "channels": [1], "source": "wav/gone.wav"})
    elif defect == "url":
        recording["sources"][0] |= {"type": "url", "source": "https://example.org/c.wav"}
    elif defect == "features_only":
        del cut["recording"]
    elif defect == "no_recording":
        cut["recording"] = {"id": "c"}
    elif defect == "unknown_emotion":
        supervision["custom"] = {"emotion": "excited"}
    elif defect == "missing_audio":
        recording["sources"][0]["source"] = "wav/gone.wav"
    elif defect == "no_supervision":
        cut["supervisions"] = []
    elif defect == "empty_text":
        del supervision["text"]
    elif defect == "cuts_with_offsets":
        cut |= {"start": 0.5, "duration": 1.0}
        supervision["start"] = -0.25  # it began before the cut
    elif defect == "bad_lines":
        made.dropped.update(bad_json=3, bad_line=1)
        return
    else:
        return
    train.append(cut)
    if defect in dropped:
        made.dropped[dropped[defect]] = 1
    else:
        made.kept.add("c-1")


def _supervision(name: str, start: float, duration: float, recording: str) -> dict[str, Any]:
    return {
        "id": name, "recording_id": recording, "start": start, "duration": duration, "channel": 0, "text": "Well?",
        "language": "English", "speaker": f"speaker-{recording}", "gender": "F", "custom": {"emotion": "happy"},
    }  # fmt: skip


def _cut(name: str, supervisions: list[dict[str, Any]]) -> dict[str, Any]:
    sources = [{"type": "file", "channels": [0], "source": f"wav/{name}.wav"}]
    recording = {
        "id": name, "sources": sources, "sampling_rate": 16000, "num_samples": 32000, "duration": 2.0,
        "channel_ids": [0],
    }  # fmt: skip
    return {
        "id": f"{name}-0", "start": 0, "duration": 2.0, "channel": 0, "supervisions": supervisions,
        "recording": recording, "type": "MonoCut",
    }  # fmt: skip


def _write(path: Path, objects: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in objects).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
