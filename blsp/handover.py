"""What a checkpoint holds, as an export.

A later stage may begin with a run that has not finished: with what that one's newest checkpoint holds. It is written
into the later run's own folder, `RUN/init/`, and a new start of that run begins there again, whatever has become of the
earlier one. Nothing in the folder of the earlier run changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from blsp import checkpoint, elastic
from blsp.checkpoint_folder import TAG, best_of, committed, damage, newest_valid, read_state
from blsp.export import EXPORT_CONFIG, EXPORT_WEIGHTS, export_config, export_fingerprint, stages, write_export
from blsp.provenance import refuse_other_weights
from blsp.recipe import TrainRecipe, recipe_of
from blsp.weight_files import load_tensors, refuse_not_finite

_REGISTERED = "parts."  # where `blsp.run.Stage` has what trains


def begin(recipe: TrainRecipe, announce: Callable[[str], object] = print) -> TrainRecipe:
    """The recipe of a run, its `model.init` being `RUN/init` when the earlier run there has left no export.

    Only rank 0 calls it, the owner of the run's folder. Raises ValueError when all checkpoints of the earlier run are
    damaged, when one is not what such a run writes, and when a weight in it is not finite; none of them runs code.
    """
    earlier, made = recipe.model.init, recipe.run / "init"
    if earlier is None:
        return recipe
    if not committed(recipe.run / "checkpoints"):  # of a start that came to nothing
        shutil.rmtree(made, ignore_errors=True)
    if not (made / "export" / EXPORT_CONFIG).exists():
        newest = None
        if not (earlier / "export" / EXPORT_CONFIG).exists():
            newest = newest_valid(earlier / "checkpoints", announce)
        if newest is None:
            return recipe
        announce(f"{earlier}: has not finished; beginning with what {newest.name} holds, kept in {made}")
        write_as_export(newest, made)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"init": made})})


def checkpoint_at(run: Path, step: str) -> Path:
    """The checkpoint of a step, or of the `best` validation. Raises ValueError when it is not there, or damaged."""
    known = committed(run / "checkpoints")
    named = {str(int(path.name.removeprefix("step-"))): path for path in known}
    found = best_of(known) if step == "best" else named.get(step)
    if found is None:
        asked = "the best validation" if step == "best" else f"step {step}"
        raise ValueError(
            f"{run}: has no checkpoint of {asked}; there are those of steps {', '.join(named) or '(none)'}"
        )
    problem = damage(found)
    if problem is not None:
        raise ValueError(f"{found} is damaged ({problem}); name another step")
    return found


def write_as_export(newest: Path, made: Path) -> None:
    """Write what a checkpoint holds into `made/export`, with what its run began with.

    Raises ValueError when it is not what such a run writes or a weight is not finite; nothing in it runs.
    """
    state = read_state(newest)
    recipe = recipe_of(state.recipe, newest)
    made.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=made) as scratch:
        weights = _trained(elastic.linked(newest, Path(scratch)), recipe)
    refuse_not_finite(newest, weights, "let that run go on, which passes over it, or take the checkpoint away")
    parts, history = set(recipe.stage.train), []
    if recipe.model.init is not None:
        before = export_config(recipe.model.init / "export")
        now = {**state.frozen, "init": export_fingerprint(recipe.model.init)}
        refuse_other_weights(state.frozen, now, str(newest))
        held = load_tensors(recipe.model.init / "export" / EXPORT_WEIGHTS)
        weights |= {name: held[name] for name in held if name.split(".")[0] not in parts}
        parts, history = parts | set(before["parts"]), stages(before)
    pretrained = {part: name for part, name in state.frozen.items() if part != "init"}
    write_export(
        made / "export", weights, model=recipe.model, parts=sorted(parts), stage=recipe.stage, frozen=pretrained,
        history=history, corpora=state.data.get("corpora"), dataset_id=state.data.get("dataset_id"), steps=state.step,
        unfinished=str(newest),
    )  # fmt: skip


def _trained(folder: Path, recipe: TrainRecipe) -> dict[str, Tensor]:
    """Weights by `part.name`, in the type that they train in; copies, because the files are mapped and may go."""
    dtype = getattr(torch, recipe.model.dtype)
    path = next((folder / TAG).glob("*model_states.pt"), folder / TAG / "model_states.pt")
    states = checkpoint.tensors_of(path)
    try:
        if recipe.engine.zero_stage == 0:
            found = {name: value for name, value in states["module"].items() if name.startswith(_REGISTERED)}
            return {name.removeprefix(_REGISTERED): value.to(dtype).clone() for name, value in found.items()}
        groups = states["param_shapes"] if isinstance(states["param_shapes"], list) else [states["param_shapes"]]
        shapes = {name: shape for group in groups for name, shape in group.items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is not what DeepSpeed writes of a stage ({error!r})") from error
    shares = elastic.universal(folder, lambda said: None) / TAG / "zero"
    return {
        name.removeprefix(_REGISTERED): _whole(shares / name / "fp32.pt").view(shape).to(dtype).clone()
        for name, shape in shapes.items()
    }


def _whole(path: Path) -> Tensor:
    content = checkpoint.tensors_of(path)
    tensor: Tensor = content["param"] if isinstance(content, dict) else content
    return tensor
