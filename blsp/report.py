"""One self-contained HTML page about an evaluation: figures, table, confusions, sound, training, and how it was made.

The page loads nothing: styles, figures and audio are inside it, and its content security policy says so. Every text
that comes from data is escaped where it enters the page.
"""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from blsp import charts
from blsp.evaluate import metrics, paper
from blsp.evaluate.result import read_result, read_rows
from blsp.evaluate.scoring import Row
from blsp.evaluate.table import COLUMNS, Column, is_untaught, measured, used_columns
from cluster.files import write_atomically
from shards.audio import SAMPLE_RATE, AudioError, load_audio

Json = Mapping[str, Any]
_LOSSES = ("kl", "ce", "emotion")
_MAX_POINTS = 400


def write_report(evaluation: Path, runs: Sequence[Path], out: Path) -> None:
    """Write the page about `evaluation` (what `blsp eval` left) and the training runs behind it.

    `commands.jsonl` beside the evaluation folder, if there, lists what was run: one `{"command", "seconds", "phase"}`
    per line. Raises ValueError when the evaluation or a run's log is missing or unreadable.
    """
    result, rows = read_result(evaluation), read_rows(evaluation)
    commands_file = evaluation.absolute().parent / "commands.jsonl"
    commands = _read_lines(commands_file) if commands_file.exists() else []
    sections = [
        _header(result),
        _figures(result),
        _table(result),
        _paper_table(),
        _listen(result, rows),
        _confusions(result),
        _training(runs),
        _making(commands),
        _footer(result),
    ]
    template = Template(resources.files("blsp").joinpath("report.html").read_text("utf-8"))
    page = template.substitute(
        title="How it was said: an evaluation of BLSP-Emo", body="\n".join(filter(None, sections))
    )
    write_atomically(out, page.encode())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a log. A torn last line (its writer was killed) is left out; any other raises ValueError."""
    lines = path.read_text("utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}:{number}: not JSON ({error}); remove the line") from None
    return records


def _percent(share: float) -> str:
    return f"{100 * share:.1f}&#8239;%"


def _header(result: Json) -> str:
    test = result["test_set"]
    facts = [
        f"{test['num_clips']} clips",
        f"{test['num_texts']} sentences",
        f"{test['num_speakers']} speakers" if test["num_speakers"] else "speakers unknown",
        escape(", ".join(test["corpora"])),
        f"text LLM: {escape(Path(result['recipe']['llm']).name)}",
    ]
    return (
        '<header><p class="eyebrow">BLSP-Emo, evaluation</p><h1>Does it hear how it was said?</h1>'
        f'<p class="facts">{" &#160;·&#160; ".join(facts)}</p></header><p class="lede">{_lede(result)}</p>'
    )


def _lede(result: Json) -> str:
    """Chance, then the trivial baseline, then the words alone, then each speech model: figures before any claim."""
    test = result["test_set"]
    sentences = [f"Naming one of five emotions at random is right in {_percent(test['chance'])} of the clips."]
    if test["majority"] > test["chance"] + 0.005:
        sentences.append(f"Always naming the most frequent one is right in {_percent(test['majority'])}.")
    columns = {column.measure: column for column in COLUMNS}
    for system in result["systems"]:
        name = escape(system["name"])
        classifier, tone = (measured(system, columns[measure]) for measure in ("classifier", "tone"))
        if system["type"] == "linear" and classifier:
            sentences.append(
                f"A linear classifier on the mean spectrum of the sound reaches {_percent(classifier.value)}: "
                "whatever claims to hear emotion should be read beside that."
            )
        elif system["type"] == "text" and tone:
            sentences.append(
                f"{name}, which has the words and no voice, continues in the right tone in {_percent(tone.value)}."
            )
    speech = [system for system in result["systems"] if system["type"] == "speech"]
    tones = [(measured(system, columns["tone"]), system["name"]) for system in speech]
    heard = [f"{escape(name)} {_percent(tone.value)}" for tone, name in tones if tone]
    if heard:
        sentences.append(
            f"The speech models, which are given the sound alone, continue in the speaker’s tone: {', '.join(heard)}."
        )
    return " ".join(sentences)


def _figures(result: Json) -> str:
    captions = {
        "classifier": "<b>Classifier</b> <span>names the emotion</span>",
        "tone": "<b>Tone</b> <span>of the continuation is the speaker’s</span>",
        "label": "<b>Label</b> <span>given when asked for it</span>",
    }
    panels = []
    for column in used_columns(result):
        if column.measure in captions:
            dots = [
                charts.Dot(system["name"], measured(system, column), is_untaught(system, column))
                for system in result["systems"]
            ]
            title = f"{column.heading}: share of clips that are right, in percent, by system"
            svg = charts.dot_plot(title, dots, result["test_set"]["chance"])
            panels.append(f"<figure><figcaption>{captions[column.measure]}</figcaption>{svg}</figure>")
    return (
        f'<h2>Emotion</h2><div class="panels">{"".join(panels)}</div>'
        '<p class="note">Dots: share of clips that are right, in percent. Bars: 95&#8239;% interval, whole '
        f"{escape(result['interval']['resampled'])} redrawn. Hollow: asked for a label without ever having been taught "
        "to give one.</p>"
    )


def _table(result: Json) -> str:
    columns = used_columns(result)
    groups = {column.group: sum(other.group == column.group for other in columns) for column in columns}
    body = [
        f'<tr><th scope="row">{escape(system["name"])}</th>{"".join(_cell(system, column) for column in columns)}</tr>'
        for system in result["systems"]
    ]
    meanings = "".join(
        f"<div><dt>{column.group.capitalize()}, {column.heading}.</dt> <dd>{column.meaning}</dd></div>"
        for column in columns
    )
    head = _head(groups, [column.heading for column in columns])
    return (
        "<h2>Every measure</h2><p>Percent of clips, but for the number of distinct continuations; 95&#8239;% intervals "
        f"in small figures.</p>{_scrolling('Every measure of every system', head + _body(body))}"
        f"<dl>{meanings}</dl>{_without_emotion(result)}"
    )


def _head(groups: Mapping[str, int], headings: Sequence[str]) -> str:
    """Two rows: groups with their number of columns, and the columns."""
    above = "".join(
        f'<th colspan="{size}" scope="colgroup"><span class="span">{group}</span></th>'
        for group, size in groups.items()
    )
    below = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    return f'<thead><tr><th></th>{above}</tr><tr><th scope="col">system</th>{below}</tr></thead>'


def _body(rows: Sequence[str]) -> str:
    return f"<tbody>{''.join(rows)}</tbody>"


def _scrolling(label: str, table: str) -> str:
    """A table that scrolls sideways on a narrow screen, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table>{table}</table></div>'


def _cell(system: Json, column: Column) -> str:
    estimate = measured(system, column)
    if estimate is None:
        return '<td class="none">–</td>'
    untaught = is_untaught(system, column)
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f"<small>{column.format(estimate.low)}–{column.format(estimate.high)}</small>"
    attribute = ' class="faint" title="never taught to name emotions"' if untaught else ""
    return f"<td{attribute}>{column.format(estimate.value)}{'†' if untaught else ''}{interval}</td>"


def _without_emotion(result: Json) -> str:
    """A sentence on the answers in which no emotion could be read; they count as wrong above."""
    named = {
        metrics.NO_TONE: "without tone",
        metrics.UNPARSED: "without label",
        metrics.AMBIGUOUS: "with several labels",
    }
    found = []
    for system in result["systems"]:
        counts = [f"{count} {named[kind]}" for kind, count in system["without_emotion"].items() if count]
        if counts:
            found.append(f"{escape(system['name'])} {', '.join(counts)}")
    listed = "; ".join(found) or "none"
    return f'<p class="note">Answers in which no single emotion could be read, counted as wrong: {listed}.</p>'


def _paper_table() -> str:
    body = []
    for name, cells in paper.ROWS.items():
        values = "".join('<td class="none">–</td>' if cell is None else f"<td>{cell:.1f}</td>" for cell in cells)
        ours = ' class="ours"' if name == "BLSP-Emo" else ""
        body.append(f'<tr{ours}><th scope="row">{escape(name)}</th>{values}</tr>')
    groups = {group: len(columns) for group, columns in paper.COLUMNS.items()}
    head = _head(groups, [column for columns in paper.COLUMNS.values() for column in columns])
    return (
        "<h2>The paper’s numbers, for context</h2><p>These are the paper’s, on real corpora, not ours, and not "
        "comparable figure by figure with the table above: other speech, other models, other test sets. What can be "
        f"compared is the order of the systems.</p>{_scrolling('Numbers from the paper', head + _body(body))}"
        '<p class="note">arXiv 2406.03872. Emotion recognition: accuracy in percent. Judged: GPT&#8209;4’s marks from '
        "0 to 10. A dash is a cell that we could not read, not a zero. Taken from notes on the paper’s tables: check "
        "the paper before citing them.</p>"
    )


def _confusions(result: Json) -> str:
    sections = [
        "<h2>What is taken for what</h2><p>One row per true emotion, one column per answer; <i>none</i> is an answer "
        "in which no emotion could be read. Numbers are clips; <i>balanced</i> is the mean over the rows of the share "
        "that is right.</p>"
    ]
    for answer, heading in (("classifier", "By the classifier"), ("tone", "By the tone of the continuation")):
        panels = []
        for system in result["systems"]:
            matrix = system["confusion"][answer]
            if matrix:
                title = f"{system['name']}, {answer}: true emotion by emotion taken for it"
                balanced = _percent(system["balanced_accuracy"][answer])
                caption = f"<b>{escape(system['name'])}</b> <span>balanced {balanced}</span>"
                panels.append(f"<figure><figcaption>{caption}</figcaption>{charts.heat_map(title, matrix)}</figure>")
        if panels:
            sections.append(f'<h3 class="sub">{heading}</h3><div class="panels">{"".join(panels)}</div>')
    return "".join(sections)


def _listen(result: Json, rows: Sequence[Row]) -> str:
    example = result["example"]
    by_clip: dict[str, list[Row]] = {}
    for row in rows:
        by_clip.setdefault(row.id, []).append(row)
    clips = "".join(_clip(clip, by_clip[clip["id"]]) for clip in example["clips"])
    title = "The same words in five tones" if example["same_words"] else "One clip of each emotion"
    return (
        f"<h2>{title}</h2><p>Drawn by lot, not by result. The systems were asked to continue what they heard in the "
        f"tone they heard; on the right, the tone that this continuation has.</p>{clips}"
    )


def _clip(clip: Json, rows: Sequence[Row]) -> str:
    first = rows[0]
    said = [
        f'<li class="reference"><span class="who">the LLM, told “{first.emotion}”</span>'
        f'<span class="said">{escape(first.reference_tone)}</span><span class="tone"></span></li>'
    ]
    for row in rows:
        if row.tone_said is None or row.tone is None:
            continue
        mark, sign = ("right", "✓") if row.tone == row.emotion else ("wrong", "✗")
        said.append(
            f'<li class="{mark}"><span class="who">{escape(row.system)}</span>'
            f'<span class="said">{escape(row.tone_said) or "–"}</span>'
            f'<span class="tone">{row.tone} {sign}</span></li>'
        )
    speaker = f", {escape(first.speaker)}" if first.speaker else ""
    return (
        f'<div class="clip"><div><h3>{first.emotion}<span>{speaker}</span></h3>'
        f'{_player(clip, first)}<p class="words">{escape(first.text)}</p></div>'
        f'<ul class="say">{"".join(said)}</ul></div>'
    )


def _player(clip: Json, row: Row) -> str:
    try:
        samples = load_audio(Path(clip["audio"]), clip["start_s"], clip["duration_s"])
    except AudioError:
        return '<p class="note">The audio is no longer where the evaluation found it.</p>'
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    label = escape(f"{row.emotion}: {row.text}", quote=True)
    return f'<audio controls preload="metadata" aria-label="{label}" src="data:audio/wav;base64,{data}"></audio>'


def _training(runs: Sequence[Path]) -> str:
    figures = [_loss_figure(run) for run in runs]
    if not figures:
        return ""
    return (
        "<h2>Training</h2><p>Loss per logged step, on a logarithmic axis.</p>"
        f'<div class="panels">{"".join(figures)}</div>'
    )


def _loss_figure(run: Path) -> str:
    path = run / "log.jsonl"
    if not path.exists():
        raise ValueError(f"{run} holds no log.jsonl, so it is not the folder of a training run; leave it out")
    by_step: dict[int, Json] = {}
    for record in _read_lines(path):  # of a step repeated after a resume the last counts; a validation adds its own
        by_step[record["step"]] = {**by_step.get(record["step"], {}), **record}
    steps = sorted(by_step)
    series = {
        name: _thinned([(step, by_step[step][name]) for step in steps if by_step[step].get(name, 0) > 0])
        for name in _LOSSES
    }
    series = {name: points for name, points in series.items() if points}
    caption = f"<b>{escape(run.name)}</b> <span>{len(steps)} points, to step {steps[-1] if steps else 0}</span>"
    if not series:
        return f'<figure><figcaption>{caption}</figcaption><p class="note">Nothing was logged.</p></figure>'
    keys = "".join(
        f'<span class="key"><svg aria-hidden="true"><line class="line line-{place}" x2="26" y1="4" y2="4"/></svg>'
        f"{name} {points[-1][1]:.3g}</span>"
        for place, (name, points) in enumerate(series.items(), start=1)
    )
    svg = charts.line_chart(f"{run.name}: loss over steps, logarithmic", series)
    return f"<figure><figcaption>{caption}<br>{keys}</figcaption>{svg}</figure>"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbours, so that a long run stays a light page."""
    size = -(-len(points) // _MAX_POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _making(commands: Sequence[Json]) -> str:
    if not commands:
        return ""
    phases: dict[str, float] = {}
    for command in commands:
        phases[command["phase"]] = phases.get(command["phase"], 0.0) + command["seconds"]
    longest = max(phases.values()) or 1.0
    bars = "".join(
        f'<span>{escape(phase)}</span><span class="bar" style="width:{seconds / longest:.1%}"></span>'
        f'<span class="seconds">{_duration(seconds)}</span>'
        for phase, seconds in phases.items()
    )
    listed = "".join(
        f"<li><code>{escape(command['command'])}</code>"
        f'<span class="seconds">{_duration(command["seconds"])}</span></li>'
        for command in commands
    )
    return (
        f"<h2>How it was made</h2><p>{_duration(sum(phases.values()))} in all.</p>"
        f'<div class="bars">{bars}</div><ol class="commands">{listed}</ol>'
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f}&#8239;s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60}&#8239;h {minutes % 60}&#8239;min"
        if minutes >= 60
        else f"{minutes}&#8239;min {rest:02d}&#8239;s"
    )


def _footer(result: Json) -> str:
    versions = ", ".join(f"{escape(name)}&#160;{escape(version)}" for name, version in result["versions"].items())
    test, interval = result["test_set"], result["interval"]
    return (
        f"<footer><p>{versions}.</p><p>Intervals: percentile bootstrap, whole {escape(interval['resampled'])} redrawn, "
        f"{interval['draws']} draws, seed {interval['seed']}. With few speakers they are rough, and too "
        "narrow rather than too wide.</p>"
        f"<p>Test set: {escape(test['manifest'])}, sha256 {escape(test['manifest_sha256'])}.</p></footer>"
    )
