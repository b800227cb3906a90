"""What is no longer as it was when a checkpoint was written: recipe, shards, plan. Some of it a run can go on with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from blsp.checkpoint_folder import TrainingState, changed_fields
from blsp.recipe import TrainRecipe, recipe_of

_MOST_SHARDS = 10
# With these another optimizer step is as meaningful as before. What is not here (the model, which modules train, the
# number format) decides what the weights and moments of a checkpoint are.
_SOUND = ("optim", "stage.losses", "stage.kl_temperature", "stage.kl_shift", "stage.kl_t2", "stage.teacher",
          "stage.prompts", "data")  # fmt: skip

Shards = Sequence[Sequence[Any]]  # [name, clips] of each; a name holds the hash of the bytes


def changes_since(
    state: TrainingState, newest: Path, recipe: TrainRecipe, plan_hash: str, dataset_id: str, shards: Shards
) -> list[str]:
    """Sentences such as `optim.steps: 200 -> 300`, one per field or shard that differs from those of the checkpoint
    `newest`, whose state this is."""
    # Read as a recipe of today: a field that came later has its default on both sides.
    before, now = recipe_of(state.recipe, newest).model_dump(), recipe.model_dump()
    for content in (before, now):  # hashes say what shards and weights hold; where they lie and who reads is free
        content["model"]["init"] = "no stage" if content["model"]["init"] is None else "a stage"
        del content["model"]["llm"], content["model"]["revision"], content["model"]["encoder"]
        del content["data"]["shards"], content["data"]["num_workers"]
        (content["data"]["replay"] or {}).pop("shards", None)
    changes = [
        change
        for key in ("model", "stage", "data", "optim")
        for change in changed_fields(before[key], now[key], f"{key}.")
    ]
    if state.data.get("dataset_id", dataset_id) != dataset_id:
        changes += _changed_shards(state.data.get("shards"), shards) or [
            f"data.shards: set {state.data['dataset_id']} -> {dataset_id}"
        ]
    if not changes and state.plan_hash != plan_hash:
        changes.append(
            f"data.plan: {state.plan_hash} -> {plan_hash}, from the same recipe and clips: by another tokenizer, "
            "encoder or version of blsp"
        )
    return changes


def _changed_shards(before: Any, now: Shards) -> list[str]:
    try:
        pairs = [(_told(old), _told(new)) for old, new in zip_longest(before, now)]
    except (TypeError, LookupError):  # of a version that did not note them
        return []
    changed = [f"data.shards: {old} -> {new}" for old, new in pairs if old != new]
    more = len(changed) - _MOST_SHARDS
    return [*changed[:_MOST_SHARDS], *([f"data.shards: {more} more"] if more > 0 else [])]


def _told(shard: Sequence[Any] | None) -> str:
    return "none" if shard is None else f"{shard[0]} with {shard[1]} clips"


def refuse_changes(changes: Sequence[str], accept: Sequence[str], newest: Path) -> None:
    """Raises ValueError for changes that `accept` does not name or that no run can go on with."""
    unsound = [change for change in changes if not _is_within(change, _SOUND)]
    if unsound:
        raise ValueError(
            f"{newest} belongs to another recipe ({'; '.join(unsound)}); undo the change or choose another run folder: "
            "weights and moments of another model do not fit, so this cannot be accepted"
        )
    others = [change for change in changes if not _is_within(change, accept)]
    if others:
        fields = ",".join(dict.fromkeys([*accept, *(change.partition(":")[0] for change in others)]))
        twice = any(_is_within(change, ["data"]) for change in others)
        raise ValueError(
            f"{newest} belongs to another recipe ({'; '.join(others)}); undo the change, choose another run folder, or "
            f"go on with it: engine.accept='[{fields}]'"
            + "; clips of the epoch under way may then come twice or not at all"
            * twice
        )


def _is_within(change: str, fields: Sequence[str]) -> bool:
    field = change.partition(":")[0]
    return any(field == given or field.startswith(f"{given}.") for given in fields)
