"""Real DeepSpeed ZeRO-3 on two processes. A launch takes its time, so each of the four serves many tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blsp.engine import dropout_seed
from blsp.model import SpeechLM
from blsp.recipe import TrainRecipe
from blsp.run import Stage
from blsp.schedule import learning_rate_factor
from cluster.exit_codes import ExitCode
from cluster.lock import folder_lock
from cluster.ports import free_port
from shards.batches.collate import Collator
from shards.batches.mixture import Mixture
from shards.batches.plan import Plan
from shards.batches.reader import Reader
from shards.sets.shard_set import ShardSet
from shards.sets.tokens import token_counts
from tests.blsp.tiny import CPU, STAGE_1, STAGE_2, make_shards
from tests.blsp.trainings import stage_2

pytestmark = pytest.mark.slow

STEPS = 12
REPOSITORY = Path(__file__).parents[2]
Recipe = dict[str, Any]


@dataclass(frozen=True)
class World:
    """A folder with all runs, and the recipe that they share."""

    root: Path
    shared: Recipe

    def recipe(self, name: str, **optim: Any) -> Recipe:
        """The recipe of the run `name`, other numbers in its section `optim`."""
        return {**self.shared, "run": str(self.root / name), "optim": {**self.shared["optim"], **optim}}

    def stage_1(self) -> Recipe:
        """The recipe of the run "stage_1": the adapter alone, against the text LLM as its teacher."""
        stage = {"stage": STAGE_1.model_dump(mode="json"), "model": {**self.shared["model"], "lora": None}}
        data = {**self.shared["data"], "shards": str(self.root / "plain" / "shards")}
        engine = {**self.shared["engine"], "gradient_checkpointing": ["llm"]}
        return {**self.recipe("stage_1", lr={"adapter": 1e-3}), **stage, "data": data, "engine": engine}

    def replaying(self) -> Recipe:
        """The recipe of the run "replayed": stage 2 with a fifth of its clips from stage 1."""
        replay = {"shards": str(self.root / "plain" / "shards"), "share": 0.2}
        return {**self.recipe("replayed"), "data": {**self.shared["data"], "replay": replay}}

    def log(self, name: str) -> list[dict[str, float]]:
        """What the run logged, without how fast it was."""
        path = self.root / name / "log.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [{key: line[key] for key in line if not key.startswith("pace/")} for line in lines]

    def weights(self, name: str) -> bytes:
        return (self.root / name / "export" / "model.safetensors").read_bytes()

    def checkpoints(self, name: str) -> list[str]:
        return sorted(path.name for path in (self.root / name / "checkpoints").iterdir())


def start(world_size: int, arguments: Sequence[str]) -> list[subprocess.Popen[str]]:
    """The ranks of a job, without a launcher."""
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *(argument.format(rank=rank) for argument in arguments)],
            cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world_size)
    ]  # fmt: skip


def finish(ranks: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What each rank printed."""
    try:
        return [rank.communicate(timeout=240)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def start_training(world: World, name: str) -> list[subprocess.Popen[str]]:
    path = world.root / f"{name}.yaml"
    path.write_text(json.dumps(world.recipe(name)))
    return start(2, ["launcher.train", "--config", str(path)])


def job(
    recipe: Recipe,
    stop_in_step: int | None = None,
    rival_in_step: int | None = None,
    break_in: tuple[int, int] | None = None,
    plant: tuple[str, str] | None = None,
    spoil: Sequence[tuple[int, int, str]] = (),
    poison: bool = False,
    slow: tuple[int, str] | None = None,
) -> dict[str, Any]:
    """One training, as `tests.blsp.trainings` reads it."""
    return {
        "recipe": recipe, "stop_in_step": stop_in_step, "rival_in_step": rival_in_step, "break_in": break_in,
        "plant": plant, "spoil": spoil, "poison": poison, "slow": slow,
    }  # fmt: skip


def trainings(world: World, world_size: int, jobs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Run the jobs one after the other in the same processes. Returns per rank one result per job."""
    listed = world.root / f"jobs-{world_size}.json"
    listed.write_text(json.dumps(jobs))
    results = f"{world.root}/results-{world_size}-{{rank}}.jsonl"
    ranks = start(world_size, ["tests.blsp.trainings", str(listed), results])
    printed = finish(ranks)
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(printed)
    (world.root / f"printed-{world_size}.txt").write_text(printed[0])
    done = [Path(results.format(rank=rank)).read_text().splitlines() for rank in range(world_size)]
    return [[json.loads(line) for line in lines] for lines in done]


@pytest.fixture(scope="module")
def world(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    make_shards(root / "plain", "continue", 24)
    engine = {"checkpoint_every_steps": 2, "log_every_steps": 1, "gradient_checkpointing": ["llm", "encoder"]}
    return World(root, stage_2(root, llm_folder, clips=24, per_step=6, dropout=0.1, steps=STEPS) | {"engine": engine})


@pytest.fixture(scope="module")
def two_ranks(world: World) -> list[list[dict[str, Any]]]:
    """A straight run, told to stop in its last step; one that is stopped in step 5, then the rest of it; one of absurd
    learning rates; one of a cap that is too small; a stage 1; one that replays, stopped in step 5, then the rest of
    it."""
    stopped = world.recipe("stopped")
    absurd = world.recipe("absurd", lr=dict.fromkeys(STAGE_2.train, 1e30))
    jobs = [job(world.recipe("straight"), stop_in_step=STEPS), job(stopped, stop_in_step=5), job(stopped), job(absurd)]
    capped = world.recipe("capped")
    capped["data"] = {**capped["data"], "caps": {"tokens": 10}}
    replaying = [job(world.replaying(), stop_in_step=5), job(world.replaying())]
    return trainings(world, 2, [*jobs, job(capped), job(world.stage_1()), *replaying])


@pytest.mark.usefixtures("two_ranks")
def test_every_step_is_logged_and_the_newest_checkpoints_are_kept(world: World) -> None:
    assert [line["step"] for line in world.log("straight")] == list(range(1, STEPS + 1))
    assert world.checkpoints("straight") == ["step-000010", "step-000012"]


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize(("name", "loss"), [("straight", "ce"), ("stage_1", "kl")])
def test_the_end_of_the_turn_and_kl_at_temperature_1_are_logged_apart(world: World, name: str, loss: str) -> None:
    for line in world.log(name):
        assert line[f"{loss}_end"] > 0
        assert line[f"{loss}_end"] != pytest.approx(line[loss], rel=1e-4)
        assert ("kl_t1" in line, "kl_end" in line) == (loss == "kl", loss == "kl")
        assert loss != "kl" or line["kl_t1"] > line["kl"]


def plain_training(recipe: TrainRecipe) -> tuple[list[float], SpeechLM]:
    """The same training with nothing but torch: total losses' gradients, AdamW, clipping. Returns gradient norms."""
    torch.manual_seed(recipe.data.seed)
    model = SpeechLM.build(recipe.model, CPU)
    stage = Stage(model, recipe.stage)
    model.train()
    replay = recipe.data.replay
    shard_set = ShardSet.open(*recipe.data.shards, replay=replay.shards if replay else [])
    corpus, apart = shard_set.rows["corpus"], shard_set.replayed
    counts = token_counts(shard_set, model.template)
    tasks, with_teacher = dict(recipe.stage.prompts), "kl" in recipe.stage.losses
    collator = Collator(model.template, model.num_speech_tokens, tasks, with_teacher)
    plan = Plan(
        collator.sizes(shard_set.clips, counts, model.encoder.window.padded, apart),
        seed=recipe.data.seed, clips_per_step=recipe.data.clips_per_step,
        micro_batches=recipe.data.micro_batches, dataset_id=shard_set.dataset_id,
        mixture=Mixture(corpus, shard_set.corpora, {}, recipe.data.seed, apart, replay.share) if replay else None,
    )  # fmt: skip
    optim, steps = recipe.optim, recipe.optim.steps
    assert steps is not None
    optimizer = torch.optim.AdamW(stage.parameters(), 1, betas=optim.betas, weight_decay=optim.weight_decay)
    norms = []
    for step, batches in islice(Reader(shard_set, plan, collator, rank=0, world_size=1).steps(), steps):
        optimizer.zero_grad()
        for index, batch in enumerate(batches):
            torch.manual_seed(dropout_seed(recipe.data.seed, step, index))
            stage(batch)[0].backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(stage.parameters(), optim.clip_norm)))
        factor = learning_rate_factor(step, steps, optim.warmup_steps, optim.schedule)
        optimizer.param_groups[0]["lr"] = optim.lr["adapter"] * factor
        optimizer.step()
    return norms, model


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("name", ["straight", "stage_1", "replayed"])
def test_two_ranks_of_zero_3_train_as_plain_torch_does(world: World, name: str) -> None:
    others = {"stage_1": world.stage_1, "replayed": world.replaying}
    recipe = TrainRecipe.model_validate(others[name]() if name in others else world.recipe(name))
    norms, model = plain_training(recipe)
    assert [line["grad_norm"] for line in world.log(name)] == pytest.approx(norms, rel=1e-4)
    exported = load_file(world.root / name / "export" / "model.safetensors")
    expected = {
        key: value for key, value in model.parts.state_dict().items() if key.split(".")[0] in recipe.stage.train
    }
    torch.testing.assert_close(exported, expected, rtol=0, atol=1e-5)


def test_a_signal_in_the_last_step_lets_the_run_end_by_itself(two_ranks: Any) -> None:
    assert [results[0]["error"] for results in two_ranks] == [None, None]


def test_a_signal_to_one_rank_stops_all_at_the_same_step_whenever_it_comes(two_ranks: Any) -> None:
    for results in two_ranks:
        assert results[1]["error"] == "Interrupted"
        assert f"stopped by SIGTERM: saved at step 6 of {STEPS}; the same command goes on" in results[1]["message"]


@pytest.mark.usefixtures("two_ranks")
def test_a_stopped_run_and_the_rest_equal_a_straight_run_bit_for_bit(world: World) -> None:
    assert world.log("stopped") == world.log("straight")
    assert world.weights("stopped") == world.weights("straight")


def test_a_cap_that_no_plan_can_keep_is_refused_before_the_first_step(world: World, two_ranks: Any) -> None:
    for results in two_ranks:
        assert results[4]["error"] == "ValueError"
        assert "data.caps.tokens = 10 is too small: 24 clips alone exceed it; raise it to" in results[4]["message"]
    assert not world.log("capped")


@pytest.mark.usefixtures("two_ranks")
def test_the_plan_is_summed_up_in_the_run_folder(world: World) -> None:
    plan = json.loads((world.root / "straight" / "plan.json").read_text())
    assert (plan["epoch"], plan["step"]) == (0, 0)
    assert (plan["first_epoch"]["clips"], plan["first_epoch"]["steps"]) == (24, 4)
    plan = json.loads((world.root / "replayed" / "plan.json").read_text())
    assert (plan["first_epoch"]["clips"], plan["first_epoch"]["steps"]) == (24 + 6, 5)


def test_a_loss_that_is_not_finite_ends_the_run_and_names_clips(two_ranks: Any) -> None:
    for results in two_ranks:
        assert results[3]["error"] == "BadStepError"
        assert re.search(r"step \d+: the (loss|gradient) is not finite.*; no weight was", results[3]["message"])


@pytest.mark.usefixtures("two_ranks")
def test_a_checkpoint_holds_exactly_what_trains(world: World) -> None:
    """What DeepSpeed does not hold it can neither gather nor save."""
    folder = world.root / "straight" / "checkpoints" / f"step-{STEPS:06d}" / "zero"
    exported = load_file(world.root / "straight" / "export" / "model.safetensors")
    for path in folder.glob("*model_states.pt"):
        state = torch.load(path, weights_only=True)
        shapes = {name: shape for group in state["param_shapes"] for name, shape in group.items()}
        assert shapes == {f"parts.{name}": value.shape for name, value in exported.items()}
        assert not state.get("frozen_param_shapes")
    num_trained = sum(value.numel() for value in exported.values())
    held = sum(path.stat().st_size for path in folder.glob("*optim_states.pt"))
    assert 12 * num_trained < held < 12 * num_trained + 60_000 * 2  # weights and two moments in float32, once


@pytest.fixture(scope="module")
def terminated(world: World) -> tuple[list[subprocess.Popen[str]], list[str]]:
    """The run "broken" as people start it; rank 1 gets a SIGUSR1 after a few steps."""
    ranks = start_training(world, "broken")
    while len(world.log("broken")) < 3 and all(rank.poll() is None for rank in ranks):
        time.sleep(0.005)
    ranks[1].send_signal(signal.SIGUSR1)
    return ranks, finish(ranks)


def test_sigusr1_to_one_rank_saves_on_all_and_exits_as_documented(world: World, terminated: Any) -> None:
    ranks, printed = terminated
    assert [rank.returncode for rank in ranks] == [ExitCode.STOPPED] * 2, "\n".join(printed)
    step = len(world.log("broken"))
    assert 3 <= step < STEPS
    assert world.checkpoints("broken")[-1] == f"step-{step:06d}"
    assert f"stopped by SIGUSR1: saved at step {step} of {STEPS}; the same command goes on from there" in printed[0]
    assert "Traceback" not in "".join(printed)


@pytest.fixture(scope="module")
def resumed(world: World, terminated: object) -> tuple[str, str, list[str]]:
    """The rest of "broken", after its newest checkpoint was damaged. Returns both checkpoints' names and the prints."""
    checkpoints = world.root / "broken" / "checkpoints"
    before, newest = world.checkpoints("broken")
    damaged = next((checkpoints / newest / "zero").glob("*rank_1*optim_states.pt"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    shutil.copytree(checkpoints / before, checkpoints / ".step-000008.tmp")  # as a kill in the middle of a save leaves
    ranks = start_training(world, "broken")
    printed = finish(ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(printed)
    return before, newest, printed


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(world: World, resumed: Any) -> None:
    before, newest, printed = resumed
    folder = world.root / "broken" / "checkpoints"
    assert f"{folder / newest} is damaged (zero/" in printed[0]
    assert "is not as it was written) and passed over" in printed[0]
    assert f"going on from {folder / before}" in printed[0]


@pytest.mark.usefixtures("resumed", "two_ranks")
def test_a_broken_run_and_the_rest_equal_a_straight_run_bit_for_bit(world: World) -> None:
    assert world.log("broken") == world.log("straight")
    assert world.weights("broken") == world.weights("straight")
    assert world.checkpoints("broken") == world.checkpoints("straight")


@pytest.fixture(scope="module")
def one_rank(world: World, two_ranks: object) -> list[dict[str, Any]]:
    """A straight run, and then everything that must be refused."""
    shutil.copytree(world.root / "straight", world.root / "other_ranks")
    single = world.recipe("single")
    jobs = [
        job(single),
        job(world.recipe("single", lr={**dict.fromkeys(STAGE_2.train, 1e-3), "lora": 5e-3})),
        job(world.recipe("other_ranks")),
        job(world.recipe("locked")),
        job({**single, "model": {**single["model"], "audio_window": "tail:0.5"}}),
    ]
    with folder_lock(world.root / "locked"):
        (results,) = trainings(world, 1, jobs)
    return results


def test_one_rank_logs_the_losses_of_two(world: World, one_rank: Any) -> None:
    assert one_rank[0]["error"] is None
    for one, two in zip(world.log("single"), world.log("straight"), strict=True):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5)


def test_a_changed_recipe_is_refused_with_the_field(one_rank: Any) -> None:
    assert one_rank[1]["error"] == "ValueError"
    assert "belongs to another recipe (optim.lr.lora: 0.001 -> 0.005); undo the change" in one_rank[1]["message"]


def test_another_audio_window_than_the_checkpoints_is_refused(one_rank: Any) -> None:
    assert one_rank[4]["error"] == "ValueError"
    assert "belongs to another recipe (model.audio_window: exact -> tail:0.5); undo" in one_rank[4]["message"]


def test_another_number_of_ranks_takes_a_finished_run_as_it_is(world: World, one_rank: Any) -> None:
    assert one_rank[2]["error"] is None
    assert world.weights("other_ranks") == world.weights("straight")


def test_a_second_run_on_one_folder_is_refused(one_rank: Any) -> None:
    assert one_rank[3]["error"] == "ValueError"
    assert "locked: already in use by process" in one_rank[3]["message"]
