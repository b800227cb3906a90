"""An agent alone, ordered and heard by the test in place of a coordinator; stand-in ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.test_supervise import gone, in_time


class Talk:
    """An agent's process and the talk with it."""

    def __init__(self, stderr: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.agent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        )
        self.hear("up")

    def order(self, do: str, **details: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **details}).encode() + b"\n")
        self.process.stdin.flush()

    def start(self, *argv: str, ranks: int = 1) -> None:
        self.order(
            "start", argv=argv, folder="/", environment={}, first_rank=0, ranks=ranks, world=ranks,
            address="127.0.0.1", port=1,
        )  # fmt: skip

    def hear(self, what: str) -> dict[str, Any]:
        """The next such report; the agent must not end before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            report: dict[str, Any] = json.loads(line)
            if report["is"] == what:
                return report
        raise AssertionError(f"the agent ended without {what}")

    @property
    def ranks(self) -> list[int]:
        number = self.process.pid
        return [int(one) for one in Path(f"/proc/{number}/task/{number}/children").read_text().split()]

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@pytest.fixture
def talk() -> Iterator[Callable[..., Talk]]:
    talks: list[Talk] = []

    def begin(stderr: int | None = None) -> Talk:
        talks.append(Talk(stderr))
        return talks[-1]

    yield begin
    for one in talks:
        one.process.kill()
        one.process.communicate()


def test_a_rank_that_cannot_be_started_is_told_and_leaves_nothing_behind(talk: Callable[..., Talk]) -> None:
    agent = talk()
    before = agent.descriptors
    agent.start("/nowhere/python", "-c", "pass", ranks=2)
    for rank in (0, 1):
        failure = agent.hear("failure")
        assert (failure["rank"], failure["exception"], failure["code"]) == (rank, "FileNotFoundError", 2)
        said = f"/nowhere/python: no such file or directory on {socket.gethostname()}; every host needs the same files"
        assert failure["sentence"].startswith(said)
        assert agent.hear("ended")["code"] == 2
    assert (agent.descriptors, agent.ranks) == (before, [])


def test_an_end_is_told_at_once_and_ends_what_the_rank_has_started(talk: Callable[..., Talk]) -> None:
    agent = talk()
    before, began_s = agent.descriptors, time.monotonic()
    for _ in range(10):
        agent.start("sh", "-c", "sleep 60 & exit 7")  # who still holds the pipe of the beats
        assert agent.hear("ended")["code"] == 7
    assert time.monotonic() - began_s < 2, "not with the next sign of life, which comes every second"
    agent.start("sleep", "60")
    agent.order("signal", number=signal.SIGTERM)
    assert agent.hear("ended")["code"] == -signal.SIGTERM
    assert (agent.descriptors, agent.ranks) == (before, [])


def test_a_line_that_came_in_half_costs_that_line_alone(talk: Callable[..., Talk]) -> None:
    agent = talk()
    told = (
        "import os\n"
        "def tell(text): os.write(int(os.environ['BLSP_BEAT_FD']), text.encode())\n"
        """tell('{"failure": {"message": "xx{"beat": {"phase": "data", "step": 1}}\\nyy"}}\\n\\n')\n"""
        """tell('{"beat": {"phase": "update", "step": 2}}\\n')"""
    )
    agent.start(sys.executable, "-c", told)
    ended = agent.hear("ended")
    assert (ended["code"], ended["beat"]) == (0, {"phase": "update", "step": 2})


def test_an_agent_cut_off_ends_its_ranks_though_nobody_reads_what_it_prints(talk: Callable[..., Talk]) -> None:
    reader, writer = os.pipe()
    agent = talk(writer)
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while os.write(writer, b"x" * 4096):
            pass
    os.set_blocking(writer, True)
    agent.order("ping", within_s=0.4)
    agent.start("sleep", "60")
    assert in_time(lambda: agent.ranks != [], 5)
    (rank,) = agent.ranks
    assert in_time(lambda: gone(rank), 5)
    assert agent.process.wait(5) == 1
    os.close(reader)
    os.close(writer)


def test_orders_that_stay_out_matter_only_to_ranks_that_are_there(talk: Callable[..., Talk]) -> None:
    agent = talk()
    agent.order("ping", within_s=0.2)
    time.sleep(1.3)  # it looks once a second at least
    agent.start("sleep", "60")  # as if there had been no silence
    agent.order("end")
    assert agent.hear("ended")["code"] == -signal.SIGKILL
    assert agent.process.poll() is None
