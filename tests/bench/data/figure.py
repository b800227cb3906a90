"""One row of the table: a figure, its target, ours, and what peers reach in the same run."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.bench.data.timing import Spread

_PACKAGES = ("numpy", "soundfile", "torch", "webdataset", "lhotse")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """`ours` should be at least (or at most) `target`; `unit` is "" for a ratio, else "%", "s", "MB" or "bytes".

    A figure without a target is there to be compared. `peers` maps a name to what it reaches, or to a sentence.
    """

    name: str
    ours: Spread
    unit: str = ""
    target: float | None = None
    at_least: bool = False
    peers: Mapping[str, Spread | str] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        """None where there is no target."""
        if self.target is None:
            return None
        return self.ours.median >= self.target if self.at_least else self.ours.median <= self.target

    def cells(self) -> tuple[str, ...]:
        """Markdown: name, target, ours, met, peers."""
        target = "" if self.target is None else f"{'≥' if self.at_least else '≤'} {_number(self.target, self.unit)}"
        met = {None: "", True: "yes", False: "**no**"}[self.met]
        peers = "; ".join(f"{name} {_shown(value, self.unit)}" for name, value in self.peers.items())
        return self.name, target, _shown(self.ours, self.unit), met, peers or "–"


def _number(value: float, unit: str) -> str:
    if unit == "":
        return f"{value:.3f}" if abs(value - 1) < 0.05 else f"{value:.2f}"
    if unit == "%":
        return f"{value:.2g} %" if value < 10 else f"{value:.1f} %"
    return f"{value:,.0f} {unit}" if unit in ("MB", "bytes") else f"{value:.2g} {unit}"


def _shown(value: Spread | str, unit: str) -> str:
    if isinstance(value, str):
        return value
    median, low, high = (_number(number, unit) for number in (value.median, value.low, value.high))
    return median if low == high else f"{median} ({low.removesuffix(unit).strip()}–{high.removesuffix(unit).strip()})"


def some_of(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    """A type for argparse: a list with commas of some of `known`."""

    def parse(text: str) -> tuple[str, ...]:
        parts = tuple(text.split(","))
        if unknown := sorted(set(parts) - set(known)):
            raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; there are {', '.join(known)}")
        return parts

    return parse


def machine() -> dict[str, Any]:
    """What the figures depend on, without names."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.machine()
    return {"cores": os.cpu_count(), "cpu": model, "python": platform.python_version(), **_versions()}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def markdown(figures: Sequence[Figure], conditions: Mapping[str, Any]) -> str:
    """The table, with the machine and the command above it."""
    head = ", ".join(f"{name} {value}" for name, value in conditions.items())
    rows = [("figure", "target", "ours", "met", "peers in the same run"), ("---",) * 5]
    rows += [figure.cells() for figure in figures]
    return "\n".join([head, "", *(f"| {' | '.join(row)} |" for row in rows)])


def as_json(figures: Sequence[Figure], conditions: Mapping[str, Any]) -> str:
    """The same for programs."""
    return json.dumps(
        {**conditions, "figures": [{**asdict(figure), "met": figure.met} for figure in figures]}, indent=1
    )
