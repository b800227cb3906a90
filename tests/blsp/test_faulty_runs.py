"""Training on disks that fill up, become read-only or go away, on damaged data, with readers that die."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shards.sets.shard_set import ShardSet
from tests.blsp.test_engine import Recipe, World, finish, start
from tests.blsp.tiny import LORA, STAGE_2, make_shards
from tests.blsp.trainings import stage_2
from tests.shards.batches.test_reader_damage import damage

pytestmark = pytest.mark.slow

STEPS = 16


@dataclass(frozen=True)
class Faulty:
    """What came of the runs, and what was printed in each."""

    world: World
    results: dict[str, Any]
    printed: dict[str, str]


def with_data(recipe: Recipe, **changes: Any) -> Recipe:
    return {**recipe, "data": {**recipe["data"], **changes}}


def accepting(recipe: Recipe, *fields: str) -> Recipe:
    return {**recipe, "engine": {**recipe["engine"], "accept": list(fields)}}


def recipes_of(world: World) -> dict[str, Recipe]:
    """In the order in which they run; those with a name behind a / go on in one folder."""
    root = world.root
    hurt = str(shutil.copytree(root / "data" / "shards", root / "hurt"))
    damage(ShardSet.open(hurt), 3)
    others = str(make_shards(root / "others", "continue_emotion", 25))
    faster = world.recipe("changed", lr={**dict.fromkeys(STAGE_2.train, 1e-3), "lora": 5e-3}, steps=STEPS + 2)
    smaller = {**faster["model"], "lora": {**LORA, "rank": 2}}
    another = with_data(world.recipe("other_data", steps=STEPS + 2), shards=others)
    return {
        "straight": world.recipe("straight"),
        "disturbed": {**world.recipe("disturbed"), "run": str(root / "disk" / "disturbed")},
        "rival": world.recipe("rival"),
        "hurt": with_data(world.recipe("hurt_run"), shards=hurt),
        "losing_readers": with_data(world.recipe("losing_readers"), shards=hurt, num_workers=2),
        "changed": world.recipe("changed"),
        "changed/refused": faster,
        "changed/accepted": accepting(faster, "optim.lr", "optim.steps"),
        "other_data": world.recipe("other_data"),
        "other_data/refused": another,
        "other_data/accepted": accepting(another, "data", "optim.steps"),
        "other_model/refused": accepting({**faster, "model": smaller}, "model"),
    }


@pytest.fixture(scope="module")
def faulty(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    root = tmp_path_factory.mktemp("world")
    shared = stage_2(root, llm_folder, clips=24, per_step=6, dropout=0.1, steps=STEPS)
    shared["engine"]["checkpoint_every_steps"] = 1
    world = World(root, shared)
    (root / "recipes.json").write_text(json.dumps(recipes_of(world)))
    paths = [str(root / name) for name in ("recipes.json", "results.json", "disk")]
    (rank,) = ranks = start(1, ["tests.blsp.faulty_runs", *paths])
    (printed,) = finish(ranks)
    assert rank.returncode == 0, printed
    parts = [part.partition("\n") for part in printed.split("RUN ")[1:]]
    return Faulty(world, json.loads((root / "results.json").read_text()), {name: text for name, _, text in parts})


@pytest.fixture
def disturbed(faulty: Faulty) -> str:
    """What the run "disturbed" printed."""
    if faulty.results["disturbed"]["error"] == "no small disk":
        pytest.skip(f"only root may make a file system to be filled: {faulty.results['disturbed']['message']}")
    assert faulty.results["disturbed"]["error"] is None, faulty.results["disturbed"]
    return faulty.printed["disturbed"]


def test_a_full_disk_is_said_and_training_goes_on(faulty: Faulty, disturbed: str) -> None:
    assert "FILLED" in disturbed
    for step in (5, 6):
        sentence = (
            f"step-{step:06d}: could not be written (no space left on device); earlier checkpoints are as they were"
        )
        assert sentence in disturbed
    assert "step-000008: could not" not in disturbed


def test_a_folder_that_is_read_only_is_said_and_training_goes_on(disturbed: str) -> None:
    assert "step-000010: could not be written (read-only file system)" in disturbed
    assert "step-000012: could not" not in disturbed


def test_a_run_whose_folder_is_removed_makes_it_anew(faulty: Faulty, disturbed: str) -> None:
    assert disturbed.count("disturbed: was removed or moved away while this run writes there; made anew") == 1
    assert faulty.world.checkpoints("disturbed") == ["step-000015", "step-000016"]
    assert [line["step"] for line in faulty.world.log("disturbed")][-2:] == [15, 16]


def test_none_of_it_changes_what_is_learnt(faulty: Faulty, disturbed: str) -> None:
    assert faulty.world.weights("disturbed") == faulty.world.weights("straight")
    lines = {line["step"]: line for line in faulty.world.log("straight")}
    assert all(lines[line["step"]] == line for line in faulty.world.log("disturbed"))


def test_a_run_that_is_taken_over_while_it_prepares_adds_nothing(faulty: Faulty) -> None:
    assert faulty.results["rival"]["error"] == "TakenOverError"
    assert sorted(path.name for path in (faulty.world.root / "rival").iterdir()) == [".lock", ".owner"]


def test_a_run_on_damaged_clips_whose_readers_die_and_hang_ends_as_one_whose_readers_do_not(faulty: Faulty) -> None:
    assert faulty.results["hurt"]["error"] is None
    assert faulty.results["losing_readers"] == faulty.results["hurt"]
    assert faulty.printed["hurt"].count("the audio fails its checksum; it counts with weight 0") == STEPS // 4
    said = faulty.printed["losing_readers"]
    assert "was ended by SIGKILL; others read its clips" in said
    assert "gave nothing for 0.5 s; others read its clips" in said
    assert faulty.world.weights("losing_readers") == faulty.world.weights("hurt_run")
    assert faulty.world.weights("hurt_run") != faulty.world.weights("straight")


def test_a_changed_recipe_is_refused_by_field_and_accepted_by_name(faulty: Faulty) -> None:
    refused = faulty.results["changed/refused"]["message"]
    assert "(optim.lr.lora: 0.001 -> 0.005; optim.steps: 16 -> 18)" in refused
    assert "engine.accept='[optim.lr.lora,optim.steps]'" in refused
    assert faulty.results["changed/accepted"]["error"] is None
    assert "with another optim.lr.lora: 0.001 -> 0.005; with another optim.steps" in faulty.printed["changed/accepted"]
    lines = faulty.world.log("changed")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 3))
    assert lines[-2]["lr_lora"] == pytest.approx(5 * lines[-2]["lr_adapter"])
    (launches,) = [(faulty.world.root / "changed" / "launches.jsonl").read_text().splitlines()]
    assert [json.loads(line).get("accepted") for line in launches] == [
        None, ["optim.lr.lora: 0.001 -> 0.005", "optim.steps: 16 -> 18"]
    ]  # fmt: skip


def test_changed_data_is_refused_by_shard_and_accepted_by_name(faulty: Faulty) -> None:
    refused = faulty.results["other_data/refused"]["message"]
    assert re.search(r"data\.shards: none -> 000003-\w{12} with 1 clips", refused)
    assert "engine.accept='[optim.steps,data.shards]'" in refused
    assert "clips of the epoch under way may then come twice or not at all" in refused
    assert faulty.results["other_data/accepted"]["error"] is None
    assert [line["step"] for line in faulty.world.log("other_data")] == list(range(1, STEPS + 3))


def test_another_model_is_never_accepted(faulty: Faulty) -> None:
    message = faulty.results["other_model/refused"]["message"]
    assert "model.lora.rank: 4 -> 2" in message
    assert "so this cannot be accepted" in message
