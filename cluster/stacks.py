"""Where a process is that does not get on: the stacks of all its threads, written down by a signal."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def stacks_on_signal(path: Path) -> Iterator[None]:
    """In this block SIGUSR2 appends the stacks of all threads to `path`, whatever the process waits for: no Python code
    has to run for it. Raises OSError when the file cannot be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        faulthandler.register(signal.SIGUSR2, file=file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(signal.SIGUSR2)
