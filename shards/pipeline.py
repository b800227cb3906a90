"""From manifests to a shard set: plan the tasks, have them done, count, and sign with dataset.json.

Work is exactly once by what is on disk, not by what Ray promises: one task = one commit, a restart runs the tasks
without one, and in the end inputs = written + rejected + duplicates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.files import write_atomically
from cluster.lock import folder_lock
from shards.actors import run_tasks
from shards.audio import SAMPLE_RATE
from shards.index import FORMAT, Shard, dataset_id
from shards.manifest import Reject, portable_path, read_manifest, write_rejects
from shards.prompts import PROMPTS, TRAINED_UNDER
from shards.tasks import (
    SUBFOLDERS,
    Clip,
    Commit,
    NoSpaceError,
    Task,
    plan_tasks,
    read_commit,
    remove_leftovers,
)
from shards.writers import TransformersWriter, Writer, model_fingerprint

_FLAC_BYTES_PER_S = 0.7 * 2 * SAMPLE_RATE
_SPARE = 1.2
_PACKAGES = ("numpy", "soundfile", "soxr", "ray", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """What to make. `cpu_actors=None` is one per core; `ray_address=None` starts Ray on this machine."""

    manifests: tuple[Path, ...]
    out: Path
    llm: str
    revision: str | None = None
    prompt: str = "continue"
    max_new_tokens: int = 48
    batch_size: int = 32
    clips_per_shard: int = 1000
    cpu_actors: int | None = None
    llm_actors: int = 1
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.prompt not in TRAINED_UNDER:
            raise ValueError(f"prompt {self.prompt!r} writes no targets; use one of {', '.join(TRAINED_UNDER)}")


@dataclass(frozen=True)
class Progress:
    """Clips finished so far (`rejected` of them not usable) out of `total`, and hours of audio written."""

    done: int
    rejected: int
    total: int
    hours: float


@dataclass(frozen=True)
class Summary:
    """inputs = written + sum(rejected) + duplicates."""

    dataset_id: str
    inputs: int
    written: int
    rejected: dict[str, int]
    duplicates: int
    hours: float


def load_transformers_writer(job: ShardJob) -> Writer:
    """The writer that jobs use; runs inside an LLM actor."""
    return TransformersWriter(job.llm, job.max_new_tokens, job.batch_size, job.revision)


def write_shards(
    job: ShardJob,
    on_progress: Callable[[Progress], None],
    load_writer: Callable[[ShardJob], Writer] = load_transformers_writer,
) -> Summary:
    """Make the shard set `job.out`, or finish it; a finished one is left as it is.

    Raises ValueError for bad manifests, a missing LLM, a folder in use or made from something else, or if no clip can
    be used; OSError for a full disk or dying workers; KeyboardInterrupt with a sentence on Ctrl-C. In each of these
    cases what was committed stays and the same call goes on from there.
    """
    job = dataclasses.replace(job, out=job.out.absolute(), llm=_absolute_folder(job.llm))  # actors start elsewhere
    with folder_lock(job.out):
        clips, duplicates = _gather(job.manifests)
        for name in SUBFOLDERS:
            (job.out / name).mkdir(exist_ok=True)
        _claim(job, clips)
        tasks = plan_tasks(clips, job.clips_per_shard)
        commits = {task.number: commit for task in tasks if (commit := read_commit(job.out, task.number))}
        remove_leftovers(job.out, commits.values())
        missing = [task for task in tasks if task.number not in commits]
        try:
            if missing:
                _check_space(job.out, missing)
                total = len(clips) + len(duplicates)
                on_progress(_progress(commits, len(duplicates), total))
                with contextlib.closing(run_tasks(job, missing, load_writer)) as finished:
                    for commit in finished:
                        if commit is not None:
                            commits[commit.task] = commit
                        on_progress(_progress(commits, len(duplicates), total))
        except KeyboardInterrupt:
            number = sum(read_commit(job.out, task.number) is not None for task in tasks)  # some were not reported yet
            kept = f"{number} of {len(tasks)} shards in {job.out} are finished and kept"
            raise KeyboardInterrupt(f"stopped; {kept}, the same command goes on from there") from None
        return _finish(job, [commits[task.number] for task in tasks], clips, duplicates)


def _absolute_folder(llm: str) -> str:
    return str(Path(llm).absolute()) if Path(llm).is_dir() else llm


def _gather(manifests: Sequence[Path]) -> tuple[list[Clip], list[Reject]]:
    """All clips, the first of each id, and the others."""
    clips: dict[str, Clip] = {}
    duplicates = []
    for manifest in manifests:
        folder = manifest.absolute().parent
        for utterance in read_manifest(manifest):
            if utterance.id in clips:
                taken = f"id {utterance.id!r} is in an earlier manifest too"
                duplicates.append(Reject(f"{manifest}: {utterance.id}", "duplicate_id", taken))
                continue
            stored = dataclasses.replace(utterance, audio=portable_path(utterance.audio, folder))
            clips[utterance.id] = Clip(stored, utterance.audio)
    return list(clips.values()), duplicates


def _claim(job: ShardJob, clips: Sequence[Clip]) -> None:
    """Note in job.json what this folder is made from. Raises ValueError if it holds shards made from something else."""
    inputs = hashlib.blake2b(digest_size=8)
    for clip in clips:
        inputs.update(json.dumps(clip.utterance.to_json(), ensure_ascii=False).encode())
    wording = PROMPTS[job.prompt]
    settings = {
        "format": FORMAT,
        "clips": inputs.hexdigest(),
        "llm": model_fingerprint(job.llm, job.revision),
        "prompt": job.prompt,
        "wording": [wording.system, wording.instruction],
        "max_new_tokens": job.max_new_tokens,
        "clips_per_shard": job.clips_per_shard,
    }
    path = job.out / "job.json"
    if path.is_file() and any((job.out / "commits").iterdir()):
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in settings.items() if before.get(name) != value]
        if changed:
            other = ", ".join(changed)
            raise ValueError(f"{job.out}: holds shards made with other {other}; choose another folder or remove it")
    else:
        write_atomically(path, json.dumps(settings, indent=1, ensure_ascii=False).encode())


def _check_space(out: Path, tasks: Sequence[Task]) -> None:
    needed = _SPARE * sum(_flac_bytes(clip) for task in tasks for clip in task.clips)
    free = shutil.disk_usage(out).free
    if free < needed:
        wanted = f"about {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
        raise NoSpaceError(f"{out}: {wanted}; make room or choose a folder on another disk")


def _flac_bytes(clip: Clip) -> float:
    """An estimate: from the duration if the manifest gives it, else the size of the audio file."""
    if clip.utterance.duration_s is not None:
        return clip.utterance.duration_s * _FLAC_BYTES_PER_S
    path = Path(clip.audio)
    return path.stat().st_size if path.is_file() else 0


def _progress(commits: dict[int, Commit], duplicates: int, total: int) -> Progress:
    done = duplicates + sum(commit.inputs for commit in commits.values())
    rejected = sum(commit.inputs - commit.rows for commit in commits.values())
    return Progress(done, rejected, total, _hours(list(commits.values())))


def _hours(commits: Sequence[Commit]) -> float:
    return sum(commit.num_samples for commit in commits) / SAMPLE_RATE / 3600


def _finish(job: ShardJob, commits: Sequence[Commit], clips: Sequence[Clip], duplicates: Sequence[Reject]) -> Summary:
    """Write dataset.json, which makes the folder a shard set."""
    remove_leftovers(job.out, commits)
    rejected: Counter[str] = Counter()
    for commit in commits:
        rejected.update(commit.rejected)
    written = sum(commit.rows for commit in commits)
    assert written + rejected.total() == len(clips)
    if not written:
        reasons = ", ".join(f"{number} {reason}" for reason, number in rejected.most_common())
        raise ValueError(f"none of the {len(clips)} clips could be used ({reasons}); see {job.out / 'rejects'}")
    if duplicates:
        write_rejects(job.out / "rejects" / "duplicates.jsonl", duplicates)
    shards = [
        Shard(commit.name, commit.rows, commit.bytes, commit.num_samples, commit.index_crc32)
        for commit in commits
        if commit.name
    ]
    summary = Summary(
        dataset_id=dataset_id(shards),
        inputs=len(clips) + len(duplicates),
        written=written,
        rejected=dict(rejected.most_common()),
        duplicates=len(duplicates),
        hours=_hours(commits),
    )
    licences = Counter((clip.utterance.corpus, clip.utterance.licence) for clip in clips)
    description = {
        "format": FORMAT,
        **dataclasses.asdict(summary),
        "prompt": job.prompt,
        "writers": sorted({commit.writer for commit in commits if commit.writer}),
        "corpora": [{"corpus": c, "licence": licence, "clips": n} for (c, licence), n in licences.items()],
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
        "job": json.loads((job.out / "job.json").read_text(encoding="utf-8")),
        "audio_files": [],
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    if not (job.out / "dataset.json").exists():
        write_atomically(job.out / "dataset.json", json.dumps(description, indent=1, ensure_ascii=False).encode())
    return summary
