from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.lock import folder_lock
from shards.pipeline.job import Progress, ShardJob, Summary
from shards.pipeline.run import write_shards
from shards.sample import Continuation
from shards.sets.shard_set import ShardSet
from shards.writers.protocol import Request, Writer

Make = Callable[..., Summary]


def nothing(_: Progress) -> None:
    """No progress bar."""


def test_inputs_are_written_rejected_or_duplicates(job: ShardJob, corpus: Path, make_shards: Make) -> None:
    lines = corpus.read_text().splitlines()
    again = corpus.with_name("again.jsonl")
    again.write_text("\n".join([*lines[:3], json.dumps({"id": "new", "audio": "no.wav", "text": "t", "corpus": "c"})]))
    states: list[Progress] = []
    summary = make_shards(replace(job, manifests=(corpus, again)), states.append)
    assert (summary.inputs, summary.written, summary.duplicates) == (27, 23, 3)
    assert summary.rejected == {"unknown_emotion": 1}
    assert [state.done for state in states] == sorted(state.done for state in states)
    assert states[-1] == Progress(27, 1, 27, pytest.approx(summary.hours))
    assert (job.out / "rejects" / "duplicates.jsonl").read_text().count("duplicate_id") == 3


def test_stopped_anywhere_and_gone_on_equals_never_stopped(job: ShardJob, make_shards: Make, tmp_path: Path) -> None:
    whole = make_shards(replace(job, out=tmp_path / "whole"))
    for k in range(1, 6):
        part = replace(job, out=tmp_path / f"part{k}")

        def stop(state: Progress, k: int = k) -> None:
            if state.done >= 4 * k:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match=f"{k} of 6 shards in .* the same command goes on from there"):
            make_shards(part, stop)
        with pytest.raises(ValueError, match="unfinished"):
            ShardSet.open(part.out)
        kept = {path: path.stat().st_mtime_ns for path in (part.out / "shards").iterdir()}
        assert len(kept) == k
        (part.out / "shards" / "000005-killed.tar").touch()
        (part.out / "_tmp" / "000005.killed.tar").touch()
        assert make_shards(part) == whole
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert len(list((part.out / "shards").iterdir())) == 6


def test_chinese_clips_are_written_for_in_chinese_and_the_set_says_so(
    job: ShardJob, corpus: Path, make_shards: Make
) -> None:
    lines = [json.loads(line) for line in corpus.read_text().splitlines()]
    corpus.write_text(
        "\n".join(json.dumps({**line, "language": "zh-CN" if i % 2 else "en"}) for i, line in enumerate(lines))
    )
    make_shards(job)
    shard_set = ShardSet.open(job.out)
    assert shard_set.languages == ("en", "zh")
    prompts = {(utterance.language, text.prompt) for utterance, text in map(shard_set.record, range(len(shard_set)))}
    assert prompts == {("en", "continue_emotion"), ("zh-CN", "continue_emotion_zh")}


def test_a_set_that_an_older_version_made_is_still_this_jobs(job: ShardJob, make_shards: Make) -> None:
    whole = make_shards(job)
    path = job.out / "job.json"
    new = ("backend", "wording_zh", "gain", "filters")
    old = {name: v for name, v in json.loads(path.read_text()).items() if name not in new}
    path.write_text(json.dumps(old))
    assert make_shards(replace(job, gain=True)) == whole
    with pytest.raises(ValueError, match="backend: None -> vllm"):
        make_shards(replace(job, backend="vllm"))


def test_a_finished_set_is_left_as_it_is(job: ShardJob, make_shards: Make) -> None:
    first = make_shards(job)
    files = {path: path.stat().st_mtime_ns for path in job.out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert make_shards(replace(job, batch_size=7, cpu_actors=1)) == first
    assert {path: path.stat().st_mtime_ns for path in files} == files


def _forget_a_commit(out: Path) -> None:
    (out / "commits" / "000002.json").unlink()


def _write_job_json_anew(out: Path) -> None:
    path = out / "job.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))


@pytest.mark.parametrize("change", [_forget_a_commit, _write_job_json_anew])
def test_nothing_changes_a_finished_set_any_more(
    job: ShardJob, corpus: Path, make_shards: Make, change: Callable[[Path], None]
) -> None:
    first = make_shards(job)
    for wav in (corpus.parent / "wav").iterdir():
        shutil.copy(corpus.parent / "wav" / "00.wav", wav) if wav.name != "00.wav" else None
    change(job.out)
    tars = sorted((job.out / "shards").iterdir())
    assert make_shards(job) == first
    assert sorted((job.out / "shards").iterdir()) == tars
    assert len(ShardSet.open(job.out)) == first.written
    tars[3].unlink()
    with pytest.raises(ValueError, match=f"{tars[3]}: is missing; copy the shard set again"):
        make_shards(job)


@pytest.mark.parametrize("folder", ["shards", "index"])
def test_a_committed_shard_whose_file_is_gone_is_made_again(job: ShardJob, make_shards: Make, folder: str) -> None:
    def stop(state: Progress) -> None:
        if state.done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shards(job, stop)
    sorted((job.out / folder).iterdir())[1].unlink()
    summary = make_shards(job)
    assert len(ShardSet.open(job.out)) == summary.written == 23


def test_a_damaged_job_json_is_named(job: ShardJob, make_shards: Make) -> None:
    make_shards(job)
    (job.out / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job\.json: damaged .*copy it again, or begin in another folder"):
        make_shards(job)


@pytest.mark.parametrize("change", [{"prompt": "continue"}, {"max_new_tokens": 3}, {"clips_per_shard": 5}])
def test_a_folder_made_from_something_else_is_refused(
    job: ShardJob, make_shards: Make, change: dict[str, object]
) -> None:
    make_shards(job)
    with pytest.raises(ValueError, match=f"other .*{next(iter(change))}: .* -> .*; choose another folder or remove it"):
        make_shards(replace(job, **change))  # type: ignore[arg-type]


def test_a_manifest_that_has_changed_is_refused_with_both_hashes(
    job: ShardJob, corpus: Path, make_shards: Make
) -> None:
    make_shards(job)
    corpus.write_text("".join(corpus.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=r"made with other settings \(clips: [0-9a-f]{16} -> [0-9a-f]{16}"):
        make_shards(job)


def test_a_commit_of_the_job_that_had_the_folder_before_does_not_count(
    job: ShardJob, make_shards: Make, tmp_path: Path
) -> None:
    """Its driver was killed before the first commit, the folder given to another job, and a worker lived on."""
    old = replace(job, out=tmp_path / "old", prompt="continue")
    make_shards(old)
    whole = make_shards(job)
    (job.out / "dataset.json").unlink()
    shutil.copy(tmp_path / "old" / "commits" / "000002.json", tmp_path / "out" / "commits" / "000002.json")
    assert make_shards(job) == whole


def test_two_runs_on_one_folder_are_refused(job: ShardJob, make_shards: Make) -> None:
    with folder_lock(job.out), pytest.raises(ValueError, match=f"already in use by process {os.getpid()}"):
        make_shards(job)


def test_too_small_a_disk_is_found_before_any_work(
    job: ShardJob, make_shards: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"MB are needed there, 0\.0 MB are free; make room, .*0 of 6 shards"):
        make_shards(job)


def read_only_disk(tmp_path: Path) -> Path:
    folder = tmp_path / "read_only"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    return folder


@pytest.mark.parametrize("place", ["below a file", "in the kernel's own tree", "on a read-only disk"])
def test_a_folder_that_cannot_be_written_is_a_sentence_with_the_room_that_is_needed(
    job: ShardJob, make_shards: Make, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").touch()
    if place == "on a read-only disk":
        out = read_only_disk(tmp_path)
    else:
        out = tmp_path / "file" / "out" if place == "below a file" else Path("/sys/out")
    try:
        with pytest.raises(OSError) as error:
            make_shards(replace(job, out=out))
    finally:
        if place == "on a read-only disk":
            subprocess.run(["umount", out], check=True)
    said = str(error.value)
    assert said.startswith(f"{out}: cannot be written (")
    assert "MB are needed there: choose a folder that this user may write to" in said


def test_a_set_of_nothing_is_refused_with_the_reasons(job: ShardJob, corpus: Path, make_shards: Make) -> None:
    for wav in (corpus.parent / "wav").iterdir():
        wav.write_text("no audio")
    with pytest.raises(ValueError, match=r"none of the 23 clips could be used \(23 unreadable\); see .*rejects"):
        make_shards(job)


def test_bad_recipes_are_refused_before_anything_is_made(job: ShardJob, make_shards: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompt 'chat' writes no targets; use one of continue, continue_emotion"):
        replace(job, prompt="chat")
    with pytest.raises(ValueError, match="no such folder; give the model's folder or its hub id"):
        make_shards(replace(job, llm=str(tmp_path / "absent")))
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(ValueError, match="empty manifest"):
        make_shards(replace(job, manifests=(empty,)))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_ray_makes_the_same_set(
    job: ShardJob, make_shards: Make, echo: Callable[[ShardJob], Writer], tmp_path: Path
) -> None:
    alone = make_shards(replace(job, out=tmp_path / "alone"))
    states: list[Progress] = []
    assert write_shards(replace(job, llm_actors=2), states.append, echo) == alone
    assert states[-1].done == 23


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_worker_that_dies_is_replaced_and_nothing_counts_twice(job: ShardJob, tmp_path: Path) -> None:
    def load(_: ShardJob) -> Writer:
        class DiesOnce:
            name = "mortal"
            template = None

            def write(self, asked: Sequence[Request]) -> list[Continuation]:
                mark = tmp_path / "died"
                if any("number 7." in request.text for request in asked) and not mark.exists():
                    mark.touch()
                    os._exit(1)
                return [Continuation(prompt=q.prompt, text=f"and {q.text}", finished=True, writer="m") for q in asked]

        return DiesOnce()

    assert write_shards(job, nothing, load).written == 23
    assert (tmp_path / "died").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_worker_that_keeps_dying_is_a_sentence(job: ShardJob) -> None:
    def load(_: ShardJob) -> Writer:
        os._exit(1)

    with pytest.raises(OSError, match="a worker process died 3 times at the same shard; too little memory"):
        write_shards(job, nothing, load)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_writer_that_cannot_load_is_a_sentence_and_not_a_stack_of_frames(job: ShardJob) -> None:
    def load(_: ShardJob) -> Writer:
        raise ValueError("the tokenizer has no chat template")

    with pytest.raises(ValueError) as error:
        write_shards(job, nothing, load)
    assert str(error.value) == "the tokenizer has no chat template"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_an_llm_that_does_not_fit_is_a_sentence(job: ShardJob) -> None:
    def load(_: ShardJob) -> Writer:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    with pytest.raises(OSError, match=r"does not fit into the GPU's memory: lower writer.batch_size; the same command"):
        write_shards(job, nothing, load)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_an_llm_writes_a_set_that_names_it(job: ShardJob, llm_folder: Path) -> None:
    summary = write_shards(replace(job, llm=str(llm_folder), max_new_tokens=8, clips_per_shard=12), nothing)
    assert summary.written + sum(summary.rejected.values()) == 23
    description = json.loads((job.out / "dataset.json").read_text())
    assert all(writer.startswith(f"{llm_folder.name}@") for writer in description["writers"])
    assert ShardSet.open(job.out).record(0)[1].writer == description["writers"][0]


@pytest.mark.slow
def test_ctrl_c_stops_ray_and_keeps_what_is_committed(job: ShardJob) -> None:
    script = """
import sys, time
from pathlib import Path
from shards.pipeline.job import ShardJob
from shards.pipeline.run import write_shards
from shards.sample import Continuation

def load(job):
    class Slow:
        name = "slow"
        template = None
        def write(self, asked):
            time.sleep(0.5)
            return [Continuation(prompt=q.prompt, text="and " + q.text, finished=True, writer="s") for q in asked]
    return Slow()

job = ShardJob(manifests=(Path(sys.argv[1]),), out=Path(sys.argv[2]), llm=sys.argv[3], clips_per_shard=2)
try:
    write_shards(job, lambda state: print(state.done, flush=True), load)
except KeyboardInterrupt as error:
    print(error)
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        run = subprocess.Popen(
            [sys.executable, "-c", script, str(job.manifests[0]), str(job.out), job.llm],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "TMPDIR": scratch},
        )  # fmt: skip
        assert run.stdout is not None
        for line in run.stdout:
            if int(line) > 0:
                os.killpg(run.pid, signal.SIGINT)
                break
        rest, complaints = run.communicate(timeout=60)
        assert list(Path(scratch).iterdir()) == []
    committed = len(list((job.out / "commits").iterdir()))
    assert 0 < committed < 12
    assert rest.splitlines()[-1].startswith(f"stopped; {committed} of 12 shards")
    assert "Traceback" not in complaints
