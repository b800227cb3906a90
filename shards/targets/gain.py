"""Emotion gain: how much of a continuation comes from the emotion that its writer was told, by the LLM's own account.

    gain(y) = [ log p(y | words, the writer's prompt, with the label) - log p(y | words, the learner's prompt) ] / |y|

in nats per token of the response, its end of turn included. The learner's prompt (`TRAINED_UNDER`: `continue_tone` for
`continue_emotion`) has the same system message and wording but for the label, so that only the label makes the
difference; and it is the one under which the speech model must write y. So the gain is what that model has to find in
the voice: about 0 where the words alone would have led to y, or where y has nothing of the emotion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from shards.prompts import PROMPTS, TRAINED_UNDER, in_language, language_of
from shards.sample import Continuation
from shards.writers.protocol import NoAnswer, Request, Writer

_DIGITS = 6  # what is kept of it


def is_told(prompt: str) -> bool:
    """Whether the writer's prompt names an emotion: only then there is something to gain."""
    return "{emotion}" in PROMPTS[prompt].instruction


def with_gains(
    writer: Writer, requests: Sequence[Request], continuations: Sequence[Continuation | NoAnswer]
) -> list[Continuation | NoAnswer]:
    """The continuations, each with its gain; without one where the prompt names no emotion, where there are no tokens,
    and of a writer that does not know probabilities."""
    template = writer.template
    pairs = zip(requests, continuations, strict=True)
    asked = [pair for pair in dict.fromkeys(pairs) if is_told(pair[0].prompt) and isinstance(pair[1], Continuation)]
    told = [request for request, _ in asked]
    texts = [text for _, text in asked if isinstance(text, Continuation)]
    with_label = writer.log_probabilities(told, texts) if asked else None
    if template is None or with_label is None:
        return list(continuations)
    untold = [dataclasses.replace(request, prompt=learners_prompt(request.prompt)) for request in told]
    without = writer.log_probabilities(untold, texts)
    assert without is not None
    gains: dict[tuple[Request, Continuation], float] = {}
    for request, text, high, low in zip(told, texts, with_label, without, strict=True):
        if num_tokens := len(template.response(text.text, text.finished)):
            gains[request, text] = round((high - low) / num_tokens, _DIGITS)
    return [
        dataclasses.replace(text, gain=gains.get((request, text))) if isinstance(text, Continuation) else text
        for request, text in zip(requests, continuations, strict=True)
    ]


def learners_prompt(prompt: str) -> str:
    """The prompt that the model which hears is trained under, in the language of the writer's."""
    language = language_of(prompt)
    return next(
        in_language(trained, language)
        for writing, trained in TRAINED_UNDER.items()
        if in_language(writing, language) == prompt
    )
