"""Held-out clips: measured without a trace, the same on any number of ranks, and what follows from the figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from blsp import shown, tone, validate
from blsp.checkpoint_folder import TrainingState, best_of, committed, prune, read_state, write_manifest
from blsp.hf.convert import export_run, load_model
from blsp.losses import COLUMNS
from blsp.model import SpeechLM
from blsp.recipe import TrainRecipe
from blsp.run import Stage, _collator
from blsp.scalars import confusion, grouped, means, means_by_corpus
from blsp.validate import Best, Validation
from shards.audio import decode_flac
from shards.sets.shard_set import ShardSet
from tests.blsp.test_engine import World, job, trainings
from tests.blsp.tiny import CPU, STAGE_2, make_shards
from tests.blsp.trainings import stage_2

EVERY = 2
# Lines of single steps, and of three: from checkpoints, and from the beginning.
AGAIN = [("validated", 2), ("validated", 5), ("plain_3", 3), ("plain_3", 5), ("plain_3", 6), ("two", 5)]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def world(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    make_shards(root / "held_out", "continue_emotion", 9, corpus="others", same_words=9)
    engine = {"checkpoint_every_steps": 3, "keep_checkpoints": 1, "log_every_steps": 1}
    shared = stage_2(root, llm_folder, clips=12, per_step=4, dropout=0.1, warmup_steps=1, steps=6)
    return World(root, shared | {"engine": engine})


def validated(world: World, name: str, lr: float = 1e-3, **section: Any) -> Json:
    """The recipe of a run that is measured on 7 of the 9 clips that are held out."""
    asked = {"shards": str(world.root / "held_out" / "shards"), "clips": 7, "every_steps": EVERY, **section}
    return {**world.recipe(name, lr=dict.fromkeys(STAGE_2.train, lr)), "validation": asked}


def log_of(world: World, name: str, validation: bool) -> list[Json]:
    return [line for line in world.log(name) if any(key.startswith("validation/") for key in line) == validation]


@pytest.fixture(scope="module")
def runs(world: World) -> list[Json]:
    """Two ranks: with validation. One rank: a run without, with validation, and that again but stopped in the first
    one and gone on with; one that learns nothing, twice; one whose held-out clips are those it learns; past steps
    again."""
    plain = world.recipe("plain")
    sparse = {**plain["engine"], "log_every_steps": 3, "keep_checkpoints": 2}
    early = validated(world, "early", lr=1e-30, every_steps=1, patience=2)
    stopped = validated(world, "stopped")
    jobs = [
        job(plain), job({**plain, "run": str(world.root / "plain_3"), "engine": sparse}),
        job(validated(world, "validated")), job(stopped, stop_in_step=2), job(stopped), job(early), job(early),
        job(validated(world, "leak", shards=world.shared["data"]["shards"])),
        *(job(one_step(world, zero_stage, f"zero_{zero_stage}")) for zero_stage in range(4)),
    ]  # fmt: skip
    jobs += [
        {"replay": [str(world.root / name), step, str(world.root / "again" / f"{name}-{step}")]} for name, step in AGAIN
    ]
    jobs.append(job(validated(world, "overshot", lr=1.0, every_steps=1)))
    trainings(world, 2, [job(validated(world, "two")), job(one_step(world, 3, "two_ranks"))])
    (results,) = trainings(world, 1, jobs)
    return results


def one_step(world: World, zero_stage: int, name: str) -> Json:
    recipe = world.recipe(f"one_step_{name}", steps=1, warmup_steps=0)
    return {**recipe, "engine": {**recipe["engine"], "zero_stage": zero_stage}}


@pytest.mark.slow
def test_a_run_that_is_measured_learns_bit_for_bit_the_same(world: World, runs: list[Json]) -> None:
    assert [result["error"] for result in runs[:3]] == [None, None, None]
    assert runs[2]["random"] == runs[0]["random"] != ""
    assert log_of(world, "validated", validation=False) == world.log("plain")
    assert world.weights("validated") == world.weights("plain")
    assert [line["step"] for line in log_of(world, "validated", validation=True)] == [2, 4, 6]


@pytest.mark.slow
def test_a_stopped_run_has_the_same_figures_and_the_same_best(world: World, runs: list[Json]) -> None:
    assert (runs[3]["error"], runs[4]["error"]) == ("Interrupted", None)
    assert f"stopped by SIGTERM: saved at step {EVERY} of 6" in runs[3]["message"]
    assert world.log("stopped") == world.log("validated")
    states = [read_state(committed(world.root / name / "checkpoints")[-1]) for name in ("stopped", "validated")]
    assert states[0].best == states[1].best
    lines = log_of(world, "validated", validation=True)
    assert states[0].best["value"] == min(line["validation/loss"] for line in lines)


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_two_ranks_measure_what_one_does(world: World) -> None:
    """The weights already differ by rounding."""
    one, two = (log_of(world, name, validation=True) for name in ("validated", "two"))
    assert len(one) == 3
    assert all("validation/tone_sensitivity" in line and "validation/second_take" in line for line in one)
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)


def answers(world: World, name: str) -> list[str]:
    """What TensorBoard tells of the clips that are shown at the first validation."""
    events = EventAccumulator(str(world.root / name / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = sorted(tag for tag in events.Tags()["tensors"] if tag.startswith("clip_"))
    return [events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags]


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_two_ranks_answer_the_clips_that_rank_0_chose(world: World) -> None:
    """The other rank is made blind to them."""
    one, two = answers(world, "validated"), answers(world, "two")
    assert len(one) == 4
    assert [text.partition("**model**")[0] for text in one] == [text.partition("**model**")[0] for text in two]


@pytest.mark.slow
def test_patience_ends_a_run_and_it_stays_ended(world: World, runs: list[Json]) -> None:
    assert [result["error"] for result in runs[5:7]] == [None, None]
    assert world.log("early")[-1]["step"] == 3
    assert world.checkpoints("early") == ["step-000001", "step-000003"]  # the best, and the newest
    assert world.weights("early")


@pytest.mark.usefixtures("alone")
@pytest.mark.slow
def test_the_best_checkpoint_is_exported_as_it_was_measured(world: World, runs: list[Json], tmp_path: Path) -> None:
    run = world.root / "overshot"
    figures = {int(line["step"]): line["validation/loss"] for line in log_of(world, "overshot", validation=True)}
    best = min(figures, key=lambda step: figures[step])
    assert best < 6
    export_run(run, tmp_path / "best", step="best")
    export_run(run, tmp_path / "last")
    for name, figure in (("best", figures[best]), ("last", figures[6])):
        assert measured_of(world, load_model(tmp_path / name, CPU)) == pytest.approx(figure, rel=1e-6)
    with pytest.raises(ValueError, match=f"has no checkpoint of step 77; there are those of steps {best}, 6$"):
        export_run(run, tmp_path / "never", step="77")
    assert {path.name for path in tmp_path.iterdir()} >= {"best", "last"}
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_no_step_is_read_after_the_last(world: World) -> None:
    heard = (world.root / "plain" / "heard-1-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in heard] == list(range(6))


@pytest.mark.slow
def test_what_is_learnt_is_not_held_out(runs: list[Json]) -> None:
    assert runs[7]["error"] == "ValueError"
    assert "validation.shards: 7 of its 7 clips are in data.shards too, so they are not held out" in runs[7]["message"]


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("name", ["zero_0", "zero_1", "zero_2", "zero_3", "two_ranks"])
def test_each_groups_gradient_and_update_are_logged(world: World, name: str) -> None:
    (line,) = world.log(f"one_step_{name}")
    groups = STAGE_2.train
    assert sum(line[f"grad_norm/{group}"] ** 2 for group in groups) ** 0.5 == pytest.approx(line["grad_norm"], rel=1e-4)
    torch.manual_seed(1)  # data.seed's default
    parts = SpeechLM.build(TrainRecipe.model_validate(world.recipe("untrained")).model, CPU).parts
    after = load_file(world.root / f"one_step_{name}" / "export" / "model.safetensors")
    for group in groups:
        pairs = [(after[f"{group}.{key}"], value) for key, value in parts[group].state_dict().items()]
        moved = sum(float((new - old).square().sum()) for new, old in pairs)
        weights = sum(float(new.square().sum()) for new, _ in pairs)
        assert line[f"update_ratio/{group}"] == pytest.approx((moved / weights) ** 0.5, rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_the_pace_is_logged_and_adds_up(world: World) -> None:
    for name in ("validated", "two"):
        lines = [json.loads(line) for line in (world.root / name / "log.jsonl").read_text().splitlines()]
        lines = [line for line in lines if "loss" in line]
        ranks = 2 if name == "two" else 1
        for line in lines:
            assert line["pace/audio_h_per_h"] == pytest.approx(ranks * line["pace/audio_h_per_gpu_h"])
            assert 0 < line["pace/data_wait"] < 1
            assert 0 < line["pace/step_s_p50"] <= line["pace/step_s_p95"]
            assert 0.05 < line["pace/memory_gb"] < 16
            assert 0 < line["pace/goodput"] < 1
            assert line["pace/tflops_per_gpu"] > 0
            assert (line["pace/rank_spread"] == 0) == (ranks == 1)
        assert sum(line["pace/validation_s"] > 0 for line in lines) == 2  # the one at the end comes after the last line
        assert len((world.root / name / "launches.jsonl").read_text().splitlines()) == 1
    launches = (world.root / "stopped" / "launches.jsonl").read_text().splitlines()
    assert [json.loads(launch)["step"] for launch in launches] == [0, EVERY]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), AGAIN)
def test_a_past_step_run_again_is_what_was_logged_(world: World, runs: list[Json], name: str, step: int) -> None:
    assert [result["error"] for result in runs[-len(AGAIN) - 1 : -1]] == [None] * len(AGAIN)
    printed = runs[-len(AGAIN) - 1 + AGAIN.index((name, step))]["message"]
    assert not list((world.root / name).rglob("*universal*"))
    out = world.root / "again" / f"{name}-{step}"
    again = json.loads((out / "step.json").read_text())
    logged = [line for line in world.log(name) if line["step"] == step and "loss" in line]
    rounding = 1e-5 if name == "two" else 0.0  # of other sums over ranks
    for line in logged:
        assert again["loss"] == pytest.approx(line["loss"], rel=rounding, abs=0)
        assert again["grad_norm"] == pytest.approx(line["grad_norm"], rel=10 * rounding, abs=0)
    assert printed.splitlines()[-1] == str(out)
    assert f"step {step}, reached from {again['since']}: loss {again['loss']:.6g}" in printed
    assert all(clip["id"][:8] in printed for clip in again["clips"])
    assert len(logged) == (0 if (name, step) == ("plain_3", 5) else 1)
    assert again["grad_norm"] == pytest.approx(world.log("plain")[step - 1]["grad_norm"], rel=10 * rounding, abs=0)
    assert {file for clip in again["clips"] for file in clip["files"]} == {path.name for path in out.glob("*.flac")}
    mean = sum(clip["ce"] * clip["num_tokens"] for clip in again["clips"])
    mean /= sum(clip["num_tokens"] for clip in again["clips"])
    assert mean == pytest.approx(world.log("plain")[step - 1]["ce"])
    shard_set = ShardSet.open(world.shared["data"]["shards"])
    heard = {clip["id"]: decode_flac((out / clip["files"][-1]).read_bytes()) for clip in again["clips"]}
    known = {sample.utterance.id: sample.waveform for sample in shard_set.read_many(range(12))}
    assert all((heard[name] == known[name]).all() for name in heard) and heard


def make(world: World, **section: Any) -> tuple[Validation, Stage]:
    recipe = TrainRecipe.model_validate(validated(world, "unit", **section))
    torch.manual_seed(1)
    model = SpeechLM.build(recipe.model, CPU)
    assert recipe.validation is not None
    held_out, trained = ShardSet.open(*recipe.validation.shards), ShardSet.open(*recipe.data.shards)
    collator = _collator(recipe, model, held_out)
    return Validation(recipe, model, collator, held_out, trained), Stage(model, recipe.stage)


def measured_of(world: World, model: SpeechLM) -> float:
    """Its loss on the held-out clips."""
    validation, _ = make(world)
    return validation(Stage(model, STAGE_2), model, STAGE_2, CPU).scalars["loss"]


def measured_by(world: World, monkeypatch: pytest.MonkeyPatch, num_ranks: int) -> Tensor:
    """The sums that so many ranks make together."""
    parts: list[Tensor] = []
    for module in (shown, tone):
        monkeypatch.setattr(module, "together", lambda action: action())
    monkeypatch.setattr(validate.dist, "get_world_size", lambda: num_ranks)
    monkeypatch.setattr(validate.dist, "all_reduce", lambda sums: parts.append(sums.clone()))
    for rank in range(num_ranks):
        monkeypatch.setattr(validate.dist, "get_rank", lambda rank=rank: rank)
        validation, stage = make(world)
        with torch.no_grad():
            validation.measure(stage, CPU)
    together = torch.stack(parts).sum(0)
    monkeypatch.setattr(validate.dist, "all_reduce", lambda sums: sums.copy_(together))
    with torch.no_grad():
        return validation.measure(stage, CPU)


@pytest.mark.slow
def test_any_number_of_ranks_measures_the_same_to_the_bit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, three = (measured_by(world, monkeypatch, num_ranks) for num_ranks in (1, 2, 3))
    assert one.any()
    assert torch.equal(one, two)
    assert torch.equal(one, three)


@pytest.mark.usefixtures("alone")
def test_the_figures_are_those_of_the_clips_one_by_one(world: World) -> None:
    validation, stage = make(world)
    measured = validation(stage, stage.model, STAGE_2, CPU)
    collator = validation._reader._collator
    tables, emotions = [], []
    assert stage.training and stage.model.training
    stage.eval()
    stage.model.eval()
    for sample in validation.shard_set.read_many(validation.rows.tolist()):
        batch = collator([sample], ["continue_tone"], 1, 1)
        tables.append(stage(batch)[1])
        emotions.append(int(batch.emotion))
    table = torch.cat(tables)
    assert len(table) == 7
    scalars = measured.scalars
    assert scalars["loss"] == pytest.approx(means(STAGE_2, table.sum(0))["loss"], rel=1e-5)
    said = table[:, COLUMNS.index("said_neutral") :].argmax(1).tolist()
    right = [a == b for a, b in zip(said, emotions, strict=True)]
    assert scalars["emotion_accuracy"] == pytest.approx(sum(right) / 7)
    recalls = [sum(r for r, e in zip(right, emotions, strict=True) if e == kind) / emotions.count(kind)
               for kind in set(emotions)]  # fmt: skip
    assert scalars["emotion_ua"] == pytest.approx(sum(recalls) / len(recalls))


@pytest.mark.usefixtures("alone")
def test_the_best_is_the_lowest_loss_or_the_highest_accuracy_of_the_same_clips(world: World) -> None:
    by_loss, by_accuracy = make(world, patience=2)[0], make(world, best="emotion_accuracy")[0]
    first = by_loss.better(None, 1.5, 2)
    assert first == Best(1.5, 2, 0, by_loss.of)
    later = by_loss.better(by_loss.better(first, 1.6, 4), 1.5, 6)
    assert (later.value, later.step, later.waited) == (1.5, 2, 2)
    assert by_loss.out_of_patience(later)
    assert not by_loss.out_of_patience(by_loss.better(later, 1.4, 8))
    assert by_accuracy.better(by_accuracy.better(None, 0.5, 2), 0.6, 4).step == 4
    assert by_accuracy.better(later, 0.1, 8).value == 0.1  # another figure: it starts anew
    for validation in (by_loss, by_accuracy):
        nothing = validation.better(None, float("nan"), 2)
        assert validation.better(nothing, 0.5, 4) == Best(0.5, 4, 0, validation.of)
        assert validation.better(Best(0.5, 4, 0, validation.of), float("nan"), 6) == Best(0.5, 4, 1, validation.of)


def test_the_best_checkpoint_is_named_by_the_newest_that_can_be_read(tmp_path: Path) -> None:
    assert best_of([]) is None
    for step, best in ((2, None), (4, {"step": 2}), (6, {"step": 4})):
        folder = tmp_path / f"step-{step:06d}"
        folder.mkdir()
        state = {"step": step, "plan_hash": "", "world_size": 1, "recipe": {}, "frozen": {}, "best": best}
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "zero").mkdir()
        (folder / "zero" / "weights.pt").write_bytes(b"1")
        write_manifest(folder)
    assert best_of(committed(tmp_path)) == tmp_path / "step-000004"
    (tmp_path / "step-000006" / "state.json").write_text("{")
    assert best_of(committed(tmp_path)) == tmp_path / "step-000002"
    (tmp_path / "step-000006" / "state.json").write_text(json.dumps(state | {"best": {}}))
    assert best_of(committed(tmp_path)) == tmp_path / "step-000002"


def test_a_best_checkpoint_that_could_not_be_written_leaves_the_best_before_protected(tmp_path: Path) -> None:
    for step, best in ((2, 2), (4, 2), (8, 6)):  # that of step 6 is not there
        folder = tmp_path / f"step-{step:06d}"
        (folder / "zero").mkdir(parents=True)
        (folder / "zero" / "weights.pt").write_bytes(b"1")
        (folder / "state.json").write_text(json.dumps(asdict(TrainingState(step, "", 1, {}, {}, best={"step": best}))))
        write_manifest(folder)
    prune(tmp_path, 8, 1)
    assert [path.name for path in committed(tmp_path)] == ["step-000002", "step-000008"]


def test_sums_become_means_by_corpus_and_a_confusion_matrix() -> None:
    table = torch.zeros(3, len(COLUMNS), dtype=torch.float64)
    columns = {
        "ce_sum": (2, 3, 8), "num_rows": (1, 3, 2), "num_labelled": (1, 1, 1), "num_correct": (1, 0, 1),
        "emotion_sum": (0.5, 1, 1.5), "said_sad": (1, 1, 0),
    }  # fmt: skip
    for name, values in columns.items():
        table[:, COLUMNS.index(name)] = torch.tensor(values, dtype=torch.float64)
    sums = grouped(table, [0, 0, 2], 3)
    assert means(STAGE_2, sums[0])["loss"] == pytest.approx(5 / 4 + 0.5 * 1.5 / 2)
    by_corpus = means_by_corpus(STAGE_2, sums, ["a", "b", "c"])
    assert {key.split("/")[1] for key in by_corpus} == {"a", "c"}
    assert by_corpus["ce/c"] == 4
    assert by_corpus["emotion_accuracy/a"] == 0.5
    assert means_by_corpus(STAGE_2, sums[:1], ["a"]) == {}
    assert confusion(sums)[0] == [0, 0, 0, 2, 0]
