from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

from blsp.model import SpeechLM
from blsp.shown import Shown, confusion_picture, mel_picture, write_confusion
from blsp.tracking import Tracker
from shards.batches.collate import Collator
from shards.prompts import ChatTemplate
from shards.sets.shard_set import ShardSet
from tests.blsp.tiny import CPU, clip, make_encoder, make_shards, model_section


@pytest.mark.usefixtures("alone")
def test_clips_are_heard_seen_and_answered_in_tensorboard(llm_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = SpeechLM.build(model_section(llm_folder, make_encoder(tmp_path / "encoder")), CPU).eval()
    shard_set = ShardSet.open(make_shards(tmp_path / "data", "continue_emotion", 5))
    collator = Collator(model.template, model.num_speech_tokens, {"continue_tone": 1}, with_teacher=False)
    shown, tracker = Shown(shard_set, [1, 3], collator), Tracker(tmp_path / "run", 0)
    answers = shown.ask(model)
    assert answers == model.generate([shard_set.audio(1), shard_set.audio(3)], "continue_tone", 48)
    counts = [[3, 1, 0, 0, 0], *([0] * 5 for _ in range(4))]
    for step in (2, 4):
        tracker.show(lambda writer, step=step: shown.write(writer, step, answers, step == 2))  # type: ignore[misc]
        tracker.show(lambda writer, step=step: write_confusion(writer, step, counts))  # type: ignore[misc]
    tracker.close()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    assert sorted(events.Tags()["audio"]) == ["clip_1", "clip_2"]
    assert [event.step for event in events.Images("clip_2/log_mel")] == [2]
    assert [event.step for event in events.Images("validation/confusion")] == [2, 4]
    text = events.Tensors("clip_1/text_summary")[-1].tensor_proto.string_val[0].decode()
    sample = shard_set.read(1)
    assert f"**heard**: {sample.utterance.text} ({sample.utterance.emotion})" in text
    assert f"**text LLM**: {sample.continuation.text}" in text
    assert "| neutral | 3 | 1 | 0 | 0 | 0 |" in (
        events.Tensors("validation/confusion/text_summary")[-1].tensor_proto.string_val[0].decode()
    )


@pytest.mark.usefixtures("alone")
def test_all_ranks_ask_about_the_clips_that_rank_0_could_read(
    llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set = ShardSet.open(make_shards(tmp_path / "data", "continue_emotion", 3))
    template = ChatTemplate(AutoTokenizer.from_pretrained(llm_folder))
    collator = Collator(template, lambda n: -(-n // 2560), {"continue_tone": 1}, with_teacher=False)
    first = Shown(shard_set, [0, 2], collator)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(
        dist, "broadcast_object_list", lambda outcome, src: outcome.__setitem__(slice(None), [first.samples, None])
    )
    other = Shown(shard_set, [], collator)  # nothing that it could read itself
    assert [sample.utterance.id for sample in other.samples] == [sample.utterance.id for sample in first.samples]
    assert len(first.samples) == 2


def test_pictures_are_dark_where_there_is_something() -> None:
    picture = confusion_picture(np.eye(5, dtype=int).tolist())
    assert picture.shape == (240, 240)
    assert (picture[0, 0], picture[0, -1], picture[-1, -1]) == (0, 255, 0)
    mel = mel_picture(clip(16000))
    assert mel.shape == (80, 100)
    assert (mel.min(), mel.max()) == (0, 255)
    assert mel[40:].mean() > mel[:40].mean()  # the tone is below 800 Hz, and low is down
