"""How far a long command is: a bar on a terminal, one plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """`with Progress("shards", total=12, unit="clips") as progress: progress.update(3, "1 rejected")`."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._start_s = self._printed_s = time.monotonic()
        self._last = (0, "")
        self._bar: RichProgress | None = None
        if sys.stdout.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
                TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"),
                console=Console(file=sys.stdout),
            )  # fmt: skip
            self._task = self._bar.add_task(title, total=total, note="")

    def update(self, done: int, note: str = "") -> None:
        """`done` counts from the beginning of the whole, `note` is a few words such as the loss."""
        self._last = (done, note)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif time.monotonic() - self._printed_s >= _SECONDS_BETWEEN_LINES:
            self._print_line()

    def _print_line(self) -> None:
        done, note = self._last
        self._printed_s = time.monotonic()
        elapsed_s = self._printed_s - self._start_s
        parts = [f"{self.title}: {done}/{self.total} {self.unit}", f"{elapsed_s:.0f} s"]
        if 0 < done < self.total:
            parts.append(f"about {elapsed_s / done * (self.total - done):.0f} s left")
        print(", ".join([*parts, note] if note else parts), flush=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._print_line()
