"""What all writers share: each request is asked for once, what was written before is not asked for again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.prompts import PROMPTS, ChatTemplate
from shards.sample import Continuation
from shards.sets.teacher import TeacherSpec
from shards.writers.cache import Generations, key_of
from shards.writers.protocol import Generation, NoAnswer, Request

P = TypeVar("P")


class GreedyWriter(ABC, Generic[P]):
    """A writer whose LLM is shown prompts of the form P, which JSON can say, and always continues one in one way."""

    def __init__(self, name: str, template: ChatTemplate | None, cache: Path | None) -> None:
        """`cache` is a folder for `Generations`; None for none."""
        self.name = name
        self.template = template
        self.cache = None if cache is None else Generations(cache, name)

    @abstractmethod
    def prompt(self, request: Request) -> P:
        """What the LLM is shown."""

    @abstractmethod
    def generate(self, prompts: Sequence[P]) -> Iterator[tuple[int, Generation | NoAnswer]]:
        """What it writes to each, with the prompt's number, in any order, as soon as it is there."""

    def write(self, requests: Sequence[Request]) -> list[Continuation | NoAnswer]:
        """In the order of the requests; what shows the LLM the same is asked for once."""
        prompts = [self.prompt(request) for request in requests]
        keys = [key_of(self.name, prompt) for prompt in prompts]
        answers: dict[str, Generation | NoAnswer] = {}
        missing: dict[str, P] = {}
        for key, prompt in zip(keys, prompts, strict=True):
            if key in answers or key in missing:
                continue
            known = None if self.cache is None else self.cache.get(key)
            if known is None:
                missing[key] = prompt
            else:
                answers[key] = known
        asked = list(missing)
        for number, answer in self.generate(list(missing.values())):
            answers[asked[number]] = answer
            if self.cache is not None and isinstance(answer, Generation):
                self.cache.put(asked[number], answer)
        if self.cache is not None:
            self.cache.sync()
        return [self._continuation(request, answers[key]) for request, key in zip(requests, keys, strict=True)]

    def _continuation(self, request: Request, answer: Generation | NoAnswer) -> Continuation | NoAnswer:
        if isinstance(answer, NoAnswer):
            return answer
        return Continuation(prompt=request.prompt, text=answer.text, finished=answer.finished, writer=self.name)

    def teach(
        self, requests: Sequence[Request], continuations: Sequence[Continuation], spec: TeacherSpec
    ) -> list[NDArray[np.void]]:
        """Raises ValueError: only a writer that has the LLM's logits at hand can."""
        raise ValueError(f"writer.teacher: {self.name} cannot say what it predicts; use writer.backend=transformers")

    def log_probabilities(
        self, requests: Sequence[Request], continuations: Sequence[Continuation]
    ) -> list[float] | None:
        """None: only a writer that has the LLM's logits at hand can tell."""
        return None


def prompt_ids(template: ChatTemplate, request: Request) -> list[int]:
    """What a local LLM reads for a request: the ids that training shows it too."""
    texts = [*(message.text for message in request.messages), request.text]
    return template.context(request.prompt, emotion_told(request), template.encode_all(texts))


def emotion_told(request: Request) -> str | None:
    """The label, under prompts that name it."""
    return request.emotion if "{emotion}" in PROMPTS[request.prompt].instruction else None


def generation(template: ChatTemplate, prompt: Sequence[int], new: Sequence[int]) -> Generation:
    """What the ids `new` behind a prompt say, up to the end of the turn if it is among them."""
    end = template.end_of_turn_id
    finished = end in new
    said = list(new[: new.index(end)] if finished else new)
    return Generation(template.decode(said), finished, len(prompt), len(said) + finished)
