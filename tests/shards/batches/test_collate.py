from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from shards.batches.collate import FILLER_ID, IGNORED_EMOTION, Batch, Collator
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS, Continuation, Utterance
from shards.sets.shard_set import CorruptSample, Sample
from shards.sets.tokens import TOKEN_COUNTS, count_tokens
from tests.shards.batches.layout import sequences


def speech_tokens(num_samples: int) -> int:
    return -(-num_samples // 2560)


def sample(name: str, emotion: str | None = "sad", num_samples: int = 6000, prompt: str = "continue_emotion") -> Sample:
    utterance = Utterance(id=name, audio="a", text=f"Words of {name}", corpus="c", emotion=emotion)
    finished = name != "cut"
    continuation = Continuation(prompt=prompt, text=f"and more of {name}", finished=finished, writer="w")
    return Sample(utterance, continuation, np.full(num_samples, len(name), np.int16))


def collator(template: ChatTemplate, with_teacher: bool = True, **tasks: float) -> Collator:
    return Collator(template, speech_tokens, tasks or {"continue_tone": 1.0}, with_teacher)


SAMPLES = (sample("anna"), sample("cut", "happy", 9000), sample("bertha", None, 2600))


def test_a_sequence_is_prefix_speech_suffix_response(template: ChatTemplate) -> None:
    batch = collator(template)(SAMPLES, ["continue_tone"] * 3, 99, 2)
    for sample, (ids, mask) in zip(SAMPLES, sequences(batch), strict=True):
        prefix, suffix = template.prefix("continue_tone"), template.suffix()
        slots = speech_tokens(len(sample.waveform))
        response = template.response(sample.continuation.text, sample.continuation.finished)
        assert ids == prefix + [0] * slots + suffix + response
        assert mask == [False] * len(prefix) + [True] * slots + [False] * (len(suffix) + len(response))
    assert torch.equal(batch.waveform, torch.from_numpy(np.concatenate([s.waveform for s in SAMPLES])))
    assert batch.num_samples.tolist() == [6000, 9000, 2600]
    assert batch.emotion.tolist() == [EMOTIONS.index("sad"), EMOTIONS.index("happy"), IGNORED_EMOTION]
    assert (batch.step_response_tokens, batch.step_labelled) == (99, 2)


def test_rows_of_student_and_teacher_are_one_before_the_same_response_tokens(template: ChatTemplate) -> None:
    batch = collator(template)(SAMPLES, ["continue_tone"] * 3, 0, 0)
    assert len(batch.rows) == len(batch.text_rows) == len(batch.targets) == len(batch.row_weight)
    assert torch.equal(batch.input_ids[batch.rows + 1], batch.targets)
    assert torch.equal(batch.text_input_ids[batch.text_rows + 1], batch.targets)
    responses = [template.response(s.continuation.text, s.continuation.finished) for s in SAMPLES]
    assert batch.targets.tolist() == [token for response in responses for token in response]
    ends = [template.end_of_turn_id in response for response in responses]
    assert ends == [True, False, True]  # a text that was cut does not teach to stop


def test_the_teacher_reads_the_transcript_and_the_label_that_the_student_never_sees(template: ChatTemplate) -> None:
    batch = collator(template)(SAMPLES[:1], ["continue_tone"], 0, 0)
    text = template.tokenizer.decode(batch.text_input_ids.tolist())
    assert "'sad' emotion tone" in text and "Words of anna" in text
    seen = template.tokenizer.decode(batch.input_ids.tolist())
    assert "sad" not in seen and "Words of anna" not in seen


def test_positions_start_again_in_every_sequence_and_go_on_after_its_prefix(template: ChatTemplate) -> None:
    batch = collator(template)(SAMPLES, ["continue_tone"] * 3, 0, 0)
    layouts = (
        (batch.position_ids, batch.seq_lens, batch.prefix_of),
        (batch.text_position_ids, batch.text_seq_lens, batch.text_prefix_of),
    )
    for positions, lengths, prefix_of in layouts:
        starts = [0 if before < 0 else lengths[before] for before in prefix_of]
        expected = [start + i for start, length in zip(starts, lengths, strict=True) for i in range(length)]
        assert positions.tolist() == expected


def test_a_prompt_that_several_sequences_begin_with_lies_there_once(template: ChatTemplate) -> None:
    samples = [sample("anna"), sample("bo", "happy"), sample("cleo"), sample("dora", prompt="continue"), SAMPLES[2]]
    tasks = ["continue_tone"] * 3 + ["continue", "continue_tone"]
    make = collator(template, continue_tone=1, **{"continue": 1})
    batch = make(samples, tasks, 0, 0)
    # One student is alone under its prompt; the text LLM was told four different things.
    assert batch.prefix_of == [-1, 0, 0, 0, -1, 0]
    assert batch.text_prefix_of == [-1, 0, -1, 0, -1, -1]
    assert batch.input_ids.split(batch.seq_lens)[0].tolist() == template.prefix("continue_tone")
    told = batch.text_input_ids.split(batch.text_seq_lens)[0].tolist()
    assert told == template.prefix("continue_emotion", "sad")
    alone = [make([sample], [task], 0, 0) for sample, task in zip(samples, tasks, strict=True)]
    prefix = len(template.prefix("continue_tone"))
    assert len(batch.input_ids) == sum(len(one.input_ids) for one in alone) - 3 * prefix
    assert len(batch.text_input_ids) == sum(len(one.text_input_ids) for one in alone) - len(told)
    assert sequences(batch) == [sequences(one)[0] for one in alone]
    assert not any(before >= 0 for one in alone for before in one.prefix_of + one.text_prefix_of)


def test_a_sample_packs_the_same_alone_and_among_others(template: ChatTemplate) -> None:
    make = collator(template)
    together = make(SAMPLES, ["continue_tone"] * 3, 0, 0)
    assert sequences(together) == [sequences(make([s], ["continue_tone"], 0, 0))[0] for s in SAMPLES]


def test_a_clip_that_cannot_be_read_is_a_filler_of_weight_0(template: ChatTemplate) -> None:
    batch = collator(template)([SAMPLES[0], CorruptSample("row 7: bad")], ["continue_tone"] * 2, 0, 0)
    assert batch.ids == ["anna", FILLER_ID]
    assert batch.unreadable == ["row 7: bad"]
    assert batch.emotion.tolist()[1] == IGNORED_EMOTION
    weights = batch.row_weight.tolist()
    assert weights[-1] == 0 and all(weight == 1 for weight in weights[:-1])
    empty = collator(template)([], [], 7, 3)
    assert empty.ids == [FILLER_ID] and not empty.row_weight.any() and empty.speech_mask.any()
    assert (empty.step_response_tokens, empty.step_labelled, empty.unreadable) == (7, 3, [])


def test_identify_answers_with_the_label_and_has_no_teacher(template: ChatTemplate) -> None:
    make = collator(template, with_teacher=False, identify=1)
    batch = make(SAMPLES[:2], ["identify"] * 2, 0, 0)
    assert batch.targets.tolist() == template.response("sad", True) + template.response("happy", True)
    assert sequences(batch)[0][0][: len(template.prefix("identify"))] == template.prefix("identify")
    assert len(batch.text_input_ids) == len(batch.text_rows) == len(batch.text_seq_lens) == 0
    with pytest.raises(ValueError, match="'identify' has no teacher"):
        collator(template, identify=1, continue_tone=1)


def test_a_continuation_written_for_another_task_is_refused(template: ChatTemplate) -> None:
    with pytest.raises(ValueError, match="anna: its continuation was written under 'continue', not for"):
        collator(template)([sample("anna", prompt="continue")], ["continue_tone"], 0, 0)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_sizes_are_those_of_the_batches_and_never_less(template: ChatTemplate, with_teacher: bool) -> None:
    tasks = {"continue_tone": 1.0} if with_teacher else {"continue_tone": 1.0, "identify": 1.0}
    make = collator(template, with_teacher, **tasks)
    counts = np.array(
        [count_tokens(template, sample.utterance.text, sample.continuation) for sample in SAMPLES], TOKEN_COUNTS
    )
    lengths = np.array([len(sample.waveform) for sample in SAMPLES])
    sizes = make.sizes((lengths, np.arange(3)), counts, heard_samples=lambda n: n + 1600)
    assert sizes.heard_samples.tolist() == (lengths + 1600).tolist()
    prompts = {task: len(template.prefix(task)) for task in tasks}
    assert sizes.prompt_tokens == sum(prompts.values())
    for i, sample in enumerate(SAMPLES):
        asked = [task for task in tasks if task != "identify" or sample.utterance.emotion]
        batches = {task: make([sample], [task], 0, 0) for task in asked}
        assert sizes.tokens[i] >= max(len(batch.input_ids) - prompts[task] for task, batch in batches.items())
        assert sizes.response_tokens[i] >= max(len(batch.targets) for batch in batches.values())
        if with_teacher:  # one task, so exactly
            batch = batches["continue_tone"]
            told = template.prefix(sample.continuation.prompt, sample.utterance.emotion)
            assert sizes.tokens[i] == len(batch.input_ids) - prompts["continue_tone"]
            assert sizes.teacher_tokens[i] == len(batch.text_input_ids) - len(told)
            assert sizes.response_tokens[i] == len(batch.targets)
    together = make(SAMPLES, ["continue_tone"] * 3, 0, 0)
    assert len(together.input_ids) <= sizes.tokens.sum() + sizes.prompt_tokens
    assert with_teacher or not sizes.teacher_tokens.any()


@pytest.mark.parametrize("with_teacher", [True, False])
def test_a_clip_is_trained_in_the_language_that_its_continuation_was_asked_for_in(
    template: ChatTemplate, with_teacher: bool
) -> None:
    samples = (SAMPLES[0], sample("anna", prompt="continue_emotion_zh"))
    make = Collator(template, speech_tokens, {"continue_tone": 1.0}, with_teacher, languages=("en", "zh"))
    batch = make(samples, ["continue_tone"] * 2, 0, 0)
    (english, _), (chinese, _) = sequences(batch)
    assert english[: len(template.prefix("continue_tone"))] == template.prefix("continue_tone")
    assert chinese[: len(template.prefix("continue_tone_zh"))] == template.prefix("continue_tone_zh")
    told = template.tokenizer.decode(batch.text_input_ids.tolist())
    assert not with_teacher or ("'sad' emotion tone" in told and "“悲伤”的情感语气" in told)
    counts = np.array([count_tokens(template, s.utterance.text, s.continuation) for s in samples], TOKEN_COUNTS)
    lengths = np.array([len(s.waveform) for s in samples])
    sizes = make.sizes((lengths, np.arange(2)), counts)
    prompts = [len(template.prefix(prompt)) for prompt in ("continue_tone", "continue_tone_zh")]
    assert sizes.prompt_tokens == sum(prompts)
    assert len(batch.input_ids) <= sizes.tokens.sum() + sizes.prompt_tokens
    in_english = Collator(template, speech_tokens, {"continue_tone": 1.0}, with_teacher)
    assert in_english.sizes((lengths, np.arange(2)), counts).prompt_tokens == prompts[0]


@pytest.mark.parametrize("with_teacher", [True, False])
def test_replayed_clips_bring_a_prompt_of_their_own(template: ChatTemplate, with_teacher: bool) -> None:
    samples = (SAMPLES[0], replace(SAMPLES[0], continuation=replace(SAMPLES[0].continuation, prompt="continue")))
    counts = np.array([count_tokens(template, s.utterance.text, s.continuation) for s in samples], TOKEN_COUNTS)
    make, lengths = collator(template, with_teacher), np.array([len(s.waveform) for s in samples])
    of_clips = lengths, np.arange(2)
    sizes = make.sizes(of_clips, counts, replayed=np.array([False, True]))
    prompts = [len(template.prefix(task)) for task in ("continue_tone", "continue")]
    assert sizes.prompt_tokens == sum(prompts)
    assert make.sizes(of_clips, counts, replayed=np.array([False, False])).prompt_tokens == prompts[0]
    batches = [make([s], [t], 0, 0) for s, t in zip(samples, ("continue_tone", "continue"), strict=True)]
    assert (sizes.tokens + prompts).tolist() == [len(batch.input_ids) for batch in batches]
    assert sizes.response_tokens.tolist() == [len(batch.targets) for batch in batches]
    if with_teacher:
        assert sizes.teacher_tokens[1] + prompts[1] == len(batches[1].text_input_ids)


@pytest.mark.parametrize("tasks", [{"continue_emotion": 1}, {"continue": 0}, {"continue": float("nan")}])
def test_unknown_tasks_and_shares_are_refused(template: ChatTemplate, tasks: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares to one or more of continue, continue_tone, reply, chat, identify"):
        Collator(template, speech_tokens, tasks, False)


def test_tasks_are_drawn_by_their_shares_and_anew_each_epoch(template: ChatTemplate) -> None:
    make = collator(template, with_teacher=False, continue_tone=2, identify=1)
    first, again, next_epoch, other_seed = (
        [make.task(id_hash, seed, epoch) for id_hash in range(3000)] for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))
    )
    assert first == again
    assert first != next_epoch and first != other_seed
    assert abs(Counter(first)["identify"] / 3000 - 1 / 3) < 0.03


def test_arrays_and_devices_change_nothing(template: ChatTemplate) -> None:
    batch = collator(template)(SAMPLES, ["continue_tone"] * 3, 9, 2)
    for copy in (Batch.from_arrays(batch.arrays()), batch.to("cpu")):
        for name, value in vars(batch).items():
            other = getattr(copy, name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, other) and value.dtype == other.dtype, name
            else:
                assert value == other
