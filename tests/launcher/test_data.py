from __future__ import annotations

from collections import Counter

from rich.console import Console

from launcher.data import _splits
from shards.corpora.build import CORPORA, ManifestCounts
from shards.corpora.stats import SplitStats
from shards.sample import EMOTIONS


def test_the_table_of_stats_fits_a_narrow_terminal_and_says_what_official_counts() -> None:
    counts = ManifestCounts()
    for split in CORPORA["iemocap"].official:
        counts.splits[split] = SplitStats(1085, 3600.0 * 12, emotions=Counter(dict.fromkeys(EMOTIONS, 1234)))
    console = Console(width=80)
    with console.capture() as capture:
        console.print(_splits(counts, CORPORA["iemocap"]))
    told = capture.get()
    assert "…" not in told
    header, *rows = told.splitlines()
    assert header.split() == ["split", "clips", "official", "hours", "speakers", *EMOTIONS]
    assert [row.split()[:3] for row in rows[:5]][1] == ["train-1", "1,085", "1,819"]
    assert "those dropped here too" in told
