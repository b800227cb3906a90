"""The first cause of a run's end, among all that went wrong after it; and `failure.json`, which tells it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.exit_codes import FINAL, ExitCode
from cluster.files import write_atomically
from cluster.heartbeat import PHASES

# From outside; SIGABRT is also how a communication library ends a rank whose peer has gone.
_NO_CONSEQUENCE = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}


@dataclass
class RankState:
    """What is known of a rank: its last beat, and how it ended."""

    rank: int
    host: str
    beat: dict[str, Any] = field(default_factory=lambda: {"phase": "starting", "step": 0})
    heard_s: float = 0.0  # when the beat was given, by the coordinator's clock
    failure: dict[str, Any] | None = None  # what it told of its end
    code: int | None = None  # its exit code; None while it lives
    ill_s: float | None = None  # when the first bad sign came
    ended_s: float | None = None

    @property
    def progress(self) -> tuple[int, int, int]:
        """Grows as the rank gets on, in the same way on all ranks."""
        at = PHASES.index(self.beat["phase"])
        micro_batch = self.beat.get("micro_batch", 0 if self.beat["phase"] == "data" else 1 << 30)
        return self.beat["step"], micro_batch, at

    @property
    def where(self) -> str:
        """In words."""
        step = f"step {self.beat['step']}, " if self.beat["step"] else ""
        return f"{step}{self.beat['phase']}"

    @property
    def is_certain(self) -> bool:
        """Whether nothing that another rank did can have ended this one."""
        return self.code is not None and -self.code in _NO_CONSEQUENCE

    @property
    def is_first_hand(self) -> bool:
        """Whether it is certain, or told of an error that no communication raises: those are RuntimeErrors."""
        told = self.failure
        return self.is_certain or (
            told is not None and not self.is_consequence and told["exception"] != RuntimeError.__name__
        )

    @property
    def is_consequence(self) -> bool:
        if self.failure is not None:
            return bool(self.failure["consequence"])
        return self.code is not None and -self.code == signal.SIGABRT


@dataclass(frozen=True)
class Failure:
    """The first cause. `what`: "exception", "signal", "exit", "hang" or "host" (which is lost)."""

    what: str
    sentence: str  # for people
    host: str
    rank: int | None = None
    phase: str | None = None
    step: int | None = None
    ids: tuple[str, ...] = ()  # of the clips in work, as far as told
    exception: Mapping[str, Any] | None = None
    code: int = ExitCode.REFUSED  # what the run would end with
    is_own: bool = False  # an error of this rank, or a host never reached: nothing that happened to a run at work
    traceback: str = ""  # of a bug of ours, which no sentence explains: to be printed

    @property
    def is_final(self) -> bool:
        """Whether another try would end the same way."""
        return self.what in ("exception", "exit") and self.code in FINAL

    @property
    def is_strangers(self) -> bool:
        """Whether the run folder is another run's, or may be: a rank owns it before it loads anything."""
        of = self.exception["type"] if self.exception else ""
        return of == "TakenOverError" or (of == "ValueError" and self.phase in ("starting", "rendezvous"))


def first_cause(ranks: Iterable[RankState]) -> Failure:
    """Of the ranks that gave a bad sign. What another rank's end explains comes last, then the earliest sign counts,
    and of ranks that met the same error the lowest."""
    ill = [rank for rank in ranks if rank.ill_s is not None]
    first = min(ill, key=lambda rank: (not rank.is_first_hand, rank.is_consequence, rank.ill_s))
    same = [
        rank for rank in ill
        if rank.failure and first.failure and rank.failure["message"] == first.failure["message"]
    ]  # fmt: skip
    return _failure_of(min(same, key=lambda rank: rank.rank, default=first))


def _failure_of(rank: RankState) -> Failure:
    who = f"rank {rank.rank} on {rank.host}"
    told = rank.failure
    code = rank.code if rank.code is not None and rank.code > 0 else int((told or {}).get("code", ExitCode.REFUSED))
    exception = None
    if told is not None:
        what = "exception"
        exception = {"type": told["exception"], "message": told["message"], "traceback": told.get("traceback", "")}
        sentence = told.get("sentence") or f"{who}: {told['exception']} ({rank.where})"
        if told.get("sentence") and (rank.rank or code not in FINAL):
            sentence = f"{who} ({rank.where}): {told['sentence']}"
    elif rank.code is not None and rank.code < 0:
        what, name = "signal", _name_of(-rank.code)
        memory = "; too little memory?" if -rank.code == signal.SIGKILL else ""
        sentence = f"{who} was ended by {name} ({rank.where}){memory}"
    else:
        what, sentence = "exit", f"{who} ended with exit code {rank.code} ({rank.where})"
    return replace(
        _at(rank, what, sentence), exception=exception, code=code,
        is_own=told is not None and not rank.is_consequence,
        traceback=exception["traceback"] if exception is not None and not (told or {}).get("sentence") else "",
    )  # fmt: skip


def _name_of(number: int) -> str:
    """Real-time signals have none."""
    known = {one.value: one.name for one in signal.Signals}
    return known.get(number, f"signal {number}")


def hang(slowest: list[RankState], silent_s: float, since: str = "") -> Failure:
    """Of the ranks that are the furthest behind: all others wait for them, or waited `since` they had ended."""
    first = slowest[0]
    who = " and ".join(f"rank {rank.rank} on {rank.host}" for rank in slowest)
    sentence = (
        f"{who} did not get on for {silent_s:.0f} s{since and f' {since}'} ({first.where}), and the run was stopped"
    )
    return _at(first, "hang", sentence)


def _at(rank: RankState, what: str, sentence: str) -> Failure:
    """A failure where this rank was."""
    beat, told = rank.beat, rank.failure or {}
    culprit, ids = told.get("culprit", rank.rank), tuple(told.get("ids", beat.get("ids", ())))
    return Failure(what, sentence, rank.host, culprit, beat["phase"], beat["step"], ids)


def write_failure(
    run: Path, failure: Failure, ranks: Iterable[RankState], *, time: str, resume: str, restarted: bool, restarts: int
) -> None:
    """`run`/failure.json, as docs/reliability.md describes it."""
    content = {
        "time": time,
        **{name: value for name, value in asdict(failure).items() if name not in ("code", "is_own", "traceback")},
        "exit_code": int(failure.code),
        "ranks": [
            {
                "rank": rank.rank, "host": rank.host, "step": rank.beat["step"], "phase": rank.beat["phase"],
                "ended": rank.code,
            }
            for rank in ranks
        ],
        "restarted": restarted,
        "restarts": restarts,
        "resume": resume,
    }  # fmt: skip
    write_atomically(run / "failure.json", json.dumps(content, indent=1).encode() + b"\n")
