"""The tables in Markdown, with what each figure is compared to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from tests.bench.data.timing import Spread
from tests.bench.train.arithmetic import step_flops
from tests.bench.train.real_size import CLIP_S, FORMULA, TARGETS, Throughput
from tests.bench.train.rows import WAYS, Measured
from tests.bench.train.shapes import Shapes
from tests.bench.train.workload import STAGE_1, clips, lengths

FASTER, FEWER_BYTES, CLOSE = 5.0, 5.0, 1e-4
CLIPS_S = (6.0, 10.0)  # of the arithmetic
MICRO_BATCH = 16


def savings(measured: Sequence[Measured], conditions: Mapping[str, Any]) -> str:
    """A row for each way, and below it what the target says."""
    first, last = measured[0], measured[-1]
    lines: list[tuple[str, ...]] = [
        (
            "each row switches one thing on", "seconds", "of all cores", "times faster", "kept for backward, MB",
            "times less", "GFLOP", "times fewer", "loss", "loss off the row above",
        )
    ]  # fmt: skip
    for row in measured:
        lines.append(
            (
                row.name, _spread(row.seconds, 1), _spread(row.core_seconds, 1), _spread(row.faster, 1),
                f"{row.kept_bytes / 1e6:.0f}", f"{first.kept_bytes / row.kept_bytes:.1f}", f"{row.flops / 1e9:.0f}",
                f"{first.flops / row.flops:.1f}", f"{row.loss:.6f}",
                _off(row, first),
            )
        )  # fmt: skip
    off = max(row.off for row in measured if row.off is not None)
    formula = max(abs(row.flops_by_formula / row.flops - 1) for row in measured)
    verdicts = [
        _verdict("all on, times faster", last.faster.median, f"≥ {FASTER:g}", last.faster.median >= FASTER),
        _verdict("all on, times fewer bytes", ratio := first.kept_bytes / last.kept_bytes, f"≥ {FEWER_BYTES:g}",
                 ratio >= FEWER_BYTES),
        f"- the same loss: off by {off:.0e} at most (target ≤ {CLOSE:.0e}): {'met' if off <= CLOSE else 'NOT MET'}",
        f"- the formula counts {100 * formula:.1f} % more or fewer operations at most",
    ]  # fmt: skip
    head = ", ".join(f"{name} {value}" for name, value in conditions.items())
    return "\n".join([head, "", *_markdown(lines), "", *verdicts, ""])


def _off(row: Measured, first: Measured) -> str:
    if row is first:
        return ""
    return "another window" if row.off is None else f"{row.off:.0e}"


def _verdict(what: str, value: float, target: str, met: bool) -> str:
    return f"- {what}: {value:.1f} (target {target}): {'met' if met else 'NOT MET'}"


def per_clip(shapes: Shapes) -> list[dict[str, Any]]:
    """TFLOP of a stage-1 step for one clip, by clip length, way and part; all clips of the micro-batch are alike."""
    found = []
    for seconds in CLIPS_S:
        alike = lengths(clips([seconds] * MICRO_BATCH, STAGE_1))
        for name, way in WAYS.items():
            flops = step_flops(shapes, alike, way)
            parts = {part: value / MICRO_BATCH / 1e12 for part, value in asdict(flops).items()}
            found.append({"clip_s": seconds, "name": name, **parts, "all": flops.total / MICRO_BATCH / 1e12})
    return found


def arithmetic(found: Sequence[Mapping[str, Any]], shapes: Shapes) -> str:
    """A table for each clip length."""
    parts = ("encoder", "adapter", "teacher", "student", "head", "recomputed", "all")
    lines = [f"arithmetic, shapes {shapes.name}: TFLOP per clip, stage 1, {MICRO_BATCH} clips of one length", ""]
    for seconds in CLIPS_S:
        rows = [row for row in found if row["clip_s"] == seconds]
        table: list[tuple[str, ...]] = [(f"clips of {seconds:g} s", *parts, "times fewer")]
        table += [
            (row["name"], *(f"{row[part]:.2f}" for part in parts), f"{rows[0]['all'] / row['all']:.1f}") for row in rows
        ]
        lines += [*_markdown(table), ""]
    return "\n".join(lines)


def throughput(measured: Sequence[Throughput], shapes: Shapes, device: torch.device) -> str:
    """Audio hours per GPU hour first."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    table: list[tuple[str, ...]] = [
        ("audio hours per GPU hour", "step", "clips", "s per step", "LLM tokens/s", "MFU", "peak memory, GB")
    ]
    for row in measured:
        table.append(
            (
                f"**{row.audio_h_per_h:,.0f}**", row.name, f"{row.num_clips}", _spread(row.seconds, 3),
                f"{row.tokens_per_s:,.0f}", "" if row.mfu is None else f"{row.mfu:.0%}",
                "" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.1f}",
            )
        )  # fmt: skip
    verdicts = []
    for name_of, target in TARGETS.items():
        reached = max((row.audio_h_per_h for row in measured if row.name.startswith(name_of)), default=0.0)
        met = "met" if reached >= target else "NOT MET"
        verdicts.append(f"- {name_of}: {reached:,.0f} audio h per GPU h (target on one H200 ≥ {target:,.0f}): {met}")
    return "\n".join([f"{name}, shapes {shapes.name}, clips of {CLIP_S:g} s", "", *_markdown(table), "", *verdicts,
                      FORMULA, ""])  # fmt: skip


def _spread(spread: Spread, digits: int) -> str:
    median, low, high = (f"{value:.{digits}f}" for value in (spread.median, spread.low, spread.high))
    return median if low == high else f"{median} ({low}–{high})"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
