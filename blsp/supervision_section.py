"""The section `supervision` of a recipe: when a run hangs, and how often it is started again. It says nothing of what
is learnt, so it may change between a checkpoint and what goes on from it."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from blsp.section import Section


class SupervisionSection(Section):
    restarts: NonNegativeInt = Field(
        20, description="how often a failed run is started again; always at most 3 times in a row without a checkpoint"
    )
    hang_timeout_s: PositiveFloat = Field(
        600,
        description="a run hangs when the slowest rank is in one part of a step (data, forward, ...) for so long",
    )
    start_timeout_s: PositiveFloat = Field(1800, description="the same before the first step, in one part of loading")
    meeting_timeout_s: PositiveFloat = Field(
        600, description="the same before that: starting, and meeting the others; at most start_timeout_s"
    )
    aside_timeout_s: PositiveFloat = Field(
        3600, description="the same in a save, an export, or one micro-batch of a validation"
    )
    host_timeout_s: NonNegativeFloat = Field(
        300,
        description="how long a host that was lost is waited for; then the others go on, if they may, or the run ends",
    )
