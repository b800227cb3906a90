"""The verb `replay`."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launcher import start
from launcher.progress import Progress
from launcher.quiet import silence_libraries

_SHOWN = 12


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.4f}"


def replay(run: Path, step: int, out: Path | None) -> None:
    """Runs one past step again and says what was in it."""
    os.environ.update(start.environment(processes=1))
    silence_libraries()
    from blsp.past_step import replay_step

    out = out or Path("replays") / run.name / f"step-{step:06d}"
    with Progress() as progress:
        past = replay_step(run, step, out, lambda done, total, note: progress.update("steps again", done, step, note))
    table = Table("clip", "micro-batch", "seconds", "loss", box=None, header_style="bold")
    for clip in past.clips[:_SHOWN]:
        table.add_row(clip["id"], str(clip["micro_batch"]), f"{clip['seconds']:.1f}", _loss(clip["loss"]))
    Console().print(table)
    logged = past.logged
    print(f"step {step}, reached from {past.since}: loss {past.loss:.6g}, gradient norm {past.grad_norm:.6g}")
    if "loss" in logged:
        norm = f"gradient norm {logged['grad_norm']:.6g}" if "grad_norm" in logged else "the step itself was left out"
        print(f"logged: loss {logged['loss']:.6g}, {norm}")
    print(out)
