"""How fast a run is, and where the time goes: what each rank notes in every step, and all ranks tell when a line of the
log is due."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Literal

import torch
import torch.distributed as dist

from blsp.flops import peak_flops
from blsp.links import Communication, Links, hosts_of_ranks
from blsp.parts import PARTS, Stopwatch, communication_s, is_clear, slowest
from cluster.heartbeat import beat
from shards.audio import SAMPLE_RATE
from shards.batches.collate import FILLER_ID, Batch

_GB = 1e9


class Meter:
    """Seconds and amounts of the steps since the last line of the log, on this rank."""

    def __init__(self, flops: Callable[[Batch], float], device: torch.device) -> None:
        self._flops, self._device = flops, device
        self._began_s = 0.0
        self._watch = Stopwatch(device)
        self.part, self.listening = self._watch.part, self._watch.listening
        self._blamed, self._links = "", Links(device)
        self.complaints: list[str] = []  # about a rank that has become slow; the same on all ranks
        self._reset()

    def _reset(self) -> None:
        self._steps_s: list[float] = []
        self._wait_s = self._busy_s = self._audio_s = self._done_flops = 0.0
        self._num_tokens = 0
        self._aside_s = {"checkpoint": 0.0, "validation": 0.0}

    def steps(self, steps: Iterator[tuple[int, list[Batch]]], done: int) -> Iterator[tuple[int, list[Batch]]]:
        """The same steps, after those that are `done`; how long each was waited for is noted."""
        for number in count(done + 1):
            beat("data", number)
            self._began_s = time.monotonic()
            with self.part("data"):
                step = next(steps, None)
            if step is None:
                return
            beat("data", ids=[clip for batch in step[1] for clip in batch.ids if clip != FILLER_ID])
            self._wait_s += time.monotonic() - self._began_s
            yield step

    def reached(self) -> None:
        """This rank has done its share of a step, and now the others may have to be waited for."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._busy_s += time.monotonic() - self._began_s
        beat("update")

    def finished(self, batches: list[Batch]) -> None:
        """A step is done, by all ranks."""
        self._steps_s.append(time.monotonic() - self._began_s)
        self._watch.next_step()
        self._audio_s += sum(int(batch.num_samples.sum()) for batch in batches) / SAMPLE_RATE
        self._num_tokens += sum(len(batch.input_ids) for batch in batches)
        self._done_flops += sum(self._flops(batch) for batch in batches)

    @contextmanager
    def aside(self, what: Literal["checkpoint", "validation"]) -> Iterator[None]:
        """Time that no step has."""
        beat(what)
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._aside_s[what] += time.monotonic() - began_s

    def scalars(self) -> dict[str, float]:
        """`pace/...` since the last call. Every rank calls it; all get the same but for the seconds of single steps."""
        mine = [self._wait_s, self._busy_s, self._audio_s, self._num_tokens, self._done_flops, self._memory_gb()]
        own_medians_s, waits = self._watch.medians(), self._watch.waits()
        mine += [statistics.median(self._steps_s), sum(map(len, waits)), self._watch.num_bytes(), *own_medians_s]
        here = torch.tensor(mine, dtype=torch.float64, device=self._device)
        ranks = [torch.empty_like(here) for _ in range(dist.get_world_size())]
        dist.all_gather(ranks, here)
        amounts, own_s = torch.stack(ranks, 1).cpu().split([9, len(PARTS)])
        wait_s, busy_s, audio_s, num_tokens, flops, memory_gb, step_s, num_waits, num_bytes = amounts
        steps_s, num_ranks = sum(self._steps_s), len(ranks)
        scalars = {
            "tokens_per_s": float(num_tokens.sum()) / steps_s,
            "audio_h_per_h": float(audio_s.sum()) / steps_s,
            "audio_h_per_gpu_h": float(audio_s.sum()) / steps_s / num_ranks,
            "data_wait": float(wait_s.max()) / steps_s,
            "step_s_p50": statistics.median(self._steps_s),
            "step_s_p95": sorted(self._steps_s)[int(0.95 * (len(self._steps_s) - 1))],
            "rank_spread": float((busy_s.max() - busy_s.min()) / busy_s.mean()),
            "memory_gb": float(memory_gb.max()),
            "steps_s": steps_s,
            **{f"{what}_s": seconds for what, seconds in self._aside_s.items()},
        }
        if math.isfinite(flops_per_s := float(flops.sum()) / steps_s / num_ranks):
            scalars["tflops_per_gpu"] = flops_per_s / 1e12
            if (peak := peak_flops(self._device)) is not None:
                scalars["mfu"] = flops_per_s / peak
        self.complaints = []
        if num_ranks > 1:
            scalars |= self._blame(own_s.T.tolist(), float(step_s.max()))
            alike = 0 < num_waits.min() == num_waits.max()
            in_bytes_s = communication_s(waits, self._device) if alike else 0.0
            scalars["communication"] = in_bytes_s / float(step_s.max())
            if self._watch.is_enough:
                step = Communication(in_bytes_s, int(num_bytes.max()), float(step_s.max()))
                self.complaints += self._links.look(step, len(self._steps_s))
        self._reset()
        return {f"pace/{name}": value for name, value in scalars.items()}

    def _blame(self, own_s: list[list[float]], step_s: float) -> dict[str, float]:
        """Of the rank that the others wait for most; the same on all ranks, as `step_s` is. A sentence when that has
        become clear, and no second one while it stays so."""
        slow = slowest(own_s)
        clear = self._watch.is_enough and is_clear(slow.lead_s, step_s)
        blamed = f"{slow.rank} {slow.part}" if clear else ""
        if blamed and blamed != self._blamed:
            self.complaints.append(
                f"rank {slow.rank} (on {hosts_of_ranks()[slow.rank]}) is slow in {slow.part}: the others wait for it "
                f"{1000 * slow.lead_s:.0f} ms of a step's {1000 * step_s:.0f}"
            )
        self._blamed = blamed
        return {"slowest_rank": slow.rank, "slowest_lead": slow.lead_s / step_s}

    def _memory_gb(self) -> float:
        """The most that this rank has held: on its GPU, or in its process where there is none."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._device) / _GB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GB
