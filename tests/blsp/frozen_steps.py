"""One rank that takes a few steps with a recipe and counts what its collectives carry:
`python -m tests.blsp.frozen_steps RECIPES.json OUT`.

Rank 0 leaves `OUT/<name of the run>.json`: per step the sums of the losses, the calls and the bytes by collective. Each
run ends with a checkpoint and an export, and is then prepared again from that checkpoint. Rank 1 is given a path to the
LLM where there is none: whatever it knows of the weights it was told.
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from blsp import frozen, zero
from blsp.engine import _agree, backward, by_corpus, export, save
from blsp.meeting import join
from blsp.model import load_llm
from blsp.recipe import ModelSection, TrainRecipe
from blsp.run import Run, prepare

STEPS = 3
# The collective, and which of its arguments is the larger side.
COLLECTIVES = {"all_gather_into_tensor": 0, "reduce_scatter_tensor": 1, "all_reduce": 0, "broadcast": 0}
carried: Counter[str] = Counter()


def count(name: str, larger: int) -> None:
    """Put a counter before one of torch's collectives."""
    plain = getattr(dist, name)

    def counting(*args: Any, **kwargs: Any) -> Any:
        tensor = args[larger] if len(args) > larger else next(v for k, v in kwargs.items() if "tensor" in k)
        carried[name] += tensor.numel() * tensor.element_size()
        carried[f"{name} calls"] += 1
        return plain(*args, **kwargs)

    setattr(dist, name, counting)


def steps(run: Run) -> list[dict[str, Any]]:
    """Take them."""
    lines = []
    for step, batches in islice(run.reader.steps(run.step), STEPS):
        carried.clear()
        losses = by_corpus(run, batches, [backward(run, step, index, batch) for index, batch in enumerate(batches)])
        run.engine.step()
        carried_now = dict(carried)
        run.step = step + 1
        lines.append({"losses": _agree(run, losses)[0].flatten().tolist(), "carried": carried_now})
    return lines


def elsewhere(config: ModelSection, device: torch.device) -> Any:
    """`load_llm`, for rank 0 only."""
    assert dist.get_rank() == 0, "the LLM is read twice"
    return load_llm(config, device)


def main(recipes: Path, out: Path) -> None:
    """Every recipe in turn."""
    device = torch.device("cpu")
    for content in json.loads(recipes.read_text()):
        recipe = TrainRecipe.model_validate(content)
        with mock.patch.object(frozen, "load_llm", elsewhere):
            run = prepare(recipe, device, lambda done, total, note: None)
            lines = steps(run)
            save(run)
            run.saver.finish()
            export(run)
            again = prepare(recipe, device, lambda done, total, note: None)
        assert again.step == STEPS
        lines += steps(again)
        if dist.get_rank() == 0:
            held = sum(p.ds_numel for p in run.stage.parameters() if hasattr(p, "ds_numel"))
            trained = [p.ds_numel for p in run.stage.parts.parameters() if hasattr(p, "ds_numel")]
            (out / f"{recipe.run.name}.json").write_text(json.dumps({"steps": lines, "held": held, "trained": trained}))


if __name__ == "__main__":
    gc.freeze()  # DeepSpeed collects garbage at each start, and would look through all libraries each time
    zero.prepare_environment()
    for name, larger in COLLECTIVES.items():
        count(name, larger)
    join()
    main(Path(sys.argv[1]), Path(sys.argv[2]))
