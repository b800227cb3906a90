"""What reader processes make, step after step. One that dies or hangs costs time and no clip."""

from __future__ import annotations

import atexit
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0  # how often a loader with workers is to give way: its `timeout`
_PATIENCE_S = 120.0
_TRIES = 3


class _Lost(Exception):
    """Processes that will not give what was asked of them."""


class Loading:
    """The items of a DataLoader that is made anew when its workers are lost: `loader_from(step)` makes one whose items
    begin with those of that step."""

    def __init__(self, loader_from: Callable[[int], DataLoader[Any]]) -> None:
        self._loader_from = loader_from
        self._made: Iterator[Any] | None = None
        # At exit Python sends workers a SIGTERM and waits until they end, but these do not hear it.
        atexit.register(self._end)

    def take(self, step: int, num_items: int) -> list[Any]:
        """The items of a step; steps are taken one after the other.

        Workers that die, or give nothing for two minutes, are replaced. Raises OSError when that does not help either.
        """
        for tries in range(1, _TRIES + 1):
            try:
                if self._made is None:
                    self._made = _without_handler(self._loader_from(step))
                return [self._next() for _ in range(num_items)]
            except _Lost as lost:
                self._end()
                if tries == _TRIES:
                    raise OSError(
                        f"step {step + 1}: {lost}, and so did those in its place, {_TRIES} times in all; too little "
                        "memory, a store that does not answer, or a clip that ends the decoder? data.num_workers=0 "
                        "reads without them"
                    ) from None
                _log.warning("step %d: %s; others read its clips", step + 1, lost)
        raise AssertionError

    def close(self) -> None:
        """End the workers."""
        atexit.unregister(self._end)
        self._end()

    def _next(self) -> Any:
        assert self._made is not None
        until_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return next(self._made)
            except RuntimeError as error:
                workers = getattr(self._made, "_workers", [])
                died = [worker for worker in workers if worker.exitcode is not None]
                if died:
                    raise _Lost(f"reader process {died[0].pid} was ended {_by(died[0].exitcode)}") from None
                if "timed out" not in str(error):
                    raise
                if time.monotonic() > until_s:
                    processes = ", ".join(str(worker.pid) for worker in workers)
                    raise _Lost(f"reader processes ({processes}) gave nothing for {_PATIENCE_S:.0f} s") from None

    def _end(self) -> None:
        made, self._made = self._made, None
        for worker in getattr(made, "_workers", []):
            worker.kill()  # they write nothing; and one that is stopped hears nothing else
        shut_down = getattr(made, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()


def _by(exit_code: int) -> str:
    if exit_code >= 0:
        return f"with exit code {exit_code}"
    with contextlib.suppress(ValueError):
        return f"by {signal.Signals(-exit_code).name}"
    return f"by signal {-exit_code}"


def _without_handler(loader: DataLoader[Any]) -> Iterator[Any]:
    """Its iterator. torch's handler of SIGCHLD would raise a worker's end anywhere in the training thread, also in the
    middle of an optimizer's step."""
    before = signal.getsignal(signal.SIGCHLD)
    made = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return made
