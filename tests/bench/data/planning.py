"""The plan of an epoch and the way back to any step of it: seconds, memory, and bytes of state.

Each is measured in a process of its own, so that memory is what that process needed and nothing is warm by chance:
`python -m tests.bench.data.planning ours|lhotse NUMBER` prints one line of JSON.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.data.figure import Figure
from tests.bench.data.timing import Spread

CLIPS_PER_STEP, MICRO_BATCHES = 768, 48
_ROOT = Path(__file__).parents[3]


def measure(num_rows: int, num_cuts: int, rounds: int, with_lhotse: bool) -> list[Figure]:
    """Ours over `num_rows`; lhotse, which makes its order as it goes, over `num_cuts`."""
    ours = [_run("ours", num_rows) for _ in range(rounds)]
    theirs = [_run("lhotse", num_cuts) for _ in range(rounds)] if with_lhotse else []

    def spread(results: list[dict[str, float]], key: str) -> Spread:
        return Spread.of([result[key] for result in results])

    def peer(key: str) -> dict[str, Spread | str]:
        return {f"lhotse DynamicBucketing, {num_cuts:,} cuts:": spread(theirs, key)} if theirs else {}

    rows = f"{num_rows:,} rows"
    return [
        Figure(
            name=f"plan of an epoch over {rows}", unit="s", target=1.0, ours=spread(ours, "plan_s"),
            peers=peer("plan_s"),
        ),
        Figure(
            name=f"resume at any step of it ({rows})", unit="s", target=1.0, ours=spread(ours, "resume_s"),
            peers=peer("resume_s"),
        ),
        Figure(
            name=f"memory of the whole process ({rows})", unit="MB", target=300, ours=spread(ours, "peak_mb"),
            peers=peer("peak_mb"),
        ),
        Figure(name="state to resume from", unit="bytes", target=512, ours=spread(ours, "state"), peers=peer("state")),
    ]  # fmt: skip


def _run(what: str, number: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.data.planning", what, str(number)]
    output = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def _seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    value = action()
    return time.perf_counter() - began, value


def _peak_mb() -> float:
    """Of this program: getrusage would count what the process that started it had in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError("/proc/self/status has no line VmHWM; this figure needs Linux")


def _ours(number: int) -> dict[str, float]:
    """A plan and all its steps; then, as after a restart, a step of another epoch from the state alone."""
    from shards.batches.plan import Plan
    from tests.bench.data.lengths import librispeech_like

    sizes = librispeech_like(number)

    def plan() -> Plan:
        return Plan(
            sizes, seed=1, clips_per_step=CLIPS_PER_STEP, micro_batches=MICRO_BATCHES, dataset_id="0123456789abcdef"
        )

    def whole_epoch() -> Plan:
        made = plan()
        made.epoch(0)
        return made

    plan_s, made = _seconds(whole_epoch)
    state = json.dumps(made.state(made.steps_per_epoch * 5 // 2))
    del made

    def resume() -> Any:
        again = plan()
        return again.step(*again.locate(again.global_step(json.loads(state))))

    resume_s, _ = _seconds(resume)
    return {"plan_s": plan_s, "resume_s": resume_s, "peak_mb": _peak_mb(), "state": len(state)}


def _lhotse(number: int) -> dict[str, float]:
    """One rank's epoch of batches; then a new sampler, brought to the middle by its state."""
    from shards.audio import SAMPLE_RATE
    from tests.bench.data.lengths import librispeech_like
    from tests.bench.data.peers import bucketing

    seconds = librispeech_like(number).heard_samples / SAMPLE_RATE
    states: list[dict[str, Any]] = []

    def epoch() -> int:
        sampler = bucketing(seconds, 240.0)
        batches = 0
        for _ in sampler:
            batches += 1
            if batches % 100 == 0:
                states.append(copy.deepcopy(sampler.state_dict()))  # JSON would change the type of its keys
        return batches

    plan_s, _ = _seconds(epoch)
    state = states[len(states) // 2]

    def resume() -> Any:
        sampler = bucketing(seconds, 240.0)
        sampler.load_state_dict(copy.deepcopy(state))
        return next(iter(sampler))

    resume_s, _ = _seconds(resume)
    return {"plan_s": plan_s, "resume_s": resume_s, "peak_mb": _peak_mb(), "state": len(json.dumps(state))}


if __name__ == "__main__":
    print(json.dumps({"ours": _ours, "lhotse": _lhotse}[sys.argv[1]](int(sys.argv[2]))))
