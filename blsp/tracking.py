"""What a run tells: every logged scalar as a line of `log.jsonl` and in TensorBoard. Rank 0 only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Opens a run's log at `start_step`: what a broken-off run logged after its last checkpoint is dropped."""

    def __init__(self, run: Path, start_step: int) -> None:
        self._path = run / "log.jsonl"
        kept = [line for line in self._lines() if json.loads(line)["step"] <= start_step]
        self._path.write_text("".join(kept))
        self._file = self._path.open("a", buffering=1)
        self._writer = SummaryWriter(run / "tensorboard", purge_step=start_step + 1)

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        # A run that was killed may have left half a line.
        return [line for line in self._path.read_text().splitlines(keepends=True) if line.endswith("}\n")]

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record the scalars of a step, counted from 1."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
        self._writer.close()
