"""One rank that computes the gradient of a run's first step: `python -m tests.blsp.step_gradients RECIPES.json OUT`.

Everything is the product's own: its plan and reader, its stage, DeepSpeed as the recipe configures it. Rank 0 leaves
`OUT/<name of the run>.pt`: the gradient as the optimizer would see it, before clipping, and the sums over all ranks.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad

from blsp import zero
from blsp.engine import _agree, backward, by_corpus
from blsp.meeting import join
from blsp.recipe import TrainRecipe
from blsp.run import prepare


def step_gradient(recipe: TrainRecipe) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The full gradient of each trained parameter, the same on all ranks, and the sums of `Losses`."""
    run = prepare(recipe, torch.device("cpu"), lambda done, total, note: None)
    step, batches = next(run.reader.steps(0))
    tables = [backward(run, step, index, batch) for index, batch in enumerate(batches)]
    gradient = {name: safe_get_full_grad(parameter).clone() for name, parameter in run.stage.named_parameters()}
    run.engine.step()  # as the loop does; DeepSpeed lets go of its buffers
    return gradient, _agree(run, by_corpus(run, batches, tables))[0].sum(0)


if __name__ == "__main__":
    gc.freeze()  # DeepSpeed collects garbage at each start, and would look through all libraries each time
    zero.prepare_environment()
    join()
    for recipe in json.loads(Path(sys.argv[1]).read_text()):
        result = step_gradient(TrainRecipe.model_validate(recipe))
        if dist.get_rank() == 0:
            torch.save(result, Path(sys.argv[2]) / f"{Path(recipe['run']).name}.pt")
