"""Training on what the shards hold of the text LLM's predictions, beside training with the LLM reading along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from blsp.model import SpeechLM
from blsp.recipe import StageSection
from shards.batches.collate import Collator
from shards.sets.cached_teacher import cached_teacher
from shards.sets.shard_set import ShardSet
from shards.sets.teacher import TeacherSpec
from tests.blsp.test_engine import World, job, trainings
from tests.blsp.tiny import CPU, LORA, STAGE_1, make_encoder, make_loud_llm, make_shards, model_section

pytestmark = pytest.mark.slow

TEMPERATURES = (1.0, 2.0)
CACHED = StageSection.model_validate({**STAGE_1.model_dump(mode="json"), "teacher": "cached"})
SETS = {"all": 512, "some": 32}  # of a vocabulary of 500
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "live": ("all", {}),
    "cached_all": ("all", {"teacher": "cached"}),
    "cached_some": ("some", {"teacher": "cached"}),
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "temperature": ("all", {"kl_temperature": 3.0}, "at the temperatures 1, 2, and stage.kl_temperature is 3"),
    "no_teacher": ("plain", {}, "does not hold what the LLM predicts; write it with writer.teacher"),
    "prompt": ("toned", {}, "were written under 'continue_emotion' and train 'continue_tone', not 'continue'"),
}


def make_peaked_llm(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """One that is mostly sure of what comes next, at temperature 2 too."""
    llm = Qwen2ForCausalLM.from_pretrained(make_loud_llm(tokenizer, folder))
    llm.lm_head.weight.data *= 12
    llm.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def world(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("cached")
    llm = make_peaked_llm(tokenizer, root / "llm")
    for name, top_k in SETS.items():
        make_shards(root / name, "continue", 12, llm=llm, teacher=TeacherSpec(top_k, TEMPERATURES))
    make_shards(root / "toned", "continue_emotion", 6, llm=llm, teacher=TeacherSpec(4, TEMPERATURES))
    make_shards(root / "plain", "continue", 6)
    section = model_section(llm, make_encoder(root / "encoder"))
    return World(root, {
        "kind": "train", "model": section.model_dump(mode="json"), "data": {"clips_per_step": 6, "micro_batches": 3},
        "optim": {"lr": {"adapter": 1e-3}, "warmup_steps": 1, "steps": 4},
        "engine": {"checkpoint_every_steps": 4, "log_every_steps": 1},
    })  # fmt: skip


@pytest.fixture(scope="module")
def results(world: World) -> dict[str, dict[str, Any]]:
    """All trainings, in one process."""
    jobs = {}
    for name, (shards, changes, *_) in {**RUNS, **REFUSED}.items():
        stage = {**STAGE_1.model_dump(mode="json"), **({"teacher": "cached"} if name in REFUSED else {}), **changes}
        data = {**world.shared["data"], "shards": str(world.root / shards / "shards")}
        jobs[name] = job({**world.recipe(name), "stage": stage, "data": data})
    (done,) = trainings(world, 1, list(jobs.values()))
    return dict(zip(jobs, done, strict=True))


def test_a_training_is_the_live_one_to_the_rounding_of_what_is_kept(world: World, results: dict[str, Any]) -> None:
    assert all(results[name]["error"] is None for name in RUNS), results
    live, cached = world.log("live"), world.log("cached_all")
    assert len(live) == len(cached) == 4 and live[0].keys() == cached[0].keys()
    for before, after in zip(live, cached, strict=True):
        assert before == pytest.approx(after, rel=2e-3)
    assert live[-1]["kl"] < live[0]["kl"]


def test_with_fewer_tokens_it_learns_the_same_and_logs_a_little_less(world: World, results: dict[str, Any]) -> None:
    assert results["cached_some"]["error"] is None
    for before, after in zip(world.log("live"), world.log("cached_some"), strict=True):
        for name in ("kl", "kl_t1"):
            missing = 1 - after[name] / before[name]
            print(f"step {before['step']:.0f}: {missing:.5f} of {name} is missing")
            assert -1e-4 < missing < 5e-3


@pytest.mark.parametrize("name", REFUSED)
def test_a_cache_of_something_else_is_refused(results: dict[str, Any], name: str) -> None:
    assert results[name]["error"] == "ValueError"
    assert REFUSED[name][2] in results[name]["message"]


def test_a_cache_of_another_llm_or_other_words_is_refused(world: World) -> None:
    shard_set = ShardSet.open(world.root / "all" / "shards")
    (writer,) = shard_set.writers
    llm, wording = writer.split()[0], writer.split()[1].removeprefix("wording=")
    assert cached_teacher(shard_set, llm, wording, 2.0).columns == [1, 0]
    assert cached_teacher(shard_set, "moved@" + llm.split("@")[1], wording, 1.0).columns == [0, 0]
    with pytest.raises(ValueError, match=rf"its predictions are by {llm}, and model.llm is llm@0123456789ab; write"):
        cached_teacher(shard_set, "llm@0123456789ab", wording, 2.0)
    with pytest.raises(ValueError, match=f"prompts {wording}, and those of model.llm are now 0123"):
        cached_teacher(shard_set, llm, "0123", 2.0)
    shard_set.writers = ("name/llm@main wording=w greedy",)
    with pytest.raises(ValueError, match=r"its predictions are by name/llm@main, and model.llm is other/llm@main"):
        cached_teacher(shard_set, "other/llm@main", "w", 2.0)
    with pytest.raises(ValueError, match=r"name/llm@main may have become another model .* set writer.revision"):
        cached_teacher(shard_set, "name/llm@main", "w", 2.0)
    for unknown in ((), ("gpt-4",)):
        shard_set.writers = unknown
        with pytest.raises(ValueError, match="its predictions are by"):
            cached_teacher(shard_set, llm, wording, 2.0)


def test_no_second_pass_of_the_llm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while LoRA trains: what is cached is the LLM without it."""
    section = model_section(Path(world.shared["model"]["llm"]), world.root / "encoder", lora=LORA)
    model = SpeechLM.build(section, CPU)
    shard_set = ShardSet.open(world.root / "all" / "shards")
    cached = cached_teacher(shard_set, model.frozen["llm"], model.template.wording, 2.0)
    samples = shard_set.read_many(range(4), with_teacher=True)
    live_batch, cached_batch = (
        Collator(model.template, model.num_speech_tokens, {"continue": 1}, teacher is None, teacher)(
            samples, ["continue"] * 4, 50, 4
        )
        for teacher in (None, cached)
    )
    live = model(live_batch, STAGE_1)
    monkeypatch.setattr(SpeechLM, "_read", lambda self, batch: pytest.fail("the LLM reads along"))
    ours = model(cached_batch, CACHED)
    assert len(cached_batch.text_input_ids) == 0 and len(cached_batch.teacher_ids) == len(cached_batch.rows)
    for name in ("kl_sum", "kl_t1_sum", "kl_end_sum", "total"):
        torch.testing.assert_close(getattr(ours, name), getattr(live, name), rtol=2e-3, atol=1e-4)
