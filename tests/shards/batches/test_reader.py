from __future__ import annotations

import itertools
import json
import multiprocessing
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest

from shards.batches.augment import Augment
from shards.batches.collate import FILLER_ID, Batch, Collator
from shards.batches.mixture import Mixture
from shards.batches.plan import Plan
from shards.batches.reader import Reader
from shards.pipeline.job import ShardJob, Summary
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS
from shards.sets.shard_set import ShardSet
from shards.sets.tokens import token_counts
from tests.shards.batches.layout import sequences

NUM_STEPS = 7  # an epoch and a half


def collator_of(template: ChatTemplate, tasks: dict[str, float] | None = None) -> Collator:
    return Collator(template, lambda n: -(-n // 2560), tasks or {"continue_tone": 2, "identify": 1}, False)


def plan_of(shard_set: ShardSet, collator: Collator, **changes: Any) -> Plan:
    sizes = collator.sizes(shard_set.clips, token_counts(shard_set, collator.template))
    settings = {"seed": 1, "clips_per_step": 5.0, "micro_batches": 4, "dataset_id": shard_set.dataset_id, **changes}
    return Plan(sizes, **settings)


def readers(
    shard_set: ShardSet,
    template: ChatTemplate,
    world_size: int,
    num_workers: int = 0,
    tasks: dict[str, float] | None = None,
    augment: Augment | None = None,
    **changes: Any,
) -> list[Reader]:
    collator = collator_of(template, tasks)
    plan = plan_of(shard_set, collator, **changes)
    return [
        Reader(shard_set, plan, collator, rank=rank, world_size=world_size, num_workers=num_workers, augment=augment)
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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_comes_after_the_end_is_never_planned(
    shard_set: ShardSet, template: ChatTemplate, num_workers: int, monkeypatch: pytest.MonkeyPatch, one_rank: object
) -> None:
    """The next epoch may be one that cannot keep to the caps."""
    planned, step_of = set(), Plan.step
    monkeypatch.setattr(Plan, "step", lambda plan, *place: planned.add(place) or step_of(plan, *place))
    (reader,) = readers(shard_set, template, 1, num_workers)
    steps = list(reader.steps(2, 5))
    assert [number for number, _ in steps] == [2, 3, 4]
    assert planned == {(0, 2), (0, 3), (0, 4)}
    assert in_order([[batches for _, batches in steps]]) == one_rank[2:5]  # type: ignore[index]
    assert list(reader.steps(5, 5)) == []


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


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_any_number_of_ranks_and_workers_reads_the_same_clips_in_the_same_micro_batches(
    shard_set: ShardSet, template: ChatTemplate, num_workers: int
) -> None:
    def made(world_size: int, num_workers: int) -> list[list[list[Batch]]]:
        some = readers(shard_set, template, world_size, num_workers, micro_batches=8, clips_per_step=12.0)
        return [read(reader, 0, 3) for reader in some]  # an epoch and a half

    expected = in_order(made(1, 0))
    for world_size in (1, 2, 3, 4, 5, 8):
        ranks = made(world_size, num_workers)
        assert in_order(ranks) == expected, world_size
        assert {len(step) for rank in ranks for step in rank} == {-(-8 // world_size)}


def test_stopped_anywhere_at_4_ranks_then_on_3_then_on_6_an_epoch_is_each_clip_once(
    shard_set: ShardSet, template: ChatTemplate
) -> None:
    plan = plan_of(shard_set, collator_of(template), micro_batches=8)
    everything = Counter(shard_set.record(row)[0].id for row in range(len(shard_set)))
    end = plan.num_steps(0)
    for first, second in itertools.combinations_with_replacement(range(end + 1), 2):
        ids: Counter[str] = Counter()
        at = 0
        for world_size, stop in ((4, first), (3, second), (6, end)):
            some = readers(shard_set, template, world_size, micro_batches=8)
            ids.update(clip for reader in some for step in read(reader, at, stop) for b in step for clip in b.ids)
            at = plan.global_step(json.loads(json.dumps(plan.state(stop)))) if stop < end else stop
        del ids[FILLER_ID]
        assert ids == everything, (first, second)


def be_a_rank(out: Path, template: ChatTemplate, files: Path, rank: int, world_size: int, start: int) -> None:
    """In a process of its own: writes a line per step, with the ids of its micro-batches."""
    collator, shard_set = collator_of(template), ShardSet.open(out)
    plan = plan_of(shard_set, collator, micro_batches=6, clips_per_step=4.0)
    reader = Reader(shard_set, plan, collator, rank=rank, world_size=world_size, num_workers=1)
    with (files / f"{start}-{rank}").open("w", buffering=1) as file:
        for step, batches in reader.steps(start):
            if step == plan.num_steps(0):
                return
            file.write(json.dumps([batch.ids for batch in batches]) + "\n")
            time.sleep(0.05)


@pytest.mark.slow
def test_ranks_killed_at_any_moment_are_followed_by_others_and_no_clip_is_lost(
    shard_set: ShardSet, template: ChatTemplate, job: ShardJob, tmp_path: Path
) -> None:
    processes = multiprocessing.get_context("fork")

    def started(world_size: int, start: int) -> list[Any]:
        ranks = [
            processes.Process(target=be_a_rank, args=(job.out, template, tmp_path, rank, world_size, start))
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        return ranks

    def written(world_size: int, start: int) -> list[list[list[str]]]:
        """Per whole step the micro-batches of all ranks, in the plan's order."""
        files = [tmp_path / f"{start}-{rank}" for rank in range(world_size)]
        lines = [file.read_text().split("\n")[:-1] if file.exists() else [] for file in files]
        steps = [[json.loads(line) for line in step] for step in zip(*lines, strict=False)]
        return [[ids for call in zip(*step, strict=True) for ids in call if ids != [FILLER_ID]] for step in steps]

    killed = started(4, 0)
    while len(written(4, 0)) < 2:
        assert all(rank.exitcode in (None, 0) for rank in killed)  # on a busy machine they may be through already
        time.sleep(0.01)
    for rank in killed:
        rank.kill()
        rank.join()
    done = written(4, 0)
    for rank in started(3, len(done)):
        rank.join()
        assert rank.exitcode == 0
    steps = done + written(3, len(done))
    plan = plan_of(shard_set, collator_of(template), micro_batches=6, clips_per_step=4.0)
    names = [shard_set.record(row)[0].id for row in range(len(shard_set))]
    assert steps == [[[names[row] for row in rows] for rows in step if len(rows)] for step in plan.epoch(0)]


STILL_READS = """
import sys
from transformers import AutoTokenizer
from shards.prompts import ChatTemplate
from shards.sets.shard_set import ShardSet
from tests.shards.batches.test_reader import readers

(reader,) = readers(ShardSet.open(sys.argv[1]), ChatTemplate(AutoTokenizer.from_pretrained(sys.argv[2])), 1, 2)
steps = reader.steps()
next(steps)
print("read")
"""


@pytest.mark.slow
def test_a_process_can_end_while_it_still_reads(shard_set: ShardSet, tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = [sys.executable, "-c", STILL_READS, shard_set.url, str(tmp_path / "tokenizer")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "read\n", "")


def test_a_mixture_repeats_a_corpus(shard_set: ShardSet, template: ChatTemplate) -> None:
    (corpus,) = shard_set.corpora
    twice = Mixture(shard_set.rows["corpus"], shard_set.corpora, {corpus: 2}, seed=1)
    (reader,) = readers(shard_set, template, 1, mixture=twice)
    ids = Counter(clip for step in read(reader, 0, 9) for batch in step for clip in batch.ids)
    assert {count for clip, count in ids.items() if clip != FILLER_ID} == {2}
    assert len(ids - Counter([FILLER_ID] * 99)) == len(shard_set)


@pytest.fixture
def replaying(
    shard_set: ShardSet, job: ShardJob, make_shards: Callable[..., Summary], tmp_path: Path
) -> Callable[..., list[Reader]]:
    """Readers of the corpus, and of what the LLM writes to its words alone: 0.4 of an epoch's clips, 46 / 3."""
    make_shards(replace(job, prompt="continue", out=tmp_path / "plain"))

    def make(template: ChatTemplate, world_size: int, tasks: dict[str, float] | None = None) -> list[Reader]:
        both = ShardSet.open(shard_set.url, replay=[tmp_path / "plain"])
        collator, rows = collator_of(template, tasks or {"continue_tone": 1}), both.rows
        sizes = collator.sizes(both.clips, token_counts(both, template), replayed=both.replayed)
        mixture = Mixture(rows["corpus"], both.corpora, {}, 1, both.replayed, 0.4)
        plan = Plan(sizes, seed=1, clips_per_step=8, micro_batches=4, dataset_id=both.dataset_id, mixture=mixture)
        return [Reader(both, plan, collator, rank=rank, world_size=world_size) for rank in range(world_size)]

    return make


def learnt(step: list[Batch], template: ChatTemplate) -> list[tuple[str, str, str]]:
    """(clip, prompt it is trained under, response) of each clip of some micro-batches."""
    prompts = {tuple(template.prefix(prompt)): prompt for prompt in ("continue", "continue_tone", "identify")}
    found = []
    for batch in step:
        for clip, (tokens, mask) in zip(batch.ids, sequences(batch), strict=True):
            last = len(mask) - 1 - mask[::-1].index(True)
            response = tokens[last + 1 + len(template.suffix()) :]
            found.append((clip, prompts[tuple(tokens[: mask.index(True)])], template.decode(response)))
    return [clip for clip in found if clip[0] != FILLER_ID]


def test_replayed_clips_are_learnt_under_the_prompt_they_were_written_for(
    replaying: Callable[..., list[Reader]], template: ChatTemplate
) -> None:
    (reader,) = replaying(template, 1, {"continue_tone": 1, "identify": 1})
    steps = read(reader, 0, 5 * 3)  # three epochs of 38 or 39 clips in 5 steps
    clips = [clip for step in steps for clip in learnt(step, template)]
    under = Counter(prompt for _, prompt, _ in clips)
    assert under["continue"] == 46 and under["continue_tone"] + under["identify"] == 3 * 23
    assert min(under.values()) > 20
    assert set(Counter(clip for clip, prompt, _ in clips if prompt == "continue").values()) == {2}
    assert all((response in EMOTIONS) == (prompt == "identify") for _, prompt, response in clips)
    for step in steps:
        weight, labelled = sum(float(b.row_weight.sum()) for b in step), sum(int((b.emotion >= 0).sum()) for b in step)
        assert {(batch.step_response_tokens, batch.step_labelled) for batch in step} == {(weight, labelled)}
        assert labelled == len(learnt(step, template))  # those that are replayed keep their label


def test_replayed_clips_are_the_same_on_any_number_of_ranks_and_after_a_stop(
    replaying: Callable[..., list[Reader]], template: ChatTemplate
) -> None:
    def batches(world_size: int, start: int = 0) -> list[list[tuple[list[str], list[int], int]]]:
        return in_order([read(reader, start, 12) for reader in replaying(template, world_size)])

    everything = batches(1)
    assert batches(3) == everything
    assert batches(2, start=7) == everything[7:]


def test_augmented_clips_do_not_depend_on_rank_or_worker(shard_set: ShardSet, template: ChatTemplate) -> None:
    def heard(world_size: int, num_workers: int, augment: Augment | None) -> dict[tuple[int, str], bytes]:
        found = {}
        for reader in readers(shard_set, template, world_size, num_workers, augment=augment):
            for step, batches in enumerate(read(reader, 0, 10)):
                for batch in batches:
                    clips = batch.waveform.split(batch.num_samples.tolist())
                    for clip, wave in zip(batch.ids, clips, strict=True):
                        found[step // 5, clip] = wave.numpy().tobytes()
        return {place: wave for place, wave in found.items() if place[1] != FILLER_ID}

    augment = Augment(gain_db=6, noise_snr_db=(10, 20))
    alone, plain = heard(1, 0, augment), heard(1, 0, None)
    assert heard(3, 1, augment) == alone
    assert all(alone[0, clip] != alone[1, clip] for _, clip in alone)
    assert all(plain[0, clip] == plain[1, clip] for _, clip in plain)


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
