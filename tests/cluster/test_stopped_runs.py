"""A run that is told to stop: its ranks listen as those of a training do, and save for a while."""

from __future__ import annotations

import json
import os
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


@pytest.mark.slow
def test_a_rank_that_is_killed_in_the_last_save_is_the_cause_and_not_a_good_end(tmp_path: Path) -> None:
    saving = (
        "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    time.sleep(0.5)\n"
        "    tell_failure(RuntimeError('Connection closed by peer'), consequence=True, code=1); sys.exit(1)"
    )
    process = started(tmp_path, SAVES.replace("SAVING", saving), LONG)
    process.send_signal(TERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    why = json.loads((tmp_path / "failure.json").read_text())
    assert (why["what"], why["rank"], why["phase"], why["restarted"]) == ("signal", 1, "checkpoint", False)
    assert said.startswith("blsp: rank 1 on host-0 was ended by SIGKILL")


@pytest.mark.slow
def test_a_rank_that_does_not_end_with_the_others_is_named(tmp_path: Path) -> None:
    limits = '{"hang_timeout_s": 30, "stop_grace_s": 2}'  # of 20 s, which nobody need wait for
    process = started(tmp_path, SAVES.replace("SAVING", "while rank == 1: time.sleep(0.02)"), limits)
    process.send_signal(TERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.startswith("blsp: rank 1 on host-0 did not get on for 2 s after the first rank had stopped")


@pytest.mark.slow
def test_a_host_that_is_silent_does_not_stand_against_the_end_at_once(tmp_path: Path) -> None:
    process = started(tmp_path, SAVES.replace("SAVING", "time.sleep(30)"), LONG)
    ranks = [int((tmp_path / f"{rank}.pid").read_text()) for rank in (0, 1)]
    agent = int(Path(f"/proc/{ranks[0]}/stat").read_text().rsplit(")")[-1].split()[1])
    os.kill(agent, signal.SIGSTOP)
    for _ in range(2):
        process.send_signal(INT)
        time.sleep(0.1)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "blsp: stopped; the same command goes on from the newest checkpoint\n")
