"""How much memory a training takes on each GPU, and how long a step is: arithmetic over plain numbers.

Assumed, and printed with every forecast: matrix products reach a share of the peak (cluster/machines.py), a micro-batch
takes no less than starting its kernels does, what is sent travels while a layer is computed where DeepSpeed's
overlap_comm is on, and else does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from cluster.machines import Fabric, Gpu
from cluster.sharding import FLOAT32, Traffic, Weights, Zero, states, traffic

CONTEXT_BYTES = 1.5e9  # CUDA, cuBLAS' and NCCL's own
FRAGMENTATION = 0.06  # of all else: what the allocator holds and cannot use
# Beside an update: the gradient once more, and two temporary values of AdamW, in float32.
_UPDATE_VALUES = 3
COUNTS = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 96, 128, 192, 256, 384, 512)  # that are compared


@dataclass(frozen=True)
class Job:
    """One training, in numbers."""

    weights: Weights
    activation_bytes: float  # of the largest micro-batch
    again_bytes: float  # of the one layer that is computed again
    logit_bytes: float
    most_logit_bytes: float  # a loss takes no more rows at once
    flops: float  # of a mean micro-batch
    micro_batches: int
    frozen_fetched: int  # elements that a micro-batch gathers of frozen weights where these are partitioned
    max_live: int  # elements that ZeRO-3 keeps gathered
    prefetched: int  # elements that it gathers ahead, with partitioned frozen weights
    bucket: int  # elements that gradients travel in
    launch_s: float  # that a micro-batch takes at least: its kernels are started one by one
    overlapping: frozenset[int]  # stages of ZeRO whose messages travel meanwhile

    def accumulation(self, ranks: int) -> int:
        """Micro-batches of a step on each rank."""
        return -(-self.micro_batches // ranks)

    def work_s(self, gpu: Gpu) -> float:
        """Seconds that a GPU computes a mean micro-batch."""
        return self.flops / gpu.flops(self.weights.bytes_each)

    def working(self, gpu: Gpu) -> float:
        """Share of a micro-batch's time that is work; less than 1 where it is over before the next kernel starts."""
        return min(1.0, self.work_s(gpu) / self.launch_s) if self.launch_s else 1.0


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU when it holds most, by part."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float  # or the layer that is computed again
    gathering: float
    update: float  # what an update takes beyond activations and logits, which are gone by then
    context: float
    fragmentation: float

    @property
    def total(self) -> float:
        """All parts."""
        return sum(float(getattr(self, field.name)) for field in fields(self))


@dataclass(frozen=True)
class Forecast:
    """Of a job on so many GPUs. Times in seconds, of one step."""

    zero: Zero
    memory: Memory
    compute_s: float
    network_s: float  # all that travels
    step_s: float
    sent: float  # bytes that each GPU sends in a step
    busy: float  # share of the GPUs' time that is work

    @property
    def gpus(self) -> int:
        """One rank each."""
        return self.zero.ranks


def memory(job: Job, zero: Zero, activations: float = 1.0) -> Memory:
    """With `activations` times the largest micro-batch."""
    held = states(job.weights, zero, job.accumulation(zero.ranks))
    kept = job.activation_bytes * activations
    # Logits are gone before a layer is computed again.
    logits = max(job.again_bytes * activations, min(job.logit_bytes * activations, job.most_logit_bytes))
    share = (held.optimizer // (3 * FLOAT32)) * FLOAT32
    update = max(0.0, share * _UPDATE_VALUES - kept - logits)
    gathering = _gathering(job, zero)
    used = held.total + kept + logits + gathering + update
    return Memory(
        weights=held.weights, gradients=held.gradients, optimizer=held.optimizer, activations=kept, logits=logits,
        gathering=gathering, update=update, context=CONTEXT_BYTES, fragmentation=FRAGMENTATION * used,
    )  # fmt: skip


def _gathering(job: Job, zero: Zero) -> float:
    """What is whole for the time that it is computed with, and two buckets of gradients."""
    weights, live = job.weights, 0
    if zero.stage == 3 and zero.ranks > 1:
        cut = weights.num_trained + (sum(weights.frozen) if zero.partitioned else 0)
        live = cut if cut <= job.max_live else job.max_live + job.prefetched
    return (live + 2 * job.bucket) * weights.bytes_each


def forecast(job: Job, zero: Zero, gpu: Gpu, fabric: Fabric) -> Forecast | None:
    """None where the fabric does not reach so far, or some GPU would have nothing to do."""
    rate = fabric.rate(gpu, zero.ranks)
    if not rate or zero.ranks > job.micro_batches:
        return None
    accumulation = job.accumulation(zero.ranks)
    compute_s = accumulation * max(job.work_s(gpu), job.launch_s)
    sent = step_traffic(job, zero).on_the_wire(zero.ranks)
    network_s = sent / rate
    step_s = max(compute_s, network_s) if zero.stage in job.overlapping else compute_s + network_s
    busy = job.micro_batches * job.work_s(gpu) / zero.ranks / step_s
    return Forecast(zero, memory(job, zero), compute_s, network_s, step_s, sent, busy)


def step_traffic(job: Job, zero: Zero) -> Traffic:
    """Of one step. What can stay gathered from forward to backward is gathered once for each micro-batch."""
    frozen = sum(job.weights.frozen)
    stays = job.weights.num_trained + (frozen if zero.partitioned else 0) <= job.max_live
    fetches, fetched = (1, frozen) if stays else (2, job.frozen_fetched)
    return traffic(job.weights, zero, job.accumulation(zero.ranks), fetches, fetched)


def ways(ranks: int) -> Iterator[Zero]:
    """All settings."""
    for stage, partitioned in ((1, False), (2, False), (3, False), (3, True)):
        yield Zero(stage, ranks, partitioned)


def most_that_fits(job: Job, zero: Zero, gpu: Gpu) -> float:
    """How many times the largest micro-batch fits; 0 where the states alone do not."""
    if memory(job, zero, 0.0).total > gpu.memory_bytes:
        return 0.0
    low, high = 0.0, 1.0
    while memory(job, zero, high).total <= gpu.memory_bytes and high < 1e6:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if memory(job, zero, middle).total <= gpu.memory_bytes else (low, middle)
    return low
