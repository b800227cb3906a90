"""The verbs `manifest` and `shard`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table


def manifest(reader: str, root: Path, out: Path) -> None:
    """Reads a corpus into a manifest and prints what became of it."""
    from shards.corpora import build_manifest

    counts = build_manifest(reader, root, out)
    table = Table(box=None, show_header=False)
    table.add_row("read", str(counts.read))
    table.add_row("kept", str(counts.kept), ", ".join(f"{number} {name}" for name, number in counts.emotions.items()))
    for reason, number in counts.dropped.items():
        table.add_row("dropped", str(number), reason)
    Console().print(table)
    print(out)
