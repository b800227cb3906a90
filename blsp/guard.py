"""Between the gradient and the optimizer: a step whose loss or gradient is not finite, or leaps, moves no weight and no
moment.

DeepSpeed calls the optimizer when it knows the gradient's norm, which it needs for clipping; so the look costs nothing,
and the ranks need not agree: the loss and the norm are those of all of them.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

import torch
from deepspeed.runtime.utils import clip_grad_norm_

from blsp.engine_section import EngineSection

_WINDOW, _FEWEST = 128, 64
_SIGMAS = {"raise": 20.0, "skip": 6.0}
_FAR, _FAR_NATS = 2.0, 1.0  # times the mean, and beyond it; a run does not end for less


class Guard:
    """Lets the optimizer move in good steps only. Every rank has one, and all judge alike.

    A step is bad, too, when its loss leaps away from those of the last 128 steps that were taken; nothing is judged so
    before there are 64 of them. Under `skip` that is 6 standard deviations above their mean, and the gradient's norm is
    judged alike (OLMo-core's SkipStepOptimizer; there the steps left out count as well). A run that ends costs more
    than a step: under `raise` it is 20, twice the mean and a nat, of the loss alone: clipping takes care of a norm, and
    of losses that are next to nothing any is many times the others.
    """

    def __init__(self, section: EngineSection, engine: Any, optimizer: torch.optim.Optimizer) -> None:
        """`optimizer` is what `engine` calls in its step, through whatever it has put around it."""
        self._section, self._engine = section, engine
        self._fault: str | None = None  # of the step in work
        self.in_a_row = self.in_all = 0  # steps left out
        self._taken: deque[list[float]] = deque(maxlen=_WINDOW)  # loss and gradient norm
        step = optimizer.step
        optimizer.step = lambda *given: None if self._is_held() else step(*given)  # type: ignore[assignment]
        engine.clip_fp32_gradients = self._clip

    def step(self, loss: float, *, finite: bool) -> str:
        """DeepSpeed's step over the gradients that are there; what was wrong with them if it was left out, or "".

        `loss` is the step's mean over all ranks; `finite` says whether all that was summed up with it is.
        """
        self._fault = None if finite else "the loss is not finite"
        if self._fault is None and (leap := self._leap(0, loss)):
            self._fault = f"the loss, {leap}"
        self._engine.step()
        if self._is_held():  # DeepSpeed may have let a gradient go without asking
            self.in_a_row, self.in_all = self.in_a_row + 1, self.in_all + 1
            assert self._fault is not None
            return self._fault
        self.in_a_row = 0
        if self._section.leap_sigmas is not None:
            self._taken.append([loss, self.norm])
        return ""

    @property
    def norm(self) -> float:
        """Of all gradients of the newest step together, before clipping."""
        # DeepSpeed says -1 of some that are not finite.
        norm = float(self._engine.optimizer._global_grad_norm)
        return norm if norm >= 0 else math.inf

    @property
    def budget(self) -> str:
        """Which field's budget of steps left out is used up, in words; "" while none is."""
        if self._section.bad_step == "raise":
            return "engine.bad_step = raise"
        for field, count in (("skipped_in_a_row", self.in_a_row), ("skipped_in_all", self.in_all)):
            if count > getattr(self._section, field):
                return f"engine.{field} = {getattr(self._section, field)}"
        return ""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; {} when there is nothing to be kept."""
        if not self._taken and not self.in_all:
            return {}
        return {"in_a_row": self.in_a_row, "in_all": self.in_all, "taken": list(self._taken)}

    def restore(self, state: dict[str, Any], *, other_losses: bool = False) -> None:
        """Go on from `state`; with `other_losses` than before there is nothing to compare those to come with. Raises
        LookupError, TypeError or ValueError when it is no state."""
        if state:
            self.in_a_row, self.in_all = int(state["in_a_row"]), int(state["in_all"])
            taken = [[float(loss), float(norm)] for loss, norm in state["taken"]]
            self._taken.extend([] if other_losses else taken)

    def _is_held(self) -> bool:
        if self._fault is None and not math.isfinite(self.norm):
            self._fault = "the gradient is not finite, though the loss is"
        judged = self._section.bad_step == "skip"
        if judged and self._fault is None and (leap := self._leap(1, self.norm)):
            self._fault = f"the gradient's norm, {leap}"
        return self._fault is not None

    def _leap(self, which: int, value: float) -> str:
        sigmas, policy = self._section.leap_sigmas, self._section.bad_step
        if sigmas is None or len(self._taken) < _FEWEST:
            return ""
        before = [taken[which] for taken in self._taken]
        mean = statistics.fmean(before)
        usual = max(_FAR * mean, mean + _FAR_NATS) if policy == "raise" else mean
        if value <= usual:  # nearly all; a deviation takes its time
            return ""
        deviation = statistics.stdev(before)
        if value <= mean + (_SIGMAS[policy] if sigmas == "auto" else sigmas) * deviation:
            return ""
        before_it = f"in the last {len(before)} steps it was {mean:.4g} ± {deviation:.2g}"
        return f"{value:.4g}, leaps: {before_it}, and engine.leap_sigmas is {sigmas}"

    def _clip(self) -> None:
        """DeepSpeed's own, which lets the norm go where it has neither ZeRO nor bfloat16."""
        engine = self._engine
        norm = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping(), mpu=engine.mpu)
        engine.optimizer._global_grad_norm = norm
