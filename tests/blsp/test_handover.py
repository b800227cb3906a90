"""What a stage begins with when the one before has not finished; its checkpoints here are of ZeRO stage 0."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blsp.checkpoint_folder import write_manifest
from blsp.export import export_config, export_fingerprint, stages
from blsp.handover import begin
from blsp.recipe import TrainRecipe
from tests.blsp.tiny import STAGE_1
from tests.blsp.trainings import Payload

CORPORA = [{"corpus": "clips", "licence": "CC-BY-4.0", "clips": 24}]


def recipe(root: Path, name: str, init: str | None = None) -> TrainRecipe:
    model = {"llm": "llm", "encoder": "encoder", "dtype": "float32"}
    return TrainRecipe.model_validate(
        {
            "kind": "train", "run": str(root / name), "model": {**model, "init": init and str(root / init)},
            "stage": STAGE_1.model_dump(mode="json"),
            "data": {"shards": "shards", "clips_per_step": 4, "micro_batches": 4},
            "optim": {"lr": {"adapter": 1e-3}, "warmup_steps": 0, "steps": 4},
            "engine": {"checkpoint_every_steps": 2, "zero_stage": 0},
        }
    )  # fmt: skip


def checkpoint(made: TrainRecipe, step: int, states: Any = None, **more: Any) -> Path:
    """What a run leaves at `step`; all its weights are that number."""
    folder = made.run / "checkpoints" / f"step-{step:06d}"
    (folder / "zero").mkdir(parents=True)
    states = states or {"module": {"parts.adapter.weight": torch.full((2,), float(step))}}
    torch.save(states, folder / "zero" / "mp_rank_00_model_states.pt")
    state = {
        "step": step, "plan_hash": "x", "world_size": 1, "recipe": json.loads(made.model_dump_json()),
        "frozen": {"llm": "llm@0123456789ab", "encoder": "encoder@0123456789ab"},
        "data": {"dataset_id": "d", "corpora": CORPORA},
    }  # fmt: skip
    (folder / "state.json").write_text(json.dumps(state | more))
    write_manifest(folder)
    return folder


def begun(later: TrainRecipe) -> float:
    """The number that the weights are which a run begins with."""
    told = begin(later, lambda said: None)
    assert told.model.init == later.run / "init"
    return float(load_file(told.model.init / "export" / "model.safetensors")["adapter.weight"][0])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_run_begins_with_the_newest_checkpoint_and_leaves_the_earlier_run_as_it_is(tmp_path: Path) -> None:
    first, said = recipe(tmp_path, "stage_1"), list[str]()
    checkpoint(first, 2)
    checkpoint(first, 4)
    before = files(first.run)
    told = begin(recipe(tmp_path, "stage_2", "stage_1"), said.append)
    assert begun(recipe(tmp_path, "stage_2", "stage_1")) == 4
    assert said == [
        f"{first.run}: has not finished; beginning with what step-000004 holds, kept in {tmp_path / 'stage_2' / 'init'}"
    ]
    assert told.model.init == tmp_path / "stage_2" / "init"
    assert files(first.run) == before
    assert files(told.model.init) == ["export", "export/config.json", "export/model.safetensors"]


def test_a_new_start_begins_where_the_first_did_whatever_became_of_the_earlier_run(tmp_path: Path) -> None:
    first, later = recipe(tmp_path, "stage_1"), recipe(tmp_path, "stage_2", "stage_1")
    checkpoint(first, 2)
    assert begun(later) == 2
    checkpoint(later, 1)
    checkpoint(first, 4)
    assert begun(later) == 2
    (first.run / "export").mkdir()
    (first.run / "export" / "config.json").write_text("{}")
    assert begun(later) == 2
    shutil.rmtree(later.run / "checkpoints")  # it begins anew
    assert begin(later, pytest.fail) == later
    assert not (later.run / "init").exists()


def test_what_it_begins_with_names_the_corpora_and_the_stages_before(tmp_path: Path) -> None:
    zeroth = recipe(tmp_path, "stage_0")
    checkpoint(zeroth, 2)
    first = begin(recipe(tmp_path, "stage_1", "stage_0"), lambda said: None)
    assert first.model.init is not None
    frozen = {
        "llm": "llm@0123456789ab",
        "encoder": "encoder@0123456789ab",
        "init": export_fingerprint(first.model.init),
    }
    checkpoint(first, 4, frozen=frozen)
    told = begin(recipe(tmp_path, "stage_2", "stage_1"), lambda said: None)
    assert told.model.init is not None
    exported = export_config(told.model.init / "export")
    assert [(stage["steps"], stage["corpora"]) for stage in stages(exported)] == [(2, CORPORA), (4, CORPORA)]
    assert set(exported["frozen"]) == {"llm", "encoder"}


def test_an_earlier_stage_that_is_another_now_is_refused(tmp_path: Path) -> None:
    zeroth = recipe(tmp_path, "stage_0")
    checkpoint(zeroth, 2)
    first = begin(recipe(tmp_path, "stage_1", "stage_0"), lambda said: None)
    checkpoint(first, 4, frozen={"llm": "llm@0123456789ab", "encoder": "e@0123456789ab", "init": "init@000000000000"})
    with pytest.raises(ValueError, match="was made with the init init@000000000000, not init@"):
        begin(recipe(tmp_path, "stage_2", "stage_1"), lambda said: None)


def test_without_a_checkpoint_nothing_is_handed_over(tmp_path: Path) -> None:
    later = recipe(tmp_path, "stage_2", "stage_1")
    assert begin(later, pytest.fail) == later
    assert begin(recipe(tmp_path, "stage_1"), pytest.fail) == recipe(tmp_path, "stage_1")


def test_code_in_the_checkpoint_is_refused_and_does_not_run(tmp_path: Path) -> None:
    checkpoint(recipe(tmp_path, "stage_1"), 2, Payload(tmp_path / "it_ran"))
    with pytest.raises(ValueError, match=r"model_states.pt: refused, because it names .*; nothing of it was run"):
        begin(recipe(tmp_path, "stage_2", "stage_1"), lambda said: None)
    assert not (tmp_path / "it_ran").exists()


def test_a_weight_that_is_not_finite_is_refused_with_checkpoint_and_name(tmp_path: Path) -> None:
    weights = {"parts.adapter.bias": torch.zeros(2), "parts.adapter.weight": torch.tensor([1.0, math.nan])}
    newest = checkpoint(recipe(tmp_path, "stage_1"), 2, {"module": weights})
    with pytest.raises(
        ValueError, match=f"^{newest}: numbers in adapter.weight are not finite, so nothing can be learnt"
    ):
        begin(recipe(tmp_path, "stage_2", "stage_1"), lambda said: None)
    assert not (tmp_path / "stage_2" / "init" / "export").exists()


@pytest.mark.parametrize("states", [{"other": 1}, [1], {"module": 3}])
def test_a_file_that_holds_other_things_is_named(tmp_path: Path, states: Any) -> None:
    checkpoint(recipe(tmp_path, "stage_1"), 2, states)
    with pytest.raises(ValueError, match=r"model_states.pt: is not what DeepSpeed writes of a stage"):
        begin(recipe(tmp_path, "stage_2", "stage_1"), lambda said: None)


def test_a_recipe_of_another_version_is_named_in_a_sentence(tmp_path: Path) -> None:
    first = recipe(tmp_path, "stage_1")
    newest = checkpoint(first, 2, recipe={**json.loads(first.model_dump_json()), "gone": 1})
    with pytest.raises(ValueError, match=f"^{newest}: its recipe is another version's \\(.*gone: .*\\); use that one$"):
        begin(recipe(tmp_path, "stage_2", "stage_1"), lambda said: None)
