"""Beside the benchmark's formula, which is held against torch's own counter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blsp.estimate.activations import MicroBatch
from blsp.estimate.families import read_encoder, read_llm
from blsp.estimate.operations import operations
from blsp.estimate.parts import Parts
from blsp.recipe import ConvSection
from tests.bench.train.arithmetic import Way, step_flops
from tests.bench.train.shapes import SHAPES
from tests.bench.train.workload import CACHED, STAGE_1, Lengths


@pytest.mark.parametrize("window", ["exact", "30s"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_operations_are_those_of_the_benchmark(tmp_path: Path, window: str, checkpointing: bool, cached: bool) -> None:
    shapes, n = SHAPES["large"], 16
    for name, config in (("llm", shapes.llm), ("encoder", shapes.encoder)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config.to_dict()))
    parts = Parts(
        read_llm(str(tmp_path / "llm"), None), read_encoder(str(tmp_path / "encoder")), ConvSection(), None, None
    )
    lengths = Lengths(
        samples=(160_000,) * n, speech=(63,) * n, transcript=(30,) * n, response=(36,) * n, prefix=25, suffix=5
    )
    way = Way(window=window, checkpointing=checkpointing, cached_teacher=cached)
    theirs = step_flops(shapes, lengths, way)
    batch = MicroBatch(
        clips=n, heard=n * (1500 if window == "30s" else 500), positions=n * 500, speech=n * 63,
        tokens=25 + n * 104, teacher_tokens=25 + n * 71, rows=n * 36,
    )  # fmt: skip
    ours = operations(parts, CACHED if cached else STAGE_1, ["llm"] if checkpointing else [], batch)
    for part in ("encoder", "adapter", "teacher", "student", "head"):
        assert getattr(ours, part) == pytest.approx(getattr(theirs, part), rel=0.03), part
    assert ours.again == pytest.approx(theirs.recomputed, rel=0.05, abs=1e11)
