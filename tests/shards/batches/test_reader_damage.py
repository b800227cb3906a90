"""Samples that cannot be read, and files that are gone."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from shards.batches.collate import FILLER_ID
from shards.batches.reader import _Losses
from shards.prompts import ChatTemplate
from shards.sets.shard_set import ShardSet
from shards.sets.tokens import token_counts
from tests.shards.batches.test_reader import read, readers


def damage(shard_set: ShardSet, *rows: int) -> list[Path]:
    """Flips a byte in the audio of these rows. Returns their tars."""
    tars = []
    for row in rows:
        store, shard = shard_set.shards[int(shard_set.rows[row]["shard"])]
        tars.append(Path(store.url) / f"shards/{shard.name}.tar")
        data = bytearray(tars[-1].read_bytes())
        data[int(shard_set.rows[row]["audio_offset"]) + 50] ^= 1
        tars[-1].write_bytes(data)
    return tars


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (3, 0), (2, 1)])
def test_a_corrupt_sample_has_weight_0_and_one_line_in_the_log_of_the_rank_that_meets_it(
    shard_set: ShardSet,
    template: ChatTemplate,
    caplog: pytest.LogCaptureFixture,
    world_size: int,
    num_workers: int,
) -> None:
    (tar,) = damage(shard_set, 0)
    lost, _ = shard_set.record(0)
    ranks = [read(reader, 0, 5) for reader in readers(shard_set, template, world_size, num_workers)]
    batches = [batch for rank in ranks for step in rank for batch in step]
    ids = [clip for batch in batches for clip in batch.ids]
    assert lost.id not in ids
    assert len(set(ids) - {FILLER_ID}) == len(shard_set) - 1
    (met,) = [batch for batch in batches if batch.unreadable]
    assert FILLER_ID in met.ids and met.row_weight.min() == 0
    assert met.unreadable == [f"{tar} row 0: the audio fails its checksum"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tar} row 0: the audio fails its checksum; it counts with weight 0"
    ]
    assert len({len(step) for rank in ranks for step in rank}) == 1


def test_many_corrupt_samples_stop_the_run_with_a_list(shard_set: ShardSet, template: ChatTemplate) -> None:
    tars = damage(shard_set, *range(10))
    (reader,) = readers(shard_set, template, 1)
    read(reader, 0, 5)
    tars += damage(shard_set, 10)
    with pytest.raises(
        ValueError, match=r"out: 11 of the \d+ clips that this rank has read are not as they were"
    ) as stop:
        read(reader, 0, 5)
    listed = str(stop.value).partition("written: ")[2].partition(". See")[0].split("; ")
    assert len(listed) == 11
    assert {clip.partition(" row ")[0] for clip in listed} == {str(tar) for tar in tars}


def test_one_clip_in_a_hundred_may_be_corrupt_and_three_may_not(shard_set: ShardSet, template: ChatTemplate) -> None:
    (batch,) = read(readers(shard_set, template, 1, micro_batches=1, clips_per_step=23)[0], 0, 1)[0]
    whole = replace(batch, ids=["a"] * 99, unreadable=[])
    for corrupt in (1, 3):
        losses = _Losses("out")
        with pytest.raises(ValueError, match="12 of the 408 clips") if corrupt == 3 else nullcontext():
            for number in range(30):
                losses.count(whole)
                losses.count(replace(batch, ids=[], unreadable=[f"{number}-{i}" for i in range(corrupt)]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_is_gone_ends_the_run_and_is_named(
    shard_set: ShardSet, template: ChatTemplate, num_workers: int
) -> None:
    token_counts(shard_set, template)
    (reader,) = readers(ShardSet.open(shard_set.url), template, 1, num_workers)  # with no tar open yet
    _, shard = shard_set.shards[2]
    (Path(shard_set.url) / f"shards/{shard.name}.tar").unlink()
    with pytest.raises(FileNotFoundError) as gone:
        read(reader, 0, 5)
    assert shard.name in str(gone.value.filename)
