"""A corpus of conversations that tests make: tones as speech, some with no earlier turns and some with many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from shards.corpora.build import build_manifest
from shards.sample import EMOTIONS

FORMS = ("", "s", "w", "sws", "ss")  # of the user's earlier turns: speech, or words alone


def tone(seed: int) -> NDArray[np.int16]:
    """0.2 to 0.9 s at 16 kHz, of its own pitch."""
    random = np.random.default_rng(seed)
    seconds = np.arange(int(16000 * random.uniform(0.2, 0.9))) / 16000
    return (8000 * np.sin(2 * np.pi * random.uniform(100, 800) * seconds)).astype(np.int16)


def make_dialogues(root: Path, number: int) -> tuple[Path, list[list[NDArray[np.int16]]]]:
    """A manifest, of `dialogue-00` and so on in turn of all FORMS, and the clips of each."""
    (root / "wav").mkdir(parents=True)
    lines, clips = [], []
    for i in range(number):
        messages: list[dict[str, Any]] = []
        waves = []
        for turn, form in enumerate(FORMS[i % len(FORMS)]):
            said: dict[str, Any] = {"role": "user", "text": f"Turn {turn} of {i}"}
            if form == "s":
                waves.append(tone(100 * i + turn))
                soundfile.write(root / "wav" / f"{i}-{turn}.wav", waves[-1], 16000)
                said["audio"] = f"wav/{i}-{turn}.wav"
            messages += [said, {"role": "assistant", "text": f"Answer {turn}" + " and so on" * (i % 4)}]
        waves.append(tone(100 * i + 99))
        soundfile.write(root / "wav" / f"{i}.wav", waves[-1], 16000)
        line = {"id": f"dialogue-{i:02d}", "audio": f"wav/{i}.wav", "text": f"And {i}?", "emotion": EMOTIONS[i % 5]}
        lines.append(json.dumps({**line, "speaker": f"spk{i % 2}", **({"messages": messages} if messages else {})}))
        clips.append(waves)
    (root / "dialogues.jsonl").write_text("\n".join(lines))
    build_manifest("jsonl", root / "dialogues.jsonl", root / "manifest.jsonl", text="raw")
    return root / "manifest.jsonl", clips
