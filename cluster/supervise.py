"""The coordinator: one process that starts a run through the agents of its hosts, watches it, and starts it again.

    code = supervise(Job(...), [here("localhost", 8, {})], Limits())

`cluster.agent_link.Place` says how an agent is started on a host: directly, through ssh, through srun. The coordinator
needs no torch, and knows of checkpoints only whether there is a newer one. An attempt ends well (all ranks end with the
same good code), or it fails: a rank ends with an error or by a signal, nobody gets on, a host is lost. Then all ranks
are ended, `failure.json` tells the first cause, and another attempt begins from the newest checkpoint as long as that
may help. A signal to the coordinator goes to all ranks, which save and end; a second one ends them at once.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cluster.agent_link import Place
from cluster.crew import LOST_AFTER_S, Crew
from cluster.exit_codes import ExitCode
from cluster.failure import Failure, RankState, first_cause, hang, write_failure
from cluster.stop import meaning_of
from cluster.terminal import plain

_PATIENCE_S = 1.0
_GRACE_S = 2.0  # for other ranks to tell what they met, after the first bad sign
_STOP_GRACE_S = 20.0  # for the other ranks, after the first one has stopped
_STACKS_S = 2.0  # for the ranks to write down where they are
_CALL_AGAIN_S = 2.0  # a host that does not answer
_TRIES = 3  # in a row without a newer checkpoint
_STARTING = ("starting", "rendezvous", "loading")
_ASIDE = ("validation", "checkpoint", "export")
_GOES_ON = "the same command goes on from the newest checkpoint"


@dataclass(frozen=True)
class Job:
    """What is run on every rank: `argv` in `folder`; `run` is the folder of failure.json. `progress` tells what there
    is to go on from: something else as soon as a restart would begin later. `resume` is a command for people, `goes_on`
    tells them what it does."""

    argv: tuple[str, ...]
    folder: Path
    run: Path
    resume: str
    progress: Callable[[], object]
    goes_on: str = _GOES_ON


@dataclass(frozen=True)
class Limits:
    """Seconds without a beat, by the kind of phase, after which a run hangs; how often it is started again; seconds for
    which a host that was lost is waited for, and one that has not answered yet."""

    start_timeout_s: float
    hang_timeout_s: float
    aside_timeout_s: float
    restarts: int
    host_timeout_s: float
    meeting_timeout_s: float = math.inf  # before loading; at most start_timeout_s
    first_answer_s: float = 0.0

    def of(self, phase: str) -> float:
        """The limit of one phase."""
        if phase in _STARTING:
            return self.start_timeout_s if phase == "loading" else min(self.meeting_timeout_s, self.start_timeout_s)
        return self.aside_timeout_s if phase in _ASIDE else self.hang_timeout_s


def supervise(
    job: Job, places: Sequence[Place], limits: Limits, min_hosts: int | None = None, *, all_at_first: bool = False
) -> int:
    """Runs `job` to its end over the hosts `places`, the first of which is the master. Returns the exit code.

    When hosts do not answer, the others go on without them if they are `min_hosts` at least (None: all). A host that
    does not answer in the beginning is not waited for; with `all_at_first` the job does not begin without it.
    """
    crew = Crew(places)
    try:
        return _Coordinator(
            job, crew, limits, len(places) if min_hosts is None else min_hosts, all_at_first=all_at_first
        ).run()
    finally:
        crew.close()


def _say(sentence: str) -> None:
    if sys.stderr.isatty():
        print("\x1b[?25h", end="", file=sys.stderr)  # a rank that was killed in the midst of its bar has hidden it
    print(sentence if "\n" in sentence else f"blsp: {sentence}", file=sys.stderr, flush=True)


class _Coordinator:
    def __init__(self, job: Job, crew: Crew, limits: Limits, min_hosts: int, *, all_at_first: bool) -> None:
        self._job, self._crew, self._limits, self._min_hosts = job, crew, limits, min_hosts
        self._needs_all = all_at_first  # until all have answered
        self._given_up: set[str] = set()  # hosts that are no longer waited for
        self._stop, self._stop_at_s = 0, 0.0  # the signal that ends the run
        self._at_once = False  # a second one came
        self._cut_short = False  # the ranks were ended because of it, or because there was nothing to save
        self._has_worked = False  # some rank has begun a step
        self._least: tuple[int, int, int] | None = None  # how far the last ranks are
        self._least_since_s = 0.0
        self._ended: list[RankState] = []  # the ranks as they were when an attempt ended

    def run(self) -> int:
        before, tries, restarts = self._job.progress(), 0, 0
        while True:
            result = self._attempt()
            if not isinstance(result, Failure):
                return result
            now = self._job.progress()
            before, tries = now, tries + 1 if now == before else 0
            why_not = self._why_not_again(result, restarts, tries)
            self._write(result, restarts, restarted=why_not is None)
            print(plain(result.traceback), end="", file=sys.stderr, flush=True)
            if why_not is not None:
                return self._give_up(result, why_not)
            _say(f"{result.sentence}{'' if result.sentence.endswith('?') else '.'} Starting again")
            restarts += 1
            self._crew.wait(float(tries), lambda: bool(self._crew.signals))

    def _why_not_again(self, failure: Failure, restarts: int, tries: int) -> str | None:
        if self._stop:
            return self._job.goes_on
        if failure.is_final or (failure.is_own and not self._has_worked):
            return ""
        if failure.is_own and failure.what == "host":
            waited = f"waited {self._limits.host_timeout_s:.0f} s for it (supervision.host_timeout_s)"
            return f"{waited}; the same command goes on when it is back"
        if tries >= _TRIES:
            return f"{tries} tries in a row ended without a newer checkpoint"
        if restarts >= self._limits.restarts:
            return f"supervision.restarts = {restarts} are used up"
        return None

    def _write(self, failure: Failure, restarts: int, restarted: bool) -> None:
        if failure.is_strangers:
            return
        try:
            write_failure(
                self._job.run, failure, self._ended, time=datetime.now(UTC).isoformat(timespec="seconds"),
                resume=self._job.resume, restarted=restarted, restarts=restarts,
            )  # fmt: skip
        except OSError as error:
            _say(f"{self._job.run / 'failure.json'}: could not be written ({error.strerror})")

    def _give_up(self, failure: Failure, why: str) -> int:
        _say(f"{failure.sentence}; {why}" if why else failure.sentence)
        return failure.code if why in ("", self._job.goes_on) else ExitCode.GIVEN_UP

    def _attempt(self) -> int | Failure:
        """Start all ranks and wait for their end. Returns the exit code of a good end."""
        self._least = None
        if (problem := self._gather()) is not None:
            self._ended = []
            self._crew.end_ranks()
            return problem
        if not self._crew.signals:
            self._crew.start(self._job.argv, self._job.folder)
        while (result := self._verdict()) is None:
            self._crew.pump(_PATIENCE_S)
        self._ended = [replace(rank) for rank in self._crew.ranks.values()]
        self._crew.end_ranks()
        return result

    def _gather(self) -> Failure | None:
        """Have an agent on every host, or on enough of them, and a place to meet."""
        limits, begun_s = self._limits, time.monotonic()
        patience_s = limits.host_timeout_s if self._has_worked else limits.first_answer_s
        waits = False
        while (missing := self._crew.call()) and not self._crew.signals:
            if set(missing) <= self._given_up:
                break
            name = min(set(missing) - self._given_up)
            sentence = self._out_of_reach({name: missing[name]})
            if self._needs_all:
                return Failure("host", self._out_of_reach(missing), name, is_own=True)
            left_s = begun_s + patience_s - time.monotonic()
            if left_s <= 0:
                hosts, there = len(self._crew.places), len(self._crew.present)
                if there < self._min_hosts:
                    return Failure("host", sentence, name, is_own=True)
                _say(f"{sentence}; going on with {there} of {hosts} hosts")
                self._given_up |= set(missing)
                break
            if not waits:
                _say(f"{sentence}; waiting up to {patience_s:.0f} s for it")
                waits = True
            self._crew.wait(min(left_s, _CALL_AGAIN_S), lambda: bool(self._crew.signals))
        self._given_up &= set(missing)
        self._needs_all = False
        if self._crew.signals or (problem := self._crew.meet()) is None:
            return None
        return Failure("host", problem, problem.split()[1], is_own=not self._has_worked)

    def _out_of_reach(self, missing: Mapping[str, str]) -> str:
        """A line for each."""
        where = {place.name: f"{place.where}: " if place.where else "" for place in self._crew.places}
        return "\n".join(f"{where[name]}host {name} cannot be reached ({missing[name]})" for name in missing)

    def _verdict(self) -> int | Failure | None:
        """What became of the attempt, or None while it goes on."""
        self._obey()
        ranks = list(self._crew.ranks.values())
        living = [rank for rank in ranks if rank.code is None]
        ill = [rank for rank in ranks if rank.ill_s is not None]
        self._has_worked = self._has_worked or any(rank.beat["step"] for rank in ranks)
        if self._crew.lost and not self._cut_short:
            return Failure("host", self._crew.lost_sentence(), self._crew.lost[0])
        if self._stop:
            return self._stopped(ranks, living)
        if ill:
            waited_s = time.monotonic() - min(rank.ill_s for rank in ill if rank.ill_s is not None)
            undecided = any(rank.ill_s is None for rank in living) and not any(rank.is_certain for rank in ill)
            # The cause of what are consequences alone may be on a host whose silence is not yet long enough.
            grace_s = _GRACE_S + (LOST_AFTER_S if all(rank.is_consequence for rank in ill) else 0)
            return None if undecided and waited_s < grace_s else first_cause(ill)
        if not living:
            return next((rank.code for rank in ranks if rank.code), ExitCode.DONE)
        return self._hang(living)

    def _hang(self, living: list[RankState]) -> Failure | None:
        """All wait for the ranks that are the furthest behind, so only their silence counts, and only from when they
        were: whoever waits for a slow save of another is no culprit, nor is it one the moment that save is done."""
        least = min(rank.progress for rank in living)
        if least != self._least:
            self._least, self._least_since_s = least, time.monotonic()
        slowest = [rank for rank in living if rank.progress == least]
        silent_s = time.monotonic() - max(self._least_since_s, *(rank.heard_s for rank in slowest))
        if silent_s <= self._limits.of(slowest[0].beat["phase"]):
            return None
        failure = hang(slowest, silent_s)
        self._crew.signal(signal.SIGUSR2)
        self._crew.wait(_STACKS_S, lambda: False)
        return failure

    def _obey(self) -> None:
        """Hand a first signal on, and let a second one end everything, as each rank would."""
        while self._crew.signals:
            number, now_s = self._crew.signals.pop(0), time.monotonic()
            number = signal.SIGTERM if number == signal.SIGHUP else number
            meaning = meaning_of(self._stop, self._stop_at_s, number, now_s)
            if meaning == "echo":
                continue
            began = any(rank.beat["step"] for rank in self._crew.ranks.values())
            self._at_once = self._at_once or meaning == "second"
            if meaning == "first":
                self._stop, self._stop_at_s = number, now_s
            if self._at_once or not began:  # there is nothing to save before the first step
                self._cut_short = True
                self._crew.end_ranks()
            else:
                self._crew.signal(number)

    def _stopped(self, ranks: list[RankState], living: list[RankState]) -> int | Failure | None:
        """The end of a run that was told to stop: a good one only if no rank failed before it could save."""
        ill = [rank for rank in ranks if rank.ill_s is not None and rank.code != ExitCode.AT_ONCE]
        if self._cut_short:  # what was killed then was killed by us
            ill = [rank for rank in ill if rank.failure is not None and not rank.is_consequence]
        elif living:
            ends_s = [rank.ended_s for rank in ranks if rank.ended_s is not None]
            if not ends_s or time.monotonic() - min(ends_s) <= _STOP_GRACE_S:
                return self._hang(living)
            if all(rank.is_consequence for rank in ill):
                return hang(living, _STOP_GRACE_S, "after the first rank had stopped")
        elif any(rank.code in (ExitCode.STOPPED, ExitCode.CTRL_C) for rank in ranks):
            ill = [rank for rank in ill if not rank.is_consequence]  # contact to a rank that had saved all
        if ill:
            return first_cause(ill)
        if ranks and all(rank.code == ExitCode.DONE for rank in ranks):
            return ExitCode.DONE
        stopped_itself = ranks and ranks[0].code in (ExitCode.STOPPED, ExitCode.CTRL_C, ExitCode.AT_ONCE)
        if not stopped_itself:  # else it has said where
            _say(f"stopped; {self._job.goes_on}")
        if self._stop == signal.SIGINT:
            return ExitCode.CTRL_C
        return ExitCode.AT_ONCE if self._at_once else ExitCode.STOPPED
