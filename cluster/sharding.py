"""What ZeRO leaves on each GPU, and what it sends in a step: bytes, from numbers of weights alone.

Equal to the byte to what DeepSpeed 0.19 allocates (arXiv 1910.02054 names the stages). A weight's three costs:
    weights      whole; under ZeRO-3 a share of each tensor, rounded up
    gradients    ZeRO-1: whole until the step's last micro-batch. ZeRO-2 and 3: a share, summed in float32
    optimizer    float32 copy and two moments, 12 bytes, of a share in every stage
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FLOAT32 = 4
_MASTER_AND_MOMENTS = 3 * FLOAT32
_STEP_COUNTER = 4  # bytes; AdamW keeps one for each group of weights
_ALIGNMENT = 2  # elements; where a rank's share of a flat group may begin


@dataclass(frozen=True)
class Weights:
    """How many elements each tensor has."""

    trained: Sequence[Sequence[int]]  # by group of the optimizer, in its order
    frozen: Sequence[int]  # which ZeRO-3 may cut
    uncut: int  # elements in all that are never cut
    bytes_each: int  # 2 or 4

    @property
    def num_trained(self) -> int:
        """Elements that learn."""
        return sum(map(sum, self.trained))

    @property
    def checkpoint_bytes(self) -> int:
        """Of a checkpoint, all ranks together: the weights that learn, in float32, and their moments."""
        return _MASTER_AND_MOMENTS * self.num_trained

    @property
    def num_frozen(self) -> int:
        """Elements that stay as they are."""
        return sum(self.frozen) + self.uncut


@dataclass(frozen=True)
class Zero:
    """How a run is cut. `partitioned`: frozen weights too, which only stage 3 does."""

    stage: int
    ranks: int
    partitioned: bool = False

    def __post_init__(self) -> None:
        assert self.stage in (1, 2, 3) and self.ranks >= 1
        assert self.stage == 3 or not self.partitioned

    def __str__(self) -> str:
        if self.stage < 3:
            return f"ZeRO-{self.stage}"
        return f"ZeRO-3, frozen {'partitioned' if self.partitioned else 'resident'}"


@dataclass(frozen=True)
class States:
    """Bytes of one rank between micro-batches."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Traffic:
    """Bytes of the messages of one step, as each rank's calls carry them."""

    gathered: int = 0
    scattered: int = 0
    reduced: int = 0

    def on_the_wire(self, ranks: int) -> float:
        """What a rank sends, with rings: all but one of `ranks` shares, and twice that where all get the sum."""
        return (self.gathered + self.scattered + 2 * self.reduced) * (ranks - 1) / ranks


def states(weights: Weights, zero: Zero, accumulation: int, rank: int | None = None) -> States:
    """Of `rank`, or of the one that holds most, with `accumulation` micro-batches in a step. Ranks differ only where
    gradients are kept tensor by tensor."""
    shares = [_share(group, zero) for group in weights.trained]
    frozen = sum(_pieces(weights.frozen, zero.ranks)) if zero.partitioned else sum(weights.frozen)
    held = sum(shares) if zero.stage == 3 else sum(_aligned(group, zero.ranks) for group in weights.trained)
    optimizer = sum(_MASTER_AND_MOMENTS * share + _STEP_COUNTER for share in shares)
    return States(
        (held + frozen + weights.uncut) * weights.bytes_each, _gradients(weights, zero, accumulation, rank), optimizer
    )


def _gradients(weights: Weights, zero: Zero, accumulation: int, rank: int | None) -> int:
    if zero.stage == 3 or (zero.stage == 2 and weights.bytes_each < FLOAT32):
        return sum(_share(group, zero) for group in weights.trained) * FLOAT32
    if zero.stage == 1 and accumulation > 1:
        return weights.num_trained * weights.bytes_each
    ranks = range(zero.ranks) if rank is None else [rank]
    held = (sum(_reaching_into(group, zero.ranks, rank) for group in weights.trained) for rank in ranks)
    return max(held) * weights.bytes_each


def traffic(weights: Weights, zero: Zero, accumulation: int, fetches: int, frozen_fetched: int) -> Traffic:
    """Of one step. Under ZeRO-3 each of the `accumulation` micro-batches gathers what trains `fetches` times, and
    `frozen_fetched` elements of what is frozen and partitioned."""
    each = weights.bytes_each
    if zero.stage < 3:
        times = accumulation if zero.stage == 2 else 1
        gathered = sum(_aligned(group, zero.ranks) for group in weights.trained)
        return Traffic(gathered=gathered * each, reduced=times * weights.num_trained * each)
    padded = sum(_share(group, zero) for group in weights.trained) * zero.ranks
    frozen = frozen_fetched if zero.partitioned else 0
    return Traffic(gathered=(padded * fetches + frozen) * each * accumulation, scattered=padded * each * accumulation)


def _share(group: Sequence[int], zero: Zero) -> int:
    """Elements of one optimizer group that a rank updates."""
    return sum(_pieces(group, zero.ranks)) if zero.stage == 3 else _aligned(group, zero.ranks) // zero.ranks


def _pieces(tensors: Sequence[int], ranks: int) -> list[int]:
    return [-(-elements // ranks) for elements in tensors]


def _aligned(group: Sequence[int], ranks: int) -> int:
    """Below stage 3 a group lies end to end, filled up so that all shares are equal."""
    unit = _ALIGNMENT * ranks
    return -(-sum(group) // unit) * unit


def _reaching_into(group: Sequence[int], ranks: int, rank: int) -> int:
    """Elements of the tensors that lie, in part or as a whole, in a rank's share of their group."""
    size = _aligned(group, ranks) // ranks
    first, end, before = rank * size, (rank + 1) * size, 0
    elements = 0
    for tensor in group:
        if before < end and before + tensor > first:
            elements += tensor
        before += tensor
    return elements
