"""The data benchmark on a handful of clips: it runs, and what it counts is right. lhotse is not needed for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.audio import SAMPLE_RATE
from tests.bench.data import __main__ as bench
from tests.bench.data import peers
from tests.bench.data.clips import make_clips
from tests.bench.data.fetched import bytes_read
from tests.bench.data.figure import Figure
from tests.bench.data.timing import Seconds, Spread, interleaved, share
from tests.bench.data.unused import unused


def test_it_measures_every_figure_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "HAS_LHOTSE", False)
    out = tmp_path / "figures.json"
    few = ["--clips", "8", "--rounds", "1", "--rows", "20000"]
    monkeypatch.setattr(sys, "argv", ["data", *few, "--out", str(out)])
    assert bench.main() == 0
    figures = {figure["name"]: figure for figure in json.loads(out.read_text())["figures"]}
    assert len(figures) == 14
    assert all(figure["ours"]["median"] > 0 for figure in figures.values())
    assert figures["state to resume from"]["met"] is True
    table = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0][2:] for line in table if line.startswith("| ")][2:] == list(figures)


def test_each_round_gives_one_ratio() -> None:
    calls: list[str] = []
    taken = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"  # the first round warms up and does not count
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3}
    limit, measured = [Seconds(1, 1), Seconds(3, 1), Seconds(2, 1)], [Seconds(2, 1), Seconds(4, 1), Seconds(2, 1)]
    assert share(limit, measured) == Spread(0.75, 0.5, 1.0)


def test_unused_is_what_the_ranks_paid_for_without_use() -> None:
    assert unused([[3.0, 3.0], [3.0, 3.0]], useful=12.0) == 0
    assert unused([[4.0, 2.0], [3.0, 3.0]], useful=12.0) == pytest.approx(100 * 2 / 14)  # one rank waits
    assert unused([[4.0, 4.0]], useful=6.0) == 25  # a quarter is padding


def test_a_target_is_met_or_missed_by_the_median() -> None:
    figure = Figure(name="a", ours=Spread(0.9, 0.8, 1.0), target=0.9, at_least=True)
    assert figure.met is True
    assert figure.cells() == ("a", "≥ 0.90", "0.90 (0.80–1.000)", "yes", "–")
    assert Figure(name="a", ours=Spread(1.2, 1.1, 1.4), unit="%", target=1.0).cells()[2:4] == (
        "1.2 % (1.1–1.4)", "**no**",
    )  # fmt: skip


def test_read_bytes_are_counted_also_from_the_page_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(300_000))
    assert 300_000 <= bytes_read((tmp_path / "file").read_bytes) < 310_000


def test_clips_of_a_folder_take_the_place_of_spoken_ones(tmp_path: Path) -> None:
    spoken = make_clips(tmp_path / "spoken", 3)
    assert all(0.5 * SAMPLE_RATE < len(waveform) < 30 * SAMPLE_RATE for waveform in spoken.waveforms)
    (tmp_path / "spoken/wav/broken.wav").write_bytes(b"RIFF")
    found = make_clips(tmp_path / "found", 4, tmp_path / "spoken")
    assert all(map(np.array_equal, found.waveforms, [*spoken.waveforms, spoken.waveforms[0]]))
    with pytest.raises(ValueError, match="no audio file that can be used"):
        make_clips(tmp_path / "none", 1, tmp_path / "found" / "nothing")
