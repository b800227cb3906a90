"""What the pipeline asks of a writer of continuations, and what it gets.

Every target that the speech model learns comes from one. The LLM sees exactly the token ids that training later shows
it (`ChatTemplate`), and decodes greedily.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shards.prompts import ChatTemplate
from shards.sample import Continuation, Message
from shards.sets.teacher import TeacherSpec


@dataclass(frozen=True)
class Request:
    """A transcript to continue, or to answer. `emotion` is the label that the prompt names; None under prompts that
    name none. `messages` are the turns before it."""

    text: str
    emotion: str | None
    prompt: str
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Generation:
    """What an LLM wrote: its text, whether it ended by itself, and the tokens that were read and written for it."""

    text: str
    finished: bool
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class NoAnswer:
    """No continuation for one request, and why: its clip is left out, the others go on."""

    why: str


class Writer(Protocol):
    """What the pipeline needs of a writer; `name` says all that a text depends on."""

    name: str

    @property
    def template(self) -> ChatTemplate | None:
        """With its tokenizer tokens are counted as texts are written; None of a writer that has none here."""
        ...

    def write(self, requests: Sequence[Request]) -> Sequence[Continuation | NoAnswer]:
        """One per request, in order; the text of a continuation may be empty. Raises ValueError or OSError, as a
        sentence, for what stops a job."""
        ...

    def teach(
        self, requests: Sequence[Request], continuations: Sequence[Continuation], spec: TeacherSpec
    ) -> list[NDArray[np.void]]:
        """What the LLM predicts at each response token of each continuation: rows of `spec.row`."""
        ...

    def log_probabilities(
        self, requests: Sequence[Request], continuations: Sequence[Continuation]
    ) -> list[float] | None:
        """Of each continuation as the answer to its request, in nats, summed over its response tokens: whatever prompt
        it was written under, that of the request counts. None of a writer whose LLM does not tell."""
        ...
