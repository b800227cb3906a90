"""What the writing of a job's continuations will take, from some of its clips, before the first is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from shards.audio import SAMPLE_RATE
from shards.pipeline.answers import requests
from shards.pipeline.clips import Clip, KeptAudio
from shards.pipeline.job import ShardJob
from shards.pipeline.tasks import Task
from shards.prompts import chat_messages
from shards.writers.cache import measured_rate
from shards.writers.greedy import emotion_told

_TASKS_READ, _CLIPS_OF_EACH = 4, 50
_FILES_ASKED = 20
_TOKENS_AROUND = 8  # of each message: what a chat template puts around it
_CHARACTERS_PER_TOKEN = 4  # of ASCII, where no tokenizer is at hand; of others 1


@dataclass(frozen=True)
class Cost:
    """Of `clips` that are still to be written: tokens that the LLM reads (about) and writes (at most).

    `counted` says whether the LLM's own tokenizer has counted them. `dollars`, at most, are None where the recipe names
    no prices; `hours` None where nothing that was written before tells the rate; `teacher_bytes_per_hour`, of audio and
    at most, None without a teacher.
    """

    clips: int
    prompt_tokens: int
    new_tokens: int
    counted: bool
    dollars: float | None
    hours: float | None
    teacher_bytes_per_hour: float | None


def cost(job: ShardJob, tasks: Sequence[Task]) -> Cost:
    """What the LLM is asked for these tasks. Raises as the reading of clips does."""
    clips = _some_clips(job, tasks)
    asked = requests(clips, job.prompt)
    count = _tokenizer(job)
    per_clip = 0.0
    for request in asked:
        texts = [*(message.text for message in request.messages), request.text]
        contents = [message["content"] for message in chat_messages(request.prompt, emotion_told(request), texts)]
        per_clip += sum((count or _guessed)(content) + _TOKENS_AROUND for content in contents) / len(asked)
    number = round(sum(task.size for task in tasks) * len(asked) / max(1, len(clips)))
    read, written = round(number * per_clip), number * job.max_new_tokens
    rate = None if job.cache is None else measured_rate(job.cache, job.llm_version().partition("@")[0])
    teacher = None
    if job.teacher is not None and (audio_s := _mean_audio_s(clips)):
        teacher = 3600 / audio_s * job.max_new_tokens * job.teacher.row.itemsize
    return Cost(
        clips=number,
        prompt_tokens=read,
        new_tokens=written,
        counted=count is not None,
        dollars=None if job.endpoint is None else job.endpoint.dollars(read, written),
        hours=None if rate is None else number / rate / job.llm_actors / 3600,
        teacher_bytes_per_hour=teacher,
    )


def _some_clips(job: ShardJob, tasks: Sequence[Task]) -> list[Clip]:
    """From tasks and places in them that lie evenly."""
    read, clips = job.clip_reader(), []
    for place in np.unique(np.linspace(0, len(tasks) - 1, _TASKS_READ).astype(int)).tolist():
        task = tasks[place]
        if task.lines is not None:
            lines = task.lines[:: -(-task.size // _CLIPS_OF_EACH)]
            task = dataclasses.replace(task, lines=lines, size=len(lines))
        some = read(task)
        clips += some[:: -(-len(some) // _CLIPS_OF_EACH)]
    return clips


def _tokenizer(job: ShardJob) -> Callable[[str], int] | None:
    """Counts tokens as the LLM's tokenizer.json does, without transformers, which takes seconds to import; None where
    there is none."""
    import huggingface_hub
    from tokenizers import Tokenizer

    if job.endpoint is not None:
        return None
    try:
        path = Path(job.llm) / "tokenizer.json"
        if not Path(job.llm).is_dir():
            path = Path(huggingface_hub.hf_hub_download(job.llm, "tokenizer.json", revision=job.revision))
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises nothing more exact; the writer will say what is wrong, if something is
        return None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _guessed(text: str) -> int:
    ascii_only = sum(letter.isascii() for letter in text)
    return -(-ascii_only // _CHARACTERS_PER_TOKEN) + len(text) - ascii_only


def _mean_audio_s(clips: Sequence[Clip]) -> float:
    """Of those whose length is known, or can be read from the head of a file; 0 when there are none."""
    seconds, asked = [], 0
    for clip in clips:
        known = clip.utterance.duration_s
        if isinstance(clip.audio, KeptAudio):
            known = clip.audio.num_samples / SAMPLE_RATE
        elif known is None and asked < _FILES_ASKED:
            asked += 1
            with suppress(soundfile.LibsndfileError, OSError):
                known = soundfile.info(clip.audio[-1]).duration
        if known:
            seconds.append(known)
    return float(np.mean(seconds)) if seconds else 0.0
