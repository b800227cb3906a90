"""Which of the settings that fit to take, on how many GPUs, and where more of them are waste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.forecast import COUNTS, Forecast, Job, forecast, ways
from cluster.machines import Fabric, Gpu
from cluster.sharding import FLOAT32, Zero

WASTE = 0.7  # more GPUs are waste where less than this share of their time would be work
_MUCH_QUICKER = 0.9  # a setting that was not asked for is chosen when a step takes less than this share


@dataclass(frozen=True)
class Choice:
    """The most GPUs that are not waste, and why no more; `rows` are all counts with what is best on each."""

    chosen: Forecast
    limit: str
    rows: tuple[Forecast, ...]


def best(job: Job, ranks: int, gpu: Gpu, fabric: Fabric, asked: Sequence[Zero]) -> Forecast | None:
    """Of the settings that fit: one of those `asked` for, unless another is much quicker. None when none fits."""
    found = {zero: forecast(job, zero, gpu, fabric) for zero in ways(ranks)}
    fitting = [made for made in found.values() if made is not None and made.memory.total <= gpu.memory_bytes]
    # In bfloat16 ZeRO-1 adds up a step's gradients in bfloat16 too.
    sound = [made for made in fitting if made.zero.stage > 1 or job.weights.bytes_each == FLOAT32 or made.zero in asked]
    quickest = min(sound, key=_order, default=None)
    own = min((made for made in sound if made.zero in asked), key=_order, default=None)
    if own is None or quickest is None:
        return quickest
    return quickest if quickest.step_s < _MUCH_QUICKER * own.step_s else own


def _order(made: Forecast) -> tuple[float, float]:
    """The quickest first; of equally quick ones that which sends least: how much of it is waited for was assumed."""
    return round(made.step_s, 2), made.sent


def choose(job: Job, gpu: Gpu, fabric: Fabric, asked: Sequence[Zero]) -> Choice | None:
    """None when the job fits on none of the counts."""
    made = (best(job, ranks, gpu, fabric, [at(zero, ranks) for zero in asked]) for ranks in COUNTS)
    rows = tuple(found for found in made if found is not None)
    if not rows:
        return None
    most, working = most_worth(job, gpu), job.working(gpu)
    worth = [found for found in rows if found.busy >= WASTE * working and found.gpus <= most]
    chosen = worth[-1] if worth else rows[0]
    return Choice(chosen, _limit(job, chosen, rows, gpu), rows)


def most_worth(job: Job, gpu: Gpu) -> int:
    """GPUs, or micro-batches, of which no more are worth it: they would start kernels more than they would work."""
    working = job.working(gpu)
    return job.micro_batches if working >= WASTE else max(1, int(job.micro_batches * working))


def at(zero: Zero, ranks: int) -> Zero:
    """The same setting on so many ranks."""
    return Zero(zero.stage, ranks, zero.partitioned)


def _limit(job: Job, chosen: Forecast, rows: Sequence[Forecast], gpu: Gpu) -> str:
    more = next((found for found in rows if found.gpus > chosen.gpus), None)
    if more is None:
        if 2 * chosen.gpus > job.micro_batches:
            return (
                f"more than {job.micro_batches} would have nothing to do: data.micro_batches = {job.micro_batches} is "
                "how many can share a step"
            )
        return "the fabric reaches no further" if chosen.gpus < COUNTS[-1] else "more were not looked at"
    if more.gpus > most_worth(job, gpu):
        return "more are waste: they would start kernels for longer than they compute"
    idle = 1 - job.micro_batches / (job.accumulation(more.gpus) * more.gpus)
    waiting = 1 - more.compute_s / more.step_s
    what = f"{waiting:.0%} of a step is waiting for the network"
    if idle > waiting:
        what = f"{idle:.0%} of their time has no micro-batch: data.micro_batches = {job.micro_batches} deal unevenly"
    return f"more are waste: with {more.gpus}, {what}"
