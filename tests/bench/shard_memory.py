"""What `blsp shard` holds in memory: the driver per clip, a CPU actor and its decoder at the largest clips there are.

    python -m tests.bench.shard_memory --lines 1000000 --clips 64

The manifest names files that do not exist: the driver reads no audio. The clips are 30 s of noise at 48 kHz, stereo.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import soundfile

from shards.pipeline.inputs import FromManifests
from tests.bench.kill_shards import ROOT, command, environment, make_corpus

_WORKERS = {"CPU actor": "ray::_CpuActor", "decoder": "shards.decoder", "LLM's actor, without an LLM": "ray::_LlmActor"}


def scan(folder: Path, num_lines: int) -> None:
    """In this process: what a manifest of that many lines leaves, and what it takes while it is read."""
    manifest = folder / "long.jsonl"
    with manifest.open("w") as file:
        for i in range(num_lines):
            record = {"id": f"corpus-{i:09d}", "audio": f"{i}.flac", "text": "some words " * 10, "corpus": "c"}
            file.write(json.dumps({**record, "duration_s": 9.0, "speaker": f"s{i % 999}"}) + "\n")
    process, began = psutil.Process(), time.monotonic()
    before, peak_before = process.memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    inputs = FromManifests([manifest], 1000)
    kept = process.memory_info().rss - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - max(peak_before, before)
    size = manifest.stat().st_size / 1e6
    print(f"driver: {num_lines} lines ({size:.0f} MB) in {time.monotonic() - began:.1f} s; {len(inputs.tasks)} shards")
    print(f"driver: {kept / num_lines:.0f} bytes a clip are kept, {peak / num_lines:.0f} at the most meanwhile")


def work(folder: Path, num_clips: int) -> None:
    """The most that each kind of worker held (VmHWM of the kernel) while shards of the largest clips were made."""
    manifest = make_corpus(folder / "corpus", num_clips)
    noise = np.random.default_rng(0).normal(0, 0.1, (30 * 48_000, 2))
    for path in manifest.parent.glob("*.wav"):
        soundfile.write(path, noise, 48_000)
    run = subprocess.Popen(
        command(manifest, folder / "out"), env=environment(manifest), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    most: dict[str, int] = dict.fromkeys(_WORKERS, 0)
    while run.poll() is None:
        for process in psutil.Process(run.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
                for kind, mark in _WORKERS.items():
                    if line.startswith(mark) or (mark in line and "-c" in line):
                        most[kind] = max(most[kind], _peak_bytes(process.pid))
            except (psutil.Error, OSError):
                continue
        time.sleep(0.05)
    assert run.returncode == 0
    for kind, number in most.items():
        print(f"{kind}: {number / 1e6:.0f} MB")


def _peak_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--clips", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scan(Path(folder), options.lines)
        work(Path(folder), options.clips)


if __name__ == "__main__":
    sys.exit(main())
