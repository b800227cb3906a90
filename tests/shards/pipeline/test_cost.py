from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.shard_job import cost_line
from shards.pipeline.cost import Cost
from shards.pipeline.job import ShardJob, Summary
from shards.pipeline.run import load_writer_of
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS
from shards.sets.shard_set import ShardSet
from shards.sets.teacher import TeacherSpec
from shards.writers.cache import Generations, key_of
from shards.writers.endpoint import Endpoint
from shards.writers.protocol import Generation
from tests.shards.writers.chat_server import KEY, Reply, chat_server, said

Make = Callable[..., Summary]


def told(job: ShardJob, make_shards: Make) -> Cost:
    costs: list[Cost] = []
    make_shards(job, on_cost=costs.append)
    assert len(costs) == 1
    return costs[0]


def test_tokens_are_nearly_those_that_the_llm_reads(
    job: ShardJob, make_shards: Make, llm_folder: Path, template: ChatTemplate
) -> None:
    spec = TeacherSpec(4, (1.0, 2.0))
    cost = told(replace(job, llm=str(llm_folder), teacher=spec, max_new_tokens=10), make_shards)
    ids = [template.context("continue_emotion", EMOTIONS[i % 5], [template.encode(f"Sentence number {i}.")])
           for i in range(23)]  # fmt: skip
    assert (cost.clips, cost.new_tokens, cost.counted) == (23, 230, True)
    assert sum(map(len, ids)) == pytest.approx(cost.prompt_tokens, rel=0.1)
    samples = ShardSet.open(job.out).rows["num_samples"]
    per_hour = 3600 * 16000 / samples.mean() * 10 * spec.row.itemsize
    assert cost.teacher_bytes_per_hour == pytest.approx(per_hour, rel=0.3)  # from fewer files, at 10 tokens each
    line = cost_line(cost)
    assert "23 continuations to write" in line and "230 written" in line and "per hour of audio" in line
    assert "dollars" not in line and "hours at" not in line


def test_the_rate_is_that_of_what_was_written_last(job: ShardJob, make_shards: Make, tmp_path: Path) -> None:
    runs = {"llm@0 w": (40, 0.5, 20.5), "llm@1 w": (50, 100.0, 125.0), "o@0": (90, 200.0, 210.0),
            "llm@2 few": (3, 300.0, 310.0)}  # fmt: skip
    for name, (number, began, ended) in runs.items():
        made = Generations(tmp_path / "cache", name)
        made._began = began
        for i in range(number):
            made.put(key_of(name, i), Generation("t", True, 1, 1))
        (path,) = made._folder.iterdir()
        os.utime(path, (ended, ended))
    cost = told(replace(job, cache=tmp_path / "cache", llm_actors=2), make_shards)
    assert cost.hours == pytest.approx(23 / (50 / 25) / 2 / 3600)
    assert "hours at the rate of the last run" in cost_line(cost)


def test_a_set_by_an_endpoint_from_its_price_to_its_rejects(
    job: ShardJob, make_shards: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)

    def answer(request: dict[str, object], before: int) -> Reply:
        return Reply(200, "{") if "number 7." in str(request) else said("and so on", "stop" if before else "length")

    with chat_server(answer) as server:
        endpoint = Endpoint(
            url=server.url, key="TEST_KEY", dollars_per_million_read=1000.0, dollars_per_million_written=0.0
        )
        asked = replace(job, llm="gpt-x", backend="openai", endpoint=endpoint, cache=tmp_path / "cache")
        costs: list[Cost] = []
        summary = make_shards(asked, load_writer=load_writer_of, on_cost=costs.append)
        assert summary.rejected == {"llm_no_answer": 1} and summary.written == 22 and len(server.requests) == 25
        assert costs[0].dollars == pytest.approx(costs[0].prompt_tokens / 1000) and not costs[0].counted
        again = make_shards(replace(asked, out=tmp_path / "again"), load_writer=load_writer_of)
        assert (
            len(server.requests) == 28 and again.dataset_id == summary.dataset_id
        )  # from the cache, but for the bad one
    described = json.loads((Path(job.out) / "job.json").read_text())
    host = server.url.split("/")[2]
    assert (described["llm"], described["backend"]) == (f"gpt-x@{host}", "openai")
    (rejects,) = [line for path in (Path(job.out) / "rejects").iterdir() for line in path.read_text().splitlines()]
    assert "3 answers of no use" in rejects
    assert all(KEY not in path.read_bytes().decode("latin1") for path in tmp_path.rglob("*") if path.is_file())
