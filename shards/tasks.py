"""A task is a shard: a fixed list of clips that is encoded, written and committed as one, or not at all.

The commit is a hard link to a new name in `commits/`: it fails if somebody was faster, so a task that is tried twice,
or by two workers, still counts once. Nothing here knows of Ray.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.files import sync_folder, write_atomically
from shards.audio import AudioError, encode_flac, load_audio
from shards.index import encode_array, name_hash
from shards.manifest import Reject, write_rejects
from shards.prompts import PROMPTS
from shards.sample import Continuation, Utterance
from shards.writers import Request, drop_reason

if TYPE_CHECKING:
    from shards.tar import TarShard

SUBFOLDERS = ("shards", "index", "commits", "rejects", "_tmp")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NoSpaceError(OSError):
    """The disk is full; what was committed is safe."""


@dataclass(frozen=True)
class Clip:
    """An utterance as the shard will hold it, and where its audio is now (absolute)."""

    utterance: Utterance
    audio: str


@dataclass(frozen=True)
class Task:
    """The clips of shard `number`."""

    number: int
    clips: tuple[Clip, ...]


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What became of a task. `name` (of tar and index) is None when no clip of it could be used."""

    task: int
    name: str | None
    rows: int
    bytes: int
    index_crc32: int
    num_samples: int
    rejected: dict[str, int]
    writer: str | None

    @property
    def inputs(self) -> int:
        """Every clip of the task is written or rejected."""
        return self.rows + sum(self.rejected.values())


def plan_tasks(clips: Iterable[Clip], clips_per_shard: int) -> list[Task]:
    """The clips in the order of their id's hash, so that every shard is a fair mixture of all corpora."""
    ordered = sorted(clips, key=lambda clip: (name_hash(clip.utterance.id), clip.utterance.id))
    starts = range(0, len(ordered), clips_per_shard)
    return [Task(i, tuple(ordered[start : start + clips_per_shard])) for i, start in enumerate(starts)]


def requests(task: Task, prompt: str) -> list[Request]:
    """What the LLM is asked for this task: one request per clip whose text can be used, in order."""
    usable = (clip.utterance for clip in task.clips if _text_fault(clip.utterance, prompt) is None)
    return [Request(utterance.text, utterance.emotion, prompt) for utterance in usable]


def read_commit(out: Path, number: int) -> Commit | None:
    """The commit of task `number`, or None while there is none."""
    try:
        return Commit(**json.loads((out / "commits" / f"{number:06d}.json").read_text()))
    except FileNotFoundError:
        return None


def write_task(out: Path, task: Task, prompt: str, continuations: Sequence[Continuation]) -> Commit:
    """Encode, write and commit a task; `continuations` answer `requests(task, prompt)`.

    Bad clips become rejects. Raises NoSpaceError when the disk is full and OSError when it fails otherwise.
    """
    done = read_commit(out, task.number)
    if done is not None:
        return done
    attempt = out / "_tmp" / f"{task.number:06d}-{uuid.uuid4().hex}"
    try:
        return _write_and_commit(out, task, prompt, continuations, attempt)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpaceError(f"no space left while writing shard {task.number} to {out}") from None
        raise
    finally:
        for leftover in attempt.parent.glob(f"{attempt.name}.*"):
            leftover.unlink()


def _write_and_commit(
    out: Path, task: Task, prompt: str, continuations: Sequence[Continuation], attempt: Path
) -> Commit:
    from shards.tar import TarShard  # brings torch, which the driver has no use for

    tar, index = attempt.with_suffix(".tar"), attempt.with_suffix(".npy")
    with TarShard(tar) as shard:
        rejects = _fill(shard, task, prompt, continuations)
    rows, size, name, content = shard.index, tar.stat().st_size, None, b""
    if len(rows):
        name = f"{task.number:06d}-{shard.digest}"
        content = encode_array(rows)
        write_atomically(index, content)
        for source, final in ((tar, out / "shards" / f"{name}.tar"), (index, out / "index" / f"{name}.npy")):
            source.rename(final)
            sync_folder(final.parent)
    write_rejects(out / "rejects" / f"{task.number:06d}.jsonl", rejects)
    commit = Commit(
        task=task.number,
        name=name,
        rows=len(rows),
        bytes=size if name else 0,
        index_crc32=zlib.crc32(content),
        num_samples=int(rows["num_samples"].sum()),
        rejected=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        writer=continuations[0].writer if continuations else None,
    )
    assert commit.inputs == len(task.clips)
    return _commit(out, commit, attempt.with_suffix(".json"))


def _fill(shard: TarShard, task: Task, prompt: str, continuations: Sequence[Continuation]) -> list[Reject]:
    """Add every clip that can be used to the shard; returns the others."""
    rejects: list[Reject] = []
    answers = iter(continuations)
    for clip in task.clips:
        utterance = clip.utterance
        fault = _text_fault(utterance, prompt)
        if fault is None:
            continuation = next(answers)
            try:
                samples = load_audio(Path(clip.audio), utterance.start_s, utterance.duration_s)
            except AudioError as error:
                fault = Reject(utterance.id, error.reason, str(error))
            else:
                fault = _response_fault(utterance, continuation)
        if fault is None:
            shard.add(utterance, continuation, encode_flac(samples), len(samples))
        else:
            rejects.append(fault)
    assert next(answers, None) is None
    return rejects


def _text_fault(utterance: Utterance, prompt: str) -> Reject | None:
    if not utterance.text.strip():
        return Reject(utterance.id, "no_text", "there is no transcript to continue")
    if "{emotion}" in PROMPTS[prompt].instruction and utterance.emotion is None:
        return Reject(utterance.id, "unknown_emotion", f"no emotion label, and the prompt {prompt!r} names it")
    return None


def _response_fault(utterance: Utterance, continuation: Continuation) -> Reject | None:
    reason = drop_reason(continuation.text)
    return Reject(utterance.id, reason, f"the LLM wrote {continuation.text!r}") if reason else None


def _commit(out: Path, commit: Commit, temporary: Path) -> Commit:
    """Make `commit` the one of its task, unless there is one already; returns the one that counts."""
    write_atomically(temporary, json.dumps(dataclasses.asdict(commit), indent=1).encode())
    final = out / "commits" / f"{commit.task:06d}.json"
    try:
        os.link(temporary, final)
    except FileExistsError:
        first = read_commit(out, commit.task)
        assert first is not None
        return first
    sync_folder(final.parent)
    return commit


def remove_leftovers(out: Path, commits: Iterable[Commit]) -> None:
    """Delete what killed attempts left behind: whatever no commit names."""
    names = {commit.name for commit in commits}
    for path in [*(out / "shards").glob("*.tar"), *(out / "index").glob("*.npy")]:
        if path.stem not in names:
            path.unlink()
    for path in (out / "_tmp").iterdir():
        path.unlink()
