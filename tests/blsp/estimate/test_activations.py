"""Bytes by formula, and those that autograd keeps: each storage once, no weight."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blsp.estimate.activations import MicroBatch, kept
from blsp.estimate.families import read_encoder, read_llm
from blsp.estimate.parts import Parts
from blsp.head import Head
from blsp.losses import cached_kl, continuation_ce, continuation_kl
from blsp.model import SpeechLM
from blsp.recipe import ModelSection, StageSection
from blsp.run import Stage
from shards.batches.collate import Batch
from tests.bench.train import workload
from tests.bench.train.shapes import SHAPES
from tests.blsp.tiny import CPU

STAGES = {
    "stage 1": StageSection.model_validate({"train": ["adapter"], "losses": {"kl": 1}, "prompts": {"continue": 1}}),
    "stage 2": StageSection.model_validate(
        {
            "train": ["adapter", "encoder", "lora", "classifier"],
            "losses": {"ce": 1, "emotion": 1},
            "prompts": {"continue_tone": 1},
        }
    ),
    "encoder LoRA": StageSection.model_validate(
        {"train": ["adapter", "encoder_lora"], "losses": {"ce": 1}, "prompts": {"continue_tone": 1}}
    ),
}
ADAPTERS: dict[str, dict[str, Any]] = {"conv": {"bottleneck": 16}, "stack_mlp": {"type": "stack_mlp", "hidden": 48}}


def kept_by_autograd(forward: Callable[[], Tensor], weights: Iterable[Tensor]) -> int:
    """Bytes of what is alive between forward and backward."""
    known = {weight.untyped_storage().data_ptr() for weight in weights}
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            alive.add(self)

    with saved_tensors_hooks(Held, lambda held: held.tensor):
        loss = forward()
    storages = {s.data_ptr(): s.nbytes() for s in (held.tensor.untyped_storage() for held in alive)}
    del loss
    return sum(size for place, size in storages.items() if place not in known)


def micro_batch(model: SpeechLM, batch: Batch) -> MicroBatch:
    """Its sizes."""
    samples, positions = batch.num_samples.tolist(), model.encoder.num_positions
    return MicroBatch(
        clips=len(samples),
        heard=sum(positions(model.encoder.window.padded(n)) for n in samples),
        positions=sum(map(positions, samples)),
        speech=int(batch.speech_mask.sum()),
        tokens=len(batch.input_ids),
        teacher_tokens=len(batch.text_input_ids),
        rows=len(batch.rows),
    )


def both(
    tmp_path: Path, shape: str, dtype: str, stage: StageSection, window: str, checkpointing: list[str],
    dropout: float = 0, adapter: str = "conv",
) -> tuple[float, int]:  # fmt: skip
    """By formula, and measured."""
    plain = workload.build(SHAPES[shape], tmp_path, CPU, getattr(torch, dtype), window)
    lora = {"rank": 16, "dropout": dropout}
    section = ModelSection.model_validate(
        {
            **plain.config.model_dump(), "adapter": ADAPTERS[adapter],
            "lora": lora if "lora" in stage.train else None,
            "encoder_lora": lora if "encoder_lora" in stage.train else None,
        }
    )  # fmt: skip
    model = SpeechLM(section, plain.llm, plain.encoder, plain.template).train()
    workload.checkpoint_activations(model, checkpointing)
    run = Stage(model, stage)
    durations = (1.5, 2.5) if shape == "tiny" else (2.0,)
    batch = workload.batch(model, workload.clips(durations, stage), stage)
    weights = [*model.parameters(), *model.llm.parameters(), *model.encoder.pretrained.parameters()]
    llm, encoder = read_llm(section.llm, None), read_encoder(section.encoder)
    assert section.adapter.type != "qformer"
    parts = Parts(llm, encoder, section.adapter, section.lora, section.encoder_lora)
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    formula = kept(parts, stage, checkpointing, size, micro_batch(model, batch), on_cpu=True)
    return formula.by_autograd, kept_by_autograd(lambda: run(batch)[0], weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "checkpointing", [[], ["llm"], ["encoder", "llm"]], ids=lambda names: "+".join(names) or "none"
)
@pytest.mark.parametrize("window", ["exact", "30s"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_tiny_model_keeps_what_the_formula_says(
    tmp_path: Path, stage: str, window: str, checkpointing: list[str]
) -> None:
    if stage == "stage 1" and "encoder" in checkpointing:
        pytest.skip("recipes refuse it: the encoder is frozen")
    for dtype, dropout in (("float32", 0.0), ("bfloat16", 0.0 if stage == "stage 1" else 0.05)):
        formula, measured = both(tmp_path, "tiny", dtype, STAGES[stage], window, checkpointing, dropout)
        assert formula == pytest.approx(measured, rel=0.1), dtype


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "window", "checkpointing", "dropout"),
    [
        ("stage 1", "exact", [], 0),
        ("stage 1", "exact", ["llm"], 0),
        ("stage 2", "exact", [], 0.05),
        ("stage 2", "exact", ["llm"], 0),
        ("stage 2", "30s", ["encoder", "llm"], 0),
        ("stage 2", "30s", ["encoder"], 0),
        ("encoder LoRA", "exact", [], 0.05),
    ],
)
def test_a_model_of_middle_size_keeps_what_the_formula_says(
    tmp_path: Path, stage: str, window: str, checkpointing: list[str], dropout: float
) -> None:
    formula, measured = both(tmp_path, "middle", "float32", STAGES[stage], window, checkpointing, dropout)
    assert formula == pytest.approx(measured, rel=0.1)


@pytest.mark.slow
def test_another_adapter_has_its_own_formula(tmp_path: Path) -> None:
    formula, measured = both(tmp_path, "tiny", "float32", STAGES["stage 1"], "exact", ["llm"], adapter="stack_mlp")
    assert formula == pytest.approx(measured, rel=0.1)


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are made while it lasts; `known` tensors were there before."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._sizes:
                    self._sizes[key] = storage.nbytes()
                    self._now += storage.nbytes()
                    self.peak = max(self.peak, self._now)
                    weakref.finalize(storage, self._gone, key)
        return made

    def _gone(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


@pytest.mark.parametrize("loss", ["ce", "live", "cached"])
def test_logits_take_what_the_formula_says(loss: str, tmp_path: Path) -> None:
    vocabulary, width, rows = 5_000, 8, 32
    head = Head(nn.Linear(width, vocabulary, bias=False).requires_grad_(False))
    hidden, heard = torch.randn(rows, width, requires_grad=True), torch.randn(rows, width)
    ids, logits, log_z = torch.randint(0, vocabulary, (rows, 8)), torch.randn(rows, 8).half(), torch.randn(rows, 2) + 5
    run = {
        "ce": lambda: head(continuation_ce, hidden, ids[:, 0]),
        "live": lambda: head(continuation_kl, hidden, heard, 2.0),
        "cached": lambda: head(cached_kl, hidden, ids, logits, log_z, 2.0),
    }[loss]
    with Live() as live:
        run()
    stage = StageSection.model_validate(
        {
            "train": ["adapter"], "losses": {"ce" if loss == "ce" else "kl": 1}, "prompts": {"continue": 1},
            "teacher": loss if loss == "cached" else "live",
        }
    )  # fmt: skip
    shape = parts_with(tmp_path, vocabulary)
    empty = MicroBatch(clips=1, heard=0, positions=0, speech=0, tokens=0, teacher_tokens=0, rows=rows)
    assert kept(shape, stage, [], 4, empty).logits == pytest.approx(live.peak, rel=0.1)


def parts_with(tmp_path: Path, vocabulary: int) -> Parts:
    """A tiny model with a large vocabulary."""
    for name, config in (("llm", {**SHAPES["tiny"].llm.to_dict(), "vocab_size": vocabulary}),
                         ("encoder", SHAPES["tiny"].encoder.to_dict())):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    section = ModelSection.model_validate({"llm": "llm", "encoder": "encoder"})
    assert section.adapter.type != "qformer"
    return Parts(
        read_llm(str(tmp_path / "llm"), None), read_encoder(str(tmp_path / "encoder")), section.adapter, None, None
    )
