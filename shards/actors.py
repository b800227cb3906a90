"""The Ray side of the pipeline: CPU actors encode shard k while LLM actors write continuations for shard k+1.

Texts and commit records pass through Ray's object store, audio never does: each CPU actor reads what it encodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cluster.ray_session import ray_session
from shards.sample import Continuation
from shards.tasks import Commit, NoSpaceError, Task, requests, write_task
from shards.writers import Request, Writer

if TYPE_CHECKING:
    from shards.pipeline import ShardJob

_TASKS_PER_ACTOR = 2  # one in work, one waiting
_POLL_S = 1.0


class _LlmActor:
    """Loads its writer with the first task, so that a failure reaches the driver as that task's."""

    def __init__(self, job: ShardJob, load_writer: Callable[[ShardJob], Writer]) -> None:
        self._job, self._load_writer = job, load_writer
        self._writer: Writer | None = None

    def write(self, asked: list[Request]) -> list[Continuation]:
        self._writer = self._writer or self._load_writer(self._job)
        return self._writer.write(asked)


class _CpuActor:
    def __init__(self, job: ShardJob) -> None:
        self._job = job

    def write_task(self, task: Task, continuations: list[Continuation]) -> Commit:
        return write_task(self._job.out, task, self._job.prompt, continuations)


def run_tasks(
    job: ShardJob, tasks: Sequence[Task], load_writer: Callable[[ShardJob], Writer]
) -> Iterator[Commit | None]:
    """Yields a commit per task as they come, and None about once a second while none comes.

    Raises NoSpaceError, ValueError or OSError as the writer or the task did, and OSError when workers keep dying.
    """
    with ray_session(job.ray_address):
        import ray

        try:
            yield from _schedule(job, tasks, load_writer)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, NoSpaceError):
                raise NoSpaceError(
                    f"{error.cause}; make room and run the same command: it goes on from there"
                ) from None
            if isinstance(error.cause, ValueError | OSError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError as error:
            raise OSError(
                f"a worker process died again and again ({error.error_msg.splitlines()[0]}); too little memory? "
                "Use fewer actors; the same command goes on from the shards that are finished"
            ) from error


def _schedule(
    job: ShardJob, tasks: Sequence[Task], load_writer: Callable[[ShardJob], Writer]
) -> Iterator[Commit | None]:
    import ray

    remote: Any = ray.remote
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_cpu_actors = min(job.cpu_actors or int(resources["CPU"]), int(resources["CPU"]), len(tasks))
    gpus = 1 if resources.get("GPU", 0) >= job.llm_actors else 0
    restarts = {"max_restarts": 2, "max_task_retries": 2}
    llm_actors: list[Any] = [
        remote(_LlmActor).options(num_cpus=0, num_gpus=gpus, **restarts).remote(job, load_writer)
        for _ in range(min(job.llm_actors, len(tasks)))
    ]
    cpu_actors: list[Any] = [
        remote(_CpuActor).options(num_cpus=1, **restarts).remote(job) for _ in range(num_cpu_actors)
    ]
    waiting = iter(tasks)
    idle = cpu_actors * _TASKS_PER_ACTOR
    running: dict[Any, Any] = {}
    while True:
        while idle and (task := next(waiting, None)):
            llm, cpu = llm_actors[task.number % len(llm_actors)], idle.pop(0)
            running[cpu.write_task.remote(task, llm.write.remote(requests(task, job.prompt)))] = cpu
        if not running:
            return
        finished, _ = ray.wait(list(running), timeout=_POLL_S)
        for reference in finished:
            idle.append(running.pop(reference))
            yield ray.get(reference)
        if not finished:
            yield None
