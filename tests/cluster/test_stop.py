"""Real processes and real signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

INT, TERM, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1

# Says what was asked for, ten times a second, in a block where a first signal is only noted.
NOTING = (
    "import time\n"
    "with stop_signals() as signals, signals.noted():\n"
    "    while True: print(signals.asked, flush=True); time.sleep(0.1)\n"
)
# The main thread waits in C for ever, where Python calls no handler: for a lock that it has itself.
DEAF = (
    "import ctypes\n"
    "lock = ctypes.create_string_buffer(64)\n"
    "with stop_signals() as signals, signals.noted():\n"
    "    print('deaf', flush=True)\n"
    "    while True: ctypes.CDLL(None).pthread_mutex_lock(lock)\n"
)
STARTING = "import time\nwith stop_signals():\n    print('up', flush=True); time.sleep(60)\n"


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code`, and has printed its first line."""
    code = f"from cluster.stop import outlive_signals, stop_signals\n{code}"
    with subprocess.Popen([sys.executable, "-c", code], text=True, stdout=-1, stderr=-1) as started:
        try:
            assert started.stdout is not None
            started.stdout.readline()
            yield started
        finally:
            started.kill()


def told(started: subprocess.Popen[str]) -> int:
    """The next line it says, after a signal just sent has come."""
    assert started.stdout is not None
    time.sleep(0.15)
    lines = [started.stdout.readline() for _ in range(4)]
    return int(lines[-1])


def ended(started: subprocess.Popen[str], within_s: float) -> tuple[int, str]:
    """Exit code and last words."""
    _, said = started.communicate(timeout=within_s)
    return started.returncode, said.splitlines()[-1] if said else ""


def test_a_first_signal_is_noted_and_what_launchers_add_to_it_changes_nothing() -> None:
    with process(NOTING) as started:
        started.send_signal(USR1)
        assert told(started) == USR1
        started.send_signal(TERM)  # what SIGUSR1 warned of
        for echo in (TERM, USR1):  # and what launchers pass on
            started.send_signal(echo)
        assert told(started) in (USR1, TERM)
        started.send_signal(INT)
        code, said = ended(started, within_s=2)
    assert code != 0
    assert said.startswith("cluster.stop.Stopped: ended at once by SIGINT; the same command goes on from")


@pytest.mark.slow
@pytest.mark.parametrize(("second", "expected"), [(INT, 130), (USR1, 143)])
def test_a_second_signal_ends_a_process_that_is_deep_in_c(second: signal.Signals, expected: int) -> None:
    with process(DEAF) as started:
        started.send_signal(TERM)
        time.sleep(0.1 if second == INT else 2.2)
        assert started.poll() is None
        started.send_signal(second)
        code, said = ended(started, within_s=4)
    assert (code, said.split(";")[0]) == (expected, f"blsp: ended at once by {second.name}")


def test_before_anything_can_be_saved_the_first_signal_ends_the_process() -> None:
    with process(STARTING) as started:
        started.send_signal(TERM)
        assert "ended at once by SIGTERM" in ended(started, within_s=2)[1]


CHILD = (
    "import os, time\n"
    "with stop_signals() as signals, signals.noted():\n"
    "    if (child := os.fork()) == 0: {in_child}; print(os.getpid(), flush=True); time.sleep(60)\n"
    "    while True: time.sleep(0.1); print(signals.asked, flush=True)\n"
)


@pytest.mark.parametrize("in_child", ["pass", "outlive_signals()"])
def test_a_signal_to_a_child_is_not_its_parents_and_a_worker_outlives_it(in_child: str) -> None:
    with process(CHILD.format(in_child=in_child)) as started:
        (child,) = psutil.Process(started.pid).children()
        child.send_signal(TERM)
        assert told(started) == 0
        assert child.is_running()
        child.kill()


def test_a_worker_ends_with_its_process_whatever_ends_that() -> None:
    with process(CHILD.format(in_child="outlive_signals()")) as started:
        (child,) = psutil.Process(started.pid).children()
        started.kill()
        until_s = time.monotonic() + 2
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until_s
            time.sleep(0.01)
