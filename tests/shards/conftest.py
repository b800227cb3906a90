"""A small corpus of tones on disk, a writer that needs no LLM, and shard sets made from both without Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from shards.corpora.build import build_manifest
from shards.pipeline import run as pipeline
from shards.pipeline.answers import answer
from shards.pipeline.cost import Cost
from shards.pipeline.job import Progress, ShardJob, Summary
from shards.pipeline.tasks import Commit, Task, write_task
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS, Continuation
from shards.sets import object_store, reads
from shards.sets.shard_set import ShardSet
from shards.sets.store import open_store
from shards.writers.protocol import Request, Writer
from tests.shards.s3_server import BUCKET, KEY, SECRET, TOKEN, S3Server

NUM_CLIPS = 23


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The manifest of NUM_CLIPS clips of 0.2 to 1.2 s, emotions in turn."""
    random = np.random.default_rng(7)
    root = tmp_path / "corpus"
    (root / "wav").mkdir(parents=True)
    lines = []
    for i in range(NUM_CLIPS):
        seconds = np.arange(int(16000 * random.uniform(0.2, 1.2))) / 16000
        soundfile.write(root / "wav" / f"{i:02d}.wav", 0.3 * np.sin(2 * np.pi * (100 + 20 * i) * seconds), 16000)
        record = {"audio": f"wav/{i:02d}.wav", "text": f"Sentence number {i}.", "emotion": EMOTIONS[i % 5]}
        lines.append(json.dumps(record))
    (root / "tones.jsonl").write_text("\n".join(lines))
    build_manifest("jsonl", root / "tones.jsonl", root / "manifest.jsonl", text="raw")
    return root / "manifest.jsonl"


@pytest.fixture
def echo() -> Callable[[ShardJob], Writer]:
    """As `load_writer_of` without an LLM: every text is continued with itself and what the prompt tells."""

    def load(_: ShardJob) -> Writer:
        class Echo:  # here, so that Ray's workers get it by value: they cannot import tests
            name = "echo"
            template = None

            def write(self, asked: Sequence[Request]) -> list[Continuation]:
                texts = [f"and {request.emotion} {request.text}" for request in asked]
                return [
                    Continuation(prompt=request.prompt, text=text, finished=i % 2 == 0, writer="echo")
                    for i, (request, text) in enumerate(zip(asked, texts, strict=True))
                ]

        return Echo()

    return load


@pytest.fixture
def job(corpus: Path, tmp_path: Path) -> ShardJob:
    """Six shards of four clips, the last of three."""
    llm = tmp_path / "llm"
    llm.mkdir()
    (llm / "config.json").write_text("{}")
    return ShardJob(
        manifests=(corpus,),
        out=tmp_path / "out",
        llm=str(llm),
        prompt="continue_emotion",
        clips_per_shard=4,
        cpu_actors=2,
    )


@pytest.fixture
def make_shards(echo: Callable[[ShardJob], Writer], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """`write_shards(job)` with everything but Ray: tasks run here, one after the other."""

    def run_here(
        job: ShardJob, tasks: Sequence[Task], load_writer: Callable[[ShardJob], Writer]
    ) -> Generator[Commit | None, None, None]:
        writer, read_clips, store = load_writer(job), job.clip_reader(), open_store(job.out)
        for task in tasks:
            clips = read_clips(task)
            answers = answer(writer, clips, job.prompt, job.teacher, job.gain)
            yield write_task(store, task, clips, job.prompt, answers, filters=job.filters)

    def make(
        job: ShardJob,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        load_writer: Callable[[ShardJob], Writer] = echo,
        on_cost: Callable[[Cost], None] | None = None,
    ) -> Summary:
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "run_tasks", run_here)
            return pipeline.write_shards(job, on_progress, load_writer, on_cost)

    return make


@pytest.fixture
def shard_set(job: ShardJob, make_shards: Callable[..., Summary]) -> ShardSet:
    """The corpus under `continue_emotion`."""
    make_shards(job)
    return ShardSet.open(job.out)


@pytest.fixture(scope="session")
def template(tokenizer: Any) -> ChatTemplate:
    return ChatTemplate(tokenizer)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    """For the tests of one module; AWS_... in the environment lead to it."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_SESSION_TOKEN", TOKEN)
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setattr(object_store, "_filesystems", {})
        if not object_store._filesystem().exists(BUCKET):  # what moto holds outlives a server
            object_store._filesystem().mkdir(BUCKET)
        yield server
    server.stop()


@pytest.fixture
def s3(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server with an empty bucket; pauses between attempts are short."""
    monkeypatch.setattr(reads, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(reads, "RETRY_DEADLINE_S", 5.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    s3_server.reset()
    for path in object_store._filesystem().find(BUCKET):
        object_store._filesystem().rm_file(path)
    s3_server.reset()
    yield s3_server
    s3_server.reset()
