"""What counts as a leap, without DeepSpeed's engine. With it, and on two ranks: test_bad_step.py."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from blsp.engine_section import EngineSection
from blsp.guard import Guard

CALM = [1.0, 1.1] * 32  # mean 1.05, deviation 0.05


class Engine:
    """Asks the optimizer in every step, with a gradient of norm `norm`."""

    def __init__(self, optimizer: Any) -> None:
        self.norm, self._optimizer = 1.0, optimizer
        self.optimizer = SimpleNamespace(_global_grad_norm=1.0)

    def step(self) -> None:
        self.optimizer._global_grad_norm = self.norm
        self._optimizer.step()


def guard(losses: list[float], **engine: Any) -> tuple[Guard, Engine]:
    """One that has taken steps of these losses, each with a gradient of that norm."""
    optimizer: Any = SimpleNamespace(step=lambda: None)
    made = Engine(optimizer)
    judge = Guard(EngineSection(checkpoint_every_steps=1, **engine), made, optimizer)
    for loss in losses:
        made.norm = loss
        assert judge.step(loss, finite=True) == ""
    return judge, made


@pytest.mark.parametrize(
    ("policy", "sigmas", "highest"),
    [("raise", "auto", 2.1), ("raise", 30.0, 2.56), ("skip", "auto", 1.35), ("skip", 30.0, 2.56)],
)
def test_a_loss_leaps_from_so_many_deviations_on_and_under_raise_from_twice_the_mean_on(
    policy: str, sigmas: Any, highest: float
) -> None:
    for loss, leaps in ((highest - 0.01, False), (highest + 0.01, True)):
        judge, _ = guard(CALM, bad_step=policy, leap_sigmas=sigmas)
        assert judge.step(loss, finite=True).startswith("the loss, ") == leaps


def test_a_run_ends_for_a_wide_leap_only_where_losses_are_wide_apart() -> None:
    judge, _ = guard([0.5, 1.5] * 32)
    assert judge.step(11.0, finite=True) == ""
    assert "leaps: in the last 65 steps it was" in judge.step(40.0, finite=True)


def test_where_next_to_nothing_is_left_to_learn_no_run_ends_for_a_clip_that_is_misjudged() -> None:
    judge, _ = guard([0.001, 0.0011] * 32)
    assert judge.step(0.8, finite=True) == ""
    judge, _ = guard([0.001, 0.0011] * 32)
    assert judge.step(1.1, finite=True).startswith("the loss, 1.1, leaps")


@pytest.mark.parametrize(("policy", "leaps"), [("raise", False), ("skip", True)])
def test_a_gradient_leaps_only_where_steps_are_left_out(policy: str, leaps: bool) -> None:
    judge, engine = guard(CALM, bad_step=policy)
    engine.norm = 100.0
    assert judge.step(1.0, finite=True).startswith("the gradient's norm, 100, leaps") == leaps


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_nothing_leaps_in_the_first_64_steps_or_where_the_recipe_says_null(policy: str) -> None:
    for judge, _ in (guard(CALM[1:], bad_step=policy), guard(CALM, bad_step=policy, leap_sigmas=None)):
        assert judge.step(1e9, finite=True) == ""


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_what_a_checkpoint_keeps_judges_as_before_unless_other_losses_come(policy: str) -> None:
    judge, _ = guard(CALM, bad_step=policy)
    state = json.loads(json.dumps(judge.state()))
    same, _ = guard([], bad_step=policy)
    same.restore(state)
    assert same.step(40.0, finite=True) == judge.step(40.0, finite=True) != ""
    other, _ = guard([], bad_step=policy)
    other.restore(state, other_losses=True)
    assert other.step(40.0, finite=True) == ""
