"""How fast `blsp manifest` reads the largest layouts, and what it holds in memory: a process of its own each time. And
what a clip out of a long recording costs.

    python -m tests.bench.manifest --files 20000 --segments 200000

LibriSpeech is a tree of so many FLAC files of 10 ms, 40 to a chapter. GigaSpeech is one JSON file of so many segments,
100 to a recording. MLS is a transcript of as many lines without the audio: every line is a reject. The
recording is ten minutes of noise as Opus.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from shards.audio import load_audio
from tests.bench.kill_shards import ROOT
from tests.shards.corpora.miniatures import tone

_WORDS = "SHE HAD YOUR DARK SUIT IN GREASY WASH WATER ALL YEAR"


def librispeech(root: Path, files: int) -> None:
    """The same clip under every name: as many directory entries as real ones."""
    clip = tone(root / "clip.flac", seconds=0.01).read_bytes()
    for first in range(0, files, 40):
        speaker, chapter = str(first // 400), str(1000 + first // 40)
        folder = root / "LibriSpeech" / "train-clean-100" / speaker / chapter
        folder.mkdir(parents=True)
        names = [f"{speaker}-{chapter}-{number:04d}" for number in range(min(40, files - first))]
        for name in names:
            (folder / f"{name}.flac").write_bytes(clip)
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(f"{name} {_WORDS}\n" for name in names))


def gigaspeech(root: Path, segments: int) -> None:
    """Nothing of its audio is decoded."""
    root.mkdir(parents=True)
    (root / "audio").mkdir()
    with (root / "GigaSpeech.json").open("w") as file:
        file.write('{"audios": [')
        for first in range(0, segments, 100):
            aid = f"YOU{first:010d}"
            said = [
                {
                    "sid": f"{aid}_S{number:07d}", "speaker": "N/A", "begin_time": number * 4.0,
                    "end_time": number * 4.0 + 3.87, "text_tn": f"{_WORDS} {first} {number} <PERIOD>",
                    "subsets": ["{XL}", "{L}"],
                }
                for number in range(min(100, segments - first))
            ]  # fmt: skip
            recording = {"aid": aid, "path": f"audio/{aid}.opus", "md5": "0" * 32, "url": "http://a", "segments": said}
            file.write(f"{',' if first else ''}{json.dumps(recording, indent=4)}")
            (root / "audio" / f"{aid}.opus").write_bytes(b"OggS")
        file.write("]}")


def measured(name: str, root: Path, out: Path, number: int, *, kept: bool = True) -> None:
    """Prints utterances per second and peak memory of one `blsp manifest`."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "manifest", name, str(root), str(out)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=None if kept else subprocess.DEVNULL,
    )  # fmt: skip
    _, status, used = os.wait4(process.pid, 0)
    took_s = time.monotonic() - began
    assert (status == 0) == kept
    with (out if kept else out.with_suffix(".rejects.jsonl")).open("rb") as file:
        assert sum(1 for _ in file) == number
    cpu_s = used.ru_utime + used.ru_stime
    pace = f"{took_s:.1f} s, of the processor {cpu_s:.1f} s: {number / cpu_s:,.0f} per second of it"
    print(f"{number} in {pace}, {used.ru_maxrss / 1024:.0f} MB at the most")


def mls(root: Path, lines: int) -> None:
    """A transcript without its audio."""
    folder = root / "mls_english" / "train"
    folder.mkdir(parents=True)
    with (folder / "transcripts.txt").open("w") as file:
        file.writelines(f"{number // 1000}_{number // 100}_{number:06d}\t{_WORDS}\n" for number in range(lines))


def spans(path: Path, minutes: int) -> None:
    """Prints the time of the processor for 4 s out of a long recording, at its begin and at its end."""
    noise = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 16000, 1, format="OGG", subtype="OPUS") as file:
        for _ in range(minutes):
            file.write(noise.normal(0, 0.1, 60 * 16000))
    for place, start_s in {"begin": 0.0, "end": minutes * 60 - 5.0}.items():
        began = time.process_time()
        for _ in range(20):
            load_audio(path, start_s, 4.0)
        cost_ms = (time.process_time() - began) / 20 * 1000
        print(f"4 s at the {place} of {minutes} minutes of Opus: {cost_ms:.1f} ms")


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--segments", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        spans(root / "long.opus", 10)
        librispeech(root / "one", 1)
        print("one file", end=": ")
        measured("librispeech", root / "one", root / "one.jsonl", 1)
        librispeech(root / "asr", options.files)
        print("LibriSpeech", end=": ")
        measured("librispeech", root / "asr", root / "asr.jsonl", options.files)
        gigaspeech(root / "giga", options.segments)
        size = (root / "giga" / "GigaSpeech.json").stat().st_size / 1e6
        print(f"GigaSpeech ({size:.0f} MB of JSON)", end=": ")
        measured("gigaspeech", root / "giga", root / "giga.jsonl", options.segments)
        mls(root / "gone", options.segments)
        print("MLS without its audio, all of it rejects", end=": ")
        measured("mls", root / "gone", root / "gone.jsonl", options.segments, kept=False)


if __name__ == "__main__":
    main()
