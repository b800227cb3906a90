"""Signals that ask a rank to stop: the first is noted and acted upon where the work can be saved, a second ends the
process at once.

SIGINT is a person's, SIGTERM and SIGUSR1 a scheduler's. Python calls a handler only between two bytecodes, and a rank
may be deep in a collective that will never end; so a thread hears of every signal too.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal

from cluster.exit_codes import ExitCode

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

_ECHO_S = 2.0  # launchers and schedulers that reach a rank in two ways do so twice
_GRACE_S = 2.0  # for a process that ends at once to tidy up
_PR_SET_PDEATHSIG = 1  # of Linux' prctl


class Stopped(KeyboardInterrupt):
    """The process was told to stop, and does; `exit_code` says how."""

    def __init__(self, sentence: str, exit_code: ExitCode) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def meaning_of(asked: int, asked_at_s: float, number: int, now_s: float) -> Literal["first", "echo", "second"]:
    """What a signal says to who was `asked` to stop by another one at `asked_at_s` (0: by none). A "first" one asks,
    an "echo" says nothing new, a "second" one wants the end at once."""
    if not asked:
        return "first"
    if number != signal.SIGINT and now_s - asked_at_s < _ECHO_S:
        return "echo"
    # a warning, and what it warned of
    return "first" if number == signal.SIGTERM and asked == signal.SIGUSR1 else "second"


class StopSignals:
    """What signals this process got; `stop_signals` makes one."""

    def __init__(self) -> None:
        self.asked = 0  # the signal that asks for a stop where all is saved
        self.patient = False  # whether a first signal is noted; else it ends the process at once
        self._asked_at_s = 0.0
        self._at_once: Stopped | None = None
        self._lock = threading.RLock()  # a handler may interrupt another
        self._told, self._tells = socket.socketpair()
        self._forced: threading.Timer | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """In this block the first signal is only noted, in `asked`."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False

    def listen(self) -> None:
        """What the thread does: hear of signals while no bytecode runs in the main thread."""
        while select.select([self._told], [], [])[0]:
            if not self._hear():
                self._told.close()
                return

    def close(self, *, process_ends: bool) -> None:
        """The thread ends. Unless `process_ends`, one that was to end at once goes on."""
        if self._forced is not None and not process_ends:
            self._forced.cancel()
        self._tells.close()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Python's handler, in the main thread. Raises Stopped when the process ends at once."""
        self._hear()
        if self._at_once is not None:
            raise self._at_once

    def wake_fd(self) -> int:
        """Where Python writes the number of each signal at the moment that it comes."""
        self._told.setblocking(False)
        self._tells.setblocking(False)
        return self._tells.fileno()

    def _hear(self) -> bool:
        """Judge the signals that came since; False when no more can come."""
        with self._lock:
            try:
                numbers = self._told.recv(1024)
            except BlockingIOError:
                return True
            for number in numbers:
                if number in STOP_SIGNALS:  # torch listens to SIGCHLD in the same way
                    self._judge(number, time.monotonic())
            return bool(numbers)

    def _judge(self, number: int, now_s: float) -> None:
        if self._at_once is not None:
            return
        if not self.asked and not self.patient:
            self._end(number)
            return
        meaning = meaning_of(self.asked, self._asked_at_s, number, now_s)
        if meaning == "first":
            self.asked, self._asked_at_s = number, now_s
        elif meaning == "second":
            self._end(number)

    def _end(self, number: int) -> None:
        code = ExitCode.CTRL_C if number == signal.SIGINT else ExitCode.AT_ONCE
        name = signal.Signals(number).name
        sentence = f"ended at once by {name}; the same command goes on from the newest checkpoint"
        self._at_once = Stopped(sentence, code)
        self._forced = threading.Timer(_GRACE_S, _leave, [sentence, code])
        self._forced.daemon = True
        self._forced.start()


def _leave(sentence: str, code: ExitCode) -> None:
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    with suppress(OSError, ValueError):
        os.write(2, f"{show_cursor}blsp: {sentence}\n".encode())
    os._exit(code)


_active: StopSignals | None = None


@contextmanager
def stop_signals(*, process_ends: bool = False) -> Iterator[StopSignals]:
    """Listen to SIGINT, SIGTERM and SIGUSR1 in this block, in the main thread; inside another such block that one
    goes on. A signal outside of `noted`, and a second one, ends the process at once: Stopped is raised as soon as
    Python gets to it, and two seconds later the process is left wherever it is; also behind the block, if the
    `process_ends` there.

    No second one are a SIGTERM or SIGUSR1 up to two seconds after the first, which launchers pass on, and a first
    SIGTERM after SIGUSR1, of which that has warned.
    """
    global _active
    if _active is not None:
        yield _active
        return
    signals = _active = StopSignals()
    woken_before = signal.set_wakeup_fd(signals.wake_fd(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, signals.handle) for number in STOP_SIGNALS}
    threading.Thread(target=signals.listen, daemon=True, name="signals").start()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken_before)
        _active = None
        signals.close(process_ends=process_ends)


def outlive_signals() -> None:
    """For a process that works for a rank: it hears none of these signals, which launchers send to every process of a
    run, because the rank needs it until all is saved; and the kernel ends it with the rank."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError, AttributeError):  # where there is no such call, torch's own look every 5 s must do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _forget_in_child() -> None:
    if _active is not None:  # or the child's signals would be taken for those of its parent
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_forget_in_child)
