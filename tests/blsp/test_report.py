"""The page and its figures: well formed, self-contained, escaped, and honest about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
from rich.console import Console

from blsp import charts
from blsp.evaluate import paper
from blsp.evaluate.metrics import Estimate
from blsp.evaluate.result import read_result, write_result
from blsp.evaluate.scoring import Answers, References, score, summary
from blsp.evaluate.table import COLUMNS, terminal_table
from blsp.report import write_report
from shards.sample import EMOTIONS, Utterance

HOSTILE = "<script>alert('&')</script>"


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """One sentence in five tones under a trivial, a text and a speech system, with hostile names and words."""
    told = {emotion: f"{emotion} words {HOSTILE}" for emotion in EMOTIONS}
    references = {HOSTILE: References(told["neutral"], told)}
    clips = []
    for emotion in EMOTIONS:
        audio = tmp_path / f"{emotion}.wav"
        soundfile.write(audio, 0.1 * np.sin(np.arange(4000) / 10), 16000)
        clips.append(
            Utterance(id=emotion, audio=str(audio), text=HOSTILE, corpus=HOSTILE, emotion=emotion, speaker=HOSTILE)
        )
    right, same = list(EMOTIONS), [told["neutral"]] * 5
    given: list[tuple[str, str, list[str] | None, Answers]] = [
        ("linear", "linear", None, Answers(None, None, None, right, None)),
        ("text", "text", None, Answers(same, same, ["neutral"] * 5, None, None)),
        (HOSTILE, "speech", ["continue"], Answers(same, [told[e] for e in EMOTIONS], ["?"] * 5, right, None)),
    ]
    rows, systems = [], []
    for name, kind, learnt, answers in given:
        scored = score(name, clips, references, answers)
        rows += scored
        systems.append({"name": name, "type": kind, "prompts_learnt": learnt, "seconds": 1.0, **summary(scored)})
    result: dict[str, Any] = {
        "format": 1,
        "recipe": {"llm": "llm"},
        "test_set": {
            "manifest": "test.jsonl", "manifest_sha256": "00", "num_clips": 5, "num_texts": 1, "num_speakers": 1,
            "corpora": [HOSTILE], "emotions": dict.fromkeys(EMOTIONS, 1), "chance": 0.2, "majority": 0.2,
        },
        "interval": {"level": 0.95, "resampled": "speakers", "draws": 2000, "seed": 1},
        "systems": systems,
        "example": {
            "same_words": True,
            "clips": [{"id": clip.id, "audio": clip.audio, "start_s": 0.0, "duration_s": None} for clip in clips],
        },
        "versions": {"python": "3"},
        "seconds": 1.0,
    }  # fmt: skip
    write_result(tmp_path / "eval", result, rows)
    return tmp_path / "eval"


def run_with(folder: Path, *lines: str) -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("\n".join(lines))
    return folder


def page_of(evaluation: Path, *runs: Path) -> str:
    out = evaluation.parent / "report.html"
    write_report(evaluation, runs, out)
    return out.read_text("utf-8")


class Balance(HTMLParser):
    """Raises when a tag is closed that is not the last one opened."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_self_contained_and_escaped(evaluation: Path) -> None:
    log = [json.dumps({"step": step, "loss": 1.0, "ce": 2.0 / step, "emotion": 1.5}) for step in (1, 2, 3)]
    command = {"command": f"blsp eval {HOSTILE}", "seconds": 75.0, "phase": HOSTILE}
    (evaluation.parent / "commands.jsonl").write_text(json.dumps(command) + "\n")
    page = page_of(evaluation, run_with(evaluation.parent / "stage2", *log))
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert balance.seen.count("audio") == 5
    assert "script" not in balance.seen
    assert not re.search(r"(src|href)\s*=\s*\"(?!data:)|url\(|@import|https?:", page)
    assert "1&#8239;min 15&#8239;s" in page
    assert all(column.meaning in page for column in COLUMNS if column.measure != "word_errors")
    for number in ("11.1", "76.0", "83.8"):
        assert f"<td>{number}</td>" in page


def test_what_is_missing_is_said(evaluation: Path) -> None:
    (evaluation.parent / "sad.wav").unlink()
    page = page_of(evaluation)
    assert page.count("<audio") == 4
    assert "no longer where the evaluation found it" in page
    assert "<h2>Training</h2>" not in page
    assert "<h2>How it was made</h2>" not in page


def test_a_folder_without_a_log_is_refused(evaluation: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no log\.jsonl"):
        page_of(evaluation, tmp_path)


def test_a_torn_last_line_is_left_out_and_a_repeated_step_counts_once(evaluation: Path) -> None:
    lines = ['{"step": 10, "kl": 3}', '{"step": 20, "kl": 2}', '{"step": 20, "kl": 0.5}', '{"step": 30, "k']
    page = page_of(evaluation, run_with(evaluation.parent / "stage1", *lines))
    assert "2 points, to step 20" in page
    assert "kl 0.5" in page


def test_any_other_bad_line_of_a_log_is_named(evaluation: Path) -> None:
    run = run_with(evaluation.parent / "stage1", '{"step": 1, "kl": 3}', "garbage", '{"step": 2, "kl": 3}')
    with pytest.raises(ValueError, match=r"log\.jsonl:2: not JSON"):
        page_of(evaluation, run)


def test_a_run_that_logged_nothing_is_no_error(evaluation: Path) -> None:
    assert "Nothing was logged" in page_of(evaluation, run_with(evaluation.parent / "stage1", ""))


def test_the_paper_has_as_many_cells_as_columns() -> None:
    num_columns = sum(map(len, paper.COLUMNS.values()))
    assert all(len(cells) == num_columns for cells in paper.ROWS.values())


def test_the_terminal_table_fits_80_columns(evaluation: Path) -> None:
    console = Console(width=80, record=True, file=(evaluation.parent / "out").open("w"))
    console.print(terminal_table(read_result(evaluation)))
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "100.0" in text
    assert "0.0†" in text


def test_a_dot_plot_places_marks_by_share_and_says_them_in_words() -> None:
    dots = [
        charts.Dot("a<b", Estimate(0.5, 0.4, 0.6, 10)),
        charts.Dot("none", None),
        charts.Dot("one", Estimate(1, None, None, 1)),
    ]
    svg = ElementTree.fromstring(charts.dot_plot("x & y", dots, 0.2))
    assert svg.attrib["aria-label"] == "x & y"
    assert [mark.attrib["cx"] for mark in svg.iter("circle")] == ["50.00%", "100.00%"]
    titles = [title.text for title in svg.iter("title")]
    assert titles == ["x & y", "a<b: 50.0%, 95 % interval 40.0% to 60.0%", "none: does not apply", "one: 100.0%"]


def test_a_heat_map_has_a_cell_for_every_pair() -> None:
    matrix = [[row * column for column in range(6)] for row in range(5)]
    svg = ElementTree.fromstring(charts.heat_map("m", matrix))
    assert "surprise taken for none: 20 of 60" in [title.text for title in svg.iter("title")]
    assert len([rect for rect in svg.iter("rect") if rect.attrib["class"] == "full"]) == 30


@pytest.mark.parametrize("values", [[2.0, 1.0, 0.001], [1.0], [0.5, 0.5], [3.0, 0.0, 1.0]])
def test_a_line_chart_keeps_its_points_inside(values: list[float]) -> None:
    series = {"kl": list(enumerate(values, start=1))}
    svg = ElementTree.fromstring(charts.line_chart("c", series))
    line = next(svg.iter("polyline"))
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) == sum(value > 0 for value in values)
    assert all(0 <= x <= 360 and 0 <= y <= 200 for x, y in points)
