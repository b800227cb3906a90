from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from shards.pipeline.job import ShardJob, Summary
from shards.targets import survey as surveys
from shards.targets.survey import survey
from tests.shards.s3_server import BUCKET, S3Server


@pytest.mark.slow
def test_a_set_in_a_bucket_is_surveyed_by_a_bounded_number_of_requests(
    job: ShardJob, make_shards: Callable[..., Summary], s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = replace(job, out=f"s3://{BUCKET}/set")
    make_shards(there)
    monkeypatch.setattr(surveys, "MOST_IN_A_BUCKET", 9)
    found, here = survey(str(there.out)), make_shards(job)
    assert len(found.records) == 9 and found.about["written"] == here.written == len(found.shard_set)
    assert found.languages == {"unknown": 9} and found.styles[0].texts == 9
    assert sum(every for _, every in found.cut.values()) == 9
    monkeypatch.setattr(surveys, "MOST_RECORDS", 20)
    assert len(survey(str(job.out)).records) == 20
