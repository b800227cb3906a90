"""The Ray side of the pipeline: CPU actors encode shard k while LLM actors write continuations for shard k+1.

Places of clips, continuations and commit records pass through Ray's object store, transcripts and audio never do: each
actor reads what it works on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any

from cluster.ray_session import check_ray, ray_is_dead, ray_session, ray_started_here
from shards.decoder import Decoder
from shards.pipeline.job import ShardJob
from shards.pipeline.tasks import Answers, Commit, NoSpaceError, Task, answer, write_task
from shards.pipeline.writers import Writer
from shards.sets.store import open_store

_TASKS_PER_ACTOR = 2  # one in work, one waiting
_POLL_S = 1.0
_TRIES = 3  # of a task whose worker dies; how often workers die in the course of a job does not matter
GOES_ON = "the same command goes on from the shards that are finished"


class _LlmActor:
    """Loads its writer with the first task, so that a failure reaches the driver as that task's."""

    def __init__(self, job: ShardJob, load_writer: Callable[[ShardJob], Writer]) -> None:
        self._job, self._load_writer = job, load_writer
        self._read_clips = job.clip_reader()
        self._writer: Writer | None = None

    def answer(self, task: Task) -> Answers:
        self._writer = self._writer or self._load_writer(self._job)
        return answer(self._writer, self._read_clips(task), self._job.prompt, self._job.teacher)


class _CpuActor:
    def __init__(self, job: ShardJob) -> None:
        self._job, self._store, self._decoder = job, open_store(job.out), Decoder()
        self._read_clips = job.clip_reader()

    def write_task(self, task: Task, answers: Answers) -> Commit:
        clips = self._read_clips(task)
        return write_task(self._store, task, clips, self._job.prompt, answers, self._decoder.encode)


def run_tasks(
    job: ShardJob, tasks: Sequence[Task], load_writer: Callable[[ShardJob], Writer]
) -> Generator[Commit | None, None, None]:
    """Yields a commit per task as they come, and None about once a second while none comes.

    Raises NoSpaceError, ValueError or OSError as the writer or the task did, and OSError when workers keep dying or Ray
    itself dies.
    """
    with ray_session(job.ray_address):
        import ray

        llm_actors, cpu_actors = _start_actors(job, len(tasks), load_writer)
        try:
            yield from _schedule(tasks, llm_actors, cpu_actors)
        except ray.exceptions.RayError as error:
            check_ray(GOES_ON)
            raise _explained(error) from None
        finally:
            if not ray_is_dead():
                for actor in llm_actors + cpu_actors:
                    ray.kill(actor)


def _start_actors(
    job: ShardJob, num_tasks: int, load_writer: Callable[[ShardJob], Writer]
) -> tuple[list[Any], list[Any]]:
    """LLM actors, on a GPU each where there are enough, and CPU actors, on a core each."""
    import ray

    remote: Any = ray.remote
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_cpus = int(resources["CPU"])
    gpus = int(resources.get("GPU", 0))
    # Of hosts that a cluster was brought up on for the job, some may be lost since.
    hosts_may_go = job.ray_address is None and not ray_started_here()
    num_llms = _num_llm_actors(job.llm_actors, gpus, hosts_may_go=hosts_may_go)
    num_gpus = 1 if gpus else 0
    restarts = {"max_restarts": -1, "max_task_retries": _TRIES - 1}
    llm = remote(_LlmActor).options(num_cpus=0, num_gpus=num_gpus, **restarts)
    cpu = remote(_CpuActor).options(num_cpus=1, **restarts)
    llm_actors = [llm.remote(job, load_writer) for _ in range(min(num_llms, num_tasks))]
    return llm_actors, [cpu.remote(job) for _ in range(min(job.cpu_actors or num_cpus, num_cpus, num_tasks))]


def _num_llm_actors(asked: int, gpus: int, *, hosts_may_go: bool) -> int:
    """Raises ValueError when more are asked for than there are GPUs, unless hosts may have gone since."""
    if not 0 < gpus < asked:
        return asked
    if not hosts_may_go:
        raise ValueError(f"llm_actors = {asked}, but Ray sees {gpus} GPUs; lower llm_actors to {gpus}")
    print(
        f"blsp: llm_actors = {asked}, but the hosts that are there have {gpus} GPUs; that many write", file=sys.stderr
    )
    return gpus


def _schedule(
    tasks: Sequence[Task], llm_actors: Sequence[Any], cpu_actors: list[Any]
) -> Generator[Commit | None, None, None]:
    """Keeps every CPU actor busy and, through its waiting task, an LLM actor ahead of it."""
    import ray

    waiting = iter(tasks)
    idle = cpu_actors * _TASKS_PER_ACTOR
    running: dict[Any, Any] = {}
    while True:
        while idle and (task := next(waiting, None)):
            llm, cpu = llm_actors[task.number % len(llm_actors)], idle.pop(0)
            running[cpu.write_task.remote(task, llm.answer.remote(task))] = cpu
        if not running:
            return
        finished, _ = ray.wait(list(running), timeout=_POLL_S)
        for reference in finished:
            idle.append(running.pop(reference))
            yield ray.get(reference)
        check_ray(GOES_ON)
        if not finished:
            yield None


def _explained(error: Exception) -> Exception:
    """What went wrong in a worker, as the sentence that the worker itself raised where there is one."""
    import ray

    cause = getattr(error, "cause", error)
    if isinstance(cause, NoSpaceError):
        return NoSpaceError(str(cause))
    if isinstance(cause, ray.exceptions.RayActorError):
        return OSError(
            f"a worker process died {_TRIES} times at the same shard; too little memory? With fewer actors or a "
            f"smaller batch {GOES_ON}"
        )
    if type(cause).__name__ == "OutOfMemoryError":  # torch's; a RuntimeError to whom does not import torch
        return OSError(f"the LLM does not fit into the GPU's memory: lower writer.batch_size; {GOES_ON}")
    return cause if isinstance(cause, ValueError | OSError) else error
