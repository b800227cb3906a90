"""`blsp doctor`: all hosts of a run are asked, then do something together; one table, a remedy per failed row."""

from __future__ import annotations

import secrets
import select
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cluster
from blsp.checkpoint_folder import committed
from blsp.estimate.parts import read_parts, weights
from blsp.recipe import TrainRecipe
from cluster import diagnosis
from cluster.agent_link import AgentLink, Place
from cluster.diagnosis import Finding, Room
from cluster.hostfile import Host
from cluster.sharding import FLOAT32
from cluster.ssh import over_ssh
from cluster.supervise import Job, Limits, supervise
from launcher import start
from launcher.hosts import place

_ANSWER_S = 25.0
_COLLECTIVE_S = 90.0  # from a cold network disk Python and PyTorch take long to load
_DEEPSPEED_PORT = 29500
_CLOCK_ROUNDS = 3
_LOGS_BYTES = 10**9

Answers = dict[str, dict[str, Any]]  # by host


class Hosts:
    """The hosts of a run, each with a `launcher.checkup`; `names` are those that are asked when nobody is named."""

    def __init__(self, links: dict[str, AgentLink]) -> None:
        self._links = links
        self.names = list(links)

    def ask(self, do: str, only: Sequence[str] | None = None, **details: Any) -> Answers:
        """The answers to one question by all, or `only` some; "error" from a host that does not answer in time, which
        is asked no more."""
        names = self.names if only is None else only
        asked = {name: self._links[name] for name in names if name in self._links}
        for link in asked.values():
            link.order(do, **details)
        answers: Answers = {}
        until_s = time.monotonic() + _ANSWER_S
        while len(answers) < len(asked):
            waiting = {link.reports: name for name, link in asked.items() if name not in answers}
            ready, _, _ = select.select(list(waiting), [], [], max(0.0, until_s - time.monotonic()))
            for reports in ready or list(waiting):
                name = waiting[reports]
                said = asked[name].read() if ready else None
                if said is None:
                    answers[name] = {"error": "no answer" if ready else f"no answer in {_ANSWER_S:.0f} s"}
                    self._links.pop(name).close()
                elif said:
                    answers[name] = said[0]
        return {name: answers.get(name, {"error": "no answer any more"}) for name in names}


@contextmanager
def _hosts(places: Sequence[Place], here: bool) -> Iterator[Hosts]:
    # The same files as this process, wherever they lie.
    files = Path(cluster.__file__).resolve().parent.parent
    command = [sys.executable, "-m", "launcher.checkup"]
    links = {}
    for host in places:
        there = command if here else over_ssh(host.name, command, files)
        links[host.name] = AgentLink(replace(host, command=tuple(there), is_here=False))
    try:
        yield Hosts(links)
    finally:
        for link in links.values():
            link.hang_up()
        for link in links.values():
            link.close()


def run(recipe: TrainRecipe | None, hosts: Sequence[Host] | None) -> int:
    """Prints the table. Returns 0, or 1 when a check failed. `hosts` is None for this host alone."""
    console = Console()
    places = [start.place()] if hosts is None else [place(host) for host in hosts]
    slots = {place.name: place.ranks for place in places}
    with tempfile.TemporaryDirectory() as own, _hosts(places, hosts is None) as asked:
        # Nobody has seen this name before: whatever lies in it was written now. Every checkup removes it at its end.
        parent = recipe.run if recipe else Path(own if hosts is None else ".").absolute()
        folder = parent / f".doctor-{secrets.token_hex(8)}"
        with console.status("asking all hosts"):
            facts = asked.ask("facts", folder=str(folder))
            rows = list(_alone(asked, facts, recipe, slots, folder))
        if all(row.ok is not False for row in rows):
            with console.status("a sum over all ranks"):
                rows.append(_together(asked, places, facts, folder, own))
        else:
            rows.append(Finding("collective", None, "not tried: mend the rows above first"))
    _print(console, rows)
    return 1 if any(row.ok is False for row in rows) else 0


def _alone(
    asked: Hosts, facts: Answers, recipe: TrainRecipe | None, slots: Mapping[str, int], folder: Path
) -> Iterator[Finding]:
    silent = {name: said["error"] for name, said in facts.items() if "error" in said}
    if len(facts) > 1 or silent:
        found = "; ".join(f"{host}: {why}" for host, why in silent.items()) or f"{len(facts)} hosts answer"
        remedy = f"`ssh HOST true` must work without a password, and Python lie at {sys.executable} there"
        yield Finding("ssh", not silent, found, remedy)
    facts = {name: said for name, said in facts.items() if name not in silent}
    if not facts:
        return
    asked.names = list(facts)  # one that is silent from here on fails the rows that follow
    yield from diagnosis.findings(facts, slots, diagnosis.ANY_RUN if recipe is None else _room(recipe))
    yield diagnosis.clocks({name: _skew_s(asked, name) for name in asked.names})
    yield _shared(asked, folder)
    if len(asked.names) > 1:
        yield _ways(asked)
    yield _port(asked)
    if recipe is not None:
        for field, model, revision in (
            ("model.llm", recipe.model.llm, recipe.model.revision),
            ("model.encoder", recipe.model.encoder, None),
        ):
            said = asked.ask("model", model=model, revision=revision)
            yield diagnosis.the_same(field, said, f"{field} = {model} must be the same model on every host")
        for root in recipe.data.shards:
            said = asked.ask("shards", root=str(root))
            yield diagnosis.the_same("data.shards", said, f"{root} must be the same shard set on every host")


def _room(recipe: TrainRecipe) -> Room:
    """For the checkpoints that are kept and the one that is written before the oldest goes, less those that are there;
    for the export, and all else that a run writes."""
    try:
        learns = weights(read_parts(recipe), recipe)
    except (ValueError, OSError):  # rows of their own say what is wrong with a model
        return diagnosis.ANY_RUN
    kept = recipe.engine.keep_checkpoints + (recipe.validation is not None)  # the best one stays as well
    more = max(1, kept + 1 - len(committed(recipe.run / "checkpoints")))
    each = learns.checkpoint_bytes
    what_for = f"{more} checkpoint{'s' if more > 1 else ''} of {each / 1e9:.1f} GB, the export and logs"
    return Room(more * each + FLOAT32 * learns.num_trained + _LOGS_BYTES, what_for)


def _skew_s(asked: Hosts, name: str) -> float | None:
    """By the middle of a question and its answer; ssh itself has long been there. None without an answer."""
    rounds = []
    for _ in range(_CLOCK_ROUNDS):
        before_s = time.time()
        answer = asked.ask("clock", only=[name])[name]
        after_s = time.time()
        if "time_s" in answer:
            rounds.append((after_s - before_s, answer["time_s"] - (before_s + after_s) / 2))
    return min(rounds)[1] if rounds else None


def _shared(asked: Hosts, folder: Path) -> Finding:
    names = {name: f"token-{secrets.token_hex(8)}" for name in asked.names}
    for name, token in names.items():
        said = asked.ask("token", only=[name], folder=str(folder), name=token)[name]
        if "error" in said:
            remedy = f"make {folder.parent} writable on {name}, or choose another `run`"
            return Finding("shared folder", False, f"{name}: {said['error']}", remedy)
    seen = asked.ask("tokens", folder=str(folder))
    return diagnosis.shared(str(folder.parent), {name: said.get("seen", []) for name, said in seen.items()}, names)


def _ways(asked: Hosts) -> Finding:
    """Whether all others reach the first host, where the ranks meet, and through which interfaces."""
    first, *others = asked.names
    way = asked.ask("way", only=[first], host=others[0])[first]
    ways = asked.ask("way", only=others, host=way.get("address") or first)
    remedy = f"the hosts must reach {first} on any port (the ranks meet there): look at names, routes and firewalls"
    if way.get("address") is None:
        return Finding(
            "network", False, f"{first}: {way.get('error', 'knows itself as a loopback address only')}", remedy
        )
    opened = asked.ask("listen", only=[first], address=way["address"])[first]
    if "error" in opened:
        return Finding("network", False, f"{first}: {opened['error']}", remedy)
    reached = asked.ask("connect", only=others, address=way["address"], port=opened["port"])
    cut = {name: said["error"] for name, said in reached.items() if "error" in said}
    if cut:
        there = f"{way['address']}:{opened['port']}"
        found = "; ".join(f"{name} does not reach {there} ({why})" for name, why in cut.items())
        return Finding("network", False, found, remedy)
    interfaces = {first: way["interface"]} | {name: said.get("interface") for name, said in ways.items()}
    return Finding("network", True, ", ".join(f"{name} {interface}" for name, interface in interfaces.items()))


def _port(asked: Hosts) -> Finding:
    first = asked.names[0]
    said = asked.ask("port", only=[first], port=_DEEPSPEED_PORT)[first]
    found = said.get("error", f"{_DEEPSPEED_PORT} on {first} is free")
    remedy = (
        "plain `deepspeed --hostfile` needs it, or --master_port N; `blsp train` and `blsp launch` find one themselves"
    )
    return Finding("master port", "error" not in said, found, remedy)


def _together(asked: Hosts, places: Sequence[Place], facts: Answers, folder: Path, own: str) -> Finding:
    out = str(folder / "collective.json")
    job = Job((sys.executable, "-m", "blsp.collective", out), Path.cwd(), Path(own), "blsp doctor", lambda: None)
    began_s = time.monotonic()
    code = supervise(job, places, Limits(_COLLECTIVE_S, _COLLECTIVE_S, _COLLECTIVE_S, restarts=0, host_timeout_s=0))
    remedy = (
        "the lines above the table say what a rank met; GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME name a network card"
    )
    if code != 0:
        return Finding("collective", False, f"failed after {time.monotonic() - began_s:.0f} s", remedy)
    first = places[0].name
    said = asked.ask("collective", only=[first], path=out)[first]
    if "error" in said:
        return Finding("collective", False, f"{first}: {said['error']}", remedy)
    return diagnosis.collective(said["told"], facts, {place.name: place.ranks for place in places})


def _print(console: Console, rows: Sequence[Finding]) -> None:
    table = Table("check", "", "found", box=None, header_style="bold")
    for row in rows:
        verdict = {True: "[green]ok[/green]", False: "[red]FAILED[/red]", None: "-"}[row.ok]
        table.add_row(row.check, verdict, escape(row.found))
    console.print(table)
    for row in rows:
        if row.ok is False:
            console.print(f"{row.check}: {row.remedy}", markup=False, highlight=False, soft_wrap=True)
