"""Who answers the questions of an evaluation: this process, or copies of the models over a Ray cluster.

All items of a question are cut into chunks of the batch size, whoever answers them, and each answered chunk is kept on
disk; so neither the number of copies nor a copy that dies changes an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blsp.evaluate.desk import Chunk, Desk, Items, Question
from blsp.evaluate.kept import GOES_ON, KeptAnswers
from blsp.hf.convert import is_transformers_folder
from blsp.provenance import versions
from blsp.recipe import EvalRecipe
from cluster.ray_actors import Actors, Team, Words, ray_actors
from shards.prompts import PROMPTS
from shards.sample import Utterance
from shards.writers.fingerprint import model_fingerprint
from shards.writers.protocol import Request

Progress = Callable[[str, int, int], None]  # what is being done, items done, items in all
# Of numbered chunks the numbers and answers as they come; None now and then while none comes.
Answer = Callable[[Sequence[tuple[int, Chunk]]], Iterable[tuple[int, list[str]] | None]]


class Examiner:
    """Asks questions and keeps the answers."""

    def __init__(self, answer: Answer, recipe: EvalRecipe, on_progress: Progress) -> None:
        self._answer, self._on_progress = answer, on_progress
        self._kept = KeptAnswers(recipe.out)
        self._batch_size = recipe.batch_size
        self._settings = [recipe.max_new_tokens, versions()]

    def ask(self, what: str, asked: Sequence[tuple[Question, Items]]) -> list[list[str]]:
        """The answers to each question's items, in order. `what` is the progress' name for it."""
        size = self._batch_size
        parts = [range(0, len(items), size) for _, items in asked]
        chunks = [
            Chunk(question, items[start : start + size])
            for (question, items), starts in zip(asked, parts, strict=True)
            for start in starts
        ]
        models = {question: _version(question) for question, _ in asked}
        keys = [_key(chunk, [models[chunk.question], *self._settings]) for chunk in chunks]
        answers = [self._kept.get(key, len(chunk.items)) for key, chunk in zip(keys, chunks, strict=True)]
        total = sum(len(chunk.items) for chunk in chunks)

        def told() -> None:
            self._on_progress(what, sum(len(texts) for texts in answers if texts is not None), total)

        told()
        missing = [(number, chunk) for number, chunk in enumerate(chunks) if answers[number] is None]
        for answered in self._answer(missing) if missing else ():
            if answered is not None:
                number, answers[number] = answered
                self._kept.put(keys[number], answered[1])
            told()
        each = iter(answers)
        return [[text for _ in starts for text in next(each) or ()] for starts in parts]


@contextmanager
def answering(recipe: EvalRecipe, *, over_ray: bool) -> Iterator[Answer]:
    """Who answers for the length of the block: this process where one copy is asked for and no cluster, else actors.
    `over_ray`: inside a cluster that was brought up for this, all of which is used unless the recipe says less."""
    settings = {"max_new_tokens": recipe.max_new_tokens, "batch_size": recipe.batch_size}
    if not over_ray and recipe.ray_address is None and recipe.actors in (None, 1):
        desk = Desk(**settings)
        yield lambda missing: ((number, desk.answer(chunk)) for number, chunk in missing)
        return

    def start(actors: Actors) -> Team:
        number, num_cpus, num_gpus = _room(actors, recipe.actors, all_of_it=over_ray)
        desks = actors.start(_Actor, str(Path.cwd()), settings, number=number, num_cpus=num_cpus, num_gpus=num_gpus)
        return desks, lambda desk, piece: desk.answer.remote(*piece)

    with ray_actors(recipe.ray_address, Words("batch", "batch_size", GOES_ON), start) as actors:
        yield actors.work


class _Actor:
    """Nothing is done before the first question, so that a failure reaches who asked."""

    def __init__(self, folder: str, settings: dict[str, int]) -> None:
        self._folder, self._desk = folder, Desk(**settings)

    def answer(self, number: int, chunk: Chunk) -> tuple[int, list[str]]:
        try:
            os.chdir(self._folder)  # which relative paths of recipes and exports are relative to
        except OSError as error:
            why = f"{(error.strerror or '').lower()} on {socket.gethostname()}; every host needs the same folders"
            raise ValueError(f"{self._folder}: {why}") from None
        return number, self._desk.answer(chunk)


def _room(actors: Actors, asked: int | None, *, all_of_it: bool) -> tuple[int, int, int]:
    """How many actors, and cores and GPUs of each: one on each GPU, or else on each host."""
    if actors.num_gpus:
        wanted = asked or (actors.num_gpus if all_of_it else 1)
        return actors.fitting("actors", wanted, actors.num_gpus, "GPUs"), 0, 1
    cores = actors.cpus_of_hosts
    number = actors.fitting("actors", asked or (len(cores) if all_of_it else 1), actors.num_cpus, "cores")
    on_one_host = -(-number // len(cores))
    return number, max(1, min(cores) // on_one_host), 0


def _key(chunk: Chunk, settings: Sequence[Any]) -> str:
    """Equal for what is answered in the same way."""
    items = [_request(item) if isinstance(item, Request) else _clip(item) for item in chunk.items]
    question, prompt = chunk.question, chunk.question.prompt
    wording = None if prompt is None else asdict(PROMPTS[prompt])
    content = [question.what, prompt, wording, *settings, items]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _request(request: Request) -> list[Any]:
    return [asdict(request), asdict(PROMPTS[request.prompt])]


def _clip(clip: Utterance) -> list[Any]:
    file = Path(clip.audio).stat()
    return [clip.audio, clip.start_s, clip.duration_s, file.st_size, file.st_mtime_ns]


def _version(question: Question) -> str:
    model = Path(question.model)
    ours = question.what in ("respond", "classify") and not is_transformers_folder(model)
    return model_fingerprint(str(model / "export") if ours else question.model, None)
