"""What `blsp estimate` prints: tables, one chart, a recommendation, and all that was assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from blsp.estimate.operations import operations
from blsp.estimate.parts import Parts
from blsp.estimate.workload import POSITIONS_PER_S, Workload
from blsp.estimate.writing import LAYER_S, READING_SHARE, Writing
from blsp.recipe import TrainRecipe
from cluster.forecast import CONTEXT_BYTES, FRAGMENTATION, Forecast, Job, Memory, forecast, memory, most_that_fits, ways
from cluster.machines import FABRICS, GPUS_PER_HOST, LINE_RATE_SHARE, Fabric, Gpu
from cluster.sharding import Zero

_WIDTH = 100
_BAR = 60  # characters of the longest bar
_HOURS = 1000  # of speech, where nobody knows how many clips there are
# Columns and pieces of the bars: heading, what it is, sign, colour.
_PARTS = (
    ("weights", "weights", "█", "blue"), ("grads", "gradients", "▓", "magenta"), ("optim", "optimizer", "▒", "cyan"),
    ("activ", "activations", "▚", "yellow"), ("logits", "logits", "▞", "red"),
    ("gather", "gathered", "░", "green"), ("update", "update", "·", "white"),
    ("alloc", "allocator", "∙", "white"),
)  # fmt: skip


class Report:
    """One table after the other, on a terminal or in a file."""

    def __init__(self, gpu: Gpu, fabric: Fabric) -> None:
        self._gpu, self._fabric = gpu, fabric
        self._console = Console(width=_WIDTH, highlight=False)

    def about(self, recipe: TrainRecipe, parts: Parts, workload: Workload, job: Job) -> None:
        """What is trained on what."""
        mean, most, each, engine = workload.mean, workload.largest, job.weights.bytes_each, recipe.engine
        made = operations(parts, recipe.stage, engine.gradient_checkpointing, mean)
        step, steps = made.total * job.micro_batches, workload.clips.steps
        shares = ", ".join(f"{name} {value / made.total:.0%}" for name, value in vars(made).items() if value)
        about = {
            "frozen": f"{_short_number(job.weights.num_frozen)} weights, {_gb(job.weights.num_frozen * each)} GB",
            "learns": f"{_short_number(job.weights.num_trained)} weights: {', '.join(recipe.stage.train)}",
            "clips": workload.clips.known,
            "micro-batch": f"{mean.clips:.1f} clips on average, {mean.tokens:,.0f} tokens; at most "
            f"{most.heard / POSITIONS_PER_S:,.0f} s heard, {most.tokens:,.0f} tokens, {most.rows:,.0f} rows of logits",
            "step": f"{recipe.data.clips_per_step:g} clips in {job.micro_batches} micro-batches, "
            f"{step / 1e12:,.4g} TFLOP: {shares}",
            "epoch": "not known without its shard set" if steps is None
            else f"{steps:,} steps, {steps * step / 1e15:,.3g} PFLOP",
            "checkpoint": f"{_gb(job.weights.checkpoint_bytes)} GB, of which {engine.keep_checkpoints} are kept",
        }  # fmt: skip
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, value in about.items():
            table.add_row(name, value)
        self._print(table)

    def memory(self, job: Job, average: Job, workload: Workload, chosen: Forecast) -> None:
        """Every setting on as many GPUs as were chosen, as a table and as bars. `average` is the job with micro-batches
        of the mean size."""
        gpu = self._gpu
        self._say(f"\nMemory of each of {chosen.gpus} x {gpu.name}, in GB of {_gb(gpu.memory_bytes)}")
        table = _table("", *(heading for heading, *_ in _PARTS), "all", "clips", "step, s")
        held = {zero: memory(job, zero) for zero in ways(chosen.gpus)}
        for zero, made in held.items():
            clips = workload.mean.clips * most_that_fits(average, zero, gpu)
            step = forecast(job, zero, gpu, self._fabric)
            table.add_row(
                _short(zero), *map(_gb, _sizes(made)), _gb(made.total), f"{clips:,.0f}" if clips else "none",
                "–" if step is None else f"{step.step_s:,.2f}",
            )  # fmt: skip
        self._print(table)
        self._say()
        longest = max(gpu.memory_bytes, *(made.total for made in held.values()))
        for zero, made in held.items():
            bar, done = Text(f"{_short(zero):<13}"), 0.0
            for (*_, sign, colour), size in zip(_PARTS, _sizes(made), strict=True):
                before, done = round(done / longest * _BAR), done + size
                bar.append(sign * (round(done / longest * _BAR) - before), colour)
            bar.append("" if made.total <= gpu.memory_bytes else "  does not fit")
            self._print(bar)
        self._say(" " * (12 + round(gpu.memory_bytes / longest * _BAR)) + f"| {gpu.name}")
        self._say("  ".join(f"{sign} {name}" for _, name, sign, _ in _PARTS))
        self._say("whole: frozen weights resident on every GPU; cut: partitioned. clips: the most that fit.")

    def times(
        self, job: Job, rows: Sequence[Forecast], chosen: Forecast, recipe: TrainRecipe, workload: Workload
    ) -> None:
        """Each number of GPUs, on each fabric."""
        steps, what = _steps(recipe, workload)
        self._say(f"\nSeconds of a step by fabric; hours for {what}, on {self._fabric.about}")
        fabrics = FABRICS.values()
        table = _table("GPUs", "setting", "GB", *(fabric.about for fabric in fabrics), "sent, GB", "busy", "hours")
        for row in rows:
            on = [forecast(job, row.zero, self._gpu, fabric) for fabric in fabrics]
            table.add_row(
                f"{row.gpus}{' *' if row == chosen and len(rows) > 1 else ''}", _short(row.zero),
                _gb(row.memory.total), *("–" if made is None else f"{made.step_s:,.2f}" for made in on),
                _gb(row.sent), f"{row.busy:.0%}", f"{steps * row.step_s / 3600:,.2f}",
            )  # fmt: skip
        self._print(table)
        self._say("sent: by each GPU in a step. busy: share of the GPUs' time that is work.")

    def writing(self, made: Writing, batch_size: int, new_tokens: int, clips: float | None, clip_s: float) -> None:
        """The cost of the continuations."""
        number = _HOURS * 3600 / clip_s if clips is None else clips
        what = f"{_HOURS:,} hours of speech" if clips is None else f"{number:,.0f} clips"
        if made.needed(batch_size) > self._gpu.memory_bytes:
            self._say(
                f"\nContinuations for {what}: the LLM with {batch_size} clips at once needs "
                f"{_gb(made.needed(batch_size))} GB, and each is written on one GPU: not on an {self._gpu.name}"
            )
            return
        self._say(
            f"\nContinuations for {what}: {made.hours(number):,.2f} GPU hours ({made.clips_per_s:.1f} clips a second "
            f"on one {self._gpu.name}, {batch_size} at once, {new_tokens} tokens each)"
        )

    def recommend(self, chosen: Forecast, limit: str, asked: Sequence[Zero]) -> None:
        """What to take, and why."""
        zero = chosen.zero
        setting = "as the recipe says"
        if not any((zero.stage, zero.partitioned) == (each.stage, each.partitioned) for each in asked):
            frozen = f", engine.frozen: {'partitioned' if zero.partitioned else 'resident'}" if zero.stage == 3 else ""
            setting = f"which needs engine.zero_stage: {zero.stage}{frozen}"
        waits = max(0.0, 1 - chosen.compute_s / chosen.step_s)
        self._say(
            f"\nTake {chosen.gpus} x {self._gpu.name} with {zero}, {setting}: {_gb(chosen.memory.total)} of "
            f"{_gb(self._gpu.memory_bytes)} GB, {chosen.step_s:,.2f} s a step, of which {waits:.0%} waits for the "
            f"network; the GPUs work {chosen.busy:.0%} of the time{'; ' + limit if limit else ''}."
        )

    def larger(self, job: Job, number: int | None) -> None:
        """Advice to have fewer, larger micro-batches, if there is any."""
        if number is not None:
            self._say(
                f"\nA micro-batch takes {job.launch_s:.2f} s to start its kernels and {job.work_s(self._gpu):.2f} s to "
                f"compute: take fewer, larger ones, which fit. Set data.micro_batches to {number}, and take no more "
                "GPUs than that."
            )

    def assumptions(self, job: Job) -> None:
        """All of them."""
        gpu, peak = self._gpu, self._gpu.peak(job.weights.bytes_each)
        travels = " and ".join(f"ZeRO-{stage}" for stage in sorted(job.overlapping))
        sent = f"what {travels} sends travels while layers are computed" if travels else "nothing travels meanwhile"
        waited = ", what the others send does not" if 0 < len(job.overlapping) < len((1, 2, 3)) else ""
        self._say(
            f"\nAssumed, not measured: products reach {gpu.share_of_peak:.0%} of {peak / 1e12:,.0f} TFLOP/s; "
            f"links reach {LINE_RATE_SHARE:.0%} of their rate (NVLink {gpu.nvlink_bytes_per_s / 1e9:,.0f} GB/s a GPU, "
            f"{GPUS_PER_HOST} GPUs a host); a micro-batch takes {job.launch_s:.2f} s at least, {LAYER_S * 1e3:g} ms "
            "for each forward, recomputed forward and backward of a layer; "
            f"{sent}{waited}; data is there in time. alloc: {CONTEXT_BYTES / 1e9:g} GB of CUDA's own and "
            f"{FRAGMENTATION:.0%} that the allocator cannot use. Continuations: {LAYER_S * 1e3:g} ms a layer and token "
            f"or, if that takes longer, weights read at {READING_SHARE:.0%} of the memory's rate."
        )

    def _print(self, what: Any) -> None:
        with self._console.capture() as written:
            self._console.print(what)
        # rich fills lines up with blanks.
        print("\n".join(line.rstrip() for line in written.get().splitlines()))

    def _say(self, text: str = "") -> None:
        self._print(Text(text))


def _table(*columns: str) -> Table:
    first, *others = columns
    right: Any = "right"
    return Table(
        Column(first, no_wrap=True), *(Column(name, justify=right) for name in others), box=None, pad_edge=False
    )


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f}" if num_bytes >= 5e7 or not num_bytes else f"{num_bytes / 1e9:.3f}"


def _short_number(number: float) -> str:
    """Three digits and a thousand, a million or a billion."""
    size, letter = next(((s, n) for s, n in ((1e9, " B"), (1e6, " M"), (1e3, " k")) if number >= s), (1, ""))
    return f"{number / size:,.3g}{letter}"


def _sizes(held: Memory) -> list[float]:
    """Bytes of each of _PARTS."""
    return [
        held.weights, held.gradients, held.optimizer, held.activations, held.logits, held.gathering, held.update,
        held.context + held.fragmentation,
    ]  # fmt: skip


def _short(zero: Zero) -> str:
    return f"ZeRO-{zero.stage}" + (f" {'cut' if zero.partitioned else 'whole'}" if zero.stage == 3 else "")


def _steps(recipe: TrainRecipe, workload: Workload) -> tuple[float, str]:
    """Of the run, or of so many hours of speech where its length is not known; and what that is."""
    if recipe.optim.steps is not None:
        return recipe.optim.steps, f"{recipe.optim.steps:,} steps"
    if workload.clips.steps is not None:
        epochs = recipe.optim.epochs or 1
        return epochs * workload.clips.steps, f"{epochs} epochs"
    return _HOURS * 3600 / workload.clips.seconds / recipe.data.clips_per_step, f"{_HOURS:,} hours of speech"
