"""A later stage may begin with a run that has not finished: what its newest checkpoint holds becomes its export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from blsp import elastic
from blsp.checkpoint_folder import TAG, newest_valid, read_state
from blsp.export import EXPORT_CONFIG, EXPORT_WEIGHTS, export_config, write_export
from blsp.recipe import TrainRecipe

_REGISTERED = "parts."  # where `blsp.run.Stage` has what trains


def ensure_export(run: Path, announce: Callable[[str], object] = print) -> None:
    """Make the export of a run from its newest valid checkpoint when it has none; a run without either stays as it is.

    Only rank 0 calls it. Raises ValueError when all checkpoints are damaged or one would run code.
    """
    if (run / "export" / EXPORT_CONFIG).exists():
        return
    newest = newest_valid(run / "checkpoints", announce)
    if newest is None:
        return
    state = read_state(newest)
    recipe = TrainRecipe.model_validate(state.recipe)
    announce(f"{run}: has not finished; beginning with what it knows at step {state.step}")
    weights, parts = _trained(newest, recipe), set(recipe.stage.train)
    if recipe.model.init is not None:
        before = recipe.model.init / "export"
        earlier = load_file(before / EXPORT_WEIGHTS)
        weights |= {name: earlier[name] for name in earlier if name.split(".")[0] not in parts}
        parts |= set(export_config(before)["parts"])
    write_export(
        run / "export", weights, model=recipe.model, parts=sorted(parts), stage=recipe.stage, frozen=state.frozen,
        steps=state.step,
    )  # fmt: skip


def _trained(checkpoint: Path, recipe: TrainRecipe) -> dict[str, Tensor]:
    """Weights by `part.name`, in the type that they train in."""
    dtype = getattr(torch, recipe.model.dtype)
    states = torch.load(next((checkpoint / TAG).glob("*model_states.pt")), map_location="cpu", weights_only=True)
    if recipe.engine.zero_stage == 0:
        found = {name: value for name, value in states["module"].items() if name.startswith(_REGISTERED)}
        return {name.removeprefix(_REGISTERED): value.to(dtype).contiguous() for name, value in found.items()}
    groups = states["param_shapes"] if isinstance(states["param_shapes"], list) else [states["param_shapes"]]
    shapes = {name: shape for group in groups for name, shape in group.items()}
    folder = elastic.universal(checkpoint) / TAG / "zero"
    return {
        name.removeprefix(_REGISTERED): _whole(folder / name / "fp32.pt").view(shape).to(dtype)
        for name, shape in shapes.items()
    }


def _whole(path: Path) -> Tensor:
    content = torch.load(path, map_location="cpu", weights_only=True)
    tensor: Tensor = content["param"] if isinstance(content, dict) else content
    return tensor
