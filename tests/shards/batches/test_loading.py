"""Real worker processes that die, hang, or fail."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from shards.batches import loading
from shards.batches.loading import Loading

STEPS, PER_STEP = 6, 3


LONG = bytes(2**20)  # more than a pipe holds: a worker is mostly in the middle of writing


class Numbers(Dataset[tuple[int, bytes]]):
    """Item i is i, and what `meet` does in the worker that makes it."""

    def __init__(self, first: int, meet: Callable[[int], object]) -> None:
        self._first, self._meet = first, meet

    def __len__(self) -> int:
        return STEPS * PER_STEP - self._first

    def __getitem__(self, item: int) -> tuple[int, bytes]:
        self._meet(self._first + item)
        return self._first + item, LONG


def make(meet: Callable[[int], object] = lambda item: None) -> Loading:
    def loader_from(step: int) -> DataLoader[tuple[int, bytes]]:
        return DataLoader(
            Numbers(step * PER_STEP, meet), batch_size=None, num_workers=2, multiprocessing_context="fork",
            worker_init_fn=lambda worker: signal.signal(signal.SIGTERM, signal.SIG_IGN), shuffle=False,
        )  # fmt: skip

    return Loading(loader_from)


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def taken(loads: Loading, steps: range) -> list[int]:
    return [item for step in steps for item, _ in loads.take(step, PER_STEP)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loading, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(loading, "_LOOK_EVERY_S", 0.1)
    before = {child.pid for child in workers()}
    yield
    assert {child.pid for child in workers()} == before


def test_workers_that_are_killed_are_named_and_replaced_and_no_item_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = {child.pid for child in workers()}
    with closing(make()) as loads:
        items = taken(loads, range(2))
        killed = [child for child in workers() if child.pid not in before]
        assert len(killed) == 2
        for child in killed:
            child.kill()
        until_s = time.monotonic() + 0.3
        while time.monotonic() < until_s:  # nothing is raised in the training thread
            pass
        items += taken(loads, range(2, STEPS))
    assert items == list(range(STEPS * PER_STEP))
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "was ended by SIGKILL; others read its clips" in message
    assert any(str(child.pid) in message for child in killed)


def test_workers_that_hang_are_named_and_replaced_and_no_item_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    before = {child.pid for child in workers()}
    with closing(make()) as loads:
        items = taken(loads, range(1))
        stopped = [child for child in workers() if child.pid not in before]
        for child in stopped:
            child.send_signal(signal.SIGSTOP)
        began_s = time.monotonic()
        items += taken(loads, range(1, STEPS))
        assert time.monotonic() - began_s < 10
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in stopped)
    assert items == list(range(STEPS * PER_STEP))
    (message,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "gave nothing for" in message
    assert all(str(child.pid) in message for child in stopped)


def test_workers_that_die_of_the_same_item_again_and_again_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    def die(item: int) -> None:
        if item == 7:
            os.kill(os.getpid(), signal.SIGSEGV)

    # They read ahead: what was read before that item dies with them.
    with (
        closing(make(die)) as loads,
        pytest.raises(OSError, match=r"by SIGSEGV, and so did those in its") as end,
    ):
        taken(loads, range(STEPS))
    assert re.match(r"step [123] or soon after: reader process \d+ was", str(end.value))
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) >= 2


def test_an_error_in_a_worker_is_no_lost_worker() -> None:
    def fail(item: int) -> None:
        if item == 1:
            raise RuntimeError("a bug")

    with closing(make(fail)) as loads, pytest.raises(RuntimeError, match="a bug"):
        loads.take(0, PER_STEP)


ENDS = """
import signal, psutil
from tests.shards.batches.test_loading import make
loads = make()
loads.take(0, 1)
for child in psutil.Process().children():
    child.send_signal(signal.SIGSTOP)
print("stopped")
"""


@pytest.mark.slow
def test_a_process_can_end_while_its_workers_hang() -> None:
    began_s = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", ENDS], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "stopped\n", "")
    assert time.monotonic() - began_s < 30
