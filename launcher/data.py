"""The verbs `manifest` and `shard`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from blsp.recipe import ShardRecipe
from launcher.errors import BEGINS_ANEW, on_ctrl_c
from launcher.progress import Progress
from launcher.shard_job import cost_line, shard_job
from shards.sample import EMOTIONS

if TYPE_CHECKING:
    from shards.corpora.build import ManifestCounts
    from shards.corpora.corpus import Corpus
    from shards.corpora.text import TextStyle


def manifest(
    corpus: str, root: Path, out: Path, *, text: TextStyle, subset: str | None, disjoint_texts: bool, stats: bool
) -> None:
    """Reads a corpus into a manifest and prints what became of it."""
    from shards.corpora.build import CORPORA, build_manifest

    with on_ctrl_c(f"stopped before anything was written; {BEGINS_ANEW}"):
        counts = build_manifest(corpus, root, out, text, subset, disjoint_texts=disjoint_texts)
    print_counts(
        [
            ("read", counts.read, ""),
            ("kept", counts.kept, ", ".join(f"{number} {name}" for name, number in counts.emotions.most_common())),
            *(("dropped", number, reason) for reason, number in counts.dropped.most_common()),
        ]
    )
    if stats:
        Console().print(_splits(counts, None if subset else CORPORA[corpus]))
    for shared in counts.texts.overlaps():
        print(
            f"{shared.split}: {shared.clips} of {shared.total} clips say one of {shared.texts} texts that "
            f"{shared.other} has too; --disjoint-texts leaves each to one split"
        )
    print(out)


def _splits(counts: ManifestCounts, corpus: Corpus | None) -> Table:
    """A row per split and one for all; official numbers stand beside ours where the whole `corpus` was read: of clips
    those that are dropped, too, of an emotion those of all splits."""
    official, official_emotions = (corpus.official, corpus.official_emotions) if corpus else ({}, {})
    named = [emotion for emotion in EMOTIONS if counts.emotions[emotion]]
    note = "official: all clips that the makers count, those dropped here too" if official else None
    table = Table("split", box=None, header_style="bold", padding=(0, 1, 0, 0), caption=note, caption_justify="left")
    for name in ("clips", "official", "hours", "speakers", *named):
        table.add_column(name, justify="right", no_wrap=True)
    for name, split in sorted(counts.splits.items()):
        hours = split.hours()
        told = "?" if hours is None else f"{'' if hours[1] else '~'}{hours[0]:.1f}"
        numbers = [str(split.emotions[emotion]) for emotion in named]
        there = f"{official[name]:,}" if name in official else ""
        table.add_row(name, f"{split.clips:,}", there, told, str(len(split.speakers)), *numbers)
    for name in sorted(set(official) - set(counts.splits)):
        table.add_row(name, "0", f"{official[name]:,}")
    if official_emotions:
        table.add_row(
            "official", "", f"{sum(official.values()):,}", "", "", *(f"{official_emotions.get(e, 0):,}" for e in named)
        )
    return table


def shard(recipe: ShardRecipe) -> None:
    """Writes the shard set, or what is missing of it, and prints what became of the clips."""
    from shards.pipeline import job as jobs
    from shards.pipeline.run import write_shards

    job, who = shard_job(recipe)

    def show(state: jobs.Progress) -> None:
        speed = state.speed
        pace = f"{speed.clips_per_s:.1f} clips/s, {speed.hours_per_s:.3f} h/s" if speed.clips else "starting"
        note = f"{state.hours:.2f} h, {pace}, {state.rejected} rejected"
        progress.update("clips", state.done, state.total, note)

    with Progress() as progress:
        progress.print(who)
        summary = write_shards(job, show, on_cost=lambda cost: progress.print(cost_line(cost)))
    print_counts(
        [
            ("inputs", summary.inputs, ""),
            ("written", summary.written, f"{summary.hours:.2f} h"),
            ("duplicates", summary.duplicates, ""),
            *(("rejected", number, reason) for reason, number in summary.rejected.items()),
        ]
    )
    print(f"{recipe.out}/report.md")
    print(recipe.out)


def print_counts(rows: Iterable[tuple[str, int, str]]) -> None:
    """A small table: what, how many, and a note."""
    table = Table(box=None, show_header=False)
    for what, number, note in rows:
        table.add_row(what, str(number), note)
    Console().print(table)
