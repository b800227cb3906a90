from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import pytest

from shards.collate import FILLER_ID, Batch, Collator
from shards.pipeline import ShardJob, Summary
from shards.plan import Plan
from shards.prompts import ChatTemplate
from shards.reader import Reader
from shards.shard_set import ShardSet
from shards.tokens import token_counts

NUM_STEPS = 7  # an epoch and a half


def readers(
    shard_set: ShardSet,
    template: ChatTemplate,
    world_size: int,
    num_workers: int = 0,
    micro_batches: int = 4,
    clips_per_step: float = 5.0,
    tasks: dict[str, float] | None = None,
) -> list[Reader]:
    collator = Collator(template, lambda n: -(-n // 2560), tasks or {"continue_tone": 2, "identify": 1}, False)
    sizes = collator.sizes(shard_set.rows["num_samples"], token_counts(shard_set, template))
    plan = Plan(
        sizes, seed=1, clips_per_step=clips_per_step, micro_batches=micro_batches, dataset_id=shard_set.dataset_id
    )
    return [
        Reader(shard_set, plan, collator, rank=rank, world_size=world_size, num_workers=num_workers)
        for rank in range(world_size)
    ]


def read(reader: Reader, start: int = 0, stop: int = NUM_STEPS) -> list[list[Batch]]:
    steps = list(islice(reader.steps(start), stop - start))
    assert [number for number, _ in steps] == list(range(start, stop))
    return [batches for _, batches in steps]


def content(batches: list[Batch]) -> list[tuple[list[str], list[int], int]]:
    """Clips, targets and count of each micro-batch that is not a filler."""
    return [
        (batch.ids, batch.targets.tolist(), batch.step_response_tokens) for batch in batches if batch.ids != [FILLER_ID]
    ]


def in_order(ranks: list[list[list[Batch]]]) -> list[list[tuple[list[str], list[int], int]]]:
    """Per step the micro-batches of all ranks, in the order of the plan."""
    return [content(list(chain(*zip(*step, strict=True)))) for step in zip(*ranks, strict=True)]


@pytest.fixture
def one_rank(shard_set: ShardSet, template: ChatTemplate) -> list[list[tuple[list[str], list[int], int]]]:
    return in_order([read(readers(shard_set, template, 1)[0])])


def test_each_clip_is_once_in_an_epoch(shard_set: ShardSet, template: ChatTemplate) -> None:
    (reader,) = readers(shard_set, template, 1)
    ids = [name for step in read(reader, 0, 5) for batch in step for name in batch.ids if name != FILLER_ID]
    assert len(ids) == len(set(ids)) == len(shard_set)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_all_ranks_together_read_what_one_rank_reads(
    shard_set: ShardSet, template: ChatTemplate, world_size: int, one_rank: object
) -> None:
    ranks = [read(reader) for reader in readers(shard_set, template, world_size)]
    assert in_order(ranks) == one_rank
    calls = {len(step) for rank in ranks for step in rank}
    assert calls == {-(-4 // world_size)}


@pytest.mark.parametrize("k", [1, 4, 5, 6])
def test_the_first_k_steps_and_the_rest_on_other_ranks_are_all(
    shard_set: ShardSet, template: ChatTemplate, k: int, one_rank: object
) -> None:
    first = in_order([read(reader, 0, k) for reader in readers(shard_set, template, 3)])
    rest = in_order([read(reader, k) for reader in readers(shard_set, template, 2)])
    assert first + rest == one_rank


def test_workers_change_nothing(shard_set: ShardSet, template: ChatTemplate, one_rank: object) -> None:
    assert in_order([read(readers(shard_set, template, 1, num_workers=2)[0])]) == one_rank


def test_planned_counts_are_those_of_the_step(shard_set: ShardSet, template: ChatTemplate) -> None:
    for step in zip(*(read(reader) for reader in readers(shard_set, template, 3)), strict=True):
        batches = list(chain(*step))
        weight = sum(float(batch.row_weight.sum()) for batch in batches)
        labelled = sum(int((batch.emotion >= 0).sum()) for batch in batches)
        assert {(batch.step_response_tokens, batch.step_labelled) for batch in batches} == {(weight, labelled)}


def test_more_micro_batches_than_clips_are_fillers(shard_set: ShardSet, template: ChatTemplate) -> None:
    for step in read(readers(shard_set, template, 1, micro_batches=9)[0]):
        assert len(step) == 9
        assert any(batch.ids == [FILLER_ID] for batch in step)


def test_a_corrupt_sample_has_weight_0_and_one_line_in_the_log(
    shard_set: ShardSet, template: ChatTemplate, caplog: pytest.LogCaptureFixture
) -> None:
    tar = sorted((Path(shard_set.url) / "shards").iterdir())[0]
    data = bytearray(tar.read_bytes())
    data[int(shard_set.rows[0]["audio_offset"]) + 50] ^= 1
    tar.write_bytes(data)
    lost, _ = shard_set.record(0)
    (reader,) = readers(shard_set, template, 1, micro_batches=1)
    batches = list(chain(*read(reader, 0, 5)))
    ids = [name for batch in batches for name in batch.ids]
    assert lost.id not in ids
    assert (len(ids), ids.count(FILLER_ID)) == (len(shard_set), 1)
    assert sum(batch.row_weight.min() == 0 for batch in batches) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{tar} row 0: the audio fails its checksum; it counts with weight 0"
    ]


def test_more_ranks_than_micro_batches_are_refused(shard_set: ShardSet, template: ChatTemplate) -> None:
    with pytest.raises(ValueError, match=r"5 ranks share 4 micro-batches per step: raise data\.micro_batches to 5"):
        readers(shard_set, template, 5)


def test_shards_for_another_task_are_refused(shard_set: ShardSet, template: ChatTemplate) -> None:
    with pytest.raises(ValueError, match=r"train 'continue_tone', not 'continue'; make shards with writer\.prompt="):
        readers(shard_set, template, 1, tasks={"continue": 1})


def test_the_label_prompt_needs_labels(
    job: ShardJob, corpus: Path, template: ChatTemplate, make_shards: Callable[..., Summary]
) -> None:
    corpus.write_text(corpus.read_text().replace(', "emotion": "sad"', ""))
    make_shards(replace(job, prompt="continue"))
    with pytest.raises(ValueError, match="4 of 23 clips have no emotion label, which the prompt 'identify' needs"):
        readers(ShardSet.open(job.out), template, 1, tasks={"continue": 1, "identify": 1})
