"""How far a long command is: a bar per phase on a terminal, one plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_SECONDS_BETWEEN_LINES = 5.0


def _rounded(seconds: float) -> str:
    """As people say it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


class _Unheard:
    """A stream that goes on when nobody is there to read any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As the stream does, or nothing."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream does, or nothing."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def outliving_the_terminal() -> Iterator[None]:
    """In this block no line fails because the terminal or the pipe that it goes to has gone: that ends no run by
    itself, and must not hide what does."""
    out, err = cast(TextIO, _Unheard(sys.stdout)), cast(TextIO, _Unheard(sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield


class Progress:
    """`with Progress() as progress: progress.update("clips written", 340, 1200, "3 rejected")`."""

    def __init__(self) -> None:
        self._phase = ""
        self._bars: RichProgress | None = None
        if sys.stdout.isatty():
            self._bars = RichProgress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn("[dim]{task.fields[note]}"), console=Console(file=sys.stdout),
            )  # fmt: skip

    def update(self, phase: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` in this phase; `note` is a few words, such as the loss. A new name begins a new phase."""
        if phase != self._phase:
            self._begin(phase, done, total, note)
        self._state = (done, total, note)
        if self._bars is not None:
            self._bars.update(self._bar, completed=done, total=total, note=note)
        elif time.monotonic() - self._printed_s >= _SECONDS_BETWEEN_LINES:
            self._print_line()

    def print(self, line: str) -> None:
        """A line for people to keep, above the bars where there are any."""
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def _begin(self, phase: str, done: int, total: int, note: str) -> None:
        self._end()
        self._phase = phase
        # A run that goes on from a checkpoint does not begin at 0.
        self._began_at, self._printed = done, (-1, 0, "")
        self._began_s = self._printed_s = time.monotonic()
        if self._bars is not None:
            # Not before there is something to show: the silent ranks of a run share the terminal.
            self._bars.start()
            self._bar = self._bars.add_task(phase, completed=done, total=total, note=note)

    def _end(self) -> None:
        if self._phase and self._bars is not None:
            self._bars.stop_task(self._bar)
        elif self._phase and self._state != self._printed:
            self._print_line()

    def _print_line(self) -> None:
        done, total, note = self._state
        self._printed = self._state
        self._printed_s = time.monotonic()
        elapsed_s = self._printed_s - self._began_s
        parts = [f"{self._phase}: {done}/{total}", f"{elapsed_s:.0f} s"]
        if self._began_at < done < total:
            parts.append(f"about {_rounded(elapsed_s / (done - self._began_at) * (total - done))} left")
        print(", ".join([*parts, note] if note else parts), flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._end()
            if self._bars is not None:
                self._bars.stop()
        except OSError:  # the terminal may be gone, and is not why
            if error is None:
                raise
