"""One rank that trains two steps with each of some recipes and says what it holds and what its collectives carry:
`python -m tests.blsp.held_bytes RECIPES.json OUT`.

Each leaves `OUT/<name of the run>.<rank>.json`: bytes of storages, each counted once, and of the collectives of the
second step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from blsp import zero
from blsp.engine import _agree, backward, by_corpus
from blsp.meeting import join
from blsp.recipe import TrainRecipe
from blsp.run import Run, prepare
from tests.blsp import frozen_steps


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes by address."""
    strided = [t for t in tensors if isinstance(t, Tensor) and t.layout is torch.strided]
    found = [t.untyped_storage() for t in strided]
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes()}


def weights(run: Run) -> dict[int, int]:
    """Of all parameters, whole or in shares."""
    model = run.stage.model
    modules = [model.parts, model.llm, model.encoder.pretrained]
    parameters = [p for module in modules for p in module.parameters()]
    return storages([p.data for p in parameters]) | storages(getattr(p, "ds_tensor", None) for p in parameters)


def gradients(run: Run) -> dict[int, int]:
    """What a backward pass has left."""
    optimizer, parameters = run.engine.optimizer, list(run.stage.parts.parameters())
    kept = [
        *getattr(optimizer, "averaged_gradients", {}).values(),
        *getattr(optimizer, "all_grad_tensors", {}).values(),
    ]
    return (
        storages([p.grad for p in parameters])
        | storages(getattr(p, "grad_accum", None) for p in parameters)
        | storages([getattr(optimizer, "grad_partitions_flat_buffer", None)])
        | storages(piece for pieces in kept for piece in ([pieces] if isinstance(pieces, Tensor) else pieces or ()))
    )


def states(run: Run) -> dict[int, int]:
    """What the optimizer moves and remembers."""
    optimizer = run.engine.optimizer
    moved = [p for group in optimizer.optimizer.param_groups for p in group["params"]]
    moved += getattr(optimizer, "fp32_partitioned_groups_flat", [])
    return storages(moved) | storages(v for state in optimizer.optimizer.state.values() for v in state.values())


def measured(recipe: TrainRecipe) -> dict[str, Any]:
    """Two steps."""
    run = prepare(recipe, torch.device("cpu"), lambda done, total, note: None)
    for step, batches in islice(run.reader.steps(0), 2):
        frozen_steps.carried.clear()
        losses, held = [], [0]
        for index, batch in enumerate(batches):
            losses.append(backward(run, step, index, batch))
            held.append(sum(gradients(run).values()))
        run.engine.step()
        carried = dict(frozen_steps.carried)
        _agree(run, by_corpus(run, batches, losses))
        run.step = step + 1
    result = {"weights": sum(weights(run).values()), "optimizer": sum(states(run).values())}
    run.engine.destroy()
    return {**result, "gradients": max(held), "carried": carried}


if __name__ == "__main__":
    zero.prepare_environment()
    for name, larger in frozen_steps.COLLECTIVES.items():
        frozen_steps.count(name, larger)
    join()
    for content in json.loads(Path(sys.argv[1]).read_text()):
        recipe = TrainRecipe.model_validate(content)
        found = Path(sys.argv[2]) / f"{recipe.run.name}.{dist.get_rank()}.json"
        found.write_text(json.dumps(measured(recipe)))
