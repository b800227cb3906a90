"""This repository's shard sets, made and read in this process: what is timed is the work, not Ray's start."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from unittest import mock

from transformers import PreTrainedTokenizerFast

from blsp.standins import train_tokenizer
from shards.batches.collate import Collator
from shards.batches.plan import Plan
from shards.batches.reader import Reader
from shards.pipeline import run as pipeline
from shards.pipeline.answers import answer
from shards.pipeline.job import ShardJob
from shards.pipeline.tasks import Commit, Task, write_task
from shards.prompts import ChatTemplate
from shards.sample import Continuation
from shards.sets.shard_set import ShardSet
from shards.sets.store import open_store
from shards.sets.tokens import token_counts
from shards.writers.protocol import Request
from tests.bench.data.clips import Clips

PROMPT = "continue_emotion"


class Echo:
    """Answers at once, where a run would ask an LLM."""

    name = "echo"
    template = None

    def write(self, asked: Sequence[Request]) -> list[Continuation]:
        text = "what a heavy heart, they will cry about it all alone"
        return [Continuation(prompt=request.prompt, text=text, finished=True, writer="echo") for request in asked]


def job_of(clips: Clips, out: Path) -> ShardJob:
    """`blsp shard` on the clips."""
    llm = clips.folder / "llm"
    llm.mkdir(exist_ok=True)
    (llm / "config.json").write_text("{}")
    return ShardJob(manifests=(clips.manifest,), out=out, llm=str(llm), prompt=PROMPT)


def make_set(clips: Clips, out: Path) -> None:
    """All of that job, the actors' part in this process."""
    with mock.patch.object(pipeline, "run_tasks", _run_here):
        pipeline.write_shards(job_of(clips, out), lambda progress: None, lambda job: Echo())


def _run_here(job: ShardJob, tasks: Sequence[Task], load_writer: object) -> Generator[Commit | None, None, None]:
    read_clips, store = job.clip_reader(), open_store(job.out)
    for task in tasks:
        clips = read_clips(task)
        yield write_task(store, task, clips, job.prompt, answer(Echo(), clips, job.prompt))


class Template:
    """The miniature's tokenizer, made once."""

    def __init__(self) -> None:
        self._tokenizer: PreTrainedTokenizerFast | None = None

    def __call__(self) -> ChatTemplate:
        self._tokenizer = self._tokenizer or train_tokenizer(0)
        return ChatTemplate(self._tokenizer)


template = Template()


def make_reader(root: str | Path, rank: int = 0, world_size: int = 1) -> tuple[Reader, Plan, ShardSet]:
    """Reader of one rank over the set, steps of 32 clips in 8 micro-batches; its plan and its set."""
    shard_set = ShardSet.open(root)
    collator = Collator(template(), lambda samples: -(-samples // 2560), {"continue_tone": 1.0}, with_teacher=True)
    sizes = collator.sizes(shard_set.clips, token_counts(shard_set, template()))
    plan = Plan(sizes, seed=1, clips_per_step=32, micro_batches=8, dataset_id=shard_set.dataset_id)
    return Reader(shard_set, plan, collator, rank=rank, world_size=world_size), plan, shard_set
