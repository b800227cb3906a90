"""Every contradiction that a recipe can hold is refused at the field that must change."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from blsp.data_section import CostSection
from blsp.recipe import EvalRecipe, ShardRecipe, TrainRecipe
from blsp.section import Location
from shards.batches.sizes import CostWeights

STAGE1: dict[str, Any] = {
    "kind": "train",
    "run": "runs/stage1",
    "model": {"llm": "llm", "encoder": "whisper"},
    "stage": {"train": ["adapter"], "losses": {"kl": 1}, "prompts": {"continue": 1}},
    "data": {"shards": "shards/asr", "clips_per_step": 768},
    "optim": {"lr": {"adapter": 1e-4}, "warmup_steps": 1000, "epochs": 1},
    "engine": {"checkpoint_every_steps": 200},
}
STAGE2: dict[str, Any] = {
    **STAGE1,
    "run": "runs/stage2",
    "model": {"llm": "llm", "encoder": "whisper", "lora": {}, "init": "runs/stage1"},
    "stage": {
        "train": ["adapter", "encoder", "lora", "classifier"],
        "losses": {"ce": 1, "emotion": 1},
        "prompts": {"continue_tone": 2, "identify": 1},
    },
    "optim": {
        "lr": {"adapter": 2e-5, "encoder": 2e-5, "lora": 2e-5, "classifier": 2e-5},
        "warmup_steps": 200,
        "epochs": 3,
    },
}
REPLAY = {"shards": "shards/asr", "share": 0.2}
REMOVED = object()


def changed(recipe: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    recipe = copy.deepcopy(recipe)
    *sections, field = place.split(".")
    inner = recipe
    for section in sections:
        inner = inner[section]
    inner.pop(field, None)
    if value is not REMOVED:
        inner[field] = value
    return recipe


def complaints(recipe: dict[str, Any]) -> list[tuple[str, str]]:
    """(dotted place, what) of everything that is wrong with a train recipe."""
    with pytest.raises(ValidationError) as refused:
        TrainRecipe.model_validate(recipe)
    found = []
    for error in refused.value.errors():
        for where, what in error.get("ctx", {}).get("problems", [((), error["msg"])]):
            found.append((".".join(map(str, (*error["loc"], *where))), what))
    return found


def test_the_two_stages_are_valid_and_defaults_are_the_papers() -> None:
    stage1 = TrainRecipe.model_validate(STAGE1)
    assert stage1.stage.kl_temperature == 2
    assert stage1.optim.weight_decay == 0.05
    assert stage1.optim.clip_norm == 1
    assert stage1.engine.zero_stage == 3
    lora = TrainRecipe.model_validate(STAGE2).model.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout, lora.scope) == (16, 16, 0.05, "speech")
    assert "gate_proj" in lora.targets


@pytest.mark.parametrize("recipe", [STAGE1, STAGE2], ids=["stage1", "stage2"])
def test_the_resolved_recipe_reads_back_equal(recipe: dict[str, Any]) -> None:
    resolved = TrainRecipe.model_validate(recipe)
    assert TrainRecipe.model_validate(json.loads(resolved.model_dump_json())) == resolved


@pytest.mark.parametrize(
    ("base", "place", "value", "complaint", "remedy"),
    [
        (STAGE1, "optim.lr", {}, "optim.lr", "add optim.lr.adapter"),
        (STAGE1, "optim.lr.encoder", 1e-5, "optim.lr.encoder", "remove the rate"),
        (STAGE1, "optim.steps", 2000, "optim.epochs", "exactly one"),
        (STAGE1, "optim.epochs", REMOVED, "optim.epochs", "exactly one"),
        (STAGE1, "stage.losses.emotion", 1, "stage.losses.emotion", "add 'classifier'"),
        (STAGE1, "stage.train", ["adapter", "adapter"], "stage.train", "once"),
        (STAGE1, "stage.prompts", {"continue_tone": 1}, "stage.losses.kl", "use ce"),
        (STAGE1, "stage.prompts", {"chat": 1}, "stage.losses.kl", "use ce"),
        (STAGE2, "stage.teacher", "cached", "stage.teacher", "add it to stage.losses, or remove teacher"),
        (changed(STAGE1, "stage.teacher", "cached"), "stage.kl_shift", "authors", "stage.kl_shift", "use 'next'"),
        (STAGE1, "model.lora", {}, "model.lora", "nothing trains it"),
        (STAGE1, "model.init", "runs/stage1", "model.init", "earlier stage"),
        (STAGE1, "engine.gradient_checkpointing", ["encoder"], "engine.gradient_checkpointing", "remove 'encoder'"),
        (STAGE1, "engine.deepspeed", {"fp16": {"enabled": True}}, "engine.deepspeed.fp16", "model.dtype"),
        (STAGE1, "engine.deepspeed", {"zero_optimization": {"stage": 1}},
         "engine.deepspeed.zero_optimization.stage", "engine.zero_stage"),
        (STAGE1, "optim.betas", [0.9, 1.5], "optim.betas", "below 1"),
        (STAGE1, "model.adapter", {"kernels": [5, 4]}, "model.adapter.conv.kernels", "must all be odd"),
        (STAGE1, "model.adapter", {"type": "qformer", "heads": 5}, "model.adapter.qformer.heads", "a multiple"),
        (STAGE1, "data.augment", {"noise_snr_db": [20, 10]}, "data.augment.noise_snr_db", "swap them"),
        (STAGE2, "model.lora", None, "model.lora", "add the section model.lora"),
        (STAGE2, "model.encoder_lora", {"rank": 4}, "stage.train", "take 'encoder' out"),
        (STAGE1, "data.replay", REPLAY, "data.replay", "weigh them by data.mixture"),
        (STAGE2, "stage.losses", {"ce": 1}, "stage.train", "stage.losses.emotion"),
        (STAGE2, "stage.losses", {"emotion": 1}, "stage.train", "add the loss kl or ce"),
    ],
)  # fmt: skip
def test_a_contradiction_names_its_field_and_the_remedy(
    base: dict[str, Any], place: str, value: Any, complaint: str, remedy: str
) -> None:
    [(where, what)] = complaints(changed(base, place, value))
    assert where == complaint
    assert remedy in what


@pytest.mark.parametrize(
    "stage",
    [
        {"train": ["adapter", "classifier"], "losses": {"emotion": 1}, "prompts": {"continue_tone": 1}},
        {"train": ["adapter", "lora"], "losses": {"kl": 1, "ce": 1}, "prompts": {"reply": 1}},
    ],
)
def test_what_is_replayed_is_learnt_by_ce_alone(stage: dict[str, Any]) -> None:
    recipe = changed(STAGE2, "data.replay", REPLAY)
    assert TrainRecipe.model_validate(recipe).data.replay is not None
    recipe = changed(changed(recipe, "stage", stage), "optim.lr", dict.fromkeys(stage["train"], 1e-3))
    [(where, what)] = complaints(recipe)
    assert (where, "replayed by the loss ce alone" in what) == ("data.replay", True)


def test_one_shard_set_is_a_list_of_one() -> None:
    for given in ("shards/asr", ["shards/asr"]):
        assert TrainRecipe.model_validate(changed(STAGE1, "data.shards", given)).data.shards == ("shards/asr",)


def test_costs_without_a_word_are_those_of_the_plan() -> None:
    assert CostSection().model_dump() == asdict(CostWeights())


def test_warmup_longer_than_the_run_is_refused() -> None:
    recipe = changed(changed(STAGE1, "optim.epochs", REMOVED), "optim.steps", 1000)
    assert complaints(recipe) == [
        ("optim.warmup_steps", "1000 is not below optim.steps = 1000; warm up for fewer steps")
    ]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("run", 3),
        ("data.clips_per_step", "768"),
        ("data.clips_per_step", float("nan")),
        ("data.micro_batches", 0),
        ("data.shards", []),
        ("data.shards", [""]),
        ("data.shards", 3),
        ("data.caps", {"audio_s": 0}),
        ("data.caps", {"tokens": 0.5}),
        ("data.cost", {"token": 0}),
        ("data.mixture", {"emodb": -1}),
        ("data.replay", {"shards": "shards/asr", "share": 1}),
        ("data.replay", {"shards": [], "share": 0.2}),
        ("data.augment", {"telephone": 1.5}),
        ("data.augment", {"gain_db": -3}),
        ("data.augment", {"noise_snr_db": [10]}),
        ("data.micro_batches", True),
        ("model.audio_window", "31s"),
        ("model.audio_window", "tail:"),
        ("model.audio_window", "30s\n"),
        ("model.llm", ""),
        ("stage.train", []),
        ("stage.losses", {}),
        ("stage.losses.kl", 0),
        ("engine.zero_stage", 4),
        ("optim.nesterov", True),
    ],
)
def test_values_of_the_wrong_type_or_range_are_refused(place: str, value: Any) -> None:
    (where, _), *_ = complaints(changed(STAGE1, place, value))
    assert where.startswith(place)


@pytest.mark.parametrize("window", ["30s", "exact", "tail:2", "tail:0.5"])
def test_audio_windows(window: str) -> None:
    recipe = TrainRecipe.model_validate(changed(STAGE1, "model.audio_window", window))
    assert recipe.model.audio_window == window


def test_a_recipe_cannot_be_changed() -> None:
    recipe = TrainRecipe.model_validate(STAGE1)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.run = Path("elsewhere")  # type: ignore[misc]


def test_shard_recipe_needs_a_manifest() -> None:
    writer = {"llm": "llm", "prompt": "continue"}
    recipe = {"kind": "shard", "manifests": ["a.jsonl"], "out": "shards", "writer": writer}
    assert ShardRecipe.model_validate(recipe).manifests == (Path("a.jsonl"),)
    with pytest.raises(ValidationError, match="name at least one manifest, or a shard set as base"):
        ShardRecipe.model_validate({**recipe, "manifests": []})
    with pytest.raises(ValidationError, match="from manifests or from a base; remove one"):
        ShardRecipe.model_validate({**recipe, "base": "shards"})
    assert ShardRecipe.model_validate({**recipe, "manifests": [], "base": "a"}).manifests == ()
    with pytest.raises(ValidationError, match="prompt"):
        ShardRecipe.model_validate({**recipe, "writer": {**writer, "prompt": "continue_tone"}})
    with pytest.raises(ValidationError, match=r"\[2.0\] must hold 1, at which training logs its loss; add it"):
        ShardRecipe.model_validate({**recipe, "writer": {**writer, "teacher": {"temperatures": [2.0]}}})


@pytest.mark.parametrize(
    ("writer", "complaint"),
    [
        ({"backend": "mlx"}, "mlx"),
        ({"backend": "vllm", "teacher": {}}, "no log-partition at other temperatures"),
        ({"backend": "openai", "teacher": {}}, "teacher"),
        ({"backend": "openai", "batch_size": 8}, "batch_size"),
        ({"url": "https://x/v1"}, "url"),
        ({"backend": "openai", "url": "ftp://x"}, "http"),
        ({"backend": "openai", "url": "https://me:sekret@x/v1"}, "without a user, a key or a query"),
        ({"backend": "openai", "url": "http://far.example/v1"}, "in the clear"),
        ({"backend": "openai", "key": "sk-sekret"}, "never the key itself"),
        ({"backend": "openai", "max_dollars": 5.0, "dollars_per_million_read": 1.0}, "cannot be kept without prices"),
    ],
)
def test_a_writer_that_cannot_be_is_refused(writer: dict[str, object], complaint: str) -> None:
    recipe = {"kind": "shard", "manifests": ["a.jsonl"], "out": "shards"}
    base = {"llm": "llm", "prompt": "continue"}
    with pytest.raises(ValidationError, match=complaint):
        ShardRecipe.model_validate({**recipe, "writer": {**base, **writer}})


def test_what_an_endpoint_has_answered_is_never_lost_for_want_of_a_folder() -> None:
    writer = {"llm": "gpt", "prompt": "continue", "backend": "openai"}
    recipe = {"kind": "shard", "manifests": ["a.jsonl"], "out": "s3://bucket/set", "writer": writer}
    with pytest.raises(ValidationError, match="paid for: name a folder"):
        ShardRecipe.model_validate(recipe)
    ShardRecipe.model_validate({**recipe, "writer": {**writer, "cache": "cache"}})
    with pytest.raises(ValidationError, match="one process asks an endpoint"):
        ShardRecipe.model_validate({**recipe, "out": "here", "llm_actors": 2})


def test_systems_of_an_evaluation_are_told_apart_by_type_and_name() -> None:
    systems = [{"type": "text", "name": "a", "llm": "llm"}, {"type": "speech", "name": "b", "run": "runs/x"}]
    recipe = {"kind": "eval", "manifest": "m.jsonl", "out": "out", "llm": "llm", "systems": systems}
    assert [system.type for system in EvalRecipe.model_validate(recipe).systems] == ["text", "speech"]
    with pytest.raises(ValidationError, match="two systems are named 'a'"):
        EvalRecipe.model_validate({**recipe, "systems": [systems[0], systems[0]]})


@pytest.mark.parametrize("root", ["shards/one", "/data/shards", "s3://bucket/sets/one"])
def test_a_location_is_a_folder_or_a_bucket_and_stays_text(root: str) -> None:
    assert TypeAdapter(Location).validate_python(root) == root


@pytest.mark.parametrize(
    "root", ["s3://key:made-up-secret@bucket/x", "s3://b/x?made-up-secret", "gs://made-up-secret/x"]
)
def test_a_location_that_may_hold_a_secret_is_refused_without_repeating_it(root: str) -> None:
    with pytest.raises(ValidationError) as error:
        TypeAdapter(Location).validate_python(root)
    (detail,) = error.value.errors()
    assert (detail["type"], "s3://bucket/prefix" in detail["msg"]) == ("location", True)
    assert "made-up-secret" not in detail["msg"]


def test_a_least_gain_needs_a_writer_that_measures_it() -> None:
    writer = {"llm": "a", "prompt": "continue_emotion"}
    recipe = {"kind": "shard", "manifests": ["a.jsonl"], "out": "b", "writer": writer, "filters": {"min_gain": 0.05}}
    assert ShardRecipe.model_validate(recipe).filters.min_gain == 0.05
    for change in ({"prompt": "continue"}, {"gain": False}, {"backend": "openai"}):
        with pytest.raises(ValidationError, match="no gain is measured here"):
            ShardRecipe.model_validate({**recipe, "writer": {**writer, **change}})
