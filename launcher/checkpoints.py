"""The verbs under `checkpoint`: `ls`, `verify`, `prune`. None of them needs torch."""

from __future__ import annotations

import time
from pathlib import Path

from blsp.checkpoint_folder import best_of, committed, damage, num_bytes, read_state, remove, step_of
from cluster.owner import owned
from launcher.errors import on_ctrl_c


def show(run: Path) -> None:
    """Prints a table, the oldest first; what is wrong with one, as far as sizes tell."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    right = {"justify": "right"}
    table = Table(
        Column("step", **right), "saved", Column("MB", **right), Column("ranks", **right), "files",  # type: ignore[arg-type]
        box=None, header_style="bold",
    )  # fmt: skip
    for checkpoint in _all(run):
        problem = damage(checkpoint, every_byte=False)
        saved, ranks = "", ""
        try:
            state = read_state(checkpoint)
            saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.saved_at_s)) if state.saved_at_s else ""
            ranks = str(state.world_size)
        except ValueError as error:
            problem = problem or str(error)
        size = f"{num_bytes(checkpoint) / 1e6:,.1f}"
        table.add_row(str(step_of(checkpoint)), saved, size, ranks, escape(problem or "all there, of the right sizes"))
    Console().print(table)


def verify(run: Path) -> int:
    """Prints a line per checkpoint once every byte of it was read. Returns the exit code."""
    damaged = 0
    with on_ctrl_c("stopped; nothing was changed"):
        for checkpoint in _all(run):
            problem = damage(checkpoint)
            damaged += problem is not None
            print(f"{checkpoint}: {problem or 'intact'}", flush=True)
    return 1 if damaged else 0


def prune(run: Path, keep: int) -> None:
    """Deletes all but the newest `keep` that are intact and that of the best validation, and says which; first it reads
    those that stay. Raises ValueError beside a training run, which prunes for itself."""
    _all(run)  # no claim in a folder that is no run's
    with on_ctrl_c("stopped; what was not named is still there"), owned(run) as owner:
        checkpoints = _all(run)
        intact = [checkpoint for checkpoint in reversed(checkpoints) if damage(checkpoint) is None][:keep]
        if not intact:
            raise ValueError(
                f"{run}: none of its checkpoints is intact, so none was deleted; `blsp checkpoint verify` says more"
            )
        best = best_of(checkpoints)
        for checkpoint in checkpoints:
            if checkpoint not in intact and checkpoint != best:
                owner.check()
                print(f"{checkpoint}: deleted ({num_bytes(checkpoint) / 1e6:,.1f} MB)", flush=True)
                remove(checkpoint)
    print(f"{run}: kept {', '.join(checkpoint.name for checkpoint in checkpoints if checkpoint.exists())}")


def _all(run: Path) -> list[Path]:
    checkpoints = committed(run / "checkpoints")
    if not checkpoints:
        raise ValueError(f"{run}: no checkpoints here; give the run folder, as the recipe's `run` names it")
    return checkpoints
