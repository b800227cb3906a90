"""What reader processes make, step after step. One that dies or hangs costs time and no clip."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_PATIENCE_S = 120.0
_LAST_WORDS_S = 10.0
_TRIES = 3


class _Lost(Exception):
    """Processes that will not give what was asked of them."""


class Loading:
    """The items of a DataLoader that is made anew when its workers are lost: `loader_from(step)` makes one whose items
    begin with those of that step."""

    def __init__(self, loader_from: Callable[[int], DataLoader[Any]]) -> None:
        self._loader_from = loader_from
        self._made: _InProcesses | Iterator[Any] | None = None
        # At exit Python sends workers a SIGTERM and waits until they end, but these do not hear it.
        atexit.register(self._end)

    def take(self, step: int, num_items: int) -> list[Any]:
        """The items of a step; steps are taken one after the other.

        Workers that die, or give nothing for two minutes, are replaced. Raises OSError when that does not help either.
        """
        for tries in range(1, _TRIES + 1):
            try:
                if self._made is None:
                    loader = self._loader_from(step)
                    self._made = _InProcesses(loader) if loader.num_workers else iter(loader)
                return [next(self._made) for _ in range(num_items)]
            except _Lost as lost:
                self._end()
                if tries == _TRIES:
                    raise OSError(
                        f"step {step + 1} or soon after: {lost}, and so did those in its place, {_TRIES} times in all; "
                        "too little memory, a store that does not answer, or a clip that ends the decoder? "
                        "data.num_workers=0 reads without them"
                    ) from None
                _log.warning("step %d: %s; others read its clips", step + 1, lost)
        raise AssertionError

    def close(self) -> None:
        """End the workers."""
        atexit.unregister(self._end)
        self._end()

    def _end(self) -> None:
        if isinstance(self._made, _InProcesses):
            self._made.end()
        self._made = None


class _InProcesses:
    """What the workers of a DataLoader give. A thread asks for it: who has read the first half of a message whose
    writer is dead or stopped waits for ever."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._made: Any = _without_handler(loader)
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._given: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._ask, daemon=True, name="readers")
        self._thread.start()

    def __next__(self) -> Any:
        self._asked.put(True)
        until_s = time.monotonic() + _PATIENCE_S
        while True:
            with contextlib.suppress(queue.Empty):
                item, error = self._given.get(timeout=_LOOK_EVERY_S)
                if error is None:
                    return item
                self._refuse_dead()
                raise error
            self._refuse_dead()
            if time.monotonic() > until_s:
                processes = ", ".join(str(worker.pid) for worker in self._made._workers)
                raise _Lost(f"reader processes ({processes}) gave nothing for {_PATIENCE_S:g} s")

    def end(self) -> None:
        """They write nothing, so they can be killed; and one that is stopped hears nothing else."""
        for worker in self._made._workers:
            worker.kill()
        # Without this end of the pipe the thread finds, once the workers are dead, that nobody writes any more.
        self._made._worker_result_queue._writer.close()
        self._asked.put(False)
        self._thread.join(_LAST_WORDS_S)
        self._made._shutdown_workers()

    def _ask(self) -> None:
        while self._asked.get():
            try:
                self._given.put((next(self._made), None))
            except BaseException as error:
                self._given.put((None, error))

    def _refuse_dead(self) -> None:
        for worker in self._made._workers:
            if worker.exitcode is not None:
                raise _Lost(f"reader process {worker.pid} was ended {_by(worker.exitcode)}") from None


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
