"""The most that a micro-batch takes at once, by formula and measured: by storage on a CPU, as torch says on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blsp.estimate.activations import kept
from blsp.estimate.families import read_encoder, read_llm
from blsp.estimate.parts import Parts
from blsp.recipe import StageSection
from blsp.run import Stage
from tests.bench.train import workload
from tests.bench.train.shapes import SHAPES
from tests.blsp.estimate.test_activations import STAGES, Live, micro_batch

CUDA = torch.device("cuda")
CASES = pytest.mark.parametrize(
    ("stage", "checkpointing"),
    [("stage 1", []), ("stage 1", ["llm"]), ("stage 2", []), ("stage 2", ["encoder", "llm"])],
    ids=lambda value: str(value),
)


def step(
    tmp_path: Path, device: torch.device, dtype: torch.dtype, stage: StageSection, checkpointing: list[str], clips: int
) -> tuple[float, Callable[[], None], list[Tensor]]:
    """By formula; a forward and backward, once done already so that gradients are there; and what is held besides."""
    with_lora = "lora" in stage.train
    model = workload.build(SHAPES["middle"], tmp_path, device, dtype, "exact", with_lora)
    workload.checkpoint_activations(model, checkpointing)
    run = Stage(model, stage)
    batch = workload.batch(model, workload.clips([2.0] * clips, stage), stage)
    section = model.config
    assert section.adapter.type != "qformer"
    llm, encoder = read_llm(section.llm, None), read_encoder(section.encoder)
    parts = Parts(llm, encoder, section.adapter, section.lora, None)
    size = torch.finfo(dtype).bits // 8
    formula = kept(parts, stage, checkpointing, size, micro_batch(model, batch), on_cpu=device.type == "cpu")

    def forward_and_backward() -> None:
        run(batch)[0].backward()

    forward_and_backward()
    held = [*model.parameters(), *model.llm.parameters(), *model.encoder.pretrained.parameters()]
    return formula.peak, forward_and_backward, held + [p.grad for p in held if p.grad is not None]


@pytest.mark.slow
@CASES
def test_the_most_at_once_is_what_the_formula_says(tmp_path: Path, stage: str, checkpointing: list[str]) -> None:
    formula, run, held = step(tmp_path, torch.device("cpu"), torch.float32, STAGES[stage], checkpointing, clips=6)
    with Live(held) as live:
        run()
    assert formula == pytest.approx(live.peak, rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.slow
@CASES
def test_a_gpus_peak_is_what_the_formula_says(tmp_path: Path, stage: str, checkpointing: list[str]) -> None:
    formula, run, held = step(tmp_path, CUDA, torch.bfloat16, STAGES[stage], checkpointing, clips=64)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    in_all = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    there = sum(in_all.values())
    assert before >= there
    assert there + formula == pytest.approx(torch.cuda.max_memory_allocated() - (before - there), rel=0.1)
