from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.corpora.stats import SplitStats
from shards.sample import Utterance
from tests.shards.corpora.miniatures import tone
from tests.shards.films import write_film


def said(number: int, audio: str, duration_s: float | None = None) -> Utterance:
    return Utterance(
        id=str(number),
        audio=audio,
        text="x",
        corpus="c",
        duration_s=duration_s,
        speaker=f"s{number % 3}",
        emotion="sad",
    )


def test_hours_are_exact_where_the_corpus_tells_them() -> None:
    stats = SplitStats()
    for number in range(10):
        stats.add(said(number, "nowhere.wav", 36.0))
    assert stats.hours() == (0.1, True)
    assert (stats.clips, len(stats.speakers), stats.emotions["sad"]) == (10, 3, 10)


def test_hours_are_estimated_from_headers_of_some_files_spread_over_all(tmp_path: Path) -> None:
    short, long = tone(tmp_path / "a.wav", seconds=1.0), tone(tmp_path / "b.wav", seconds=3.0)
    stats = SplitStats()
    for number in range(1000):
        stats.add(said(number, str(short if number < 500 else long)))
    hours = stats.hours()
    assert hours is not None
    assert hours[0] == pytest.approx(2000 / 3600, rel=0.02)
    assert not hours[1]


def test_hours_that_nothing_tells_are_not_guessed() -> None:
    stats = SplitStats()
    stats.add(said(0, "nowhere.wav"))
    assert stats.hours() is None


def test_films_have_headers_too(tmp_path: Path) -> None:
    stats = SplitStats()
    stats.add(said(0, str(write_film(tmp_path / "a.mp4", 0.3 * np.sin(np.arange(18000) / 10), 8000))))
    hours = stats.hours()
    assert hours is not None and hours[0] * 3600 == pytest.approx(2.25, abs=0.1)
