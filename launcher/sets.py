"""The verbs under `shard` that need no recipe: `verify`, `index`, `remove`, `report`."""

from __future__ import annotations

from pathlib import Path

from launcher.data import print_counts
from launcher.errors import on_ctrl_c
from launcher.progress import Progress


def verify(shards: str, fast: bool) -> int:
    """Prints a line per damage, or one line that says what was looked at. Returns the exit code."""
    from shards.audio import SAMPLE_RATE
    from shards.sets.verify import verify

    with on_ctrl_c("stopped; nothing was changed"), Progress() as progress:
        found = verify(
            shards, progress.print, fast=fast, on_progress=lambda done, total: progress.update("shards", done, total)
        )
    if found.damages:
        damages = "1 damage" if found.damages == 1 else f"{found.damages} damages"
        print(f"{shards}: {damages} in {found.damaged_shards} of {found.shards} shards")
        return 1
    size = f"{found.num_samples / SAMPLE_RATE / 3600:.2f} h, {found.bytes / 1e6:,.1f} MB"
    if fast:
        looked = f"{found.rows_read} of {found.rows} samples, all sizes and indexes"
        print(f"{shards}: no damage found; {looked} of {found.shards} shards read, {size}; without --fast all is read")
    else:
        print(f"{shards}: intact; all {found.rows} samples of {found.shards} shards read, {size}")
    return 0


def index(tars: list[str], out: str, corpus: str, licence: str | None) -> None:
    """Makes the set over the tars, and prints what became of their samples."""
    from shards.sets.index_tars import index_tars

    with on_ctrl_c("stopped; the same command goes on after the last finished tar"), Progress() as progress:

        def show(done_bytes: int, total_bytes: int, samples: int) -> None:
            progress.update("MB of tars", done_bytes // 10**6, -(-total_bytes // 10**6), f"{samples} samples")

        indexed = index_tars(tars, out, corpus, licence, show)
    print_counts(
        [
            ("samples", indexed.inputs, ""),
            ("written", indexed.written, f"{indexed.hours:.2f} h"),
            ("duplicates", indexed.duplicates, ""),
            *(("rejected", number, reason) for reason, number in indexed.rejected.items()),
        ]
    )
    if indexed.unknown_emotions:
        print(f"{indexed.unknown_emotions} clips have an emotion label that is none of ours, and count as unlabelled")
    print(f"{out}; to train on it, write continuations with a shard recipe that says `base: {out}`")


def remove(shards: str, out: str, speaker: str | None, corpus: str | None) -> None:
    """Makes the set without them, and prints what became of the clips and what was proved."""
    from shards.sets.remove import Selection, remove

    selection = Selection(speaker, corpus)
    with on_ctrl_c("stopped; the same command goes on from there"), Progress() as progress:
        removed = remove(shards, out, selection, lambda done, total: progress.update("shards", done, total))
    encoded = f", {removed.reencoded} of them encoded as FLAC" if removed.reencoded else ""
    print(f"{out}: {removed.removed} clips of {selection} removed, {removed.kept} kept{encoded}")
    print("proved of it:", *removed.proved, sep="\n  ")
    print(f"not looked at: what others say in their clips. {shards} still holds the clips: delete it, and copies of it")


def report(shards: str, out: Path | None, beside: list[str]) -> None:
    """Writes the page, and prints where it is."""
    from blsp.set_report import write_set_report

    out = out or Path(f"{shards.rstrip('/').rsplit('/', 1)[-1] or 'set'}.html")
    with on_ctrl_c("stopped; nothing was written"):
        write_set_report(shards, out, beside)
    print(out)
