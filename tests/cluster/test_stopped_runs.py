"""A run that is told to stop: its ranks listen as those of a training do, and save for a while."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.cluster.standin import started

INT, TERM, HUP, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1
# SAVING is what a rank does between the signal and its good end.
SAVES = """
from cluster.stop import stop_signals
with stop_signals(process_ends=True) as signals, signals.noted():
    beat("data", 1)
    (run / f"{rank}.ready").touch()
    while not signals.asked: time.sleep(0.02)
    beat("checkpoint")
    SAVING
    (run / f"{rank}.saved").touch()
    sys.exit(75)
"""
LONG = '{"hang_timeout_s": 30}'


@pytest.mark.parametrize(
    ("first", "wait_s", "second"),
    [
        pytest.param(USR1, 2.3, TERM, marks=pytest.mark.slow),
        pytest.param(TERM, 0, TERM, marks=pytest.mark.slow),
        (HUP, 0.05, HUP),
    ],
)
def test_what_means_the_same_as_the_first_signal_does_not_cost_the_save(
    tmp_path: Path, first: signal.Signals, wait_s: float, second: signal.Signals
) -> None:
    process = started(tmp_path, SAVES.replace("SAVING", f"time.sleep({wait_s + 0.5})"), LONG)
    process.send_signal(first)
    time.sleep(wait_s)
    process.send_signal(second)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (75, "")
    assert (tmp_path / "0.saved").exists() and (tmp_path / "1.saved").exists()
