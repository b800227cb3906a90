"""From samples to a `Batch`: packed tensors, no padding.

Sequences lie end to end, each as `prefix + speech slots + suffix + response`, in a conversation with its earlier turns
behind the system's; the teacher's have the transcript's tokens where the student hears speech. A prefix that several
sequences begin with lies there once, before them all. Row r of the student and row r of the teacher predict the same
response token.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.audio import SAMPLE_RATE
from shards.batches.sizes import Sizes
from shards.prompts import PROMPTS, REPLAYED, TRAINED_UNDER, ChatTemplate, in_language, language_of, written_for
from shards.sample import EMOTIONS
from shards.sets.cached_teacher import CachedTeacher
from shards.sets.shard_set import CorruptSample, Sample

TASKS = (*TRAINED_UNDER.values(), "identify")
IGNORED_EMOTION = -100
FILLER_ID = "filler"

_FILLER_SAMPLES = SAMPLE_RATE // 2


@dataclass(frozen=True)
class Batch:
    """One micro-batch of m samples with n clips on one device: a conversation has a clip for each turn that is heard,
    other samples have one. T: student tokens, Tt: teacher tokens, R: response tokens.

    The step's counts are those of the whole step over all ranks and micro-batches: what losses are divided by, so that
    a gradient does not depend on how the step was split. The `text_` tensors are empty without a live teacher, the
    `teacher_` tensors without a cached one.
    """

    ids: list[str]  # m
    corpora: list[str]  # m; "" for fillers
    waveform: Tensor  # int16 [sum of num_samples]
    num_samples: Tensor  # int64 [n]
    last_clip: Tensor  # int64 [m]; which of the n clips is each sample's last
    input_ids: Tensor  # int64 [T]; 0 in speech slots
    speech_mask: Tensor  # bool [T]; True in speech slots
    position_ids: Tensor  # int64 [T]; from 0 in each sequence, its prefix counted
    seq_lens: list[int]  # of the shared prefixes, then of the sequences without them; their sum is T
    prefix_of: list[int]  # of each of these the number of the prefix that it goes on from, or -1
    rows: Tensor  # int64 [R]; positions in T whose output predicts the response tokens
    targets: Tensor  # int64 [R]
    row_weight: Tensor  # float32 [R]; 0 for fillers
    row_sample: Tensor  # int64 [R]; which of the m samples it belongs to
    text_input_ids: Tensor  # int64 [Tt]
    text_position_ids: Tensor  # int64 [Tt]
    text_seq_lens: list[int]  # as above; their sum is Tt
    text_prefix_of: list[int]
    text_rows: Tensor  # int64 [R]
    teacher_ids: Tensor  # int64 [R, k]; the likeliest tokens of a cached teacher
    teacher_logits: Tensor  # float16 [R, k]; less the largest one
    teacher_log_z: Tensor  # float32 [R, 2]; log-partition at the training's temperature, and at 1
    emotion: Tensor  # int64 [n]; IGNORED_EMOTION for none, and for clips before a sample's last
    step_response_tokens: int
    step_labelled: int
    unreadable: list[str]  # about each clip in whose place is a filler: which, and why

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors: dict[str, Any] = {n: value.to(device) for n, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)

    def arrays(self) -> dict[str, Any]:
        """The fields as numpy arrays: they cross a process border without a file descriptor for each tensor."""
        return {
            field.name: value.numpy() if isinstance(value := getattr(self, field.name), Tensor) else value
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """The batch whose `arrays()` these are."""
        values: dict[str, Any] = dict(arrays)
        tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
        return cls(**{**values, **tensors})


@dataclass(frozen=True)
class _Sequence:
    """One sample: student ids with zeros in `slots`, teacher ids, and the response that follows both."""

    student: list[int]
    slots: list[slice]  # of each clip
    teacher: list[int]
    response: list[int]
    prefixes: tuple[int, int]  # how many ids stand before the first turn's content: the student's, the teacher's


class Collator:
    """Makes batches. `tasks` are training prompts with their shares; which one a clip gets is drawn anew each epoch."""

    def __init__(
        self,
        template: ChatTemplate,
        num_speech_tokens: Callable[[int], int],
        tasks: Mapping[str, float],
        with_teacher: bool,
        cached: CachedTeacher | None = None,
        languages: Sequence[str] = ("en",),
    ) -> None:
        """`with_teacher` packs what a live teacher reads, `cached` what the shards hold of the teacher's predictions;
        `languages` are those of the prompts that the continuations were written under, and are trained under.

        Raises ValueError for an unknown task, a share that is not positive, or a teacher of label prompts.
        """
        if not tasks or any(task not in TASKS or not share > 0 for task, share in tasks.items()):
            raise ValueError(f"prompts {dict(tasks)}: give positive shares to one or more of {', '.join(TASKS)}")
        if (with_teacher or cached) and "identify" in tasks:
            raise ValueError(
                "the prompt 'identify' has no teacher: the text LLM cannot hear; leave out 'kl' or 'identify'"
            )
        self.template = template
        self.tasks = tuple(tasks)
        self._shares = np.cumsum([tasks[task] for task in self.tasks]) / sum(tasks.values())
        self._num_speech_tokens = num_speech_tokens
        self._with_teacher = with_teacher
        self._languages = tuple(languages)
        self.cached = cached

    def task(self, id_hash: int, seed: int, epoch: int) -> str:
        """The task in an epoch of a clip that is not replayed: a pure function of the three, the same on every rank."""
        digest = hashlib.blake2b(f"{seed} {epoch} {id_hash}".encode(), digest_size=8).digest()
        draw = int.from_bytes(digest, "little") / 2**64
        return self.tasks[min(int(np.searchsorted(self._shares, draw, side="right")), len(self.tasks) - 1)]

    def label_response(self, emotion: str) -> list[int]:
        """What is learnt under `identify`."""
        return self.template.response(emotion, finished=True)

    def sizes(
        self,
        clips: tuple[NDArray[np.integer], NDArray[np.integer]],
        counts: NDArray[np.void],
        heard_samples: Callable[[int], int] = lambda num_samples: num_samples,
        replayed: NDArray[np.bool_] | None = None,
    ) -> Sizes:
        """What each of n samples brings to a batch, at most: its task and its emotion are left open.

        `clips` are those of a ShardSet: the length of each and which sample it belongs to; `counts` is TOKEN_COUNTS
        [n]; `heard_samples` adds the audio window to a clip's samples; `replayed` (bool [n]) says whose task is
        REPLAYED.
        """
        template = self.template
        slots, heard = (_sums(clips, of_clip, len(counts)) for of_clip in (self._num_speech_tokens, heard_samples))
        slots += counts["num_read_tokens"]
        written = counts["num_response_tokens"].astype(np.int64)
        label = max(len(self.label_response(emotion)) for emotion in EMOTIONS)
        tokens, responses, teacher_tokens = np.zeros_like(slots), np.zeros_like(slots), np.zeros_like(slots)
        again = np.zeros(len(slots), bool) if replayed is None else replayed
        for task, mine in (*((task, ~again) for task in self.tasks), (REPLAYED, again)):
            response = np.full_like(written, label) if task == "identify" else written
            responses[mine] = np.maximum(responses, response)[mine]
            needed = self._most_around(task, None, counts) + slots + response
            tokens[mine] = np.maximum(tokens, needed)[mine]
            for prompt in written_for(task) if self._with_teacher else ():
                around = np.max([self._most_around(prompt, emotion, counts) for emotion in EMOTIONS], 0)
                needed = around + counts["num_text_tokens"] + written
                teacher_tokens[mine] = np.maximum(teacher_tokens, needed)[mine]
        tasks = {*self.tasks, REPLAYED} if again.any() else {*self.tasks}
        numbers = np.unique(counts["num_earlier"]).tolist()
        prefixes = {
            tuple(template.around(told, None, number)[0])
            for task in tasks for told in self._told(task) for number in numbers
        }  # fmt: skip
        return Sizes(heard, tokens, teacher_tokens, responses, sum(map(len, prefixes)))

    def _told(self, prompt: str) -> list[str]:
        """A prompt in each of the languages."""
        return [in_language(prompt, language) for language in self._languages]

    def _most_around(self, prompt: str, emotion: str | None, counts: NDArray[np.void]) -> NDArray[np.int64]:
        """In whichever language it is the most."""
        around: NDArray[np.int64] = np.max([self._around(told, emotion, counts) for told in self._told(prompt)], 0)
        return around

    def _around(self, prompt: str, emotion: str | None, counts: NDArray[np.void]) -> NDArray[np.int64]:
        """How many ids of each sample from its first turn's content on are neither content of a turn nor response."""
        numbers, place = np.unique(counts["num_earlier"], return_inverse=True)
        lengths = [sum(map(len, self.template.around(prompt, emotion, int(number))[1:])) for number in numbers]
        around: NDArray[np.int64] = np.array(lengths, np.int64)[place]
        return around

    def __call__(
        self,
        read: Sequence[Sample | CorruptSample],
        tasks: Sequence[str],
        step_response_tokens: int,
        step_labelled: int,
    ) -> Batch:
        """One micro-batch. A silent filler of weight 0 takes the place of a clip that could not be read.

        With no clips at all the batch is one filler. Raises ValueError when a continuation was written for another
        task than the clip's.
        """
        tasks = tasks or [self.tasks[0]]
        samples, sequences, unreadable = self._lay_out(read, tasks)
        clips = [[np.zeros(_FILLER_SAMPLES, np.int16)] if sample is None else sample.clips for sample in samples]
        student = _pack([(q.student, q.prefixes[0], q.response) for q in sequences])
        taught = sequences if self._with_teacher else []
        teacher = _pack([(q.teacher, q.prefixes[1], q.response) for q in taught])
        speech_mask = np.zeros(len(student.ids), bool)
        for origin, sequence in zip(student.origins, sequences, strict=True):
            for slots in sequence.slots:
                speech_mask[origin + slots.start : origin + slots.stop] = True
        weights = [np.full(len(q.response), s is not None, np.float32) for s, q in zip(samples, sequences, strict=True)]
        return Batch(
            ids=[FILLER_ID if sample is None else sample.utterance.id for sample in samples],
            corpora=["" if sample is None else sample.utterance.corpus for sample in samples],
            waveform=torch.from_numpy(np.concatenate([clip for turns in clips for clip in turns])),
            num_samples=torch.tensor([len(clip) for turns in clips for clip in turns]),
            last_clip=torch.tensor([len(turns) for turns in clips]).cumsum(0) - 1,
            input_ids=torch.from_numpy(student.ids),
            speech_mask=torch.from_numpy(speech_mask),
            position_ids=torch.from_numpy(student.position_ids),
            seq_lens=student.seq_lens,
            prefix_of=student.prefix_of,
            rows=torch.from_numpy(student.rows),
            targets=torch.tensor([token for sequence in sequences for token in sequence.response]),
            row_weight=torch.from_numpy(np.concatenate(weights)),
            row_sample=torch.from_numpy(np.repeat(np.arange(len(sequences)), [len(q.response) for q in sequences])),
            text_input_ids=torch.from_numpy(teacher.ids),
            text_position_ids=torch.from_numpy(teacher.position_ids),
            text_seq_lens=teacher.seq_lens,
            text_prefix_of=teacher.prefix_of,
            text_rows=torch.from_numpy(teacher.rows),
            **self._predicted(samples, sequences),
            emotion=torch.tensor(
                [
                    emotion
                    for sample, turns in zip(samples, clips, strict=True)
                    for emotion in [IGNORED_EMOTION] * (len(turns) - 1) + [_emotion_id(sample)]
                ]
            ),
            step_response_tokens=step_response_tokens,
            step_labelled=step_labelled,
            unreadable=unreadable,
        )

    def _lay_out(
        self, read: Sequence[Sample | CorruptSample], tasks: Sequence[str]
    ) -> tuple[list[Sample | None], list[_Sequence], list[str]]:
        """Samples (None for fillers), their sequences, and about each clip that a filler stands for: which, and why."""
        samples = [None if isinstance(sample, CorruptSample) else sample for sample in read] or [None]
        unreadable = [str(sample) for sample in read if isinstance(sample, CorruptSample)]
        sequences = self._sequences(samples, tasks)
        for i, (sample, sequence) in enumerate(zip(samples, sequences, strict=True)):
            if sample is None or self.cached is None:
                continue
            predicted, length = 0 if sample.teacher is None else len(sample.teacher), len(sequence.response)
            if predicted != length:
                unreadable.append(
                    f"{sample.utterance.id}: the shard holds predictions for {predicted} tokens of the response, which "
                    f"has {length}"
                )
                samples[i], sequences[i] = None, self._sequence(None, tasks[i], [])
        return samples, sequences, unreadable

    def _predicted(self, samples: Sequence[Sample | None], sequences: Sequence[_Sequence]) -> dict[str, Tensor]:
        """The `teacher_` tensors; row r is about response token r, as in all others."""
        if self.cached is None:
            return {
                "teacher_ids": torch.empty(0, 0, dtype=torch.int64),
                "teacher_logits": torch.empty(0, 0, dtype=torch.float16),
                "teacher_log_z": torch.empty(0, 2),
            }
        parts = []
        for sample, sequence in zip(samples, sequences, strict=True):
            known = None if sample is None else sample.teacher
            parts.append(self.cached.filler(len(sequence.response)) if known is None else known)
        rows = np.concatenate(parts)
        return {
            "teacher_ids": torch.from_numpy(rows["ids"].astype(np.int64)),
            "teacher_logits": torch.from_numpy(rows["logits"].astype(np.float16)),
            "teacher_log_z": torch.from_numpy(rows["log_z"][:, self.cached.columns].astype(np.float32)),
        }

    def _sequences(self, samples: Sequence[Sample | None], tasks: Sequence[str]) -> list[_Sequence]:
        texts = [[] if sample is None else self._texts(sample) for sample in samples]
        ids = iter(self.template.encode_all([text for of_sample in texts for text in of_sample]))
        sequences = []
        for sample, task, of_sample in zip(samples, tasks, texts, strict=True):
            sequences.append(self._sequence(sample, task, [next(ids) for _ in of_sample]))
        return sequences

    def _texts(self, sample: Sample) -> list[str]:
        """The response, then the words of each turn; none of turns whose words nobody reads."""
        utterance = sample.utterance
        turns = [message.text if message.audio is None or self._with_teacher else "" for message in utterance.messages]
        return [sample.continuation.text, *turns, utterance.text if self._with_teacher else ""]

    def _student(self, task: str, contents: Sequence[list[int] | int]) -> tuple[list[int], list[slice], int]:
        """Ids up to the response, where speech goes, and how many ids stand before the first content; each turn's
        content is its ids, or its number of slots."""
        first, *others = self.template.around(task, None, len(contents) - 1)
        ids, slots = list(first), []
        for content, behind in zip(contents, others, strict=True):
            if isinstance(content, int):
                assert content > 0
                slots.append(slice(len(ids), len(ids) + content))
                content = [0] * content
            ids += content + behind
        return ids, slots, len(first)

    def _sequence(self, sample: Sample | None, task: str, encoded: Sequence[list[int]]) -> _Sequence:
        """The sequence of one sample, whose `_texts` are `encoded`, or of a filler."""
        template = self.template
        if sample is None:
            student, slots, prefix = self._student(task, [self._num_speech_tokens(_FILLER_SAMPLES)])
            context = template.context(task, None, [[]])
            return _Sequence(student, slots, context, [template.end_of_turn_id], (prefix, prefix))
        utterance, continuation = sample.utterance, sample.continuation
        language = language_of(continuation.prompt)
        response, *turns = encoded
        heard = iter([self._num_speech_tokens(len(clip)) for clip in sample.clips])
        is_speech = [message.audio is not None for message in utterance.messages] + [True]
        contents = [next(heard) if speech else words for speech, words in zip(is_speech, turns, strict=True)]
        student, slots, prefix = self._student(in_language(task, language), contents)
        if task == "identify":
            assert utterance.emotion is not None
            return _Sequence(student, slots, [], self.label_response(utterance.emotion), (prefix, 0))
        if all(in_language(writing, language) != continuation.prompt for writing in written_for(task)):
            raise ValueError(
                f"{utterance.id}: its continuation was written under {continuation.prompt!r}, not for {task!r}"
            )
        emotion = utterance.emotion if "{emotion}" in PROMPTS[continuation.prompt].instruction else None
        teacher = template.context(continuation.prompt, emotion, turns)
        end = [template.end_of_turn_id] if continuation.finished else []
        told = len(template.around(continuation.prompt, emotion, len(turns) - 1)[0])
        return _Sequence(student, slots, teacher, response + end, (prefix, told))


def _sums(
    clips: tuple[NDArray[np.integer], NDArray[np.integer]], of_clip: Callable[[int], int], num_samples: int
) -> NDArray[np.int64]:
    """A number of each clip, summed over the clips of each sample."""
    lengths, place = np.unique(clips[0], return_inverse=True)
    values = np.array([of_clip(int(n)) for n in lengths], np.int64)[place]
    sums: NDArray[np.int64] = np.bincount(clips[1], values, num_samples).astype(np.int64)  # exact below 2^53
    return sums


@dataclass(frozen=True)
class _Packed:
    ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    seq_lens: list[int]
    prefix_of: list[int]
    rows: NDArray[np.int64]
    origins: list[int]  # of each sequence: add a position in it that is not its shared prefix's, for that in the pack


def _pack(sequences: Sequence[tuple[list[int], int, list[int]]]) -> _Packed:
    """Context, length of the prefix in it, and response of each sequence, end to end, behind the prefixes that several
    share; `rows` are the positions one before each response token."""
    # The context's last token predicts: it is never shared.
    prefixes = [tuple(context[: min(length, len(context) - 1)]) for context, length, _ in sequences]
    shared = [prefix for prefix, uses in Counter(prefixes).items() if uses > 1 and prefix]
    ids = [token for prefix in shared for token in prefix]
    lengths, prefix_of = [len(prefix) for prefix in shared], [-1] * len(shared)
    positions, rows, origins = [np.arange(length) for length in lengths], [], []
    for (context, _, response), prefix in zip(sequences, prefixes, strict=True):
        prefix_of.append(shared.index(prefix) if prefix in shared else -1)
        own = slice(len(prefix) if prefix in shared else 0, len(context) + len(response))
        origins.append(len(ids) - own.start)
        ids += (context + response)[own]
        lengths.append(own.stop - own.start)
        positions.append(np.arange(own.start, own.stop))
        rows.append(origins[-1] + np.arange(len(context) - 1, own.stop - 1))
    return _Packed(
        ids=np.array(ids, np.int64),
        position_ids=np.concatenate(positions or [np.empty(0, np.int64)]),
        seq_lens=lengths,
        prefix_of=prefix_of,
        rows=np.concatenate(rows or [np.empty(0, np.int64)]),
        origins=origins,
    )


def _emotion_id(sample: Sample | None) -> int:
    if sample is None or sample.utterance.emotion is None:
        return IGNORED_EMOTION
    return EMOTIONS.index(sample.utterance.emotion)
