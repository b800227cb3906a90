from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from cluster import ray_node
from cluster.ports import free_port
from cluster.ray_node import wait_while_there


class Clock:
    """Passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ray_node, "time", clock)
    return clock


@pytest.fixture
def node() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_head_that_misses_a_knock_is_not_gone(
    clock: Clock, node: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [True, False, True, *[False] * 8, True]
    monkeypatch.setattr(ray_node, "_answers", lambda address, port: bool(answers) and answers.pop(0))
    wait_while_there("10.0.0.1", 6379, node)
    assert answers == []
    assert 11 + 10 <= clock.now_s <= 11 + 11, "it is gone after ten seconds of silence"


def test_a_part_of_the_cluster_that_ends_before_the_head_is_an_error(
    clock: Clock, node: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    node.kill()
    node.wait()
    monkeypatch.setattr(ray_node, "_answers", lambda address, port: clock.now_s > 3)
    with pytest.raises(OSError, match="part of the Ray cluster has ended with exit code -9"):
        wait_while_there("10.0.0.1", 6379, node)


def test_a_head_that_cannot_start_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    begun_s = time.monotonic()
    node = ray_node.ray_node("127.0.0.1", free_port(), is_head=True)
    with pytest.raises(OSError, match="Ray has ended with exit code 1"), node:
        pass
    assert time.monotonic() - begun_s < 5
