"""Work for actors in a Ray cluster: each piece is done by one of them, and again when that one dies."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.ray_session import check_ray, ray_is_dead, ray_session, ray_started_here

_PIECES_PER_ACTOR = 2  # one in work, one waiting
_POLL_S = 1.0
_NOTICED_S = 60  # after which Ray has seen that a host is lost; its actors fail at once
_TRIES = 3  # of a piece whose actor dies; how often actors die in the course of a job does not matter

Team = tuple[Sequence[Any], Callable[[Any, Any], Any]]  # actors, and how one is asked to do a piece of the work
Start = Callable[["Actors"], Team]


@dataclass(frozen=True)
class Words:
    """What errors call a piece of the work, what lowers its need of memory, and what the same command does next."""

    piece: str
    smaller: str
    goes_on: str


class HostLostError(Exception):
    """A host of the cluster is not there any more; the work that its actors had must be done by others."""


@contextmanager
def ray_actors(address: str | None, words: Words, start: Start) -> Iterator[Actors]:
    """Inside Ray, as `cluster.ray_session` opens it; the actors that `start` starts end with the block.

    What an actor raises comes out of the block: ValueError and OSError as they are. Raises OSError when actors keep
    dying or Ray itself dies.
    """
    with ray_session(address):
        import ray

        actors = Actors(words, start, hosts_may_go=address is None and not ray_started_here())
        try:
            yield actors
        except ray.exceptions.RayError as error:
            check_ray(words.goes_on)
            raise _explained(error, words) from None
        finally:
            actors.end()


class Actors:
    """What there is room for, and what was started there. Made by `ray_actors`."""

    def __init__(self, words: Words, start: Start, *, hosts_may_go: bool) -> None:
        """`hosts_may_go`: of hosts that a cluster was brought up on for the job, some may be lost since; who brought it
        up does without them."""
        self._words, self._start, self._hosts_may_go = words, start, hosts_may_go
        self._is_watched = hosts_may_go
        self._started: list[Any] = []
        self._team: Team | None = None
        self._look()

    def _look(self) -> None:
        there = _hosts()
        self._hosts, self._looked_s = set(there), time.monotonic()
        self.cpus_of_hosts = [int(resources["CPU"]) for resources in there.values() if resources.get("CPU")]
        self.num_cpus = sum(self.cpus_of_hosts)
        self.num_gpus = int(sum(resources.get("GPU", 0) for resources in there.values()))

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

    def work(self, pieces: Sequence[Any]) -> Generator[Any, None, None]:
        """What comes of each piece, as it comes, and None about once a second while nothing does."""
        left = dict(enumerate(pieces))
        while left:
            self._team = self._team or self._start(self)
            try:
                for number, result in self._work(list(left.items()), *self._team):
                    left.pop(number, None)
                    yield result
            except HostLostError:
                self._do_without()

    def _work(
        self, pieces: Sequence[tuple[int, Any]], actors: Sequence[Any], ask: Callable[[Any, Any], Any]
    ) -> Generator[tuple[int, Any], None, None]:
        """Each actor always has a next piece waiting."""
        import ray

        waiting = iter(pieces)
        idle = list(actors) * _PIECES_PER_ACTOR
        running: dict[Any, tuple[int, Any]] = {}
        while True:
            while idle and (given := next(waiting, None)) is not None:
                number, piece = given
                actor = idle.pop(0)
                running[ask(actor, piece)] = number, actor
            if not running:
                return
            finished, _ = ray.wait(list(running), timeout=_POLL_S)
            for reference in finished:
                number, actor = running.pop(reference)
                idle.append(actor)
                try:
                    yield number, ray.get(reference)
                except ray.exceptions.RayError as error:
                    if isinstance(getattr(error, "cause", error), ray.exceptions.RayError):
                        self._wait_for_loss()
                    raise
            check_ray(self._words.goes_on)
            if time.monotonic() - self._looked_s > _POLL_S:
                self._refuse_loss()
            if not finished:
                yield -1, None

    def _wait_for_loss(self) -> None:
        """What Ray could not do is perhaps due to a host that is lost: raises HostLostError once that is seen."""
        for _ in range(_NOTICED_S if len(self._hosts) > 1 else 0):
            self._refuse_loss()
            time.sleep(1)

    def _refuse_loss(self) -> None:
        """Raises HostLostError when a host is lost that nobody else watches: Ray would wait until there is room again
        for the actors that it had, and with them their work."""
        self._looked_s = time.monotonic()
        if not self._is_watched and self._hosts - set(_hosts()):
            raise HostLostError

    def _do_without(self) -> None:
        had_gpus, self._hosts_may_go = self.num_gpus > 0, True
        self.end()
        self._look()
        if not self.num_cpus or (had_gpus and not self.num_gpus):
            raise OSError(f"the hosts of the Ray cluster that could do this are lost; {self._words.goes_on}")
        print("blsp: a host of the Ray cluster is lost; going on with the others", file=sys.stderr)

    def end(self) -> None:
        """All that were started."""
        import ray

        self._team = None
        while self._started and not ray_is_dead():
            ray.kill(self._started.pop())


def _hosts() -> dict[str, dict[str, float]]:
    """The resources of those that are there."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}


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
