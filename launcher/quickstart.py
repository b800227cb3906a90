"""The whole method in miniature, as the sequence of ordinary commands that a user would type.

Each command is printed before it runs and remembered with its time in `commands.jsonl` when it is done, so that a
quickstart that was broken off goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from cluster.lock import folder_lock
from launcher.errors import on_ctrl_c

_CHECKPOINT = Path("runs/stage2/checkpoints/step-000160")
_REPORT = "report.html"
_STOPPED = "stopped; the same command goes on from the step that was running"


@dataclass(frozen=True)
class Step:
    """One or several commands that run side by side, and what they are for."""

    phase: str
    commands: tuple[str, ...]
    kill_at: Path | None = None


def steps(seed: int) -> list[Step]:
    """Everything that happens, in order."""

    def train(recipe: str) -> str:
        return f"train {recipe} --processes 2 data.seed={seed}"

    models = (
        f"miniature llm models/llm --seed {seed}",
        f"miniature encoder manifests/asr.jsonl world/asr.marks.jsonl models/encoder --seed {seed}",
    )
    return [
        Step("synthesise speech", (f"miniature world world --seed {seed}",)),
        *(
            Step("manifests", (f"manifest jsonl world/{c}.jsonl manifests/{c}.jsonl --text raw",))
            for c in ("asr", "ser", "dev", "test")
        ),
        Step("stand-ins for pretrained models", models),
        Step("shards", ("shard mini_shard_asr",)),
        Step("shards", ("shard mini_shard_ser",)),
        Step("stage 1", (train("mini_stage1"),)),
        Step("stage 2", (train("mini_stage2"),), kill_at=_CHECKPOINT),
        Step("stage 2", (train("mini_stage2"),)),
        Step("ablations", (train("mini_multitask"),)),
        Step("ablations", (train("mini_no_stage1"),)),
        Step("evaluation", ("chat runs/stage2 world/test/m5/test-000-sad.flac",)),
        Step("evaluation", ("eval mini_eval",)),
        Step("report", (f"report evaluation runs/stage1 runs/stage2 runs/multitask runs/no_stage1 {_REPORT}",)),
    ]


def run(folder: Path, seed: int) -> None:
    """Runs what is missing of the quickstart in `folder`. Raises ValueError when a command fails, or when the folder
    belongs to a quickstart with another seed."""
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_other_seed(folder, seed)
    record = folder / "commands.jsonl"
    done = record.read_text().splitlines() if record.exists() else []
    console = Console()
    console.print(f"[bold]$ cd {folder}[/bold]", soft_wrap=True)
    with on_ctrl_c(_STOPPED), folder_lock(folder), _peak_memory() as peak:
        for number, step in enumerate(steps(seed)):
            if number < len(done):
                continue
            began_s = time.monotonic()
            _run_step(step, folder, console)
            line = {
                "command": " & ".join(f"blsp {command}" for command in step.commands),
                "seconds": round(time.monotonic() - began_s, 1),
                "phase": step.phase,
                "peak_memory_gb": round(peak[0] / 1e9, 2),
            }
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")
    _print_times([json.loads(line) for line in record.read_text().splitlines()], console)
    console.print(f"report: {(folder / _REPORT).absolute()}", soft_wrap=True)


def _refuse_other_seed(folder: Path, seed: int) -> None:
    path = folder / "seed"
    if path.exists() and path.read_text() != str(seed):
        raise ValueError(f"{folder}: began with seed {path.read_text()}, not {seed}; choose another folder")
    path.write_text(str(seed))


def _run_step(step: Step, folder: Path, console: Console) -> None:
    side_by_side = len(step.commands) > 1
    # The miniature is made for two processes on a CPU, also where there is a GPU.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    if side_by_side:
        environment["OMP_NUM_THREADS"] = "1"
    for command in step.commands:
        console.print(f"\n[bold]$ blsp {command}{' &' if side_by_side else ''}[/bold]", soft_wrap=True, highlight=False)
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "launcher", *shlex.split(c)], cwd=folder, env=environment, start_new_session=True
        )
        for c in step.commands
    ]
    try:
        if step.kill_at is not None:
            _kill_when_there(children[0], folder / step.kill_at, console)
            return
        for command, child in zip(step.commands, children, strict=True):
            if child.wait() != 0:
                raise ValueError(
                    f"blsp {command} ended with exit code {child.returncode}; mend it and start the quickstart again"
                )
    finally:
        _end(children)


def _kill_when_there(child: subprocess.Popen[bytes], checkpoint: Path, console: Console) -> None:
    """What a power cut does: SIGKILL to every process of the run, some time after a checkpoint was committed."""
    everything = psutil.Process(child.pid)
    while not checkpoint.exists():
        if child.poll() is not None:
            raise ValueError(f"training ended with exit code {child.returncode} before it wrote {checkpoint}")
        time.sleep(0.2)
    for process in [everything, *everything.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # the agent ends the ranks of a coordinator that has gone
            process.kill()
    child.wait()
    console.print(
        f"-- killed all its processes (SIGKILL) after {checkpoint.name}; the same command goes on from there --"
    )


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGINT)
    for child in children:
        child.wait()


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """The largest memory (proportional set size, bytes) that this process and its descendants held together."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def _print_times(lines: Sequence[dict[str, float | str]], console: Console) -> None:
    seconds: dict[str, float] = {}
    for line in lines:
        seconds[str(line["phase"])] = seconds.get(str(line["phase"]), 0.0) + float(line["seconds"])
    table = Table("phase", "seconds", box=None, header_style="bold")
    for phase, value in seconds.items():
        table.add_row(phase, f"{value:.0f}")
    table.add_row("[bold]all[/bold]", f"[bold]{sum(seconds.values()):.0f}[/bold]")
    console.print(table)
    console.print(f"peak memory: {max(float(line['peak_memory_gb']) for line in lines):.1f} GB")
