"""Which of several bad signs is the first cause, and how it is said."""

from __future__ import annotations

import pytest

from cluster.failure import RankState, first_cause


def told(exception: str, rank: int, ill_s: float, *, consequence: bool = False) -> RankState:
    """A rank that has told of its error."""
    failure = {"exception": exception, "message": f"of {rank}", "consequence": consequence, "code": 1}
    return RankState(rank, "host", failure=failure, code=1, ill_s=ill_s)


@pytest.mark.parametrize(
    ("exception", "consequence", "rank"), [("KeyError", False, 0), ("RuntimeError", False, 1), ("KeyError", True, 1)]
)
def test_a_crash_comes_before_what_it_may_have_caused_and_after_an_error_of_its_own(
    exception: str, consequence: bool, rank: int
) -> None:
    crash = RankState(1, "host", code=-11, ill_s=2.5)
    assert first_cause([told(exception, 0, 1.0, consequence=consequence), crash]).rank == rank
    assert first_cause([told("KeyError", 0, 3.0), crash]).rank == 1


def test_a_signal_without_a_name_is_said_by_its_number() -> None:
    assert first_cause([RankState(0, "h", code=-40, ill_s=1.0)]).sentence == (
        "rank 0 on h was ended by signal 40 (starting)"
    )
