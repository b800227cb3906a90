from __future__ import annotations

from itertools import pairwise

import pytest

from blsp.schedule import learning_rate_factor


def rates(schedule: str, total: int = 100, warmup: int = 10) -> list[float]:
    return [learning_rate_factor(step, total, warmup, schedule) for step in range(total)]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_it_rises_to_1_and_falls_towards_0(schedule: str) -> None:
    values = rates(schedule)
    assert all(a < b for a, b in pairwise(values[:11]))
    assert values[10] == max(values) == 1
    assert all(a > b for a, b in pairwise(values[10:]))
    assert 0 < values[-1] < 0.02


def test_the_rise_is_in_equal_steps_and_never_0() -> None:
    assert rates("linear")[:11] == pytest.approx([(i + 1) / 11 for i in range(11)])


@pytest.mark.parametrize(("schedule", "quarter"), [("linear", 0.75), ("cosine", 0.5 * (1 + 0.5**0.5))])
def test_half_and_a_quarter_of_the_way(schedule: str, quarter: float) -> None:
    assert learning_rate_factor(50, 100, 0, schedule) == pytest.approx(0.5)
    assert learning_rate_factor(25, 100, 0, schedule) == pytest.approx(quarter)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_without_a_warm_up_it_starts_at_the_peak(schedule: str) -> None:
    assert learning_rate_factor(0, 1, 0, schedule) == 1
