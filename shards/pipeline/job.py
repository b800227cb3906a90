"""What is asked of the pipeline, how far it is, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from shards.pipeline.clips import Clip
from shards.pipeline.inputs import FromBase, FromManifests, Inputs, clip_reader
from shards.pipeline.tasks import Task
from shards.prompts import TRAINED_UNDER
from shards.sets.teacher import TeacherSpec
from shards.targets.filters import ALL_FILTERS, Filters
from shards.writers.choice import BACKENDS, llm_version
from shards.writers.endpoint import Endpoint


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What to make, of the `splits` of manifests or of the shard set `base`. `cpu_actors=None` is one per core;
    `ray_address=None` starts Ray on this machine. `backend` is one of `shards.writers.choice.BACKENDS`, `endpoint`
    where 'openai' writes, `cache` a folder for what the LLM has written."""

    out: str | Path
    llm: str
    manifests: tuple[Path, ...] = ()
    splits: tuple[str, ...] = ("train",)
    base: str | Path | None = None
    revision: str | None = None
    prompt: str = "continue"
    max_new_tokens: int = 48
    batch_size: int = 32
    teacher: TeacherSpec | None = None
    gain: bool = False
    filters: Filters = ALL_FILTERS
    backend: str = "transformers"
    endpoint: Endpoint | None = None
    cache: Path | None = None
    clips_per_shard: int = 1000
    cpu_actors: int | None = None
    llm_actors: int = 1
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.prompt not in TRAINED_UNDER:
            raise ValueError(f"prompt {self.prompt!r} writes no targets; use one of {', '.join(TRAINED_UNDER)}")
        if bool(self.manifests) == (self.base is not None):
            raise ValueError("give either manifests, or the shard set whose audio is used again as base")
        assert self.backend in BACKENDS and (self.endpoint is not None) == (self.backend == "openai")

    def absolute(self) -> ShardJob:
        """With absolute paths: actors start elsewhere."""
        return dataclasses.replace(
            self,
            out=_absolute(self.out),
            llm=_absolute(self.llm) if self.endpoint is None and Path(self.llm).is_dir() else self.llm,
            manifests=tuple(manifest.absolute() for manifest in self.manifests),
            base=None if self.base is None else _absolute(self.base),
            cache=None if self.cache is None else self.cache.absolute(),
        )

    def llm_version(self) -> str:
        """What job.json calls the LLM. Raises ValueError for a folder without a model, or that is not there."""
        return llm_version(self.backend, self.llm, self.revision, self.endpoint)

    def inputs(self) -> Inputs:
        """Read and checked. Raises ValueError for bad manifests or a base that is no finished set."""
        if self.base is not None:
            return FromBase(str(self.base))
        return FromManifests(self.manifests, self.splits, self.clips_per_shard)

    def clip_reader(self) -> Callable[[Task], list[Clip]]:
        """What workers read their clips with."""
        return clip_reader(self.manifests, None if self.base is None else str(self.base))


def _absolute(root: str | Path) -> str:
    return str(root) if "://" in str(root) else str(Path(root).absolute())


@dataclass(frozen=True)
class Speed:
    """What the last run did: clips finished and hours of audio written in so many seconds."""

    clips: int = 0
    hours: float = 0.0
    seconds: float = 0.0

    @property
    def clips_per_s(self) -> float:
        """0 before anything is finished."""
        return self.clips / self.seconds if self.seconds else 0.0

    @property
    def hours_per_s(self) -> float:
        """Hours of audio per second; 0 before anything is finished."""
        return self.hours / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Progress:
    """Clips finished so far (`rejected` of them not usable) out of `total`, and hours of audio written; what was there
    before this run counts, but not for the speed."""

    done: int
    rejected: int
    total: int
    hours: float
    speed: Speed = field(default=Speed(), compare=False)


@dataclass(frozen=True)
class Summary:
    """inputs = written + sum(rejected) + duplicates."""

    dataset_id: str
    inputs: int
    written: int
    rejected: dict[str, int]
    duplicates: int
    hours: float
