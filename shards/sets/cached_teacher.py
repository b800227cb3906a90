"""What a set holds of its LLM's predictions, as a training of that LLM reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.sets.shard_set import ShardSet
from shards.sets.teacher import TeacherSpec

_WRITER = re.compile(r"(?P<llm>.+@\S+) wording=(?P<wording>\S+) ")
_HASH = re.compile(r"[0-9a-f]{12}|[0-9a-f]{40}")  # of a folder's files, or a hub commit; not the name of a branch


@dataclass(frozen=True)
class CachedTeacher:
    """What a training reads of the stored rows: `log_z` at its temperature, and at 1, which is logged."""

    spec: TeacherSpec
    temperature: float

    @property
    def columns(self) -> list[int]:
        """Of `log_z`: that of the training's temperature, and that of temperature 1."""
        return [self.spec.temperatures.index(temperature) for temperature in (self.temperature, 1.0)]

    def filler(self, num_rows: int) -> NDArray[np.void]:
        """Rows that are sure of token 0: they only have to be finite, their weight is 0."""
        rows = np.zeros(num_rows, self.spec.row)
        rows["logits"][:, 1:] = -np.inf
        return rows


def cached_teacher(shard_set: ShardSet, llm: str, wording: str, temperature: float) -> CachedTeacher:
    """What the set's LLM predicted, for training the LLM with the fingerprint `llm` and the template `wording`.

    Raises ValueError when the set holds nothing of the kind, was written by another LLM or with other words, or does
    not hold it at `temperature`.
    """
    url, spec, live = shard_set.url, shard_set.teacher, "or set stage.teacher to live"
    if spec is None:
        raise ValueError(
            f"{url}: stage.teacher is 'cached', but this set does not hold what the LLM predicts; write it with "
            f"writer.teacher in the shard recipe, {live}"
        )
    for writer in shard_set.writers or ("nobody known",):
        found = _WRITER.match(writer)
        if found is None or not _same_model(found["llm"], llm):
            other = writer if found is None else found["llm"]
            raise ValueError(
                f"{url}: stage.teacher is 'cached', but its predictions are by {other}, and model.llm is {llm}; "
                f"write the set with that LLM, {live}"
            )
        if _HASH.fullmatch(llm.rpartition("@")[2]) is None:
            raise ValueError(
                f"{url}: stage.teacher is 'cached', but {llm} may have become another model since the set was written; "
                f"set writer.revision and model.revision to a commit and write the set again, {live}"
            )
        if found["wording"] not in (wording, wording.partition(".")[0]):  # the latter: before there was any Chinese
            raise ValueError(
                f"{url}: stage.teacher is 'cached', but its predictions are with tokenizer, chat template and "
                f"prompts {found['wording']}, and those of model.llm are now {wording}; write the set again, {live}"
            )
    missing = [t for t in (temperature, 1.0) if t not in spec.temperatures]
    if missing:
        held, needed = (", ".join(f"{t:g}" for t in ts) for ts in (spec.temperatures, sorted({1.0, temperature})))
        why = f"stage.kl_temperature is {temperature:g}" if missing[0] == temperature else "1 is needed for the log"
        raise ValueError(
            f"{url}: holds what the LLM predicts at the temperatures {held}, and {why}; write the set with "
            f"writer.teacher.temperatures of [{needed}], {live}"
        )
    return CachedTeacher(spec, temperature)


def _same_model(one: str, other: str) -> bool:
    """A folder may have moved, or have another name on another host: then its content counts."""
    version = one.rpartition("@")[2]
    return one == other or (version == other.rpartition("@")[2] and _HASH.fullmatch(version) is not None)
