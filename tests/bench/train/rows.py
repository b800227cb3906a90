"""One stage-1 step on clips of 1.5 to 14 s: as the authors run it, then with each saving switched on in turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from blsp.features import AudioWindow
from shards.batches.collate import Batch
from tests.bench.data.timing import Spread, interleaved, share
from tests.bench.train.arithmetic import Way, step_flops
from tests.bench.train.authors import Padded
from tests.bench.train.counting import cost
from tests.bench.train.shapes import Shapes
from tests.bench.train.workload import (
    CACHED,
    STAGE_1,
    TEMPERATURE,
    batch,
    build,
    checkpoint_activations,
    clips,
    lengths,
    with_predictions,
)
from tests.shards.batches.layout import apart

NUM_CLIPS, SHORTEST_S, LONGEST_S = 8, 1.5, 14.0
# Random logits spread as wide as this are those of an LLM that is sure of each token.
_SURE_SPREAD = 50.0

# Each switches one thing on, and keeps what those before it did.
WAYS = {
    "as the authors: 30 s, segments padded apart, eager attention, all logits": Way(
        window="30s", padded=True, all_logits=True, shared_prefix=False
    ),
    "sequences packed, fused attention, no lists and no cache": Way(window="30s", all_logits=True, shared_prefix=False),
    "logits only of the rows that the loss compares, in chunks": Way(window="30s", shared_prefix=False),
    "encoder on true lengths": Way(shared_prefix=False),
    "the prompt once, not for every clip": Way(),
    "teacher's top 32 from the shards, no second pass": Way(cached_teacher=True),
    "the LLM's activations computed again": Way(cached_teacher=True, checkpointing=True),
}


@dataclass(frozen=True)
class Measured:
    """A row's figures. `faster` is than the first row, round by round, in the seconds of all cores: on a busy machine
    the clock says little. `off` is how far the loss is from that of the row before, relative to it: None where the
    encoder hears another window, and a cached teacher's is that of an LLM that is sure of each token."""

    name: str
    seconds: Spread
    core_seconds: Spread
    faster: Spread
    kept_bytes: int
    flops: int
    flops_by_formula: float
    loss: float
    off: float | None


class Step:
    """The model, its batches, and the ways to run them."""

    def __init__(self, shapes: Shapes, scratch: Path, durations_s: Sequence[float] | None = None) -> None:
        if durations_s is None:
            durations_s = np.geomspace(SHORTEST_S, LONGEST_S, NUM_CLIPS).tolist()
        self.shapes = shapes
        self.model = build(shapes, scratch, torch.device("cpu"), torch.float32, "exact")
        self.model.parts["adapter"].requires_grad_(True)
        self.samples = clips(durations_s, STAGE_1)
        self.lengths = lengths(self.samples)
        self.padded, self.live = Padded(self.model, self.samples), batch(self.model, self.samples, STAGE_1)
        self.apart = apart(self.live)  # the product has no such batch
        self.cached = self._cached()

    def _cached(self) -> Batch:
        self.model.encoder.window = AudioWindow("exact")
        return batch(self.model, with_predictions(self.model, self.samples), CACHED)

    def forward(self, way: Way) -> Tensor:
        """What is differentiated."""
        self.model.encoder.window = AudioWindow(way.window)
        checkpoint_activations(self.model, ["llm"] if way.checkpointing else [])
        if way.padded:
            return self.padded.loss()
        if way.all_logits:
            return self._all_logits(self.apart)
        if way.cached_teacher:
            return self.model(self.cached, CACHED).total
        return self.model(self.live if way.shared_prefix else self.apart, STAGE_1).total

    def _all_logits(self, made: Batch) -> Tensor:
        """Packed, and otherwise as the authors: the product has no such step."""
        head = self.model.llm.get_output_embeddings()
        teacher = head(self.model._read(made)).float()[made.text_rows] / TEMPERATURE
        with torch.no_grad():
            encoded, positions = self.model.encoder(made.waveform, made.num_samples)
        speech, _ = self.model.parts["adapter"](encoded, positions)
        student = head(self.model._listen(made, speech)).float()[made.rows] / TEMPERATURE
        return functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")

    def run(self, way: Way) -> Tensor:
        """Forward and backward. Returns the loss."""
        loss = self.forward(way)
        loss.backward()
        self.model.parts.zero_grad(set_to_none=True)
        return loss.detach()

    def losses_when_sure(self) -> dict[str, float]:
        """The loss of each way with true lengths, of an LLM that is sure of each token: then a cached teacher misses
        nothing."""
        head, flat = self.model.llm.get_output_embeddings().weight.data, self.cached
        spread = float(head.std()) * math.sqrt(head.shape[1])  # the LLM's last norm gives each value a size of 1
        sure = 2.0 ** round(math.log2(_SURE_SPREAD / spread))  # a power of two changes no digit of the head
        head *= sure
        self.cached = self._cached()
        try:
            with torch.no_grad():
                return {name: float(self.forward(way)) for name, way in WAYS.items() if way.window == "exact"}
        finally:
            head /= sure
            self.cached = flat


def measure(step: Step, rounds: int) -> list[Measured]:
    """Seconds by turns, in `rounds` after one that is not counted; all else once."""
    model = step.model
    weights = [*model.llm.parameters(), *model.encoder.pretrained.parameters(), *model.parts.parameters()]
    costs = {name: cost(partial(step.forward, way), weights) for name, way in WAYS.items()}
    losses, sure = {name: found.loss for name, found in costs.items()}, step.losses_when_sure()
    taken = interleaved({name: partial(step.run, way) for name, way in WAYS.items()}, rounds)
    first, before, measured = next(iter(taken.values())), None, []
    for name, way in WAYS.items():
        off = None
        if before is not None and WAYS[before].window == way.window:
            compared = sure if way.cached_teacher else losses
            off = abs(compared[name] / compared[before] - 1)
        measured.append(
            Measured(
                name=name,
                seconds=Spread.of([seconds.wall for seconds in taken[name]]),
                core_seconds=Spread.of([seconds.cpu for seconds in taken[name]]),
                faster=share(first, taken[name], "cpu"),
                kept_bytes=costs[name].kept_bytes,
                flops=costs[name].flops,
                flops_by_formula=step_flops(step.shapes, step.lengths, way).total,
                loss=losses[name],
                off=off,
            )
        )
        before = name
    return measured
