"""What the loop costs beside the training itself: `python -m tests.bench.loop [FOLDER]`. One process, ZeRO-3.

Prints one line of JSON. A step of a small model is short, so what the loop adds to it weighs more than it ever will.
`bare` is DeepSpeed alone over the same micro-batches: forward, backward, step. `loop` is `blsp.engine.fit` over them,
with a line of the log for every tenth step; both by turns, in blocks. What a busy machine does to the clock it does
less to the processor time, which counts all threads of the process. `launch` is `blsp train` from the command to the
first step in the log, models of that size loaded from disk.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from blsp import zero
from blsp.engine import fit
from blsp.meeting import join
from blsp.recipe import TrainRecipe
from blsp.run import Run, prepare
from shards.batches.collate import Batch
from tests.blsp.tiny import LORA, STAGE_2, make_encoder, make_shards, model_section
from tests.conftest import make_tokenizer

STEPS, BLOCKS, LOG_EVERY = 10, 7, 10


class Again:
    """In place of a reader: the same step for ever, from memory."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def steps(self, start: int, end: int) -> Iterator[tuple[int, list[Batch]]]:
        """(global step, micro-batches)."""
        for step in range(start, end):
            yield step, self._batches


def recipe(root: Path) -> dict[str, Any]:
    """Stage 2 of a small model."""
    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(root / "llm")
    tokenizer.save_pretrained(root / "llm")
    encoder = make_encoder(root / "encoder", d_model=128, encoder_layers=4, encoder_ffn_dim=512)
    return {
        "kind": "train",
        "run": str(root / "run"),
        "model": model_section(root / "llm", encoder, lora=LORA).model_dump(mode="json"),
        "stage": STAGE_2.model_dump(mode="json"),
        "data": {
            "shards": str(make_shards(root / "data", "continue_emotion", 16)), "clips_per_step": 16, "micro_batches": 2
        },
        "optim": {"lr": dict.fromkeys(STAGE_2.train, 1e-5), "warmup_steps": 1, "steps": 100_000},
        "engine": {"checkpoint_every_steps": 10**6, "log_every_steps": LOG_EVERY},
    }  # fmt: skip


def clocks() -> tuple[float, float]:
    """Seconds by the clock, and of processor time."""
    return time.perf_counter(), time.process_time()


def bare(run: Run, batches: list[Batch]) -> None:
    """STEPS steps with nothing but DeepSpeed."""
    for _ in range(STEPS):
        for batch in batches:
            loss, _ = run.engine(batch.to(run.device))
            run.engine.backward(loss)
            run.engine.step()


def loop(run: Run) -> None:
    """STEPS steps of ours; the checkpoint at the end is left out."""
    run.total_steps = run.step + STEPS
    fit(run)


def timed(steps: Callable[[], object]) -> tuple[float, float]:
    """What those steps take."""
    before = clocks()
    steps()
    wall_s, cpu_s = (after - began for after, began in zip(clocks(), before, strict=True))
    return wall_s, cpu_s


def launch(root: Path, values: dict[str, Any]) -> float:
    """Seconds from `blsp train` to the first step in the log."""
    values = {**values, "run": str(root / "launched"), "optim": {**values["optim"], "steps": 2}}
    values["engine"] = {**values["engine"], "log_every_steps": 1}
    (root / "launched.yaml").write_text(json.dumps(values))
    command = [sys.executable, "-m", "launcher", "train", str(root / "launched.yaml"), "--processes", "1"]
    began_s, log = time.perf_counter(), root / "launched" / "log.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not (log.exists() and log.stat().st_size):
            time.sleep(0.02)
        seconds = time.perf_counter() - began_s
        assert process.wait() == 0
    return seconds


def main(root: Path) -> None:
    """Measures and prints."""
    values = recipe(root)
    launched_s = launch(root, values)
    zero.prepare_environment()
    run = prepare(TrainRecipe.model_validate(values), join(), lambda done, total, note: None)
    _, batches = next(run.reader.steps(0))
    run.reader = Again(batches)  # type: ignore[assignment]
    run.saver = SimpleNamespace(
        save=lambda state: None, report=lambda: 0, hear=lambda reports: None, finish=lambda: None
    )  # type: ignore[assignment]
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    turn = [(ours, partial(loop, run)), (theirs, partial(bare, run, batches))]
    for number in range(1 + BLOCKS):
        for kept, steps in turn if number % 2 else turn[::-1]:
            kept.append(timed(steps))
    del ours[0], theirs[0]  # both are warm after these
    ratios = [[mine[clock] / other[clock] - 1 for mine, other in zip(ours, theirs, strict=True)] for clock in (0, 1)]
    print(
        json.dumps(
            {
                "step_ms_bare": 1e3 * statistics.median(seconds for seconds, _ in theirs) / STEPS,
                "step_ms_loop": 1e3 * statistics.median(seconds for seconds, _ in ours) / STEPS,
                **{
                    name: {"median": 100 * statistics.median(of), "range": [100 * min(of), 100 * max(of)]}
                    for name, of in zip(("overhead_percent", "overhead_percent_cpu"), ratios, strict=True)
                },
                "launch_to_first_step_s": launched_s, "torch": torch.__version__,
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="bench-loop-") as folder:
            main(Path(folder))
