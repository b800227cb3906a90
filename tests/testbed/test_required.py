"""The cluster's tests may not be left out unnoticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import conftest

FIXTURES: dict[str, tuple[Any, tuple[object, ...]]] = {
    "tests.testbed.hosts": (conftest.two_hosts, (None,)),
    "tests.testbed.slurm": (conftest.slurm_on_two_hosts, (None, None)),
}


@pytest.mark.parametrize("bed", FIXTURES)
def test_a_bed_that_cannot_be_made_is_skipped_and_fails_where_it_is_required(
    bed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{bed}.why_not", lambda: "there is no ssh")
    fixture, arguments = FIXTURES[bed]
    make: Callable[..., Iterator[object]] = fixture.__wrapped__
    monkeypatch.delenv("TESTBED", raising=False)
    outcomes = (pytest.skip.Exception, pytest.fail.Exception)  # a skip that is not caught would skip this test too
    with pytest.raises(outcomes, match="there is no ssh") as told:
        next(make(*arguments))
    assert told.type is pytest.skip.Exception
    monkeypatch.setenv("TESTBED", "required")
    with pytest.raises(outcomes, match="there is no ssh") as told:
        next(make(*arguments))
    assert told.type is pytest.fail.Exception


def test_ci_requires_it() -> None:
    script = (Path(conftest.__file__).parents[1] / ".ci" / "run").read_text()
    assert "\nexport TESTBED=" in script[: script.index("\nmake test")]
