"""The coordinator and real agents with stand-in ranks: what is noticed, what is started again, and what is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.agent_link import here
from cluster.exit_codes import ExitCode
from cluster.supervise import Job, supervise
from tests.cluster.standin import LIMITS, READY, coordinate, in_time, started

STEPS = """
for step in range(1, 4):
    beat("data", step)
    beat("forward", micro_batch=0, ids=[f"clip-{rank}"])
"""


def failure(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "failure.json").read_text())
    return content


def test_a_run_that_ends_well_says_nothing_and_its_output_is_the_callers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = STEPS + (
        "names = 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'A'\n"
        "print(rank, *(os.environ[name] for name in names), flush=True)"
    )
    assert coordinate(tmp_path, code, hosts=(1, 2)) == 0
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == [
        "0 0 3 1 127.0.0.1 1",
        "1 0 3 2 127.0.0.1 1",
        "2 1 3 2 127.0.0.1 1",
    ]
    assert err == ""
    assert not (tmp_path / "failure.json").exists()


@pytest.mark.slow
def test_a_killed_rank_is_noticed_at_once_and_the_run_starts_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = STEPS + (
        "if first and rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if first: (run / 'waited').write_text(repr(time.monotonic())); time.sleep(60)"
    )
    assert coordinate(tmp_path, code, limits=replace(LIMITS, hang_timeout_s=20)) == 0  # or who waits may seem to hang
    assert time.monotonic() - float((tmp_path / "waited").read_text()) < 9
    why = failure(tmp_path)
    assert (why["what"], why["rank"], why["host"], why["step"], why["phase"]) == ("signal", 1, "host-0", 3, "forward")
    assert why["ids"] == ["clip-1"]
    assert (why["restarted"], why["resume"]) == (True, "blsp train recipe")
    assert [(rank["rank"], rank["step"], rank["ended"]) for rank in why["ranks"]] == [(0, 3, None), (1, 3, -9)]
    assert (
        "rank 1 on host-0 was ended by SIGKILL (step 3, forward); too little memory? Starting again\n"
        in capfd.readouterr().err
    )


def test_the_first_cause_is_told_not_what_others_met_because_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = STEPS + (
        "if rank == 0: tell_failure(RuntimeError('Connection closed by peer'), consequence=True); sys.exit(1)\n"
        "time.sleep(0.1)\n"
        "tell_failure(KeyError('mouse'), consequence=False, traceback='Traceback: line 7\\x1b\\n'); sys.exit(1)"
    )
    assert coordinate(tmp_path, code, limits=replace(LIMITS, restarts=0)) == ExitCode.GIVEN_UP
    why = failure(tmp_path)
    assert (why["what"], why["rank"], why["exception"]["type"]) == ("exception", 1, "KeyError")
    err = capfd.readouterr().err
    assert err.startswith("Traceback: line 7\\x1b\nblsp: rank 1 on host-0: KeyError")
    assert "supervision.restarts = 0 are used up" in err


@pytest.mark.slow
def test_a_crash_at_the_same_step_ends_after_three_tries_without_a_newer_checkpoint(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = STEPS + (
        "with (run / f'{rank}.tries').open('a') as tries: tries.write('x')\n"
        "checkpoint(2)\n"
        "if rank == 1: tell_failure(RuntimeError('step 3 breaks'), consequence=False); sys.exit(1)\n"
        "tell_failure(RuntimeError('closed by peer'), consequence=True); sys.exit(1)"
    )
    assert coordinate(tmp_path, code) == ExitCode.GIVEN_UP
    assert len((tmp_path / "1.tries").read_text()) == 4, "the first one brought a checkpoint"
    assert failure(tmp_path)["restarted"] is False
    assert "3 tries in a row ended without a newer checkpoint" in capfd.readouterr().err


def test_wrong_input_is_said_once_in_the_ranks_words_and_not_tried_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = STEPS + "tell_failure(ValueError('no'), consequence=False, code=2, sentence='the set is gone', "
    code += "traceback='Traceback: line 7'); sys.exit(2)"
    assert coordinate(tmp_path, code) == ExitCode.WRONG_INPUT
    assert capfd.readouterr().err == "blsp: the set is gone\n"


def test_what_never_worked_is_not_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "beat('loading'); tell_failure(OSError('no'), consequence=False, code=1, sentence='no such disk'); sys.exit(1)"
    )
    assert coordinate(tmp_path, code, hosts=(1,)) == ExitCode.REFUSED
    assert capfd.readouterr().err == "blsp: rank 0 on host-0 (loading): no such disk\n"


def test_another_runs_folder_is_not_written_into(tmp_path: Path) -> None:
    code = "beat('rendezvous'); tell_failure(ValueError('in use'), consequence=False, code=2, sentence='in use')\n"
    assert coordinate(tmp_path, code + "sys.exit(2)", hosts=(1,)) == ExitCode.WRONG_INPUT
    assert not (tmp_path / "failure.json").exists()


@pytest.mark.slow
def test_a_rank_that_sleeps_is_the_culprit_and_the_stacks_of_all_are_taken(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import faulthandler; faulthandler.register(signal.SIGUSR2, (run / f'{rank}.stack').open('a'))\n"
        "beat('data', 1)\n"
        "if first and rank == 1: time.sleep(60)\n"
        "beat('forward', micro_batch=0)\n"
        "if first: time.sleep(60)"
    )
    began_s = time.monotonic()
    assert coordinate(tmp_path, code) == 0
    assert 1 < time.monotonic() - began_s < 15
    why = failure(tmp_path)
    assert (why["what"], why["rank"], why["phase"], why["step"]) == ("hang", 1, "data", 1)
    assert all("most recent call first" in (tmp_path / f"{rank}.stack").read_text() for rank in (0, 1))
    assert "rank 1 on host-0 did not get on for " in capfd.readouterr().err


@pytest.mark.slow
def test_who_waits_for_a_slow_save_or_validation_does_not_hang(tmp_path: Path) -> None:
    code = STEPS + (
        "if rank == 0: beat('checkpoint', 3); time.sleep(1.5); beat('validation', 3); time.sleep(1.5)\n"
        "else: beat('forward', 4, micro_batch=0); time.sleep(3.5)\n"
    )
    assert coordinate(tmp_path, code) == 0
    assert not (tmp_path / "failure.json").exists()


@pytest.mark.slow
def test_a_rank_that_never_comes_to_the_rendezvous_is_named(tmp_path: Path) -> None:
    code = (
        "if first and rank == 1: time.sleep(60)\n"
        "beat('rendezvous')\n"
        "if first: time.sleep(60)"
    )  # fmt: skip
    assert coordinate(tmp_path, code, limits=replace(LIMITS, start_timeout_s=1)) == 0
    assert failure(tmp_path)["rank"] == 1


@pytest.mark.slow
def test_a_host_that_is_lost_is_named_and_started_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = STEPS + (
        "while rank == 1 and not (run / '0.began').exists(): time.sleep(0.01)\n"
        "if first and rank == 1: os.kill(os.getppid(), signal.SIGKILL)\n"
        "if first: time.sleep(60)"
    )
    assert coordinate(tmp_path, code, hosts=(1, 1), limits=replace(LIMITS, hang_timeout_s=20)) == 0
    assert failure(tmp_path)["host"] == "host-1"
    assert "blsp: host host-1 is lost (its agent is gone). Starting again" in capfd.readouterr().err


def test_a_login_shell_that_greets_does_not_disturb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = here("greeting", 1, {})
    shell = replace(place, command=("sh", "-c", 'echo "Welcome to {n1}"; exec "$@"', "sh", *place.command))
    job = Job((sys.executable, "-c", "print('hello')"), Path.cwd(), tmp_path, "again", lambda: None)
    assert supervise(job, [shell], LIMITS) == 0
    assert capfd.readouterr() == ("hello\n", "Welcome to {n1}\n")


def test_the_cursor_that_a_killed_rank_has_hidden_is_shown_again(tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    code = STEPS + "if first: os.kill(os.getpid(), signal.SIGKILL)"
    command = [sys.executable, "-m", "tests.cluster.standin", str(tmp_path), code, "[1]", "{}"]
    assert subprocess.run(command, stderr=terminal).returncode == 0
    assert b"\x1b[?25hblsp: rank 0 on host-0 was ended by SIGKILL" in os.read(ours, 1 << 16)
    os.close(ours)
    os.close(terminal)


def gone(process: int) -> bool:
    """Whether it ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("who", ["coordinator", "agent"])
def test_nothing_stays_behind_when_the_coordinator_or_the_agent_is_killed(tmp_path: Path, who: str) -> None:
    process = started(tmp_path, STEPS + READY + "time.sleep(60)", '{"restarts": 0}')
    ranks = [int((tmp_path / f"{rank}.pid").read_text()) for rank in (0, 1)]
    agent = int(Path(f"/proc/{ranks[0]}/stat").read_text().rsplit(")")[-1].split()[1])
    os.kill(process.pid if who == "coordinator" else agent, signal.SIGKILL)
    assert in_time(lambda: all(gone(one) for one in [*ranks, agent]), 5)
    process.communicate(timeout=20)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 75, marks=pytest.mark.slow),
    ],
)
def test_a_signal_reaches_all_ranks_which_save_and_say_where(
    tmp_path: Path, number: signal.Signals, expected: int
) -> None:
    code = (
        "def stop(number, frame):\n"
        "    time.sleep(0.2); (run / f'{rank}.saved').touch(); sys.exit(130 if number == 2 else 75)\n"
        "for number in (2, 15): signal.signal(number, stop)\n" + STEPS + READY + "time.sleep(60)"
    )
    process = started(tmp_path, code)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (expected, "")
    assert (tmp_path / "0.saved").exists() and (tmp_path / "1.saved").exists()


@pytest.mark.slow
def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    code = "signal.signal(2, signal.SIG_IGN)\n" + STEPS + READY + "time.sleep(60)"
    process = started(tmp_path, code, '{"hang_timeout_s": 50}')
    began_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (
        130,
        "blsp: stopped; the same command goes on from the newest checkpoint\n",
    )
    assert time.monotonic() - began_s < 5


def test_before_the_first_step_there_is_nothing_to_wait_for(tmp_path: Path) -> None:
    process = started(tmp_path, "signal.signal(15, signal.SIG_IGN)\n" + READY + "time.sleep(60)")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said.count("stopped")) == (75, 1)


def test_a_signal_to_one_rank_ends_the_run_with_its_code(tmp_path: Path) -> None:
    assert coordinate(tmp_path, STEPS + "sys.exit(75)") == ExitCode.STOPPED
