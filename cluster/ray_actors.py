"""Work for actors in a Ray cluster: each piece is done by one of them, and again when that one dies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.ray_session import check_ray, ray_is_dead, ray_session, ray_started_here

_PIECES_PER_ACTOR = 2  # one in work, one waiting
_POLL_S = 1.0
_TRIES = 3  # of a piece whose actor dies; how often actors die in the course of a job does not matter

Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Words:
    """What errors call a piece of the work, what lowers its need of memory, and what the same command does next."""

    piece: str
    smaller: str
    goes_on: str


@contextmanager
def ray_actors(address: str | None, words: Words) -> Iterator[Actors]:
    """Inside Ray, as `cluster.ray_session` opens it; the actors that are started end with the block.

    What an actor raises comes out of the block: ValueError and OSError as they are. Raises OSError when actors keep
    dying or Ray itself dies.
    """
    with ray_session(address):
        import ray

        actors = Actors(words, hosts_may_go=address is None and not ray_started_here())
        try:
            yield actors
        except ray.exceptions.RayError as error:
            check_ray(words.goes_on)
            raise _explained(error, words) from None
        finally:
            actors.end()


class Actors:
    """What there is room for, and what was started there. Made by `ray_actors`."""

    def __init__(self, words: Words, *, hosts_may_go: bool) -> None:
        """`hosts_may_go`: of hosts that a cluster was brought up on for the job, some may be lost since."""
        import ray

        self._words, self._hosts_may_go = words, hosts_may_go
        self._started: list[Any] = []
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        there = [node["Resources"] for node in nodes if node["Alive"]]
        self.cpus_of_hosts = [int(resources["CPU"]) for resources in there if resources.get("CPU")]
        self.num_cpus = sum(self.cpus_of_hosts)
        self.num_gpus = int(sum(resources.get("GPU", 0) for resources in there))

    def fitting(self, field: str, asked: int, there: int, unit: str) -> int:
        """How many can run of those that a recipe's `field` asks for. Raises ValueError when that is fewer, unless
        hosts may have gone since."""
        return number_that_fits(field, asked, there, unit, hosts_may_go=self._hosts_may_go)

    def start(self, kind: type, *arguments: Any, number: int, num_cpus: int, num_gpus: int = 0) -> list[Any]:
        """Actors of a class, each made of `arguments`, with so many cores and GPUs of their own."""
        import ray

        remote: Any = ray.remote
        actor = remote(kind).options(
            num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=-1, max_task_retries=_TRIES - 1
        )  # fmt: skip
        started = [actor.remote(*arguments) for _ in range(number)]
        self._started += started
        return started

    def work(
        self, pieces: Iterable[Piece], actors: Sequence[Any], ask: Callable[[Any, Piece], Any]
    ) -> Generator[Any, None, None]:
        """What comes of each piece, as it comes, and None about once a second while nothing does. `ask` calls an actor,
        each of which always has a next piece waiting."""
        import ray

        waiting = iter(pieces)
        idle = list(actors) * _PIECES_PER_ACTOR
        running: dict[Any, Any] = {}
        while True:
            while idle and (piece := next(waiting, None)) is not None:
                actor = idle.pop(0)
                running[ask(actor, piece)] = actor
            if not running:
                return
            finished, _ = ray.wait(list(running), timeout=_POLL_S)
            for reference in finished:
                idle.append(running.pop(reference))
                yield ray.get(reference)
            check_ray(self._words.goes_on)
            if not finished:
                yield None

    def end(self) -> None:
        """All that were started."""
        import ray

        while self._started and not ray_is_dead():
            ray.kill(self._started.pop())


def number_that_fits(field: str, asked: int, there: int, unit: str, *, hosts_may_go: bool) -> int:
    """See `Actors.fitting`."""
    if asked <= there:
        return asked
    if not hosts_may_go:
        raise ValueError(f"{field} = {asked}, but Ray sees {there} {unit}; lower {field} to {there}")
    print(f"blsp: {field} = {asked}, but the hosts that are there have {there} {unit}", file=sys.stderr)
    return there


def _explained(error: Exception, words: Words) -> Exception:
    """What went wrong in an actor, as the sentence that the actor itself raised where there is one."""
    import ray

    cause = getattr(error, "cause", error)
    if isinstance(cause, ray.exceptions.RayActorError):
        return OSError(
            f"a worker process died {_TRIES} times at the same {words.piece}; too little memory? With fewer actors or "
            f"a smaller batch {words.goes_on}"
        )
    if type(cause).__name__ == "OutOfMemoryError":  # torch's; a RuntimeError to whom does not import torch
        return OSError(f"the LLM does not fit into the GPU's memory: lower {words.smaller}; {words.goes_on}")
    return cause if isinstance(cause, ValueError | OSError) else error
