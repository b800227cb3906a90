"""Recipe files: what is read, where they are found, and that every error names its line and its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blsp.recipe import KINDS, EvalRecipe, QFormerSection, Recipe, ShardRecipe, TrainRecipe
from launcher.recipe_files import find, load, load_kind, shipped_recipes
from launcher.recipe_yaml import RecipeError, to_yaml
from shards.batches.plan import Plan
from shards.batches.sizes import Caps, Sizes
from tests.fuzzing import fuzz

GOOD = """\
kind: train
run: runs/stage1
model:
  llm: some/llm
  encoder: some/whisper
stage:
  train: [adapter]
  losses: {kl: 1}
  prompts: {continue: 1}
data:
  shards: shards/asr
  clips_per_step: 768
optim:
  lr: {adapter: 1e-4}
  warmup_steps: 1000
  epochs: 1
engine:
  checkpoint_every_steps: 200
"""
EVAL = """\
kind: eval
manifest: test.jsonl
out: out
llm: llm
systems:
  - {name: text, type: text, llm: llm}
  - name: ours
    type: speech
    run: runs/stage1
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, "utf-8")
    return path


def train_recipe(path: Path, *overrides: str) -> TrainRecipe:
    return load_kind(TrainRecipe, path, overrides)


def errors(path: Path, text: str, *overrides: str) -> list[str]:
    """The lines that `load` refuses `text` with, without the folder."""
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as refused:
        load(path, overrides)
    return str(refused.value).replace(f"{path}:", "recipe.yaml:").split("\n")


# Shipped recipes


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_says_what_it_does_and_reads_back(path: Path, tmp_path: Path) -> None:
    recipe = load(path.stem)
    assert path.read_text("utf-8").startswith("# ")
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(recipe.model_dump(mode="json")), "utf-8")
    assert load(copy) == recipe


def test_the_authors_recipes_hold_the_papers_numbers() -> None:
    stage1, stage2 = load_kind(TrainRecipe, "authors_stage1"), load_kind(TrainRecipe, "authors_stage2")
    assert (stage1.model.llm, stage1.model.encoder) == ("imported/blsp-emo/llm", "openai/whisper-large-v2")
    assert (stage1.data.clips_per_step, stage2.data.clips_per_step) == (768, 128)
    assert (stage1.optim.lr, set(stage2.optim.lr.values())) == ({"adapter": 1e-4}, {2e-5})
    assert (stage1.optim.warmup_steps, stage2.optim.warmup_steps) == (1000, 200)
    assert (stage1.optim.epochs, stage2.optim.epochs) == (1, 3)
    assert (stage1.stage.kl_temperature, stage1.model.audio_window, stage2.model.audio_window) == (2, "30s", "30s")
    assert stage2.model.lora is not None
    assert (stage2.model.lora.rank, stage2.model.lora.alpha, stage2.model.lora.dropout) == (16, 16, 0.05)


@pytest.mark.parametrize("stage2", ["mini_stage2", "mini_multitask", "authors_stage2"])
def test_a_second_stage_fits_its_first(stage2: str) -> None:
    after = load_kind(TrainRecipe, stage2)
    before = load_kind(TrainRecipe, "authors_stage1" if stage2.startswith("authors") else "mini_stage1")
    assert after.model.init == before.run
    for field in ("llm", "encoder", "revision", "audio_window", "dtype", "adapter"):
        assert getattr(after.model, field) == getattr(before.model, field)


def test_the_miniature_differs_only_where_it_says_so() -> None:
    stage2 = load_kind(TrainRecipe, "mini_stage2")
    multitask, no_stage1 = load_kind(TrainRecipe, "mini_multitask"), load_kind(TrainRecipe, "mini_no_stage1")
    assert multitask.stage.prompts == {"continue_tone": 2, "identify": 1}
    assert stage2.data.replay is not None
    data = stage2.data.model_copy(update={"replay": None})  # the ablations are the paper's, without replay
    stage2 = stage2.model_copy(update={"data": data})
    assert multitask.model_copy(update={"run": stage2.run, "stage": stage2.stage}) == stage2
    started = no_stage1.model.model_copy(update={"init": stage2.model.init})
    assert no_stage1.model.init is None
    assert no_stage1.model_copy(update={"run": stage2.run, "model": started}) == stage2


TAIL = "whisper-large-v2_qwen2.5-7b"
ABLATIONS: dict[str, dict[str, Any]] = {
    "ser": {
        "stage.train": ("adapter", "encoder", "lora"), "stage.losses": {"ce": 1}, "stage.prompts": {"identify": 1},
        "optim.lr": dict.fromkeys(("adapter", "encoder", "lora"), 2e-5), "validation.best": "loss",
    },
    "chatgpt": {"data.shards": "shards/ser_chatgpt"},
    "multitask": {"stage.prompts": {"continue_tone": 2, "identify": 1}},
    "no_stage1": {"model.init": None},
    "no_emotion_loss": {
        "stage.train": ("adapter", "encoder", "lora"), "stage.losses": {"ce": 1},
        "optim.lr": dict.fromkeys(("adapter", "encoder", "lora"), 2e-5), "validation.best": "loss",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_differs_from_stage_2_only_where_it_says_so(name: str) -> None:
    stage2 = load_kind(TrainRecipe, f"stage2_{TAIL}").model_dump(mode="json")
    expected = {**stage2, "run": f"runs/{name}"}
    for place, value in ABLATIONS[name].items():
        section, field = place.split(".")
        expected[section] = {**expected[section], field: value}
    assert load_kind(TrainRecipe, f"{name}_{TAIL}") == TrainRecipe.model_validate(expected)


@pytest.mark.parametrize("name", ["stage1", "stage2", *ABLATIONS])
def test_a_recipe_of_the_full_size_is_measured_on_the_held_out_set_of_its_own(name: str) -> None:
    recipe = load_kind(TrainRecipe, f"{name}_{TAIL}")
    assert recipe.validation is not None
    assert recipe.validation.shards == (f"{recipe.data.shards[0].removesuffix('_chatgpt')}_dev",)


# Reading


def test_numbers_and_words_are_read_as_they_look(recipe_file: Path) -> None:
    recipe_file.write_text(GOOD.replace("some/llm", "no").replace("run: runs/stage1", "run: 2026-11-22"), "utf-8")
    recipe = train_recipe(recipe_file, "optim.weight_decay=.5", "optim.lr={adapter: 1E+1}", "model.revision=1:30")
    assert (recipe.model.llm, recipe.run, recipe.model.revision) == ("no", Path("2026-11-22"), "1:30")
    assert (recipe.optim.weight_decay, recipe.optim.lr) == (0.5, {"adapter": 10.0})


def test_overrides_replace_add_and_reach_into_lists(recipe_file: Path) -> None:
    recipe = train_recipe(
        recipe_file, "data.seed=7", "model.adapter.bottleneck=64", "optim.epochs=", "optim.steps=2000"
    )
    assert (recipe.data.seed, recipe.model.adapter.bottleneck) == (7, 64)
    assert (recipe.optim.epochs, recipe.optim.steps) == (None, 2000)
    recipe_file.write_text(EVAL, "utf-8")
    evaluation = load_kind(EvalRecipe, recipe_file, ["systems.1.run=runs/other"])
    assert evaluation.systems[1].model_dump()["run"] == Path("runs/other")


def test_a_value_may_hold_equals_signs_and_dots(recipe_file: Path) -> None:
    assert train_recipe(recipe_file, "model.llm=/a/b.c=d").model.llm == "/a/b.c=d"


@pytest.mark.parametrize("name", ["1e4", "0E0", "no", "1:30", "0x1", "2026-11-22", "~", ".5", "null"])
def test_a_text_that_looks_like_something_else_is_written_so_that_it_reads_back(recipe_file: Path, name: str) -> None:
    recipe = train_recipe(recipe_file, f"model.llm='{name}'")
    recipe_file.write_text(to_yaml(recipe.model_dump(mode="json")), "utf-8")
    assert train_recipe(recipe_file) == recipe and recipe.model.llm == name


# Finding


def test_a_file_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("mini_stage1") == find("mini_stage1.yaml")
    Path("mini_stage1.yaml").write_text(GOOD, "utf-8")
    assert find("mini_stage1.yaml") == Path("mini_stage1.yaml")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'mini_stag1'; the nearest is 'mini_stage1'"):
        find("mini_stag1")


def test_another_kind_is_refused_with_its_command(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match="a recipe for `blsp train`, not for `blsp shard`"):
        load_kind(ShardRecipe, recipe_file)


# Errors


def test_all_errors_come_at_once_each_with_its_line(recipe_file: Path) -> None:
    text = GOOD.replace("encoder:", "encodr:").replace("[adapter]", "[adaptor]").replace("epochs: 1", "epochs: one")
    lines = errors(recipe_file, text.replace("clips_per_step: 768", "zero_stage: 2"), "engine.keep_checkpoints=0")
    assert sorted(lines) == sorted(
        [
            "recipe.yaml:5: model.encodr: unknown key (nearest: encoder)",
            "recipe.yaml:3: model.encoder: is missing: the Whisper, WavLM or HuBERT whose encoder "
            "hears: a folder or a hub id",
            "recipe.yaml:7: stage.train.0: 'adaptor' is not one of adapter, encoder, encoder_lora, lora, "
            "classifier (nearest: adapter)",
            "recipe.yaml:12: data.zero_stage: unknown key here; it belongs at engine.zero_stage",
            "recipe.yaml:10: data.clips_per_step: is missing: clips per optimizer step, as an expectation",
            "recipe.yaml:16: optim.epochs: should be a valid integer, got 'one'",
            "override 'engine.keep_checkpoints=0': engine.keep_checkpoints: should be greater than 0, got 0",
        ]
    )


def test_a_contradiction_is_placed_where_the_remedy_goes(recipe_file: Path) -> None:
    lines = errors(recipe_file, GOOD, "stage.train=[adapter, lora]")
    assert lines == [
        "recipe.yaml:14: optim.lr: has no rate for 'lora', which stage.train names; add optim.lr.lora",
        "recipe.yaml:3: model.lora: stage.train names lora; add the section model.lora (rank, alpha) or remove it "
        "there",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the recipe is empty; `blsp ls` lists recipes to copy"),
        ("# nothing\n", "the recipe is empty; `blsp ls` lists recipes to copy"),
        ("- a\n- b\n", "1: a recipe is a mapping of sections, not list"),
        ("run: x\n", "1: kind: is missing; expected one of train, shard, eval"),
        ("run: x\nkind: [train]\n", "2: kind: is ['train']; expected one of train, shard, eval"),
        ("kind: train\nrun: [x\n", "3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("kind: &a train\nrun: *a\n", "2: not valid YAML: aliases (*name) are not used in recipes"),
        ("kind: !!python/name:os.system x\n", "1: kind: 'x' cannot be read as tag:yaml.org,2002:python/name:os.system"),
    ],
)
def test_a_file_that_is_no_recipe(recipe_file: Path, text: str, line: str) -> None:
    assert errors(recipe_file, text)[0].removeprefix("recipe.yaml:").strip().endswith(line)


def test_a_file_that_is_not_text(recipe_file: Path) -> None:
    recipe_file.write_bytes(b"kind: \xff\xfe")
    with pytest.raises(RecipeError, match="not a text file in UTF-8"):
        load(recipe_file)


def test_a_key_given_twice_is_refused(recipe_file: Path) -> None:
    lines = errors(recipe_file, GOOD + "run: runs/other\n")
    assert lines == ["recipe.yaml:19: run: appears twice; keep one"]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("data.seed", "expected section.field=value"),
        ("data..seed=1", "expected section.field=value"),
        ("run.x=1", "run is 'runs/stage1', which has no fields"),
        ("stage.train.5=lora", "stage.train is a list of 1; say which, from 0 to 0"),
        ("data.seed=[1", "the value is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("dta.seed=1", "dta: unknown key (nearest: data)"),
        (f"data.seed={2**63}", f"data.seed: should be less than or equal to {2**63 - 1}, got {2**63}"),
        ("model.lora={rank: 1, rank: 2}", "model.lora.rank: appears twice; keep one"),
    ],
)
def test_an_error_in_an_override_is_reported_under_its_text(recipe_file: Path, override: str, complaint: str) -> None:
    assert errors(recipe_file, GOOD, override)[0] == f"override {override!r}: {complaint}"


SHARD = """\
kind: shard
manifests: [m.jsonl]
out: s3://bucket/sets/one
writer: {llm: some/llm, prompt: continue}
"""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("writer.backend=vlm", "writer: 'vlm' is not one of auto, transformers, vllm, openai (nearest: vllm)"),
        ("writer.backend=openai", "writer.cache: what an endpoint has answered is paid for"),
        ("writer.batch=3", "writer.batch: unknown key (nearest: batch_size)"),
    ],
)
def test_errors_in_a_writer_of_one_of_four_forms(recipe_file: Path, change: str, complaint: str) -> None:
    (*_, line) = errors(recipe_file, SHARD, change)
    assert complaint in line


def test_a_key_in_place_of_its_variable_is_not_printed(recipe_file: Path) -> None:
    made = SHARD.replace("llm: some/llm", "llm: gpt, backend: openai, cache: c, key: sk-sekret")
    (*_, line) = errors(recipe_file, made)
    assert "writer.key" in line and "sekret" not in line
    made = SHARD.replace("llm: some/llm", "llm: gpt, backend: openai, cache: c, url: 'https://me:sekret@h/v1'")
    (*_, line) = errors(recipe_file, made)
    assert "writer.url" in line and "sekret" not in line


def test_a_shard_set_can_be_made_in_a_bucket(recipe_file: Path) -> None:
    recipe_file.write_text(SHARD, "utf-8")
    assert load_kind(ShardRecipe, recipe_file).out == "s3://bucket/sets/one"
    overlay = load_kind(ShardRecipe, recipe_file, ["manifests=[]", "base=s3://bucket/a", "out=here/b"])
    assert (overlay.base, overlay.out) == ("s3://bucket/a", "here/b")


@pytest.mark.parametrize("field", ["out", "base", "outt", "manifests", "cpu_actors", "out.x"])
@pytest.mark.parametrize("url", ["s3://AKIA:sec/ret@bucket/x", "s3://bucket/x?X-Amz-Security-Token=sec/ret"])
def test_keys_in_an_address_are_refused_and_not_printed(recipe_file: Path, field: str, url: str) -> None:
    (*_, line) = errors(recipe_file, SHARD, f"{field}={url}")
    assert line.startswith("override ")
    (*_, in_file) = errors(recipe_file, SHARD + f"{field.replace('out.x', 'base')}: {url}\n")
    assert not any(secret in text for secret in ("AKIA", "sec/ret") for text in (line, in_file))


@pytest.mark.parametrize(
    ("adapter", "complaint"),
    [
        ("{type: conf}", "model.adapter: 'conf' is not one of conv, stack_mlp, qformer (nearest: conv)"),
        ("{type: qformer, stack: 8}", "model.adapter.stack: unknown key"),
        ("{stack: 8}", "model.adapter.stack: unknown key"),
        ("{type: qformer, heads: 5}", "model.adapter.heads: 5 heads cannot share a width of 768"),
        ("{kernels: [4]}", "model.adapter.kernels: [4] must all be odd"),
        ("null", "model.adapter: "),
        ("[1]", "model.adapter: "),
    ],
)
def test_an_adapter_is_checked_by_its_type(recipe_file: Path, adapter: str, complaint: str) -> None:
    text = GOOD.replace("model:\n", f"model:\n  adapter: {adapter}\n")
    (line,) = errors(recipe_file, text)
    assert line.startswith(f"recipe.yaml:4: {complaint}")


def test_an_adapter_is_one_override_away(recipe_file: Path) -> None:
    recipe_file.write_text(GOOD, "utf-8")
    assert train_recipe(recipe_file, "model.adapter.type=qformer").model.adapter == QFormerSection()


def test_systems_of_an_evaluation_are_checked_one_by_one(recipe_file: Path) -> None:
    text = EVAL.replace("type: text", "type: txt").replace("run:", "rnu:")
    assert errors(recipe_file, text) == [
        "recipe.yaml:6: systems.0: 'txt' is not one of text, cascade, linear, speech (nearest: text)",
        "recipe.yaml:7: systems.1.run: is missing",
        "recipe.yaml:9: systems.1.rnu: unknown key (nearest: run)",
    ]


@fuzz
@given(text=st.text(), overrides=st.lists(st.text(), max_size=2))
def test_no_text_brings_anything_but_recipe_errors(recipe_file: Path, text: str, overrides: list[str]) -> None:
    recipe_file.write_text(text, "utf-8", errors="replace")
    with pytest.raises(RecipeError):
        load(recipe_file, overrides)


@fuzz
@given(override=st.from_regex(r"(kind|run|model\.(llm|lora|init)|stage(\.train)?|data|optim\.lr)=.*", fullmatch=True))
def test_any_override_of_a_good_recipe_is_applied_or_refused(recipe_file: Path, override: str) -> None:
    recipe_file.write_text(GOOD, "utf-8")
    try:
        recipe: Recipe = load(recipe_file, [override])
    except RecipeError as error:
        assert str(error)
    else:
        assert type(recipe) in KINDS.values()


@pytest.mark.parametrize(
    "path", [p for p in shipped_recipes() if "whisper-large" in p.stem or "authors" in p.stem], ids=str
)
def test_caps_of_shipped_recipes_leave_room_for_speech_as_it_is(path: Path) -> None:
    data = load_kind(TrainRecipe, path).data
    random = np.random.default_rng(0)
    seconds = np.clip(16.5 - random.gamma(1.3, 3.6, 20_000), 1, 30)  # as LibriSpeech's; emotion corpora's are shorter
    responses = random.integers(15, 50, len(seconds))
    tokens = 60 + np.ceil(6.25 * seconds).astype(np.int64) + responses
    sizes = Sizes(np.full(len(seconds), 30 * 16000), tokens, tokens, responses)
    caps = Caps(**data.caps.model_dump())
    assert caps.audio_s
    Plan(
        sizes, dataset_id="", seed=1, clips_per_step=data.clips_per_step, micro_batches=data.micro_batches, caps=caps
    ).check(2)  # fmt: skip
