"""What the LLM is asked for a task, and what came back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.manifest import Reject
from shards.pipeline.clips import Clip
from shards.prompts import PROMPTS, in_language
from shards.sample import Continuation, Utterance
from shards.sets.index import encode_array
from shards.sets.teacher import TeacherSpec
from shards.sets.tokens import TOKEN_COUNTS, count_tokens
from shards.targets.gain import with_gains
from shards.writers.protocol import NoAnswer, Request, Writer


@dataclass(frozen=True)
class Answers:
    """What the LLM wrote to `requests(clips, prompt)`, and TOKEN_COUNTS of each under the template of that fingerprint;
    None of a writer that has no tokenizer.

    `teachers` are the `key.teacher.npy` of each, where the job asks for them.
    """

    continuations: Sequence[Continuation | NoAnswer]
    template: str | None = None
    tokens: NDArray[np.void] | None = None
    teachers: list[bytes] | None = None


def requests(clips: Iterable[Clip], prompt: str) -> list[Request]:
    """What the LLM is asked for a task: one request per clip whose text can be used, in order."""
    usable = (clip.utterance for clip in clips if text_fault(clip.utterance, prompt) is None)
    return [
        Request(utterance.text, utterance.emotion, in_language(prompt, utterance.language), utterance.messages)
        for utterance in usable
    ]


def answer(
    writer: Writer, clips: Iterable[Clip], prompt: str, teacher: TeacherSpec | None = None, gain: bool = False
) -> Answers:
    """Has the continuations of a task written and, while their LLM is at hand, counts their tokens and keeps what it
    predicts for them, and with `gain` how much emotion they carry."""
    asked = requests(clips, prompt)
    continuations: Sequence[Continuation | NoAnswer] = writer.write(asked)
    if gain:
        continuations = with_gains(writer, asked, continuations)
    template = writer.template
    if template is None:
        return Answers(continuations)
    tokens = np.zeros(len(asked), TOKEN_COUNTS)
    written = [(i, text) for i, text in enumerate(continuations) if isinstance(text, Continuation)]
    for i, text in written:
        tokens[i] = count_tokens(template, asked[i].text, text, asked[i].messages)
    teachers = None
    if teacher is not None:
        teachers = [b""] * len(asked)
        taught = writer.teach([asked[i] for i, _ in written], [text for _, text in written], teacher)
        for (i, _), rows in zip(written, taught, strict=True):
            teachers[i] = encode_array(rows)
    return Answers(continuations, template.fingerprint, tokens, teachers)


def text_fault(utterance: Utterance, prompt: str) -> Reject | None:
    """Why nothing can be written for it, or None."""
    if not utterance.text.strip():
        return Reject(utterance.id, "no_text", "there is no transcript to continue")
    if "{emotion}" in PROMPTS[prompt].instruction and utterance.emotion is None:
        return Reject(utterance.id, "unknown_emotion", f"no emotion label, and the prompt {prompt!r} names it")
    return None
