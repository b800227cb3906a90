"""`blsp shard` into a bucket: what it makes there is, byte for byte, what it makes on a disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from shards.pipeline.answers import answer
from shards.pipeline.job import Progress, ShardJob, Summary
from shards.pipeline.tasks import Commit, write_task
from shards.sets.shard_set import ShardSet
from shards.sets.store import open_store
from shards.writers.protocol import Writer
from tests.shards.s3_server import ROOT, S3Server, failing

Make = Callable[..., Summary]
FOLDERS = ("shards", "index", "tokens", "commits", "rejects")


def content(root: str | Path) -> dict[str, bytes]:
    """Every file of a set but dataset.json and the report, which tell times."""
    store = open_store(root)
    folders = [*FOLDERS, *(f"tokens/{name}" for name in store.folders("tokens"))]
    return {f"{folder}/{name}": store.read(f"{folder}/{name}") for folder in folders for name in store.names(folder)}


def test_a_set_made_in_a_bucket_is_that_on_disk(s3: S3Server, job: ShardJob, make_shards: Make) -> None:
    local = make_shards(job)
    assert make_shards(replace(job, out=ROOT)) == local
    assert content(ROOT) == content(job.out)
    assert ShardSet.open(ROOT).dataset_id == local.dataset_id
    assert list(open_store(ROOT).scratch().iterdir()) == []


def test_stopped_in_a_bucket_it_goes_on_there(s3: S3Server, job: ShardJob, make_shards: Make) -> None:
    def stop(state: Progress) -> None:
        if state.done >= 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"3 of 6 shards in s3://.* the same command goes on"):
        make_shards(replace(job, out=ROOT), stop)
    with pytest.raises(ValueError, match=f"{ROOT}: unfinished"):
        ShardSet.open(ROOT)
    s3.requests.clear()
    s3.fault = failing("503 Slow Down", 5)
    local = make_shards(job)
    assert make_shards(replace(job, out=ROOT)) == local
    assert sum(method == "PUT" and path.endswith(".tar") for method, path, _ in s3.requests) == 3
    assert content(ROOT) == content(job.out)


def test_of_two_hosts_at_the_same_shards_each_commit_is_made_once(
    s3: S3Server, job: ShardJob, make_shards: Make, echo: Callable[[ShardJob], Writer]
) -> None:
    bucket_job = replace(job, out=ROOT)
    tasks, start = bucket_job.inputs().tasks, Barrier(2)

    def host(_: int) -> list[Commit]:
        writer, read_clips, mine = echo(bucket_job), bucket_job.clip_reader(), open_store(ROOT)
        commits = []
        for task in tasks:
            clips = read_clips(task)
            answers = answer(writer, clips, job.prompt)
            start.wait()
            commits.append(write_task(mine, task, clips, job.prompt, answers))
        return commits

    with ThreadPoolExecutor(2) as hosts:
        one, other = hosts.map(host, range(2))
    assert one == other
    assert make_shards(bucket_job) == make_shards(job)
    assert content(ROOT) == content(job.out)


def test_an_overlay_of_a_base_in_a_bucket(s3: S3Server, job: ShardJob, make_shards: Make) -> None:
    make_shards(replace(job, out=ROOT))
    make_shards(replace(job, manifests=(), base=ROOT, out=f"{ROOT}-again", prompt="continue"))
    make_shards(replace(job, manifests=(), base=ROOT, prompt="continue"))
    base, *overlays = (ShardSet.open(root) for root in (ROOT, f"{ROOT}-again", job.out))
    for overlay in overlays:
        assert len(overlay) == len(base) == 23
        assert all((overlay.read(row).waveform == base.read(row).waveform).all() for row in range(0, 23, 5))


SCRIPT = """
import sys, time
from pathlib import Path
from shards.pipeline.job import ShardJob
from shards.pipeline.run import write_shards
from shards.sample import Continuation

def load(job):
    class Echo:
        name = "echo"
        template = None
        def write(self, asked):
            time.sleep(0.5)
            texts = [f"and {request.emotion} {request.text}" for request in asked]
            return [
                Continuation(prompt=request.prompt, text=text, finished=i % 2 == 0, writer="echo")
                for i, (request, text) in enumerate(zip(asked, texts))
            ]
    return Echo()

manifest, out, llm = sys.argv[1:]
job = ShardJob(manifests=(Path(manifest),), out=out, llm=llm, prompt="continue_emotion", clips_per_shard=4)
write_shards(job, lambda state: print(state.done, flush=True), load)
"""


@pytest.mark.slow
def test_killed_at_any_point_it_goes_on_to_the_same_bytes(
    s3: S3Server, job: ShardJob, make_shards: Make, tmp_path: Path
) -> None:
    local = make_shards(job)
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(job.manifests[0]), ROOT, job.llm],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "TMPDIR": str(scratch)},
        )  # fmt: skip

    killed = start()
    assert killed.stdout is not None
    for line in killed.stdout:
        if int(line) > 0:
            os.killpg(killed.pid, signal.SIGKILL)
            break
    killed.communicate(timeout=60)
    committed = len(open_store(ROOT).names("commits"))
    assert 0 < committed < 6
    second = start()
    _, complaints = second.communicate(timeout=300)
    assert second.returncode == 0, complaints
    assert content(ROOT) == content(job.out)
    assert ShardSet.open(ROOT).dataset_id == local.dataset_id
