"""Which rank's link is slow: a MiB from each rank to its neighbours in a ring and back, timed where it arrives.

In a collective all wait for the slowest way, and none can tell whose it was; so the ways are tried one by one.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from blsp.parts import is_clear

_BYTES = 2**20
_TRIES = 3  # the best counts: any one of them may have met a busy core
_SLOW_FACTOR = 3.0  # beside ways of its kind
_MOST_OF_IT = 0.5  # of a step
_SHARE = 0.005  # of a run's time may go into trying the ways

Way = tuple[int, int]  # from rank, to rank


@dataclass(frozen=True)
class SlowLink:
    """The slowest way, what it and others of its kind take for a MiB, and the rank it is due to."""

    way: Way
    seconds: float
    others_s: float
    rank: int

    def costs_s(self, num_bytes: int, world: int) -> float:
        """About how much longer a step takes with it whose collectives put so many bytes together: all but a rank's own
        share of them pass each link."""
        return (self.seconds - self.others_s) * num_bytes / _BYTES * (world - 1) / world


@dataclass(frozen=True)
class Communication:
    """Of a step of `step_s`: how long all ranks wait for bytes, at least, and how many the collectives put together."""

    wait_s: float
    num_bytes: int
    step_s: float


class Links:
    """Looks at the ways between ranks when bytes take a clear part of a step, and at most 0.5 % of the time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blamed = ""
        self._took_s, self._since_s = 0.0, 0.0  # the newest look, and how long ago it was

    def look(self, step: Communication, num_steps: int) -> list[str]:
        """A sentence when it has become clear that a rank's link holds up all, or that bytes take most of a step and no
        link does; no second one while it stays so. It was called `num_steps` ago; every rank calls it, with the same.
        """
        self._since_s += step.step_s * num_steps
        if not is_clear(step.wait_s, step.step_s):
            self._blamed = ""
            return []
        if self._took_s > _SHARE * self._since_s:
            return []
        slow, hosts = self._tried()
        costs_s = slow.costs_s(step.num_bytes, len(hosts)) if slow else 0.0
        if slow is None or not is_clear(costs_s, step.step_s):
            mostly = step.wait_s >= _MOST_OF_IT * step.step_s
            share = f"{_ms(step.wait_s)} of a step's {_ms(step.step_s)}"
            said = f"communication takes at least {share}, and no rank's link is to blame"
            return self._once("all" if mostly else "", said)
        (source, target), rank = slow.way, slow.rank
        return self._once(
            str(rank),
            f"rank {rank} (on {hosts[rank]}) is slow in communication: its link costs about {_ms(costs_s)} of a step's "
            f"{_ms(step.step_s)}; 1 MiB from rank {source} to rank {target} takes {_ms(slow.seconds)}, elsewhere "
            f"{_ms(slow.others_s)}",
        )

    def _once(self, blamed: str, sentence: str) -> list[str]:
        is_new, self._blamed = blamed not in ("", self._blamed), blamed
        return [sentence] if is_new else []

    def _tried(self) -> tuple[SlowLink | None, list[str]]:
        began_s, hosts = time.perf_counter(), hosts_of_ranks()
        seconds = measure(self._device)
        if slow_link(seconds, hosts) is not None:  # or a core was busy for a while
            seconds = {way: min(second, seconds[way]) for way, second in measure(self._device).items()}
        slow = slow_link(seconds, hosts)
        took_s = torch.tensor(time.perf_counter() - began_s, dtype=torch.float64, device=self._device)
        dist.all_reduce(took_s, dist.ReduceOp.MAX)
        self._took_s, self._since_s = float(took_s), 0.0
        return slow, hosts


def hosts_of_ranks() -> list[str]:
    """The name of each rank's host; every rank calls it."""
    hosts = [""] * dist.get_world_size()
    dist.all_gather_object(hosts, socket.gethostname())
    return hosts


def rounds(world: int) -> list[list[Way]]:
    """All ways between neighbours in a ring of ranks, in rounds in which no rank has to do with more than one."""
    ring = [(rank, (rank + 1) % world) for rank in range(world if world > 2 else world - 1)]
    odd_one = [ring.pop()] if len(ring) % 2 and len(ring) > 1 else []
    there = [ways for ways in (ring[0::2], ring[1::2], odd_one) if ways]
    return [*there, *([(target, source) for source, target in ways] for ways in there)]


def measure(device: torch.device) -> dict[Way, float]:
    """Seconds of a MiB on each way; the same on all ranks, and every rank calls it."""
    rank, plan = dist.get_rank(), rounds(dist.get_world_size())
    ways = [way for ways in plan for way in ways]
    content = torch.zeros(_BYTES, dtype=torch.uint8, device=device)
    arrived = torch.zeros(len(ways), dtype=torch.float64, device=device)
    for ways_now in plan:
        mine = next((way for way in ways_now if rank in way), None)
        seconds = min(_try(mine, content) for _ in range(_TRIES))
        if mine is not None and rank == mine[1]:
            arrived[ways.index(mine)] = seconds
    dist.all_reduce(arrived)
    return dict(zip(ways, arrived.tolist(), strict=True))


def _try(way: Way | None, content: torch.Tensor) -> float:
    dist.barrier()
    began_s = time.perf_counter()
    if way is not None:
        source, target = way
        sends = dist.get_rank() == source
        operation = dist.P2POp(dist.isend, content, target) if sends else dist.P2POp(dist.irecv, content, source)
        for work in dist.batch_isend_irecv([operation]):
            work.wait()
    if content.is_cuda:
        torch.cuda.synchronize(content.device)
    return time.perf_counter() - began_s


def slow_link(seconds: Mapping[Way, float], hosts: Sequence[str]) -> SlowLink | None:
    """The slowest way, if it takes three times as long as the others of its kind (within a host, or between hosts).
    `hosts` are those of the ranks.

    It is due to its sender, unless only ways to the receiver are slow and not those from the sender. Between hosts both
    count as a whole: they share a link. With two ranks or two hosts nothing tells the one end from the other.
    """
    found = []
    for crossing in (False, True):
        alike = {way: value for way, value in seconds.items() if (hosts[way[0]] != hosts[way[1]]) == crossing}
        if len(alike) > 1:
            found.append(_slowest(alike, [host if crossing else str(rank) for rank, host in enumerate(hosts)]))
    return max(filter(None, found), key=lambda link: link.seconds, default=None)


def _slowest(alike: Mapping[Way, float], ends: Sequence[str]) -> SlowLink | None:
    """`ends` names what each rank shares its link with."""
    slowest = max(alike, key=lambda way: alike[way])
    others_s = statistics.median_low(value for way, value in alike.items() if way != slowest)
    if alike[slowest] < _SLOW_FACTOR * others_s:
        return None
    source, target = (ends[rank] for rank in slowest)
    out = [value for (a, b), value in alike.items() if ends[a] == source and ends[b] != target]
    into = [value for (a, b), value in alike.items() if ends[b] == target and ends[a] != source]
    is_receiver = bool(into and out) and min(into) >= _SLOW_FACTOR * others_s > min(out)
    return SlowLink(slowest, alike[slowest], others_s, slowest[is_receiver])


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"
