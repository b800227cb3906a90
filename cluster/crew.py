"""All agents of a run as the coordinator sees them: orders to them, what they report of their ranks, who is lost."""

from __future__ import annotations

import selectors
import signal
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.agent_link import AgentLink, Place
from cluster.exit_codes import ExitCode
from cluster.failure import RankState
from cluster.owner import ATTEMPT, LAUNCH

_PING_S = 1.0
_AGENT_LEASE_S = 6.0  # a remote agent without orders ends its ranks, before
LOST_AFTER_S = 8.0  # its host is given up
_UP_S = 120.0  # for an agent to report for the first time
_END_S = 10.0  # for killed ranks to be gone
_CLOSE_S = 4.0  # for agents that were hung up on
_GOOD = (ExitCode.DONE, ExitCode.STOPPED, ExitCode.CTRL_C)
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Crew:
    """The agents of `places`, started when they are needed. While it is open, signals that stop a run are noted in
    `signals` instead of ending this process."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = places
        self.ranks: dict[int, RankState] = {}
        self.lost: list[str] = []  # hosts whose agent has gone since the last `call`
        self.signals: list[int] = []  # not yet acted upon
        self._links: dict[str, AgentLink] = {}
        self._meeting: dict[str, Any] | None = None  # where the ranks meet, told by the first agent
        self._launch, self._attempt = uuid.uuid4().hex, 0
        self._next_ping_s = 0.0
        self._poll = selectors.DefaultSelector()
        self._woken, self._told = socket.socketpair()
        for end in (self._woken, self._told):
            end.setblocking(False)
        self._poll.register(self._woken, selectors.EVENT_READ, None)
        self._before = {number: signal.signal(number, _wake) for number in _STOPPING}
        signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)

    def close(self) -> None:
        """Ends agents and ranks."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._close_all(list(self._links))
        for end in (self._poll, self._woken, self._told):
            end.close()

    def call(self) -> dict[str, str]:
        """Start the agents that are not there and hear from all. Returns why a host does not answer, by its name."""
        for _ in range(2):  # what a pipe holds, and its end: an agent may have gone between two attempts
            self.pump(0)
        self._close_all(self.lost)
        self.ranks, self.lost, self._meeting = {}, [], None
        for place in self.places:
            if place.name not in self._links:
                link = self._links[place.name] = AgentLink(place)
                self._poll.register(link.reports, selectors.EVENT_READ, link)
        self.wait(_UP_S, lambda: bool(self.signals) or set(self._silent()) <= set(self.lost))
        missing = {}
        if not self.signals:
            missing = {name: f"no sign of life in {_UP_S:.0f} s" for name in self._silent() if name not in self.lost}
        self._close_all(list(missing))
        for name in self.lost:
            remedy = f"; does `ssh -o BatchMode=yes {name} true` work?" if self._program(name) == "ssh" else ""
            missing[name] = self._end_of(name) + remedy
        self.lost = []
        return missing

    def _silent(self) -> list[str]:
        return [name for name, link in self._links.items() if not link.is_up]

    @property
    def present(self) -> list[Place]:
        """The hosts with an agent, in order: the first one is the master."""
        return [place for place in self.places if place.name in self._links]

    def meet(self) -> str | None:
        """Agree where the ranks meet. Returns what stands against it."""
        first, *others = self.present
        towards = [place.name for place in others] + [self._links[place.name].address for place in others]
        address = first.address if others else "127.0.0.1"
        self._links[first.name].order("port", address=address, towards=towards)
        self.wait(_UP_S, lambda: bool(self.lost or self.signals) or self._meeting is not None)
        if self.lost:
            return self.lost_sentence()
        if self._meeting is None and not self.signals:
            return f"host {first.name} has found no port in {_UP_S:.0f} s"
        return None

    def start(self, argv: Sequence[str], folder: Path) -> None:
        """Start all ranks; those of one host have successive numbers."""
        assert self._meeting is not None
        self._attempt += 1
        known = {LAUNCH: self._launch, ATTEMPT: str(self._attempt)}
        world, next_rank = sum(place.ranks for place in self.present), 0
        for place in self.present:
            for rank in range(next_rank, next_rank + place.ranks):
                self.ranks[rank] = RankState(rank, place.name, heard_s=time.monotonic())
            self._links[place.name].order(
                "start", argv=list(argv), folder=str(folder), environment={**place.environment, **known},
                first_rank=next_rank, ranks=place.ranks, world=world, **self._meeting,
            )  # fmt: skip
            next_rank += place.ranks

    def signal(self, number: int) -> None:
        """To all ranks."""
        self._order("signal", number=number)

    def end_ranks(self) -> None:
        """At once. A host that does not manage is lost, and its agent is ended."""
        self._order("end")
        self.wait(_END_S, lambda: all(rank.code is not None for rank in self.ranks.values() if self._is_there(rank)))
        for rank in self.ranks.values():
            if rank.code is None and rank.host not in self.lost:
                self.lost.append(rank.host)
        self._close_all(self.lost)

    def _is_there(self, rank: RankState) -> bool:
        return rank.host not in self.lost

    def lost_sentence(self) -> str:
        """What to say of the first host that was lost."""
        return f"host {self.lost[0]} is lost ({self._end_of(self.lost[0])})"

    def _end_of(self, name: str) -> str:
        if name not in self._links:
            return "it was given up"
        program, code = self._program(name), self._close(name)
        return f"{program} ended with exit code {code}" if code > 0 else "its agent is gone"

    def _program(self, name: str) -> str:
        return self._links[name].place.command[0]

    def _close_all(self, names: Sequence[str]) -> None:
        """They end at the same time, and those that do not are waited for together."""
        for name in names:
            if link := self._links.get(name):
                link.hang_up()
        until_s = time.monotonic() + _CLOSE_S
        for name in names:
            self._close(name, at_once=time.monotonic() > until_s)

    def _close(self, name: str, at_once: bool = False) -> int:
        link = self._links.pop(name, None)
        if link is None:
            return 0
        with suppress(KeyError):
            self._poll.unregister(link.reports)
        return link.close(at_once=at_once or time.monotonic() - link.heard_s > LOST_AFTER_S)

    def _order(self, do: str, **details: Any) -> None:
        for link in self._links.values():
            link.order(do, **details)

    def wait(self, limit_s: float, enough: Callable[[], bool]) -> None:
        """Hear the agents until it is enough, or for so long."""
        until_s = time.monotonic() + limit_s
        while not enough() and (left_s := until_s - time.monotonic()) > 0:
            self.pump(left_s)

    def pump(self, timeout_s: float) -> None:
        """Hear what agents and signals say next, and give signs of life; at most for a second."""
        now_s = time.monotonic()
        if now_s >= self._next_ping_s:
            self._next_ping_s = now_s + _PING_S
            for link in self._links.values():
                link.order("ping", within_s=None if link.place.is_here else _AGENT_LEASE_S)
        for key, _ in self._poll.select(max(0.0, min(timeout_s, self._next_ping_s - now_s))):
            if key.data is None:
                self.signals += [n for n in self._woken.recv(64) if n in _STOPPING]
            else:
                self._hear(key.data)
        for name, link in self._links.items():
            if link.is_up and time.monotonic() - link.heard_s > LOST_AFTER_S and name not in self.lost:
                self.lost.append(name)

    def _hear(self, link: AgentLink) -> None:
        reports = link.read()
        if reports is None:
            self._poll.unregister(link.reports)
            if link.place.name not in self.lost:
                self.lost.append(link.place.name)
        for report in reports or ():
            if report["is"] == "up":
                link.address = report["address"]
            elif report["is"] == "port":
                self._meeting = {"address": report["address"], "port": report["port"]}
            elif report["is"] == "alive":
                for number, beat in report["ranks"].items():
                    if rank := self.ranks.get(int(number)):
                        rank.heard_s = time.monotonic() - beat.pop("age_s")
                        rank.beat = beat
            elif report["is"] in ("failure", "ended"):
                _note_end(self.ranks[report["rank"]], report)


def _note_end(rank: RankState, report: dict[str, Any]) -> None:
    rank.beat = report["beat"]
    if report["is"] == "failure":
        rank.failure = report
    else:
        rank.code, rank.ended_s = report["code"], time.monotonic()
    good = rank.code in _GOOD and rank.failure is None
    if not good and rank.ill_s is None:
        rank.ill_s = time.monotonic()


def _wake(number: int, frame: FrameType | None) -> None:
    """The number comes through the wake-up descriptor."""
