from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from blsp import tone
from blsp.model import SpeechLM
from blsp.run import Stage
from blsp.tone import Takes, ToneSensitivity, find_takes
from shards.batches.collate import Collator
from shards.sample import Utterance
from shards.sets.shard_set import Sample, ShardSet
from tests.blsp.tiny import CPU, LORA, STAGE_2, make_encoder, make_shards, model_section


def said(text: str, emotion: str | None, speaker: str = "a") -> Utterance:
    return Utterance(id="x", audio="x.wav", text=text, corpus="c", emotion=emotion, speaker=speaker)


def test_takes_have_the_same_words_and_if_possible_the_same_voice() -> None:
    clips = [
        said("Oh no", "sad"), said("oh  no", "happy", "b"), said("Oh no", "angry"), said("Oh no", "sad", "b"),
        said("Well", "sad"), said("Oh no", None), said("Well", "sad"),
    ]  # fmt: skip
    assert find_takes(clips, range(10, 17)) == [
        Takes(10, 12, 13), Takes(11, 13, None), Takes(12, 10, None), Takes(13, 11, 10),
    ]  # fmt: skip


@pytest.fixture
def measured(llm_folder: Path, tmp_path: Path) -> tuple[SpeechLM, ShardSet, Collator]:
    torch.manual_seed(1)
    model = SpeechLM.build(model_section(llm_folder, make_encoder(tmp_path / "encoder"), lora=LORA), CPU).eval()
    shard_set = ShardSet.open(make_shards(tmp_path / "data", "continue_emotion", 7, same_words=7))
    return model, shard_set, Collator(model.template, model.num_speech_tokens, {"continue_tone": 1}, with_teacher=False)


def log_p(model: SpeechLM, collator: Collator, sample: Sample) -> float:
    batch = collator([sample], ["continue_tone"], 1, 1)
    speech, _ = model.hear(batch.waveform, batch.num_samples)
    logits = model.llm.get_output_embeddings()(model._listen(batch, speech)[batch.rows])
    return -float(functional.cross_entropy(logits, batch.targets, reduction="sum"))


def expected(model: SpeechLM, collator: Collator, pairs: Sequence[tuple[Sample, Sample]]) -> float:
    differences = [
        log_p(model, collator, own) - log_p(model, collator, Sample(own.utterance, own.continuation, other.waveform))
        for own, other in pairs
    ]
    return sum(differences) / len(differences)


@pytest.mark.usefixtures("alone")
@torch.no_grad()
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_it_is_the_difference_of_log_probabilities_on_any_number_of_ranks(
    measured: tuple[SpeechLM, ShardSet, Collator], num_ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shard_set, collator = measured
    sensitivity = ToneSensitivity(shard_set, range(7), collator)
    parts: list[torch.Tensor] = []
    monkeypatch.setattr(tone.dist, "get_world_size", lambda: num_ranks)
    monkeypatch.setattr(tone.dist, "all_reduce", lambda log_p: parts.append(log_p.clone()))
    for rank in range(num_ranks):
        monkeypatch.setattr(tone.dist, "get_rank", lambda rank=rank: rank)
        sensitivity.measure(Stage(model, STAGE_2), STAGE_2, CPU)
    monkeypatch.setattr(tone.dist, "all_reduce", lambda log_p: log_p.copy_(torch.stack(parts).sum(0)))
    scalars = sensitivity.measure(Stage(model, STAGE_2), STAGE_2, CPU)
    samples = {row: shard_set.read(row) for row in range(7)}
    takes = find_takes([samples[row].utterance for row in range(7)], range(7))
    assert len(takes) == 7
    others = [(samples[take.clip], samples[take.other_tone]) for take in takes]
    again = [(samples[take.clip], samples[take.second_take]) for take in takes if take.second_take is not None]
    assert len(again) == 4
    assert all(own.utterance.emotion != other.utterance.emotion for own, other in others)
    assert scalars["tone_sensitivity"] == pytest.approx(expected(model, collator, others), abs=2e-4)
    assert scalars["second_take"] == pytest.approx(expected(model, collator, again), abs=2e-4)
    assert abs(scalars["tone_sensitivity"]) > 1e-3
    assert scalars["tone_sensitivity_error"] > 0


@pytest.mark.usefixtures("alone")
def test_without_the_prompt_or_without_takes_nothing_is_said(measured: tuple[SpeechLM, ShardSet, Collator]) -> None:
    model, shard_set, collator = measured
    assert ToneSensitivity(shard_set, [3], collator).measure(Stage(model, STAGE_2), STAGE_2, CPU) == {}
    plain = Collator(model.template, model.num_speech_tokens, {"continue": 1}, with_teacher=False)
    assert ToneSensitivity(shard_set, range(7), plain).measure(Stage(model, STAGE_2), STAGE_2, CPU) == {}


def test_one_clip_alone_has_no_standard_error() -> None:
    assert tone._mean("second_take", torch.tensor([2.0])) == {"second_take": 2.0}
