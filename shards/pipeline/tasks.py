"""A task is a shard: a fixed list of clips that is encoded, written and committed as one, or not at all.

The commit is a file that can be created once: a task that is tried twice, or by two workers, still counts once. What a
commit names was there before it; what no commit names does not exist. Nothing here knows of Ray.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.files import write_atomically
from shards.audio import AudioError
from shards.manifest import Reject, write_rejects
from shards.pipeline.answers import Answers, text_fault
from shards.pipeline.attempts import attempt
from shards.pipeline.clips import Clip, KeptAudio
from shards.pipeline.encoded import Encode, encode_here, joined
from shards.prompts import language_of
from shards.sample import Continuation, Utterance
from shards.sets.gains import encode_gains, gains_file
from shards.sets.index import Shard, encode_array
from shards.sets.store import Store
from shards.sets.tar import TarShard
from shards.sets.tokens import tokens_file
from shards.targets.filters import ALL_FILTERS, Filters
from shards.writers.protocol import NoAnswer

DUPLICATES = "duplicates.jsonl"  # in rejects/, beside the rejects of tasks
_MAX_COMMIT_BYTES = 2**20
_MAX_ALL_MISSING = 10
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class NoSpaceError(OSError):
    """The disk is full, or lets no file grow so large; what was committed is safe."""


@dataclass(frozen=True)
class Task:
    """Shard `number`, of `size` clips: the CLIP_LINE rows `lines`, or all of shard `number` of the base (None).

    `job` is the fingerprint of the job that it belongs to.
    """

    number: int
    size: int
    lines: NDArray[np.void] | None = None
    job: str = ""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What became of a task. `name` (of tar and index) is None when no clip of it could be used.

    `job` is the one it belongs to (`job_fingerprint`). `rejects` names the file in `rejects/`, `tokens` the template
    whose token counts lie in `tokens/`; `corpora` are the clips written, by corpus and licence. `noted` is what filters
    found in those and left in, `languages` are those of the prompts, `finish` how many continuations ended by
    themselves and how many were cut, by emotion; `gains` whether their emotion gains lie in `gains/`.
    """

    task: int
    job: str
    name: str | None
    rows: int
    bytes: int
    index_crc32: int
    num_samples: int
    rejected: dict[str, int]
    rejects: str | None
    writer: str | None
    tokens: str | None
    corpora: list[tuple[str, str | None, int]]
    noted: dict[str, int] = field(default_factory=dict)
    languages: list[str] = field(default_factory=lambda: ["en"])
    finish: dict[str, list[int]] = field(default_factory=dict)
    gains: bool = False

    @property
    def inputs(self) -> int:
        """Every clip of the task is written or rejected."""
        return self.rows + sum(self.rejected.values())

    @property
    def shard(self) -> Shard | None:
        """Its entry in dataset.json."""
        if self.name is None:
            return None
        return Shard(self.name, self.rows, self.bytes, self.num_samples, self.index_crc32)

    @property
    def files(self) -> list[str]:
        """Names of all that it stands for, below the set's root."""
        names = [f"rejects/{self.rejects}"] if self.rejects else []
        if self.name:
            names += [f"shards/{self.name}.tar", f"index/{self.name}.npy"]
            names += [tokens_file(self.tokens, self.name)] if self.tokens else []
            names += [gains_file(self.name)] if self.gains else []
        return names


def job_fingerprint(job: dict[str, Any] | None) -> str:
    """16 hex digits of what job.json says that a root is made from; empty while there is none."""
    if job is None:
        return ""
    return hashlib.blake2b(json.dumps(job, sort_keys=True).encode(), digest_size=8).hexdigest()


def read_job(store: Store) -> dict[str, Any] | None:
    """What job.json says, None while there is none. Raises ValueError for a damaged one."""
    try:
        job = json.loads(store.read("job.json"))
        if not isinstance(job, dict):
            raise ValueError("not a JSON object")
        return job
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{store.url}/job.json: damaged ({error}); copy it again, or begin in another folder"
        ) from None


def read_commit(store: Store, number: int) -> Commit | None:
    """The commit of task `number`, or None while there is none. Raises ValueError for a damaged one."""
    try:
        return _parse_commit(store, commit_name(number), store.read(commit_name(number)))
    except FileNotFoundError:
        return None


def read_commits(store: Store) -> Iterator[Commit]:
    """All that there are. Raises ValueError for a damaged one."""
    names = [f"commits/{name}" for name in store.names("commits") if not name.startswith(".")]
    for name, data in zip(names, store.read_ranges([(name, 0, _MAX_COMMIT_BYTES) for name in names]), strict=True):
        yield _parse_commit(store, name, data)


def _parse_commit(store: Store, name: str, data: bytes) -> Commit:
    try:
        record = json.loads(data)
        record["corpora"] = [(name, licence, int(clips)) for name, licence, clips in record["corpora"]]
        commit = Commit(**record)
        if commit_name(commit.task) != name or not all(type(n) is int and n >= 0 for n in _numbers(commit)):
            raise ValueError("its numbers cannot be right")
        return commit
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{store.url}/{name}: damaged ({error}); delete it, and the same command makes that shard again"
        ) from None


def _numbers(commit: Commit) -> list[object]:
    counts = [commit.rows, commit.bytes, commit.index_crc32, commit.num_samples]
    return [*counts, *commit.rejected.values(), *commit.noted.values(), *(clips for _, _, clips in commit.corpora)]


def write_task(
    store: Store,
    task: Task,
    clips: Sequence[Clip],
    prompt: str,
    answers: Answers,
    encode: Encode = encode_here,
    filters: Filters = ALL_FILTERS,
) -> Commit:
    """Encode, write and commit a task; `answers` are to `requests(clips, prompt)`.

    Bad clips become rejects. Raises NoSpaceError when the disk is full, OSError when it fails otherwise, and ValueError
    when all audio of a corpus is missing.
    """
    assert len(clips) == task.size
    done = read_commit(store, task.number)
    if done is not None:
        return done
    try:
        with attempt(store, f"{task.number:06d}") as folder:
            commit = _write(store, task, clips, prompt, answers, encode, filters, folder)
            return _commit(store, commit)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise NoSpaceError(f"no space left while writing shard {task.number} to {store.url}") from None
        if error.errno == errno.EFBIG:
            what = f"shard {task.number} in {store.url} is larger than a file may become here (`ulimit -f`)"
            raise NoSpaceError(f"{what}; raise that limit or lower clips_per_shard") from None
        raise


def _write(
    store: Store,
    task: Task,
    clips: Sequence[Clip],
    prompt: str,
    answers: Answers,
    encode: Encode,
    filters: Filters,
    folder: Path,
) -> Commit:
    """Everything but the commit, under names that nobody reads before it."""
    with TarShard(folder / "tar") as shard:
        kept, rejects, noted = _fill(shard, clips, prompt, answers, encode, filters)
        _refuse_missing_corpora(clips, rejects)
    gains = [text.gain for _, text in _texts(kept, answers)]
    has_gains = any(gain is not None for gain in gains)
    name, index = None, b""
    if kept:
        name, index = f"{task.number:06d}-{shard.digest}", shard.index.encode()
        size = (folder / "tar").stat().st_size
        store.put(folder / "tar", f"shards/{name}.tar")
        _put(store, folder, f"index/{name}.npy", index)
        if answers.tokens is not None and answers.template is not None:
            counts = encode_array(answers.tokens[[number for _, number in kept]])
            _put(store, folder, tokens_file(answers.template, name), counts)
        if has_gains:
            _put(store, folder, gains_file(name), encode_gains(gains))
    corpora = Counter((utterance.corpus, utterance.licence) for utterance, _ in kept)
    commit = Commit(
        task=task.number,
        job=task.job,
        name=name,
        rows=len(kept),
        bytes=size if name else 0,
        index_crc32=zlib.crc32(index),
        num_samples=shard.index.num_samples,
        rejected=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        rejects=_put_rejects(store, folder, task, rejects) if rejects else None,
        writer=next((text.writer for text in answers.continuations if isinstance(text, Continuation)), None),
        tokens=answers.template if name else None,
        corpora=[(corpus, licence, number) for (corpus, licence), number in corpora.items()],
        noted=dict(sorted(noted.items())),
        languages=sorted({language_of(text.prompt) for _, text in _texts(kept, answers)}),
        finish=_finish(kept, answers),
        gains=has_gains,
    )
    assert commit.inputs == task.size
    return commit


def _texts(kept: Sequence[tuple[Utterance, int]], answers: Answers) -> Iterator[tuple[Utterance, Continuation]]:
    for utterance, number in kept:
        text = answers.continuations[number]
        assert isinstance(text, Continuation)
        yield utterance, text


def _finish(kept: Sequence[tuple[Utterance, int]], answers: Answers) -> dict[str, list[int]]:
    counts: dict[str, list[int]] = {}
    for utterance, text in _texts(kept, answers):
        counts.setdefault(utterance.emotion or "none", [0, 0])[not text.finished] += 1
    return dict(sorted(counts.items()))


def _put(store: Store, folder: Path, name: str, content: bytes) -> None:
    write_atomically(folder / "file", content)
    store.put(folder / "file", name)


def _put_rejects(store: Store, folder: Path, task: Task, rejects: Sequence[Reject]) -> str:
    write_rejects(folder / "file", rejects)
    name = f"{task.number:06d}-{zlib.crc32((folder / 'file').read_bytes()):08x}.jsonl"
    store.put(folder / "file", f"rejects/{name}")
    return name


def _fill(
    shard: TarShard, clips: Sequence[Clip], prompt: str, answers: Answers, encode: Encode, filters: Filters
) -> tuple[list[tuple[Utterance, int]], list[Reject], Counter[str]]:
    """Add every clip that can be used to the shard; returns those, each with the number of its answer, the rest, and
    what the filters counted of the former."""
    kept: list[tuple[Utterance, int]] = []
    noted: Counter[str] = Counter()
    rejects: list[Reject] = []
    usable = [clip for clip in clips if text_fault(clip.utterance, prompt) is None]
    assert len(usable) == len(answers.continuations)
    encoded = encode(span for clip in usable for span in clip.spans)
    number = 0
    for clip in clips:
        utterance = clip.utterance
        fault = text_fault(utterance, prompt)
        if fault is None:
            continuation = answers.continuations[number]
            audio = clip.audio if isinstance(clip.audio, KeptAudio) else joined([next(encoded) for _ in clip.spans])
            if isinstance(audio, AudioError):
                fault = Reject(utterance.id, audio.reason, str(audio))
            elif isinstance(continuation, NoAnswer):
                fault = Reject(utterance.id, "llm_no_answer", continuation.why)
            elif reason := (verdict := filters.judge(utterance, continuation)).reason:
                fault = Reject(utterance.id, reason, f"the LLM wrote {continuation.text!r}")
            else:
                noted.update(verdict.noted)
                teacher = answers.teachers[number] if answers.teachers else b""
                if isinstance(audio, KeptAudio):
                    shard.add(utterance, continuation, audio.at, audio.num_samples, teacher)
                else:
                    heard = utterance.with_lengths(audio.lengths)
                    shard.add(heard, continuation, audio.flac, sum(audio.lengths), teacher)
            if fault is None:
                kept.append((utterance, number))
            number += 1
        if fault is not None:
            rejects.append(fault)
    return kept, rejects, noted


def _refuse_missing_corpora(clips: Sequence[Clip], rejects: Sequence[Reject]) -> None:
    """A disk that is not mounted must not end as a set without its clips."""
    missing = {reject.source: reject.detail for reject in rejects if reject.reason == "missing_audio"}
    corpora = Counter(clip.utterance.corpus for clip in clips)
    lost = Counter(clip.utterance.corpus for clip in clips if clip.utterance.id in missing)
    for corpus, number in lost.items():
        if number == corpora[corpus] > _MAX_ALL_MISSING:
            example = next(iter(missing.values()))
            raise ValueError(
                f"all {number} audio files of {corpus!r} in one shard are missing ({example}); is its disk "
                "mounted? Then the same command goes on"
            )


def _commit(store: Store, commit: Commit) -> Commit:
    """Make `commit` the one of its task, unless there is one already; returns the one that counts."""
    data = json.dumps(dataclasses.asdict(commit), indent=1, ensure_ascii=False).encode()
    if job_fingerprint(read_job(store)) != commit.job:  # our driver is dead, or another host's took the root
        raise ValueError(f"{store.url}: is now being made by another job; choose another folder for one of them")
    if store.create(commit_name(commit.task), data):
        return commit
    first = read_commit(store, commit.task)
    assert first is not None
    for name in set(commit.files) - set(first.files):
        store.delete(name)
    return first


def commit_name(number: int) -> str:
    """Where the commit of task `number` lies, below the set's root."""
    return f"commits/{number:06d}.json"


def remove_strays(store: Store, commits: Iterable[Commit]) -> None:
    """Delete what no commit names. Only when every task has its commit: until then a worker of a driver that was
    killed may still be about to write one."""
    commits = list(commits)
    named = {name for commit in commits for name in commit.files}
    folders = [
        "shards",
        "index",
        "rejects",
        "gains",
        *{f"tokens/{commit.tokens}" for commit in commits if commit.tokens},
    ]
    for folder in folders:
        for name in store.names(folder):
            if f"{folder}/{name}" not in named and name != DUPLICATES:
                store.delete(f"{folder}/{name}")
