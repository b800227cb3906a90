"""What is worth looking at before anybody trains on a set, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from shards.sample import EMOTIONS
from shards.targets.filters import FILTERS
from shards.targets.survey import Style, Survey

_STYLES_APART = 0.5
_MOST_CUT = 0.3
_MOST_FLAWED = 0.01
_MOST_LEFT_OUT = 0.2
_LOW_GAIN = 0.02  # nats per token
_GIVEN_AWAY = 0.15  # above chance


def findings(survey: Survey) -> Iterator[str]:
    """One sentence for each."""
    yield from _of_styles(survey.styles)
    rejected = survey.about.get("rejected")
    for reason, number in rejected.items() if isinstance(rejected, dict) else ():
        every = survey.about.get("inputs")
        if type(number) is int and type(every) is int and number > _MOST_LEFT_OUT * every:
            yield f"{number / every:.0%} of the clips were left out as {reason}."
    for name in FILTERS:
        number = survey.flaws.get(name, 0)
        if survey.records and number > _MOST_FLAWED * len(survey.records):
            yield f"{number / len(survey.records):.1%} of the continuations are what the filter {name} looks for."
    for emotion, (cut, every) in survey.cut.items():
        if cut > _MOST_CUT * every:
            yield f"{cut / every:.0%} of the continuations ({emotion}) were cut: raise writer.max_new_tokens."
    yield from _of_gains(survey)
    yield from _of_leakage(survey)
    if survey.unreadable:
        yield f"{survey.unreadable} records of the sample cannot be read: blsp shard verify names the damage."


def _of_styles(styles: list[Style]) -> Iterator[str]:
    for what, shares in (
        ("capitals", {style.name: style.share_of_capitals for style in styles}),
        ("punctuation", {style.name: style.share_of_punctuation for style in styles}),
    ):
        known = {name: share for name, share in shares.items() if share is not None}
        if not known:
            continue
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        if known[high] - known[low] > _STYLES_APART:
            yield (
                f"Transcripts are not in one style: {known[high]:.0%} of {high} have {what}, {known[low]:.0%} of "
                f"{low}. Make the manifests with the same --text."
            )


def _of_gains(survey: Survey) -> Iterator[str]:
    if survey.gains is None:
        return
    for label, emotion in enumerate(EMOTIONS):
        found = survey.gains[(survey.shard_set.rows["emotion"] == label) & ~np.isnan(survey.gains)]
        if emotion != "neutral" and len(found) and np.median(found) < _LOW_GAIN:
            yield (
                f"Half of the continuations in the tone {emotion} carry next to nothing of it: their emotion gain is "
                f"below {_LOW_GAIN} nats per token."
            )


def _of_leakage(survey: Survey) -> Iterator[str]:
    said, written = survey.leakage.get("transcript"), survey.leakage.get("continuation")
    if said is not None and said.low > said.chance + _GIVEN_AWAY:
        yield (
            f"The words alone give the emotion away: {said.accuracy:.0%} is guessed from transcripts, "
            f"{said.chance:.0%} would be chance. A model can answer in tone without hearing."
        )
    told = str(survey.about.get("prompt") or "").removesuffix("_zh").endswith("_emotion")
    if told and written is not None and written.high < written.chance + _GIVEN_AWAY:
        yield (
            f"The continuations hardly differ by emotion: {written.accuracy:.0%} is guessed from them, "
            f"{written.chance:.0%} would be chance."
        )
