"""What the coordinator does about hosts that do not answer; stand-in ranks, real agents."""

from __future__ import annotations

import json
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.agent_link import Place, here
from cluster.supervise import Job, supervise
from tests.cluster.standin import LIMITS, PRELUDE

pytestmark = pytest.mark.slow
# Each attempt leaves its number, rank and world. In the first one, host-1 goes when both ranks have begun.
WORLDS = """
beat("data", 1)
names = "BLSP_ATTEMPT", "RANK", "WORLD_SIZE"
with (run / "began").open("a") as file: file.write(" ".join(os.environ[name] for name in names) + "\\n")
if not (run / "was-lost").exists():
    while len((run / "began").read_text().splitlines()) < 2: time.sleep(0.01)
    if rank == 1:
        time.sleep(0.3)  # the coordinator has heard of the first step
        (run / "was-lost").touch()
        (run / "gone").touch()
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
"""


UNREACHABLE = '[ -e "$0" ] && exit 255; exec "$@"'
UNREACHABLE_ONCE = '[ -e "$0" ] && { rm "$0"; exit 255; }; exec "$@"'
SAYS = "blsp: host host-1 cannot be reached (sh ended with exit code 255)"


def two_hosts(
    run: Path,
    code: str,
    host_timeout_s: float,
    min_hosts: int | None,
    ssh: str = UNREACHABLE,
    *,
    where: str = "",
    all_at_first: bool = False,
    first_answer_s: float = 0.0,
) -> int:
    """Exit code of a run over host-0 and host-1; the second cannot be reached while there is a file `gone`."""
    agent = here("host-0", 1, {})
    command = ("sh", "-c", ssh, str(run / "gone"), *agent.command)
    places = [replace(agent, address="127.0.0.1"), Place("host-1", 1, command, where=where)]
    job = Job((sys.executable, "-c", PRELUDE + code, str(run)), Path.cwd(), run, "", lambda: None)
    limits = replace(LIMITS, host_timeout_s=host_timeout_s, first_answer_s=first_answer_s)
    return supervise(job, places, limits, min_hosts, all_at_first=all_at_first)


def worlds(run: Path) -> list[str]:
    """Attempt, rank and world of every rank there was."""
    return sorted((run / "began").read_text().splitlines())


def test_a_host_that_is_gone_for_good_ends_the_run_unless_fewer_will_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (alone := tmp_path / "alone").mkdir()
    assert two_hosts(tmp_path, WORLDS, 1, None) == 4
    lost, *waited = capfd.readouterr().err.splitlines()
    assert lost.startswith("blsp: host host-1 is lost (its agent is gone). Starting again")
    assert waited == [
        f"{SAYS}; waiting up to 1 s for it",
        f"{SAYS}; waited 1 s for it (supervision.host_timeout_s); the same command goes on when it is back",
    ]
    assert worlds(tmp_path) == ["1 0 2", "1 1 2"]
    why = json.loads((tmp_path / "failure.json").read_text())
    assert (why["what"], why["host"], why["restarted"]) == ("host", "host-1", False)

    assert two_hosts(alone, WORLDS, 1, 1) == 0
    assert worlds(alone) == ["1 0 2", "1 1 2", "2 0 1"]
    assert f"{SAYS}; going on with 1 of 2 hosts\n" in capfd.readouterr().err


def test_a_host_that_comes_back_in_time_takes_part_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert two_hosts(tmp_path, WORLDS, 60, 1, UNREACHABLE_ONCE) == 0
    assert worlds(tmp_path) == ["1 0 2", "1 1 2", "2 0 2", "2 1 2"]
    assert f"{SAYS}; waiting up to 60 s for it" in capfd.readouterr().err


def test_a_host_that_never_answered_is_not_waited_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gone").touch()
    assert two_hosts(tmp_path, "beat('data', 1)", 60, None) == 1
    assert capfd.readouterr().err == f"{SAYS}\n"
    assert two_hosts(tmp_path, "beat('data', 1)", 60, 1) == 0
    assert "going on with 1 of 2 hosts" in capfd.readouterr().err


def test_a_host_that_has_not_answered_yet_is_waited_for_where_that_may_help(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").touch()
    assert two_hosts(tmp_path, "beat('data', 1)", 0, None, UNREACHABLE_ONCE, first_answer_s=60) == 0
    assert capfd.readouterr().err == f"{SAYS}; waiting up to 60 s for it\n"
    (tmp_path / "gone").touch()
    assert two_hosts(tmp_path, "beat('data', 1)", 0, None, first_answer_s=1) == 1


def test_a_job_that_begins_with_all_hosts_names_the_line_of_one_that_never_answered_and_outlives_a_later_loss(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").touch()
    assert two_hosts(tmp_path, WORLDS, 0, 1, where="hostfile:2", all_at_first=True) == 1
    assert capfd.readouterr().err == f"{SAYS}\n".replace("host host-1", "hostfile:2: host host-1")
    assert not (tmp_path / "began").exists()
    (tmp_path / "gone").unlink()
    assert two_hosts(tmp_path, WORLDS, 0, 1, all_at_first=True) == 0
    assert worlds(tmp_path) == ["1 0 2", "1 1 2", "2 0 1"]
    assert f"{SAYS}; going on with 1 of 2 hosts\n" in capfd.readouterr().err


def test_no_host_is_lost_while_a_slow_disk_holds_the_coordinator_up_between_two_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.crew._AGENT_LEASE_S", 2.0)
    looked: list[int] = []

    def progress() -> int:
        looked.append(0)
        if len(looked) > 1:
            time.sleep(3)
        return len(looked)

    code = "beat('data', 1)\nif first: time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)"
    job = Job((sys.executable, "-c", PRELUDE + code, str(tmp_path)), Path.cwd(), tmp_path, "", progress)
    assert supervise(job, [replace(here(f"host-{i}", 1, {}), is_here=False) for i in range(2)], LIMITS) == 0
    why = json.loads((tmp_path / "failure.json").read_text())
    assert (why["what"], why["restarts"]) == ("signal", 0), "no failure after the first"


def test_a_host_without_the_folder_is_a_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = Job((sys.executable, "-c", "pass"), tmp_path / "not-shared", tmp_path, "", lambda: None)
    assert supervise(job, [here("host-0", 2, {})], LIMITS) == 2
    said = (
        f"blsp: {tmp_path}/not-shared: no such file or directory on {socket.gethostname()}; every host needs the same"
    )
    assert capfd.readouterr().err.startswith(said)


def test_a_file_system_that_stalls_between_two_attempts_is_no_host_that_was_lost(tmp_path: Path) -> None:
    code = (
        'beat("data", 1)\n'
        'while not (run / "0.began").exists(): time.sleep(0.01)\n'
        "if first and rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if first: time.sleep(60)"
    )
    asked = 0

    def progress() -> int:
        nonlocal asked
        asked += 1
        time.sleep(8 if asked == 2 else 0)
        return asked

    job = Job((sys.executable, "-c", PRELUDE + code, str(tmp_path)), Path.cwd(), tmp_path, "", progress)
    places = [replace(here(f"host-{i}", 1, {}), address="127.0.0.1", is_here=False) for i in range(2)]
    assert supervise(job, places, LIMITS) == 0
    why = json.loads((tmp_path / "failure.json").read_text())
    assert (why["what"], why["rank"], why["restarts"]) == ("signal", 1, 0)


def test_who_lost_contact_to_a_host_waits_until_that_is_known_to_be_lost(tmp_path: Path) -> None:
    code = (
        'beat("data", 1)\n'
        'while not (run / "0.began").exists(): time.sleep(0.01)\n'
        "if first and rank == 1: os.kill(os.getppid(), signal.SIGSTOP); time.sleep(60)\n"
        'told = {"consequence": True, "code": 1, "sentence": "another rank ended"}\n'
        'if first: time.sleep(1); tell_failure(RuntimeError("Connection closed by peer"), **told); sys.exit(1)'
    )
    job = Job((sys.executable, "-c", PRELUDE + code, str(tmp_path)), Path.cwd(), tmp_path, "", lambda: None)
    places = [replace(here(f"host-{i}", 1, {}), address="127.0.0.1", is_here=False) for i in range(2)]
    assert supervise(job, places, replace(LIMITS, hang_timeout_s=30)) == 0
    why = json.loads((tmp_path / "failure.json").read_text())
    assert (why["what"], why["host"], why["restarts"]) == ("host", "host-1", 0)
