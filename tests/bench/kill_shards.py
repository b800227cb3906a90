"""Ends processes of `blsp shard` with SIGKILL at random points, runs the same command again, and compares the sets.

    python -m tests.bench.kill_shards --kills 20 --seed 1

Each round is a new folder. The victim is a CPU actor, the driver, the raylet, the LLM's actor or a decoder, in turn;
the moment is drawn. Among the clips are files that cannot be used, and one that crashes the decoder's process each
time. The words are an echo: what is killed is the pipeline. Prints a table for docs/results.md; exit code 1 when a set
is not, byte by byte, the one that nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import soundfile

from shards.sample import EMOTIONS

ROOT = Path(__file__).parents[2]
VICTIMS = ("cpu actor", "driver", "raylet", "llm actor", "decoder")
_NAMES = {"cpu actor": "ray::_CpuActor", "llm actor": "ray::_LlmActor"}
CLIPS_PER_SHARD = 8

# Every process that starts with this on PYTHONPATH has a decoder that one file crashes.
_SITECUSTOMIZE = """
import ctypes, os, sys

def crash_on_marked_files():
    import soundfile
    init = soundfile.SoundFile.__init__

    def crash_or_init(self, file, *args, **options):
        if isinstance(file, int) and "segfault" in os.readlink(f"/proc/self/fd/{file}"):
            ctypes.string_at(0)
        init(self, file, *args, **options)

    soundfile.SoundFile.__init__ = crash_or_init

if "-c" in sys.orig_argv:  # the decoder's process; Ray's own start faster without
    crash_on_marked_files()
"""


def make_corpus(folder: Path, num_clips: int) -> Path:
    """A manifest of `num_clips` tones, of which a few cannot be used; returns its path."""
    folder.mkdir(parents=True)
    (folder / "llm").mkdir()
    (folder / "llm" / "config.json").write_text("{}")
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    draw = np.random.default_rng(5)
    lines = []
    for i in range(num_clips):
        path = folder / f"{i:04d}{'-segfault' if i == 11 else ''}.wav"
        tone = 0.3 * np.sin(np.arange(int(draw.uniform(8000, 64000))) * draw.uniform(0.05, 0.2))
        soundfile.write(path, tone + draw.normal(0, 0.01, len(tone)), 16000)
        if i % 37 == 5:
            path.write_bytes(path.read_bytes()[: 200 if i % 2 else 0])
        record = {
            "id": f"clip-{i:04d}", "audio": path.name, "corpus": f"c{i % 2}",
            "text": f"Sentence {i}." if i % 29 else " ",
            "emotion": EMOTIONS[i % 5], "speaker": f"s{i % 7}",
        }  # fmt: skip
        lines.append(json.dumps(record))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder / "manifest.jsonl"


def command(manifest: Path, out: Path, actors: int = 2, *, lock: bool = True) -> list[str]:
    """What makes the set: `main_of_driver` below, in a process of its own."""
    options = [] if lock else ["--no-lock"]
    return [sys.executable, "-m", "tests.bench.kill_shards", "drive", str(manifest), str(out), str(actors), *options]


def environment(manifest: Path) -> dict[str, str]:
    """In which the decoder crashes where it should."""
    return {**os.environ, "PYTHONPATH": f"{manifest.parent}{os.pathsep}{ROOT}"}


def main_of_driver(arguments: Sequence[str]) -> int:
    """As `blsp shard`, with an echo for an LLM."""
    from launcher.errors import exit_code_of
    from shards.pipeline import run as pipeline
    from shards.pipeline.job import Progress, ShardJob
    from shards.sample import Continuation

    manifest, out, actors = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    job = ShardJob(
        manifests=(manifest,), out=out, llm=str(manifest.parent / "llm"), prompt="continue_emotion",
        clips_per_shard=CLIPS_PER_SHARD, cpu_actors=actors,
    )  # fmt: skip

    def load(_: ShardJob) -> object:
        class Echo:  # here, so that Ray's workers get it by value
            name = "echo"
            template = None

            def write(self, asked: Sequence[object]) -> list[Continuation]:
                time.sleep(0.15)
                return [
                    Continuation(prompt="continue_emotion", text=f"and {q.text}", finished=True, writer="echo")  # type: ignore[attr-defined]
                    for q in asked
                ]

        return Echo()

    def tell(state: Progress) -> None:
        print(f"{state.done}/{state.total}", flush=True)

    lock = (
        nullcontext()
        if "--no-lock" not in arguments
        else mock.patch("shards.sets.store.folder_lock", lambda _: nullcontext())
    )
    with lock:
        return exit_code_of(lambda: _none(pipeline.write_shards(job, tell, load)), debug=False)


def _none(_: object) -> None:
    """`exit_code_of` takes what has no result."""


def content(out: Path) -> dict[str, str]:
    """The hash of every file that the set consists of."""
    names = ("shards/*", "index/*", "commits/*", "rejects/*", "dataset.json", "job.json")
    paths = sorted(path for name in names for path in out.glob(name))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@dataclass(frozen=True)
class Round:
    """A kill and what came of it: shards committed when it came, how the command ended, and the set after the same
    command was run again."""

    victim: str
    shards_before: int
    exit_code: int
    said: str
    runs: int
    seconds: float
    identical: bool


def kill_once(
    manifest: Path, out: Path, victim: str, after_commits: int, wait_s: float, expected: dict[str, str]
) -> Round:
    """One round in the new folder `out`: the kill comes `wait_s` after `after_commits` shards are there."""
    began = time.monotonic()
    run = subprocess.Popen(
        command(manifest, out), env=environment(manifest), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _wait_until(lambda: len(list(out.glob("commits/0*.json"))) >= after_commits or run.poll() is not None)
        time.sleep(wait_s)
        _wait_until(lambda: _kill(run, victim) or _is_over(run))
        before = len(list(out.glob("commits/0*.json")))
        output = run.communicate(timeout=120)[0]
    finally:
        run.kill()
    last, code, runs = (output.strip().splitlines() or [""])[-1], run.returncode, 1
    while runs < 4:
        again = subprocess.run(
            command(manifest, out), env=environment(manifest), cwd=ROOT, text=True, capture_output=True, timeout=120
        )
        runs += 1
        if again.returncode == 0:
            break
    return Round(victim, before, code, last, runs, time.monotonic() - began, content(out) == expected)


def _wait_until(condition: object) -> None:
    deadline = time.monotonic() + 120
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the pipeline makes no progress"
        time.sleep(0.005)


def _is_over(run: subprocess.Popen[str]) -> bool:
    assert run.poll() is None, "the run was over before anything was killed"
    return False


def _kill(run: subprocess.Popen[str], victim: str) -> bool:
    """SIGKILL to one process of that kind; whether there was one."""
    if victim == "driver":
        run.kill()
        return True
    try:
        for process in psutil.Process(run.pid).children(recursive=True):
            if _is(process, victim):
                process.kill()
                return True
    except psutil.NoSuchProcess:
        pass
    return False


def _is(process: psutil.Process, victim: str) -> bool:
    line = process.cmdline()
    if victim == "decoder":
        return any("shards.decoder" in word for word in line)
    return process.name() == "raylet" if victim == "raylet" else line[:1] != [] and line[0].startswith(_NAMES[victim])


def make_expected(manifest: Path, out: Path) -> dict[str, str]:
    """The set that one actor makes and nobody disturbs."""
    subprocess.run(
        command(manifest, out, 1), env=environment(manifest), cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
    return content(out)


def main() -> int:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=240)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = make_corpus(Path(scratch) / "corpus", options.clips)
        expected = make_expected(manifest, Path(scratch) / "whole")
        shards = -(-options.clips // CLIPS_PER_SHARD)
        rounds = []
        print("| killed | after | the command ended with | runs to the end | same set |\n|---|---|---|---|---|")
        for number in range(options.kills):
            after, wait_s = draw.randrange(0, shards - 1), draw.uniform(0, 0.2)
            victim = VICTIMS[number % len(VICTIMS)]
            done = kill_once(manifest, Path(scratch) / f"round-{number}", victim, after, wait_s, expected)
            rounds.append(done)
            ended = f"{done.exit_code}: {done.said}" if done.exit_code not in (0, -9) else str(done.exit_code)
            same = "yes" if done.identical else "**no**"
            print(
                f"| {victim} | {done.shards_before} of {shards} shards | {ended} | {done.runs} | {same} |", flush=True
            )
    same = sum(done.identical for done in rounds)
    seconds = sum(done.seconds for done in rounds)
    equal = f"{same} of {len(rounds)} sets are, byte by byte, the undisturbed one"
    print(f"\n{equal} ({len(expected)} files each); {seconds:.0f} s.")
    return 0 if same == len(rounds) else 1


if __name__ == "__main__":
    sys.exit(main_of_driver(sys.argv[2:]) if sys.argv[1:2] == ["drive"] else main())
