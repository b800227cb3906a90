from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from blsp.together import together

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the other ranks hear: result and error."""
    heard: list[Any] = []
    monkeypatch.setattr(dist, "broadcast_object_list", lambda outcome, src: heard.extend(outcome))
    return heard


class Unable(Exception):
    """Cannot be unpickled: it wants two arguments and keeps one."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} {why}")


def test_the_result_is_everybodys(sent: list[Any]) -> None:
    assert together(lambda: {"a": 1}) == {"a": 1}
    assert sent == [{"a": 1}, None]


@pytest.mark.parametrize("error", [ValueError("a"), RuntimeError("out of memory"), KeyError("a")])
def test_the_others_hear_of_any_error(sent: list[Any], error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        together(fail)
    assert sent == [None, error]


def test_of_an_error_that_cannot_travel_they_hear_the_words(sent: list[Any]) -> None:
    def fail() -> None:
        raise Unable("a file", "is damaged")

    with pytest.raises(RuntimeError, match="Unable: a file is damaged"):
        together(fail)
    assert isinstance(sent[1], RuntimeError)
