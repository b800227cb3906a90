"""From manifests, or from another set, to a shard set: plan the tasks, have them done, count, and sign with
dataset.json.

Work is exactly once by what is on disk, not by what Ray promises: one task = one commit, a restart runs the tasks
without one, and in the end inputs = written + rejected + duplicates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from textwrap import shorten

from shards.audio import SAMPLE_RATE
from shards.manifest import write_rejects
from shards.pipeline.actors import run_tasks
from shards.pipeline.attempts import attempt, remove_dead_attempts
from shards.pipeline.cost import Cost, cost
from shards.pipeline.inputs import Inputs
from shards.pipeline.job import Progress, ShardJob, Speed, Summary
from shards.pipeline.report import write_report
from shards.pipeline.tasks import (
    DUPLICATES,
    Commit,
    NoSpaceError,
    Task,
    commit_name,
    job_fingerprint,
    read_commits,
    read_job,
    remove_strays,
)
from shards.prompts import PROMPTS, in_language
from shards.sets.index import FORMAT, dataset_id, read_dataset, read_index
from shards.sets.store import Store, open_store
from shards.writers.protocol import Writer
from shards.writers.with_openai import OpenAIWriter
from shards.writers.with_transformers import TransformersWriter
from shards.writers.with_vllm import VllmWriter

_SPARE = 1.2
_PACKAGES = ("numpy", "soundfile", "soxr", "ray", "torch", "transformers")
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.ENXIO}


def load_writer_of(job: ShardJob) -> Writer:
    """The writer that a job asks for; runs inside an LLM actor."""
    if job.endpoint is not None:
        return OpenAIWriter(job.llm, job.endpoint, job.max_new_tokens, job.cache)
    if job.backend == "vllm":
        return VllmWriter(job.llm, job.max_new_tokens, job.revision, job.cache)
    return TransformersWriter(job.llm, job.max_new_tokens, job.batch_size, job.revision, job.cache)


def write_shards(
    job: ShardJob,
    on_progress: Callable[[Progress], None],
    load_writer: Callable[[ShardJob], Writer] = load_writer_of,
    on_cost: Callable[[Cost], None] | None = None,
) -> Summary:
    """Make the shard set `job.out`, or finish it; a finished one is left as it is. `on_cost` is told what there is to
    write, and what that takes, before it begins.

    Raises ValueError for bad manifests, a missing LLM, a folder in use or made from something else, or if no clip can
    be used; OSError for a full disk, a folder that cannot be written, or dying workers; KeyboardInterrupt with a
    sentence on Ctrl-C. In each of these cases what was committed stays and the same call goes on from there.
    """
    job = job.absolute()
    store = open_store(job.out)
    with _locked(job, store):
        inputs = job.inputs()
        fingerprint = _claim(job, store, inputs)
        if "dataset.json" in store.names(""):
            return _finished(store)
        run = _Run(job, store, inputs, fingerprint)
        try:
            run.tell_cost(on_cost)
            run.do_missing(on_progress, load_writer)
            return run.finish()
        except KeyboardInterrupt:
            kept = f"{run.kept()} shards in {job.out} are finished and kept"
            raise KeyboardInterrupt(f"stopped; {kept}, the same command goes on from there") from None
        except OSError as error:
            if isinstance(error, NoSpaceError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
                what = error if error.errno is None else f"{error.filename or job.out}: no space left"
                goes_on = f"the same command goes on ({run.kept()} shards are finished and kept)"
                raise NoSpaceError(f"{what}; {run.needed()}; make room, then {goes_on}") from None
            raise


@contextmanager
def _locked(job: ShardJob, store: Store) -> Iterator[None]:
    """The root, which is ours alone; what is wrong with it if it cannot be."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.lock())
            with attempt(store, "probe"):
                pass
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            inputs = job.inputs()
            needed = _megabytes(_SPARE * inputs.bytes_needed(inputs.tasks))
            why = (error.strerror or "").lower()
            raise OSError(
                f"{job.out}: cannot be written ({why}); about {needed} are needed there: choose a folder that this "
                "user may write to, with out=FOLDER"
            ) from None
        yield


class _Run:
    """One run of a job: what there is to do, and what is done."""

    def __init__(self, job: ShardJob, store: Store, inputs: Inputs, fingerprint: str) -> None:
        self._job, self._store, self._inputs, self._fingerprint = job, store, inputs, fingerprint
        self._tasks = [dataclasses.replace(task, job=self._fingerprint) for task in self._inputs.tasks]
        remove_dead_attempts(store)
        self._commits: dict[int, Commit] = {}
        self._progress = Progress(
            done=self._inputs.num_duplicates,
            rejected=0,
            total=self._inputs.num_duplicates + sum(task.size for task in self._tasks),
            hours=0.0,
        )
        present = {f"{folder}/{name}" for folder in ("shards", "index") for name in store.names(folder)}
        for commit in read_commits(store):
            # Another job's: of a worker that outlived its driver, whose job had committed nothing when we took over.
            shard = commit.shard
            lost = shard is not None and not present.issuperset((shard.tar, shard.index))
            if commit.job == self._fingerprint and not lost:
                self._add(commit)
            else:
                store.delete(commit_name(commit.task))

    def _add(self, commit: Commit) -> None:
        if commit.job != self._fingerprint:
            raise ValueError(f"{self._job.out}: another job wrote shard {commit.task}; run the same command again")
        if commit.task >= len(self._tasks) or commit.inputs != self._tasks[commit.task].size:
            name = commit_name(commit.task)
            raise ValueError(
                f"{self._job.out}/{name}: is of no task of this job; delete it and run the same command again"
            )
        assert commit.task not in self._commits
        self._commits[commit.task] = commit
        now = self._progress
        self._progress = dataclasses.replace(
            now,
            done=now.done + commit.inputs,
            rejected=now.rejected + commit.inputs - commit.rows,
            hours=now.hours + commit.num_samples / SAMPLE_RATE / 3600,
        )

    def tell_cost(self, on_cost: Callable[[Cost], None] | None) -> None:
        """Of the tasks that have no commit."""
        missing = self._missing()
        if missing and on_cost is not None:
            on_cost(cost(self._job, missing))

    def do_missing(self, on_progress: Callable[[Progress], None], load_writer: Callable[[ShardJob], Writer]) -> None:
        """Has every task done that has no commit."""
        missing = self._missing()
        if not missing:
            return
        free = self._store.free_bytes()
        if free is not None and free < self._bytes_needed():
            raise NoSpaceError(f"{self._job.out}: too little room")
        before, began_s = self._progress, time.monotonic()
        on_progress(before)
        with contextlib.closing(run_tasks(self._job, missing, load_writer)) as finished:
            for commit in finished:
                if commit is not None:
                    self._add(commit)
                now, seconds = self._progress, time.monotonic() - began_s
                speed = Speed(now.done - before.done, now.hours - before.hours, seconds)
                self._progress = dataclasses.replace(now, speed=speed)
                on_progress(self._progress)
        assert len(self._commits) == len(self._tasks)

    def _missing(self) -> list[Task]:
        return [task for task in self._tasks if task.number not in self._commits]

    def _bytes_needed(self) -> float:
        return _SPARE * self._inputs.bytes_needed(self._missing())

    def kept(self) -> str:
        """How far it is, by what lies in the store: the driver may not have heard of all yet."""
        return f"{len(self._store.names('commits'))} of {len(self._tasks)}"

    def needed(self) -> str:
        """What a full disk lacks."""
        free = self._store.free_bytes()
        there = "" if free is None else f", {_megabytes(free)} are free"
        return f"about {_megabytes(self._bytes_needed())} are needed there{there}"

    def finish(self) -> Summary:
        """Write dataset.json, which makes the folder a shard set, and the report."""
        commits = [self._commits[task.number] for task in self._tasks]
        remove_strays(self._store, commits)
        remove_dead_attempts(self._store)  # again: workers of an earlier run may have lived when this one began
        rejected: Counter[str] = Counter()
        for commit in commits:
            rejected.update(commit.rejected)
        num_clips, written = sum(task.size for task in self._tasks), sum(commit.rows for commit in commits)
        assert written + rejected.total() == num_clips
        if not written:
            reasons = ", ".join(f"{number} {reason}" for reason, number in rejected.most_common())
            raise ValueError(f"none of the {num_clips} clips could be used ({reasons}); see {self._job.out}/rejects")
        shards = [shard for commit in commits if (shard := commit.shard)]
        summary = Summary(
            dataset_id=dataset_id(shards),
            inputs=num_clips + self._inputs.num_duplicates,
            written=written,
            rejected=dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
            duplicates=self._inputs.num_duplicates,
            hours=sum(commit.num_samples for commit in commits) / SAMPLE_RATE / 3600,
        )
        assert summary.inputs == self._progress.total
        self._sign(summary, commits)
        return summary

    def _sign(self, summary: Summary, commits: Sequence[Commit]) -> None:
        corpora: Counter[tuple[str, str | None]] = Counter()
        for commit in commits:
            for corpus, licence, number in commit.corpora:
                corpora[corpus, licence] += number
        by_name = sorted(corpora.items(), key=lambda item: (item[0][0], item[0][1] or ""))
        description = {
            "format": FORMAT,
            **dataclasses.asdict(summary),
            "prompt": self._job.prompt,
            "teacher": None if self._job.teacher is None else dataclasses.asdict(self._job.teacher),
            "languages": sorted({language for commit in commits for language in commit.languages}),
            "writers": sorted({commit.writer for commit in commits if commit.writer}),
            "corpora": [{"corpus": name, "licence": licence, "clips": n} for (name, licence), n in by_name],
            "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
            "job": read_job(self._store),
            "audio_files": [dataclasses.asdict(file) for file in self._inputs.audio_files(str(self._job.out))],
            "shards": [dataclasses.asdict(commit.shard) for commit in commits if commit.shard],
        }
        self._put_duplicates()
        write_report(self._store, summary, description["corpora"], commits, self._progress.speed)
        self._store.create("dataset.json", json.dumps(description, indent=1, ensure_ascii=False).encode())

    def _put_duplicates(self) -> None:
        if self._inputs.num_duplicates:
            with attempt(self._store, "duplicates") as folder:
                write_rejects(folder / DUPLICATES, self._inputs.duplicates())
                self._store.put(folder / DUPLICATES, f"rejects/{DUPLICATES}")


def _megabytes(number: float) -> str:
    return f"{number / 1e6:,.1f} MB"


def _finished(store: Store) -> Summary:
    """What dataset.json says of a set that is finished, which nothing here changes any more. Raises ValueError when a
    part of it is damaged."""
    record, description = read_dataset(store)
    for shard in description.shards:
        read_index(store, description, shard)
    try:
        return Summary(**{field.name: record[field.name] for field in dataclasses.fields(Summary)})
    except KeyError as error:
        raise ValueError(f"{store.url}/dataset.json: damaged (no {error}); copy it again") from None


def _claim(job: ShardJob, store: Store, inputs: Inputs) -> str:
    """Note in job.json what this root is made from; returns the fingerprint of it. Raises ValueError if the root holds
    shards made from something else."""
    wording, chinese = PROMPTS[job.prompt], PROMPTS[in_language(job.prompt, "zh")]
    settings = {
        "format": FORMAT,
        **inputs.made_of,
        "llm": job.llm_version(),
        "backend": job.backend,
        "prompt": job.prompt,
        "wording": [wording.system, wording.instruction],
        "wording_zh": [chinese.system, chinese.instruction],
        "max_new_tokens": job.max_new_tokens,
        "teacher": None if job.teacher is None else [job.teacher.top_k, list(job.teacher.temperatures)],
        "gain": job.gain,
        "filters": job.filters.to_json(),
    }
    before, finished = read_job(store), "dataset.json" in store.names("")
    if finished or (before is not None and store.names("commits")):
        before = before or {}
        # Older versions did not note it: they had transformers write, in English. They knew one filter, and no gains:
        # what they began is not gone on with, what they finished is.
        unsaid = {"backend", "wording_zh", *(("gain", "filters") if finished else ())} - set(before)
        settings = {n: v for n, v in settings.items() if n not in unsaid or (n == "backend" and v != "transformers")}
        changed = [name for name in {**settings, **before} if before.get(name) != settings.get(name)]
        if changed:
            values = [[shorten(str(side.get(name)), 80) for side in (before, settings)] for name in changed]
            other = "; ".join(f"{name}: {old} -> {new}" for name, (old, new) in zip(changed, values, strict=True))
            raise ValueError(
                f"{job.out}: holds shards made with other settings ({other}); choose another folder or remove it"
            )
    else:
        store.write("job.json", json.dumps(settings, indent=1, ensure_ascii=False).encode())
    return job_fingerprint(settings)
