"""One self-contained HTML page about a shard set: what came in, what was left out and why, and whether what the LLM
wrote is worth learning.

As the page of an evaluation (`blsp.report`) it loads nothing, and every text that comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blsp import charts
from blsp.evaluate.metrics import Estimate
from blsp.set_examples import examples
from cluster.files import write_atomically
from shards.audio import SAMPLE_RATE
from shards.sample import EMOTIONS
from shards.sets.gains import summarised
from shards.targets.findings import findings
from shards.targets.survey import Survey, survey

_SECONDS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30)
_TOKENS = (0, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512)
_NATS = (-np.inf, -0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
_MOST_ROWS = 60


def write_set_report(root: str, out: Path, beside: Sequence[str] = ()) -> None:
    """Write the page about the set in `root`; `beside` are sets whose transcripts should look alike (another stage's).

    Raises ValueError, with the remedy, for a root that is unfinished, damaged or no shard set.
    """
    found = survey(root, beside)
    sections = [
        _header(found), _findings(found), _in_and_out(found), _corpora(found), _styles(found), _sizes(found),
        _gains(found), _leakage(found), _repetitions(found), examples(found), _footer(found),
    ]  # fmt: skip
    template = Template(resources.files("blsp").joinpath("report.html").read_text("utf-8"))
    page = template.substitute(title="Are the targets any good?", body="\n".join(filter(None, sections)))
    write_atomically(out, page.encode())


def _header(found: Survey) -> str:
    about, hours = found.about, found.shard_set.rows["num_samples"].sum() / SAMPLE_RATE / 3600
    facts = [
        escape(Path(found.url).name or found.url), f"{len(found.shard_set):,} clips", f"{hours:,.2f} h",
        f"prompt: {escape(str(about.get('prompt') or 'none: there are no continuations'))}",
    ]  # fmt: skip
    return (
        '<header><p class="eyebrow">BLSP-Emo, shard set</p><h1>Are the targets any good?</h1>'
        f'<p class="facts">{" &#160;·&#160; ".join(facts)}</p></header>'
    )


def _findings(found: Survey) -> str:
    told = "".join(f"<li>{escape(finding)}</li>" for finding in findings(found))
    if not told:
        return '<p class="lede">Nothing that this page looks for is wrong with this set. Listen to some of it.</p>'
    return f'<p class="lede">Look at this before you train:</p><ul class="findings">{told}</ul>'


def _in_and_out(found: Survey) -> str:
    about = found.about
    rejected = {name: number for name, number in _counts(about.get("rejected")) if number}
    counts = dict(_counts(about))
    inputs, duplicates = counts.get("inputs", len(found.shard_set)), counts.get("duplicates", 0)
    parts = [
        f"<h2>In and out</h2><p>{inputs:,} clips came in, {len(found.shard_set):,} are in the set, "
        f"{sum(rejected.values()):,} were left out and {duplicates:,} repeat the id of another.</p>",
        _bars(rejected.items()),
    ]
    for reason, sources in found.rejects.of.items():
        listed = "".join(
            f'<li><span class="who">{escape(source)}</span><span class="said">{escape(detail)}</span>'
            '<span class="tone"></span></li>'
            for source, detail in sources
        )
        parts.append(f'<h3 class="sub">{escape(reason)}</h3><br><ul class="say">{listed}</ul>')
    if found.flaws:
        rows = [(name, f"{number}", _percent(number / len(found.records))) for name, number in found.flaws.items()]
        parts.append(
            f'<h3 class="sub">What filters find in {len(found.records):,} of the clips that are in the set</h3>'
            + _table(("", "clips", "share"), rows)
            + '<p class="note">label_word: the emotion\'s own word occurs, which is no fault.</p>'
        )
    return "".join(parts)


def _counts(record: Any) -> list[tuple[str, int]]:
    """What dataset.json counts by reason, as far as it is such."""
    if not isinstance(record, dict):
        return []
    return [(str(name), number) for name, number in record.items() if type(number) is int]


def _corpora(found: Survey) -> str:
    rows, shard_set = [], found.shard_set
    emotions = (*EMOTIONS, "none")
    for name, place in sorted(shard_set.corpora.items()):
        of_it = shard_set.rows[shard_set.rows["corpus"] == np.uint64(place)]
        counts = [int((of_it["emotion"] == label).sum()) for label in (*range(len(EMOTIONS)), -1)]
        speakers = len(np.unique(of_it["speaker"][of_it["speaker"] != 0]))
        hours = of_it["num_samples"].sum() / SAMPLE_RATE / 3600
        rows.append((name, f"{len(of_it):,}", f"{hours:.2f}", f"{speakers:,}", *(f"{count:,}" for count in counts)))
    licences = ", ".join(sorted({f"{corpus}: {licence or 'unknown'}" for corpus, licence, _ in shard_set.licences}))
    languages = ", ".join(f"{name} {number:,}" for name, number in found.languages.items())
    return (
        "<h2>Corpora and emotions</h2>" + _table(("corpus", "clips", "hours", "speakers", *emotions), rows)
        + f'<p class="note">Languages, of {len(found.records):,} clips: {escape(languages) or "–"}. Licences: '
        f"{escape(licences) or '–'}.</p>"
    )  # fmt: skip


def _styles(found: Survey) -> str:
    rows = [
        (
            style.name, f"{style.texts:,}",
            "–" if style.share_of_capitals is None else _percent(style.share_of_capitals),
            _percent(style.share_of_punctuation),
        )
        for style in found.styles
    ]  # fmt: skip
    return (
        "<h2>How the transcripts look</h2><p>Shares of transcripts with a capital and with punctuation. They should be "
        "alike over corpora and over both stages: else the model can tell corpora apart by how they are written.</p>"
        + _table(("corpus", "texts", "capitals", "punctuation"), rows)
    )


def _sizes(found: Survey) -> str:
    seconds = found.shard_set.rows["num_samples"] / SAMPLE_RATE
    parts = ["<h2>Lengths</h2><h3>Seconds, from</h3>", _bars(_histogram(seconds, _SECONDS))]
    if found.tokens is not None:
        parts += ["<h3>Tokens of a continuation, from</h3>", _bars(_histogram(found.tokens, _TOKENS))]
    if found.cut:
        rows = [(name, f"{every:,}", f"{cut:,}", _percent(cut / every)) for name, (cut, every) in found.cut.items()]
        parts += [
            f"<h3>Continuations that the token limit cut, of {len(found.records):,} clips</h3>",
            _table(("emotion", "clips", "cut", "share"), rows),
            '<p class="note">A cut continuation teaches no end of turn.</p>',
        ]
    return "".join(parts)


def _gains(found: Survey) -> str:
    if found.gains is None:
        return ""
    rows, known = found.shard_set.rows, found.gains[~np.isnan(found.gains)]
    table = [
        (
            f"{row['corpus']}, {row['emotion']}", f"{row['clips']:,}", f"{row['mean']:z.3f}", f"{row['p10']:z.3f}",
            f"{row['median']:z.3f}", f"{row['p90']:z.3f}",
        )
        for row in summarised(sorted(found.shard_set.corpora), rows["corpus"], rows["emotion"], found.gains)
    ]  # fmt: skip
    return (
        "<h2>Emotion gain</h2><p>How much likelier the LLM finds a continuation when it is told the emotion, in nats "
        "per token: what a model that hears has to find in the voice. About 0: the words alone lead to it, or it has "
        "nothing of the emotion.</p>"
        + _table(("corpus, emotion", "clips", "mean", "10 %", "median", "90 %"), table)
        + "<h3>Nats per token, from</h3>"
        + _bars(_histogram(known, _NATS))
    )


def _leakage(found: Survey) -> str:
    if not found.leakage:
        return ""
    chance = next(iter(found.leakage.values())).chance
    dots = [
        charts.Dot(f"from the {name}", Estimate(guess.accuracy, guess.low, guess.high, guess.clips))
        for name, guess in found.leakage.items()
    ]
    first = next(iter(found.leakage.values()))
    svg = charts.dot_plot("Emotion guessed from text alone, balanced accuracy in percent", dots, chance)
    return (
        "<h2>What the words give away</h2><p>Emotion guessed from text alone, by TF-IDF and logistic regression, the "
        "mean over emotions of the share that is right. From the transcript: how much needs no voice. From the "
        "continuation: whether targets differ by tone; at chance there is nothing to learn from them.</p>"
        f'<figure>{svg}</figure><br><p class="note">{first.clips:,} clips; {first.groups:,} speakers (texts, where '
        "these are unknown) kept apart in 5 folds or fewer; bars: 95&#8239;% interval, whole "
        "speakers redrawn, or clips where that is wider.</p>"
    )


def _repetitions(found: Survey) -> str:
    rows = found.shard_set.rows
    sounds = rows["num_samples"].astype(np.uint64) << np.uint64(32) | rows["audio_crc32"]
    _, numbers = np.unique(sounds, return_counts=True)
    same = int(numbers[numbers > 1].sum())
    table = [(text, f"{number:,}") for text, number in found.repeated_texts]
    return (
        f"<h2>The same again</h2><p>{same:,} clips sound the same as another, bit by bit, under different ids. "
        f"{_percent(found.repeated_share)} of {len(found.records):,} transcripts are those of other clips too.</p>"
        + (_table(("text", "clips"), table) if table else "")
    )


def _footer(found: Survey) -> str:
    writers = escape("; ".join(found.shard_set.writers)) or "none"
    unreadable = f" {found.unreadable} of them cannot be read: blsp shard verify." if found.unreadable else ""
    return (
        f"<footer><p>{escape(found.url)}, {escape(found.shard_set.dataset_id)}. Writers: {writers}.</p><p>Figures of "
        f"texts are of {len(found.records):,} clips drawn by lot.{unreadable} Rejects are from "
        f"{found.rejects.files_read} of {found.rejects.files} files.</p></footer>"
    )


def _histogram(values: NDArray[Any], edges: Sequence[float]) -> list[tuple[str, int]]:
    """Numbers from each edge up to the next, without empty bins at both ends."""
    places = np.searchsorted(edges, values, side="right") - 1
    numbers = np.bincount(places, minlength=len(edges))
    used = np.flatnonzero(numbers)
    span = range(used[0], used[-1] + 1) if len(used) else range(0)
    return [("below" if np.isinf(edges[i]) else f"{edges[i]:g}", int(numbers[i])) for i in span]


def _bars(rows: Iterable[tuple[str, int]]) -> str:
    rows = list(rows)
    most = max((number for _, number in rows), default=1) or 1
    bars = "".join(
        f'<span>{escape(name)}</span><span class="bar" style="width:{number / most:.1%}"></span>'
        f'<span class="seconds">{number:,}</span>'
        for name, number in rows
    )
    return f'<div class="bars">{bars}</div>' if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column names its row. Scrolls sideways on a narrow screen, by keyboard too."""
    heads = "".join(f'<th scope="col">{escape(word)}</th>' for word in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{cell}</td>" for cell in map(_cell, row[1:]))}</tr>'
        for row in rows[:_MOST_ROWS]
    )
    more = f'<p class="note">and {len(rows) - _MOST_ROWS} more</p>' if len(rows) > _MOST_ROWS else ""
    label = escape(", ".join(filter(None, head)), quote=True)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}"
    )


def _cell(text: str) -> str:
    return escape(text).replace(" %", "&#8239;%")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
