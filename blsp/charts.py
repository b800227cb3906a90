"""Figures of the report as SVG text: no library, no script, every mark titled, colours left to the page's CSS.

All text is escaped here; callers pass it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from blsp.evaluate.metrics import Estimate
from shards.sample import EMOTIONS

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Dot:
    """One line of a dot plot; no estimate leaves it empty. `faint` marks a system never taught what is asked."""

    name: str
    estimate: Estimate | None
    faint: bool = False


def dot_plot(title: str, dots: Sequence[Dot], chance: float) -> str:
    """Shares from 0 to 100 % with their intervals, one line per system. Stretches to any width without scaling text."""
    row = 42
    bottom = row * len(dots)
    parts = [_open(title, f'width="100%" height="{bottom + 16}" class="dots"')]
    parts += [
        f'<text class="tick" x="{x:.2%}" y="{bottom + 12}" text-anchor="{anchor}">{label}</text>'
        for x, anchor, label in (
            (0, "start", "0"),
            (chance, "middle", "chance"),
            (0.5, "middle", "50"),
            (1, "end", "100 %"),
        )
    ]
    for place, dot in enumerate(dots):
        y = row * place + 26
        classes = "dot empty" if dot.estimate is None else "dot faint" if dot.faint else "dot"
        value = "–" if dot.estimate is None else f"{100 * dot.estimate.value:.1f}"
        parts.append(
            f'<g class="{classes}"><title>{escape(_dot_in_words(dot))}</title>'
            f'<text class="name" x="0" y="{y - 11}">{escape(dot.name)}</text>'
            f'<text class="value" x="100%" y="{y - 11}" text-anchor="end">{value}</text>'
            f'<line class="track" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
            f'<line class="chance" x1="{chance:.2%}" x2="{chance:.2%}" y1="{y - 5}" y2="{y + 5}"/>'
        )
        if dot.estimate is not None:
            parts.append(_mark(dot.estimate, y))
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _mark(estimate: Estimate, y: int) -> str:
    interval = ""
    if estimate.low is not None and estimate.high is not None:
        interval = f'<line class="interval" x1="{estimate.low:.2%}" x2="{estimate.high:.2%}" y1="{y}" y2="{y}"/>'
    return f'{interval}<circle class="mark" cx="{estimate.value:.2%}" cy="{y}" r="4.5"/>'


def _dot_in_words(dot: Dot) -> str:
    if dot.estimate is None:
        return f"{dot.name}: does not apply"
    if dot.estimate.low is None or dot.estimate.high is None:
        return f"{dot.name}: {dot.estimate.value:.1%}"
    return f"{dot.name}: {dot.estimate.value:.1%}, 95 % interval {dot.estimate.low:.1%} to {dot.estimate.high:.1%}"


def heat_map(title: str, matrix: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: a row per true emotion, a column per answer and a last one for answers without emotion."""
    cell_width, cell_height, left, top = 38, 30, 66, 24
    answers = [*EMOTIONS, "none"]
    width, height = left + cell_width * len(answers), top + cell_height * len(EMOTIONS)
    parts = [_open(title, f'viewBox="0 0 {width} {height}" class="heat"')]
    for column, answer in enumerate(answers):
        x = left + cell_width * (column + 0.5)
        parts.append(f'<text class="tick" x="{x}" y="{top - 9}" text-anchor="middle">{answer[:4]}</text>')
    for row, emotion in enumerate(EMOTIONS):
        y, total = top + cell_height * row, max(1, sum(matrix[row]))
        parts.append(f'<text class="name" x="{left - 10}" y="{y + 19}" text-anchor="end">{emotion}</text>')
        for column, answer in enumerate(answers):
            count, x = matrix[row][column], left + cell_width * column
            share = count / total
            strong = ' class="strong"' if share > 0.65 else ""
            square = f'x="{x + 1}" y="{y + 1}" width="{cell_width - 2}" height="{cell_height - 2}" rx="3"'
            parts.append(
                f"<g{strong}><title>{emotion} taken for {answer}: {count} of {total}</title>"
                f'<rect class="empty" {square}/><rect class="full" {square} fill-opacity="{share:.3f}"/>'
            )
            if count:
                parts.append(f'<text class="count" x="{x + cell_width / 2}" y="{y + 19}">{count}</text>')
            parts.append("</g>")
    return "".join([*parts, "</svg>"])


def line_chart(title: str, series: Mapping[str, Points]) -> str:
    """Positive values over steps on a logarithmic axis; up to three series, told apart by colour and dash."""
    width, height, left, right, top, bottom = 360, 200, 46, 8, 10, 176
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points if y > 0]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_low, y_high = math.log10(min(ys)), math.log10(max(ys))
    if y_high - y_low < 0.3:
        y_low, y_high = y_low - 0.15, y_high + 0.15

    def at(x: float, y: float) -> str:
        across = left + (x - x_low) / (x_high - x_low) * (width - left - right)
        down = bottom - (math.log10(y) - y_low) / (y_high - y_low) * (bottom - top)
        return f"{across:.1f},{down:.1f}"

    parts = [_open(title, f'viewBox="0 0 {width} {height}" class="lines"')]
    for value in _log_ticks(10**y_low, 10**y_high):
        y = float(at(x_low, value).split(",")[1])
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for x, anchor in ((x_low, "start"), (x_high, "end")):
        across = at(x, 10**y_low).split(",")[0]
        parts.append(f'<text class="tick" x="{across}" y="{bottom + 18}" text-anchor="{anchor}">step {x:g}</text>')
    for place, (name, points) in enumerate(series.items()):
        path = " ".join(at(x, y) for x, y in points if y > 0)
        parts.append(
            f'<polyline class="line line-{place + 1}" points="{path}"><title>{escape(name)}</title></polyline>'
        )
    return "".join([*parts, "</svg>"])


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values between the bounds: 1, 2, 5 times a power of ten, or only powers of ten where those are many."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    powers = [10.0**e for e in exponents if low <= 10.0**e <= high]
    return fine if len(fine) <= 6 or len(powers) < 2 else powers


def _open(title: str, attributes: str) -> str:
    return f'<svg role="img" aria-label="{escape(title)}" {attributes}><title>{escape(title)}</title>'
