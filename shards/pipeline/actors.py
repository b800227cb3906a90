"""The Ray side of the pipeline: CPU actors encode shard k while LLM actors write continuations for shard k+1.

Places of clips, continuations and commit records pass through Ray's object store, transcripts and audio never do: each
actor reads what it works on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from cluster.ray_actors import Actors, Team, Words, ray_actors
from shards.decoder import Decoder
from shards.pipeline.answers import Answers, answer
from shards.pipeline.job import ShardJob
from shards.pipeline.tasks import Commit, Task, write_task
from shards.sets.store import open_store
from shards.writers.protocol import Writer

GOES_ON = "the same command goes on from the shards that are finished"


class _LlmActor:
    """Loads its writer with the first task, so that a failure reaches the driver as that task's."""

    def __init__(self, job: ShardJob, load_writer: Callable[[ShardJob], Writer]) -> None:
        self._job, self._load_writer = job, load_writer
        self._read_clips = job.clip_reader()
        self._writer: Writer | None = None

    def answer(self, task: Task) -> Answers:
        self._writer = self._writer or self._load_writer(self._job)
        job = self._job
        return answer(self._writer, self._read_clips(task), job.prompt, job.teacher, job.gain)


class _CpuActor:
    def __init__(self, job: ShardJob) -> None:
        self._job, self._store, self._decoder = job, open_store(job.out), Decoder()
        self._read_clips = job.clip_reader()

    def write_task(self, task: Task, answers: Answers) -> Commit:
        job, clips = self._job, self._read_clips(task)
        return write_task(self._store, task, clips, job.prompt, answers, self._decoder.encode, job.filters)


def run_tasks(
    job: ShardJob, tasks: Sequence[Task], load_writer: Callable[[ShardJob], Writer]
) -> Generator[Commit | None, None, None]:
    """Yields a commit per task as they come, and None about once a second while none comes.

    Raises NoSpaceError, ValueError or OSError as the writer or the task did, and OSError when workers keep dying or Ray
    itself dies.
    """

    def start(actors: Actors) -> Team:
        return _start_actors(actors, job, len(tasks), load_writer)

    with ray_actors(job.ray_address, Words("shard", "writer.batch_size", GOES_ON), start) as actors:
        yield from actors.work(tasks)


def _start_actors(actors: Actors, job: ShardJob, num_tasks: int, load_writer: Callable[[ShardJob], Writer]) -> Team:
    """LLM actors, on a GPU each where there are some, and CPU actors, on a core each; the latter are asked, and a
    waiting task of each keeps an LLM ahead of it."""
    num_llms, num_gpus = job.llm_actors, 0
    if actors.num_gpus:
        num_llms, num_gpus = actors.fitting("llm_actors", num_llms, actors.num_gpus, "GPUs"), 1
    num_cpus = min(job.cpu_actors or actors.num_cpus, actors.num_cpus, num_tasks)
    llms = actors.start(_LlmActor, job, load_writer, number=min(num_llms, num_tasks), num_cpus=0, num_gpus=num_gpus)

    def ask(cpu: Any, task: Task) -> Any:
        return cpu.write_task.remote(task, llms[task.number % len(llms)].answer.remote(task))

    return actors.start(_CpuActor, job, number=num_cpus, num_cpus=1), ask
