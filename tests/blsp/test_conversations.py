"""Conversations through the model: each turn is heard as if alone, and a run learns from them beside single turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from blsp.model import SpeechLM
from blsp.recipe import StageSection, TrainRecipe
from shards.batches.collate import Batch, Collator
from shards.sample import Continuation, Message, Utterance
from shards.sets.shard_set import Sample
from tests.blsp.test_engine import World, job, plain_training, trainings
from tests.blsp.tiny import CPU, LORA, clip, make_encoder, make_loud_llm, model_section, shards_of
from tests.shards.dialogues import make_dialogues

pytestmark = pytest.mark.usefixtures("one_thread")
CLOSE = 1e-5
LENGTHS = {"alone": [9000], "sws": [4800, 16000, 6400], "s": [1700, 30000], "ww": [8000]}
REPLY = StageSection.model_validate(
    {"train": ["adapter", "lora", "classifier"], "losses": {"kl": 1, "ce": 0.5, "emotion": 1}, "prompts": {"reply": 1}}
)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> SpeechLM:
    """As if all parts had trained; large enough for a leak between turns to show."""
    folder = tmp_path_factory.mktemp("model")
    llm, encoder = make_loud_llm(tokenizer, folder / "llm"), make_encoder(folder / "encoder")
    model = SpeechLM.build(model_section(llm, encoder, lora=LORA, audio_window="tail:0.5"), CPU)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parts.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def talk(form: str) -> Sample:
    """A conversation whose earlier turns of the user are speech (s) or words alone (w)."""
    messages: list[Message] = []
    lengths = iter(LENGTHS[form])
    for turn, kind in enumerate(form if form != "alone" else ""):
        audio: dict[str, Any] = {"audio": "a", "num_samples": next(lengths)} if kind == "s" else {}
        messages += [Message(role="user", text=f"Turn {turn}", **audio), Message(role="assistant", text="Go on.")]
    utterance = Utterance(id=form, audio="a", text="And now?", corpus="c", emotion="sad", messages=tuple(messages))
    waves = [clip(n, i) for i, n in enumerate(LENGTHS[form])]
    answer = Continuation(prompt="reply", text=f"That is {form}.", finished=True, writer="w")
    return Sample(utterance, answer, np.concatenate(waves))


def batch_of(model: SpeechLM, samples: Sequence[Sample]) -> Batch:
    collator = Collator(model.template, model.num_speech_tokens, {"reply": 1}, with_teacher=True)
    return collator(samples, ["reply"] * len(samples), 100, 4)


@torch.no_grad()
def test_each_turn_is_heard_as_if_alone(model: SpeechLM) -> None:
    batch = batch_of(model, [talk(form) for form in LENGTHS])
    speech, lengths = model.hear(batch.waveform, batch.num_samples)
    clips = [wave for form in LENGTHS for wave in talk(form).clips]
    assert lengths == [model.num_speech_tokens(len(wave)) for wave in clips]
    assert sum(lengths) == int(batch.speech_mask.sum())
    for heard, wave in zip(speech.split(lengths), clips, strict=True):
        alone, _ = model.hear(torch.from_numpy(wave), torch.tensor([len(wave)]))
        torch.testing.assert_close(heard, alone, rtol=0, atol=CLOSE)


@torch.no_grad()
def test_a_conversation_is_answered_alike_alone_and_among_others(model: SpeechLM) -> None:
    samples = [talk(form) for form in LENGTHS]
    together = [model(batch_of(model, part), REPLY) for part in (samples, samples[:2], samples[2:])]
    for name in ("total", "ce_sum", "kl_sum", "emotion_sum", "num_labelled", "num_rows"):
        whole, *parts = (getattr(losses, name) for losses in together)
        both = sum(parts) if name == "total" else torch.cat(parts)
        torch.testing.assert_close(both, whole, rtol=CLOSE, atol=CLOSE)
    assert together[0].num_labelled.tolist() == [1] * len(samples)


@torch.no_grad()
def test_slots_are_filled_turn_by_turn_where_each_turn_stands(model: SpeechLM) -> None:
    """The LLM alone, given by hand what it should read and hear, predicts the same."""
    sample = talk("sws")
    template, embed = model.template, model.llm.get_input_embeddings()
    heard = iter([model.hear(torch.from_numpy(wave), torch.tensor([len(wave)]))[0] for wave in sample.clips])
    words = [None, "Go on.", "Turn 1", "Go on.", None, "Go on.", None]
    first, *behind = template.around("reply", None, 6)
    parts, speech = [embed(torch.tensor(first))], [torch.zeros(len(first), dtype=torch.bool)]
    response = template.response(sample.continuation.text, True)
    for text, after in zip(words, behind, strict=True):
        parts.append(next(heard) if text is None else embed(torch.tensor(template.encode(text))))
        speech.append(torch.full((len(parts[-1]),), text is None))
        parts.append(embed(torch.tensor(after)))
        speech.append(torch.zeros(len(after), dtype=torch.bool))
    parts.append(embed(torch.tensor(response)))
    speech.append(torch.zeros(len(response), dtype=torch.bool))
    model.gate.open(torch.cat(speech)[None])
    logits = model.llm(inputs_embeds=torch.cat(parts)[None]).logits[0, -len(response) - 1 : -1]
    student, _ = model.response_logits(batch_of(model, [talk("alone"), sample, talk("s")]))
    rows = len(template.response(talk("alone").continuation.text, True))
    torch.testing.assert_close(student[rows : rows + len(response)], logits, rtol=CLOSE, atol=10 * CLOSE)


@pytest.mark.slow
def test_a_run_learns_from_conversations_beside_single_turns(llm_folder: Path, tmp_path: Path) -> None:
    """DeepSpeed, plan and reader against plain torch: a stage with a teacher, and one with labels."""
    model = model_section(llm_folder, make_encoder(tmp_path / "encoder"), lora=LORA)
    stages: dict[str, dict[str, Any]] = {
        "reply": {"train": ["adapter"], "losses": {"kl": 1}, "prompts": {"reply": 1}},
        "reply_emotion": {
            "train": ["adapter", "lora", "classifier"],
            "losses": {"ce": 1, "emotion": 0.5},
            "prompts": {"chat": 1},
        },
    }
    world, recipes = World(tmp_path, {}), []
    for prompt, stage in stages.items():
        manifest, _ = make_dialogues(tmp_path / prompt, 20)
        data = {
            "shards": str(shards_of(manifest, prompt)), "clips_per_step": 5, "micro_batches": 2
        }  # fmt: skip
        recipes.append(
            {
                "kind": "train",
                "run": str(tmp_path / f"run_{prompt}"),
                "model": model.model_dump(mode="json") | ({} if "lora" in stage["train"] else {"lora": None}),
                "stage": stage,
                "data": data,
                "optim": {"lr": dict.fromkeys(stage["train"], 1e-3), "warmup_steps": 2, "steps": 6},
                "engine": {"checkpoint_every_steps": 6, "log_every_steps": 1},
            }
        )
    (results,) = trainings(world, 1, [job(recipe) for recipe in recipes])
    assert [result["message"] for result in results] == ["", ""]
    for recipe in recipes:
        norms, _ = plain_training(TrainRecipe.model_validate(recipe))
        log = (Path(recipe["run"]) / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["grad_norm"] for line in log] == pytest.approx(norms, rel=1e-4)
