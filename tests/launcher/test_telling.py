"""Who hears of a rank's error: its agent, or the reader of failure.json."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import heartbeat
from cluster.heartbeat import beat
from cluster.owner import TakenOverError
from cluster.slurm import literal
from launcher import telling
from launcher.telling import recording


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_last", {"phase": "starting", "step": 0})
    monkeypatch.delenv(heartbeat.FD, raising=False)
    monkeypatch.setenv("RANK", "3")


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    reader, writer = os.pipe()
    monkeypatch.setenv(heartbeat.FD, str(writer))
    yield reader
    os.close(reader)
    os.close(writer)


def told(agent: int, error: Exception, debug: bool = False) -> tuple[int, dict[str, Any]]:
    """Exit code of a rank that fails under an agent, and what the agent hears."""
    with pytest.raises(SystemExit) as left, telling.telling(debug):
        raise error
    assert isinstance(left.value.code, int)
    failure: dict[str, Any] = json.loads(os.read(agent, 1 << 16).splitlines()[-1])["failure"]
    return left.value.code, failure


def test_under_an_agent_nothing_is_printed_and_the_agent_gets_the_sentence_or_the_traceback(
    agent: int, capsys: pytest.CaptureFixture[str]
) -> None:
    code, failure = told(agent, ValueError("the set is gone"))
    assert (code, failure["code"], failure["sentence"]) == (2, 2, "the set is gone")
    code, failure = told(agent, KeyError("mouse"))
    assert (code, failure["sentence"], failure["consequence"]) == (1, None, False)
    assert failure["traceback"].endswith("KeyError: 'mouse'\n")
    assert told(agent, ValueError("where"), debug=True)[1]["sentence"] is None
    assert capsys.readouterr() == ("", "")


def test_what_a_library_cannot_take_is_the_inputs_fault_only_before_the_first_step(agent: int) -> None:
    assert told(agent, ValueError("of a library"))[0] == 2
    code, failure = told(agent, json.JSONDecodeError("Expecting value", "", 0))
    assert (code, failure["code"], failure["sentence"]) == (1, 1, None)
    assert failure["traceback"].endswith("Expecting value: line 1 column 1 (char 0)\n")
    beat("forward", 7)
    assert told(agent, ValueError("of a library"))[0] == 1
    with pytest.raises(ValueError, match="backslash") as ours:
        literal(Path("a\\b"))
    assert told(agent, ours.value)[0] == 2
    assert told(agent, TakenOverError("another has it"))[0] == 2


@pytest.mark.parametrize(
    "said",
    [
        "[gloo/tcp/pair.cc] Connection closed by peer", "recvValue failed: Connection was likely closed",
        "The client socket has failed: Connection refused", "Socket closed", "NCCL communicator was aborted on rank 1",
    ],
)  # fmt: skip
def test_lost_contact_is_the_consequence_of_another_ranks_end(agent: int, said: str) -> None:
    assert told(agent, RuntimeError(said))[1]["consequence"]
    assert told(agent, OSError(errno.EADDRINUSE, "taken"))[1]["consequence"]
    assert not told(agent, RuntimeError("shapes do not fit"))[1]["consequence"]


def test_an_error_that_knows_its_culprit_says_so(agent: int) -> None:
    error = FloatingPointError("step 7: the loss is not finite on rank 1")
    error.culprit, error.ids = 1, ["a", "b"]  # type: ignore[attr-defined]
    code, failure = told(agent, error)
    assert (code, failure["culprit"], failure["ids"]) == (3, 1, ["a", "b"])


def test_without_an_agent_the_first_rank_that_fails_writes_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failure.json").write_text('{"of": "an earlier launch"}')
    os.utime(tmp_path / "failure.json", (2e9, 2e9))  # a file server whose clock is ahead
    beat("forward", 7, ids=["clip-1"])
    with pytest.raises(RuntimeError), recording(tmp_path):
        raise RuntimeError("Connection closed by peer")
    assert "launch" in (tmp_path / "failure.json").read_text(), "another rank knows more"
    with pytest.raises(KeyError), recording(tmp_path):
        with pytest.raises(OSError, match="later"), recording(tmp_path):
            with pytest.raises(KeyError), recording(tmp_path):
                raise KeyError("mouse")
            monkeypatch.setenv("RANK", "0")
            raise OSError("later")
        raise KeyError("another thing")
    why = json.loads((tmp_path / "failure.json").read_text())
    assert (why["rank"], why["step"], why["phase"], why["ids"]) == (3, 7, "forward", ["clip-1"])
    assert (why["exception"]["type"], why["exit_code"], why["restarted"]) == ("KeyError", 1, False)


def test_another_runs_folder_gets_no_failure(tmp_path: Path) -> None:
    beat("rendezvous")
    with pytest.raises(ValueError, match="in use"), recording(tmp_path):
        raise ValueError("already in use by process 7")
    assert not (tmp_path / "failure.json").exists()
