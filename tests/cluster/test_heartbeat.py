"""What a rank tells its agent, and that telling never holds it up."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from cluster import heartbeat
from cluster.heartbeat import PHASES, beat, last_beat, tell_failure


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_last", {"phase": "starting", "step": 0})
    monkeypatch.delenv(heartbeat.FD, raising=False)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    reader, writer = os.pipe()
    monkeypatch.setenv(heartbeat.FD, str(writer))
    yield reader
    os.close(reader)
    os.close(writer)


def read(pipe: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in os.read(pipe, 1 << 20).splitlines()]


def test_without_an_agent_nothing_is_sent_and_the_last_beat_is_known() -> None:
    beat("data", 7)
    beat("forward", ids=["a", "b"], micro_batch=1)
    beat("update")
    assert last_beat() == {"phase": "update", "step": 7, "ids": ["a", "b"]}
    beat("data", 8)
    assert last_beat() == {"phase": "data", "step": 8}
    tell_failure(ValueError("no"), consequence=False)


def test_a_beat_is_a_line_and_a_failure_tells_of_the_step_in_work(pipe: int) -> None:
    beat("forward", 3, micro_batch=0, ids=["clips/07"])
    beat("backward", micro_batch=0)
    tell_failure(RuntimeError("shapes"), consequence=False)
    assert read(pipe) == [
        {"beat": {"phase": "forward", "step": 3, "micro_batch": 0, "ids": ["clips/07"]}},
        {"beat": {"phase": "backward", "step": 3, "micro_batch": 0}},
        {
            "failure": {
                "exception": "RuntimeError", "message": "shapes", "consequence": False,
                "phase": "backward", "step": 3, "micro_batch": 0, "ids": ["clips/07"],
            }
        },
    ]  # fmt: skip


def test_a_full_pipe_costs_a_beat_and_no_time(pipe: int) -> None:
    began_s = time.monotonic()
    for step in range(3000):
        beat("data", step)
    assert time.monotonic() - began_s < 2
    lines = read(pipe)
    assert 1000 < len(lines) < 3000, "whole lines, as many as there was room for"
    beat("data", 4000)
    assert read(pipe)[-1]["beat"]["step"] == 4000


def test_of_many_ids_the_first_are_told_in_one_whole_write(pipe: int) -> None:
    beat("forward", 1, ids=[f"corpus/speaker/{i:06d}" for i in range(5000)])
    sent = os.read(pipe, 1 << 20)
    assert len(sent) <= select.PIPE_BUF
    assert json.loads(sent)["beat"]["ids"][:2] == ["corpus/speaker/000000", "corpus/speaker/000001"]
    tell_failure(OSError("x" * 100_000), consequence=True, traceback="t" * 10_000)
    failure = json.loads(os.read(pipe, 1 << 20))["failure"]
    assert failure["message"].startswith("xxx") and len(failure["traceback"]) == 10_000


def test_an_agent_that_has_gone_does_not_end_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setenv(heartbeat.FD, str(writer))
    os.close(reader)
    beat("data", 1)
    os.close(writer)
    beat("data", 2)


def test_no_process_below_a_rank_holds_the_pipe(pipe: int) -> None:
    os.set_inheritable(int(os.environ[heartbeat.FD]), True)  # as the agent hands it on
    beat("data", 1)
    code = f"import os; os.fstat({os.environ[heartbeat.FD]})"
    assert subprocess.run([sys.executable, "-c", code], close_fds=False, capture_output=True).returncode == 1


def test_phases_are_in_the_order_of_a_step() -> None:
    assert PHASES[:3] == ("starting", "rendezvous", "loading")
    assert PHASES.index("data") < PHASES.index("forward") < PHASES.index("backward") < PHASES.index("update")
