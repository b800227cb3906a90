from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blsp.changes import changes_since, refuse_changes
from blsp.checkpoint_folder import TrainingState
from blsp.recipe import TrainRecipe

NEWEST = Path("run/checkpoints/step-000005")
SHARDS = [("000000-aaaaaaaaaaaa", 8), ("000001-bbbbbbbbbbbb", 8), ("000002-cccccccccccc", 4)]


def recipe(**changes: Any) -> TrainRecipe:
    """Of a stage 1; `optim__steps=9` replaces a field."""
    content: dict[str, Any] = {
        "kind": "train", "run": "run", "model": {"llm": "llm", "encoder": "encoder"},
        "stage": {"train": ["adapter"], "losses": {"kl": 1}, "prompts": {"continue": 1}},
        "data": {"shards": "shards", "clips_per_step": 4},
        "optim": {"lr": {"adapter": 1e-3}, "warmup_steps": 1, "steps": 9},
        "engine": {"checkpoint_every_steps": 5},
    }  # fmt: skip
    for place, value in changes.items():
        section, _, field = place.partition("__")
        content[section] = {**content[section], field: value}
    return TrainRecipe.model_validate(content)


def since(
    now: TrainRecipe, plan: str = "plan", set_id: str = "set", shards: Any = SHARDS, noted: Any = SHARDS
) -> list[str]:
    told = {"dataset_id": "set", "shards": noted}
    state = TrainingState(5, "plan", 1, recipe().model_dump(mode="json"), {}, data=told)
    return changes_since(state, NEWEST, now, plan, set_id, shards)


def test_nothing_has_changed_when_files_lie_elsewhere_and_others_read_them() -> None:
    moved = recipe(data__shards="elsewhere", data__num_workers=4, model__llm="there", engine__keep_checkpoints=9)
    assert since(moved) == []


def test_every_field_that_has_changed_is_named_with_both_values() -> None:
    assert since(recipe(optim__steps=12, data__seed=2, model__audio_window="exact"), plan="other") == [
        "model.audio_window: 30s -> exact", "data.seed: 1 -> 2", "optim.steps: 9 -> 12"
    ]  # fmt: skip


def test_every_shard_that_has_changed_is_named_with_both_contents() -> None:
    others = [SHARDS[0], ("000001-dddddddddddd", 7), SHARDS[2], ("000003-eeeeeeeeeeee", 8)]
    assert since(recipe(), plan="other", set_id="other", shards=others) == [
        "data.shards: 000001-bbbbbbbbbbbb with 8 clips -> 000001-dddddddddddd with 7 clips",
        "data.shards: none -> 000003-eeeeeeeeeeee with 8 clips",
    ]
    many = since(recipe(), set_id="other", shards=[(f"{i}", 8) for i in range(20)])
    assert len(many) == 11
    assert many[-1] == "data.shards: 10 more"


@pytest.mark.parametrize("noted", [None, 5, [[]], [5]])
def test_a_checkpoint_that_does_not_name_its_shards_names_the_set(noted: Any) -> None:
    assert since(recipe(), plan="other", set_id="other", noted=noted) == ["data.shards: set set -> other"]


def test_another_plan_of_the_same_clips_is_named() -> None:
    (change,) = since(recipe(), plan="other")
    assert change.startswith("data.plan: plan -> other, from the same recipe and clips")


def test_a_change_is_refused_until_it_is_accepted_by_the_name_that_the_refusal_gives() -> None:
    changes = ["data.shards: none -> 7", "data.shards: 3 -> 4", "optim.lr.lora: 0.1 -> 0.2"]
    with pytest.raises(ValueError, match=r"step-000005 belongs to another recipe \(data") as refused:
        refuse_changes(changes, [], NEWEST)
    assert "; ".join(changes) in str(refused.value)
    assert "engine.accept='[data.shards,optim.lr.lora]'" in str(refused.value)
    refuse_changes(changes, ["data.shards", "optim.lr.lora"], NEWEST)
    refuse_changes(changes, ["data", "optim.lr"], NEWEST)
    refuse_changes([], [], NEWEST)
    with pytest.raises(ValueError, match=r"recipe \(optim.*engine\.accept='\[data,optim\.l,optim\.lr\.lora\]'"):
        refuse_changes(changes, ["data", "optim.l"], NEWEST)


@pytest.mark.parametrize("change", ["model.lora.rank: 4 -> 8", "stage.train: ('adapter',) -> ('adapter', 'lora')"])
def test_what_makes_another_model_cannot_be_accepted(change: str) -> None:
    for accept in ([], ["model", "stage"]):
        with pytest.raises(ValueError, match="so this cannot be accepted") as refused:
            refuse_changes([change, "optim.steps: 1 -> 2"], accept, NEWEST)
        assert change in str(refused.value)
        assert "engine.accept" not in str(refused.value)
