"""The result as a table: its columns (the HTML report has the same ones) and its form for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from blsp.evaluate.metrics import Estimate
from blsp.evaluate.scoring import LABEL


@dataclass(frozen=True)
class Column:
    """One measure: its key in `result.json`, its heading, and what it means in a sentence.

    `short` is its heading in a terminal, which has no room for all of them.
    """

    measure: str
    group: str
    heading: str
    meaning: str
    short: str | None = None

    def format(self, value: float) -> str:
        """Percent without the sign; the number of distinct continuations as it is."""
        return f"{value:.2f}" if self.measure == "distinct" else f"{100 * value:.1f}"


COLUMNS = (
    Column(
        "classifier",
        "emotion",
        "classifier",
        "The emotion that the system’s classifier names is the true one.",
        "classifier",
    ),
    Column(
        "tone",
        "emotion",
        "tone",
        "The continuation written from the voice is nearest to the one that the text LLM writes when it is told the "
        "true emotion. A tie, or no likeness at all, counts as wrong.",
        "tone",
    ),
    Column(
        "label",
        "emotion",
        "label",
        "Asked to name the emotion, the system names the true one and no other. Fair only for a system that was taught "
        "this question; the others are marked †.",
        "label",
    ),
    Column(
        "plain_exact",
        "same words",
        "plain",
        "The plain continuation is word for word what the text LLM writes when it reads the transcript.",
        "same words",
    ),
    Column(
        "tone_exact",
        "same words",
        "tone",
        "The continuation in tone is word for word what the text LLM writes when it is told the true emotion.",
    ),
    Column(
        "plain_content",
        "content kept",
        "plain",
        "The plain continuation has every content word of the transcript that the text LLM’s own has.",
    ),
    Column("tone_content", "content kept", "tone", "The same of the continuation in tone.", "content"),
    Column(
        "distinct",
        "of five",
        "distinct",
        "Different continuations of the same words by the same speaker in five tones, from 1 to 5. Errors of hearing "
        "raise it too: read it beside tone.",
        "distinct",
    ),
    Column("word_errors", "words", "errors", "Word error rate of the system’s own transcript."),
)


def measured(system: Mapping[str, Any], column: Column) -> Estimate | None:
    """A system's measure, or None where it does not apply."""
    record = system["measures"][column.measure]
    return None if record is None else Estimate.from_json(record)


def is_untaught(system: Mapping[str, Any], column: Column) -> bool:
    """Whether a model of ours was asked for a label without having been trained on that question."""
    learnt = system["prompts_learnt"]
    return column.measure == "label" and learnt is not None and LABEL not in learnt


def used_columns(result: Mapping[str, Any]) -> list[Column]:
    """The columns in which at least one system has a value."""
    return [column for column in COLUMNS if any(system["measures"][column.measure] for system in result["systems"])]


def terminal_table(result: Mapping[str, Any]) -> Table:
    """The main measures with 95 % intervals below them, rounded to whole percent; fits 80 columns."""
    test_set = result["test_set"]
    caption = (
        f"% of {test_set['num_clips']} clips, 95 % intervals by {result['interval']['resampled']}; chance "
        f"{100 * test_set['chance']:.0f}, majority {100 * test_set['majority']:.0f}.\n"
        "same words: as the text LLM, plain; content kept, in tone; distinct of 5 tones.\n"
        "† never taught to name emotions"
    )
    table = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("system", overflow="fold")
    columns = [column for column in used_columns(result) if column.short]
    for column in columns:
        table.add_column(column.short or column.heading, justify="right", no_wrap=True)
    for system in result["systems"]:
        table.add_row(Text(system["name"]), *(_cell(system, column) for column in columns))
    return table


def _cell(system: Mapping[str, Any], column: Column) -> Text:
    estimate = measured(system, column)
    if estimate is None:
        return Text("–", style="dim")
    untaught = is_untaught(system, column)
    cell = Text(column.format(estimate.value) + ("†" if untaught else ""), style="dim" if untaught else "bold")
    if estimate.low is not None and estimate.high is not None:
        scale, digits = (1, 1) if column.measure == "distinct" else (100, 0)
        cell.append(f"\n{scale * estimate.low:.{digits}f}–{scale * estimate.high:.{digits}f}", style="not bold dim")
    return cell
