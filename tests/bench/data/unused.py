"""Compute that is paid for and does nothing: padding, and ranks that wait for the slowest one of their step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from shards.audio import SAMPLE_RATE
from shards.batches.plan import Plan
from shards.batches.sizes import CostWeights, Sizes
from tests.bench.data import peers
from tests.bench.data.figure import Figure
from tests.bench.data.lengths import librispeech_like, mixed
from tests.bench.data.timing import Spread

RANKS = 8
CLIPS_PER_BATCH = 16  # of the peers, which make one batch at a time
WINDOW_S = 30.0
SECONDS = CostWeights(second=1.0, token=0.0, teacher_token=0.0, response_token=0.0)
SEEDS = (1, 2, 3)
Batch = NDArray[np.int64]
Loads = list[list[float]]  # by step and rank


def measure(num_clips: int) -> list[Figure]:
    """Stage 1 on lengths as LibriSpeech's and stage 2 on mixed ones, each in seconds of audio and in compute."""
    figures = []
    stages = (
        ("LibriSpeech-like, 768 clips per step", librispeech_like, 768, 48, 1.0),
        ("mixed 1–30 s, 128 clips per step", mixed, 128, 24, 1.5),
    )
    for name, corpus, clips_per_step, micro_batches, target in stages:
        sizes = corpus(num_clips)
        for measured, weights in (("seconds of audio", SECONDS), ("compute of encoder and LLM", CostWeights())):
            cost = _Cost(sizes, weights)
            figures.append(
                Figure(
                    name=f"unused {measured}: {name}", unit="%", target=target,
                    ours=Spread.of([_planned(cost, seed, clips_per_step, micro_batches) for seed in SEEDS]),
                    peers=_peers(cost, clips_per_step),
                )
            )  # fmt: skip
    return figures


class _Cost:
    """What each clip costs by itself, and what a batch costs in which all are as long as the longest."""

    def __init__(self, sizes: Sizes, weights: CostWeights) -> None:
        self.sizes, self.weights = sizes, weights
        self.clips = sizes.costs(weights)

    def padded(self, batch: Batch, heard_s: float | None = None) -> float:
        per_clip = [name for name, size in vars(self.sizes).items() if isinstance(size, np.ndarray)]
        longest = {name: getattr(self.sizes, name)[batch].max(keepdims=True) for name in per_clip}
        if heard_s is not None:
            longest["heard_samples"] = np.array([round(heard_s * SAMPLE_RATE)])
        return float(len(batch) * replace(self.sizes, **longest).costs(self.weights)[0])


def unused(loads: Loads, useful: float) -> float:
    """Per cent of what the ranks could have done: in each step all take as long as the slowest."""
    paid = sum(len(step) * max(step) for step in loads)
    return 100 * (1 - useful / paid)


def _planned(cost: _Cost, seed: int, clips_per_step: int, micro_batches: int) -> float:
    plan = Plan(
        cost.sizes, dataset_id="lengths", seed=seed, clips_per_step=clips_per_step, micro_batches=micro_batches,
        weights=cost.weights,
    )  # fmt: skip
    loads = []
    for step in plan.epoch(0):
        work = [float(cost.clips[rows].sum()) for rows in step]
        loads.append([sum(work[rank::RANKS]) for rank in range(RANKS)])
    return unused(loads, float(cost.clips.sum()))


def _peers(cost: _Cost, clips_per_step: int) -> dict[str, Spread | str]:
    in_turn = clips_per_step // (RANKS * CLIPS_PER_BATCH)

    def of(rounds: Callable[[int], Iterator[list[Batch]]], heard_s: float | None = None) -> Spread:
        return Spread.of([_padded(cost, list(rounds(seed)), in_turn, heard_s) for seed in SEEDS])

    number = len(cost.clips)
    found: dict[str, Spread | str] = {
        "fixed batches, padded to the longest": of(lambda seed: _fixed(number, seed)),
        "padded to 30 s": of(lambda seed: _fixed(number, seed), WINDOW_S),
    }
    if peers.HAS_LHOTSE:
        seconds = cost.sizes.heard_samples / SAMPLE_RATE
        of_lhotse = list(peers.bucketed(seconds, RANKS, CLIPS_PER_BATCH * float(seconds.mean())))
        found = {"lhotse DynamicBucketing": Spread.of([_padded(cost, of_lhotse, in_turn)]), **found}
    return found


def _fixed(number: int, seed: int) -> Iterator[list[Batch]]:
    """A random order, cut into batches of one size: one for each rank at a time."""
    order = np.random.default_rng(seed).permutation(number)
    size = RANKS * CLIPS_PER_BATCH
    for start in range(0, number - size + 1, size):
        yield np.split(order[start : start + size], RANKS)


def _padded(cost: _Cost, rounds: list[list[Batch]], in_turn: int, heard_s: float | None = None) -> float:
    """Ranks meet after `in_turn` batches each, as with gradient accumulation."""
    loads = []
    for start in range(0, len(rounds), in_turn):
        step = rounds[start : start + in_turn]
        loads.append([sum(cost.padded(batches[rank], heard_s) for batches in step) for rank in range(RANKS)])
    return unused(loads, sum(float(cost.clips[batch].sum()) for batches in rounds for batch in batches))
