from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shards.batches.collate import FILLER_ID, Batch, Collator
from shards.batches.plan import Plan
from shards.batches.reader import Reader
from shards.pipeline.job import ShardJob, Summary
from shards.pipeline.run import load_writer_of
from shards.prompts import ChatTemplate
from shards.sets.cached_teacher import CachedTeacher
from shards.sets.index import decode_array
from shards.sets.remove import Selection, remove
from shards.sets.shard_set import CorruptSample, Sample, ShardSet
from shards.sets.teacher import TeacherSpec
from shards.sets.tokens import token_counts
from shards.sets.verify import verify
from shards.writers.protocol import Request
from shards.writers.with_transformers import TransformersWriter
from tests.shards.sets.made import flip, tar_of

SPEC = TeacherSpec(8, (1.0, 2.0))


@pytest.fixture
def taught(job: ShardJob, corpus: Path, llm_folder: Path, make_shards: Callable[..., Summary]) -> ShardSet:
    """The corpus by two speakers, continued by a tiny LLM that also says what it predicts."""
    records = [json.loads(line) for line in corpus.read_text().splitlines()]
    lines = [json.dumps({**record, "speaker": f"s{i % 2}"}) + "\n" for i, record in enumerate(records)]
    corpus.write_text("".join(lines))
    job = replace(job, llm=str(llm_folder), max_new_tokens=6, teacher=SPEC)
    make_shards(job, load_writer=load_writer_of)
    return ShardSet.open(job.out)


def test_what_is_kept_is_what_the_llm_predicts_at_any_of_the_temperatures(llm_folder: Path) -> None:
    writer = TransformersWriter(str(llm_folder), max_new_tokens=6, batch_size=3)
    requests = [Request(text, None, "continue") for text in ("One.", "Two and three.", "Four, five, six, seven.", "8")]
    continuations = writer.write(requests)
    taught = writer.teach(requests, continuations, SPEC)
    model = AutoModelForCausalLM.from_pretrained(llm_folder, dtype=torch.float32)
    for request, continuation, rows in zip(requests, continuations, taught, strict=True):
        response = writer.template.response(continuation.text, continuation.finished)
        prompt = writer.template.prefix("continue") + writer.template.encode(request.text) + writer.template.suffix()
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        assert len(rows) == len(response)
        for i, temperature in enumerate(SPEC.temperatures):
            wanted = (logits / temperature).log_softmax(1).gather(1, torch.from_numpy(rows["ids"].astype(np.int64)))
            kept = rows["logits"].astype(np.float32) / temperature - rows["log_z"][:, i : i + 1]
            assert np.allclose(kept, wanted.numpy(), atol=2e-3)
        assert (np.diff(rows["logits"].astype(np.float32), axis=1) <= 0).all()


def test_it_is_read_only_where_it_is_asked_for(taught: ShardSet, template: ChatTemplate) -> None:
    assert taught.teacher == SPEC
    plain, with_teacher = taught.read_many(range(len(taught))), taught.read_many(range(len(taught)), with_teacher=True)
    for alone, sample in zip(plain, with_teacher, strict=True):
        assert not isinstance(alone, CorruptSample) and not isinstance(sample, CorruptSample)
        assert alone.teacher is None and sample.teacher is not None
        response = template.response(sample.continuation.text, sample.continuation.finished)
        assert len(sample.teacher) == len(response)
        assert (sample.utterance, sample.continuation) == (alone.utterance, alone.continuation)
        assert np.array_equal(sample.waveform, alone.waveform)


def test_webdataset_and_numpy_read_it(taught: ShardSet) -> None:
    with tarfile.open(tar_of(taught, 0)) as tar:
        (member, *_) = [member for member in tar if member.name.endswith(".teacher.npy")]
        file = tar.extractfile(member)
        assert file is not None
        rows = np.load(io.BytesIO(file.read()), allow_pickle=False)
    assert rows.dtype == SPEC.row
    sample = taught.read_many([0], with_teacher=True)[0]
    assert not isinstance(sample, CorruptSample) and np.array_equal(rows, sample.teacher)


def test_damage_to_it_is_found_by_verify_and_by_the_reader(taught: ShardSet) -> None:
    lines: list[str] = []
    assert verify(taught.url, lines.append).damages == 0
    size, offset = int(taught.rows[3]["teacher_size"]), len(taught.teacher_bytes(3))
    assert size == offset
    tar = tar_of(taught, 3)
    flip(tar, tar.read_bytes().index(taught.teacher_bytes(3)) + size - 2)
    assert verify(taught.url, lines.append).damages == 1
    assert lines == [f"{tar} row 3: the teacher's file fails its checksum"]
    lost = taught.read_many([3], with_teacher=True)[0]
    assert isinstance(lost, CorruptSample) and "the teacher's file fails its checksum" in str(lost)
    assert not isinstance(taught.read_many([3])[0], CorruptSample)


def test_a_set_without_a_speaker_keeps_what_was_predicted_for_the_others(taught: ShardSet, tmp_path: Path) -> None:
    remove(taught.url, tmp_path / "less", Selection(speaker="s1"))
    less = ShardSet.open(tmp_path / "less")
    kept = {taught.record(row)[0].id: taught.teacher_bytes(row) for row in range(len(taught))}
    assert 0 < len(less) < len(taught) and less.teacher == SPEC
    assert all(less.teacher_bytes(row) == kept[less.record(row)[0].id] for row in range(len(less)))


@pytest.mark.parametrize("spec", [(0, (1.0,)), (4, ()), (4, (0.0,))])
def test_a_teacher_that_keeps_nothing_is_refused(spec: tuple[int, tuple[float, ...]]) -> None:
    with pytest.raises(ValueError, match="give at least one token and one temperature"):
        TeacherSpec(*spec)


def test_another_teacher_than_dataset_json_says_is_a_lost_sample(taught: ShardSet) -> None:
    path = Path(taught.url) / "dataset.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "teacher": {"top_k": 9, "temperatures": [1.0, 2.0]}}))
    lost = ShardSet.open(taught.url).read_many([0], with_teacher=True)[0]
    assert isinstance(lost, CorruptSample) and "the teacher's file cannot be read" in str(lost)
    with pytest.raises(ValueError, match="rows"):
        decode_array(taught.teacher_bytes(0), TeacherSpec(9, (1.0, 2.0)).row, None)


def collator(template: ChatTemplate) -> Collator:
    return Collator(template, lambda n: -(-n // 2560), {"continue_tone": 1}, False, CachedTeacher(SPEC, 2.0))


def test_a_batch_holds_it_beside_the_response_tokens_that_it_is_about(taught: ShardSet, template: ChatTemplate) -> None:
    samples = taught.read_many([4, 0, 9], with_teacher=True)
    batch = collator(template)(samples, ["continue_tone"] * 3, 0, 0)
    kept = [sample.teacher for sample in samples if isinstance(sample, Sample) and sample.teacher is not None]
    rows = np.concatenate(kept)
    assert len(rows) == len(batch.rows) and len(batch.text_input_ids) == len(batch.text_rows) == 0
    assert np.array_equal(batch.teacher_ids.numpy(), rows["ids"])
    assert np.array_equal(batch.teacher_logits.numpy(), rows["logits"])
    assert np.array_equal(batch.teacher_log_z.numpy(), rows["log_z"][:, [1, 0]])  # at 2, and at 1
    again = Batch.from_arrays(batch.arrays()).to("cpu")
    assert torch.equal(again.teacher_ids, batch.teacher_ids) and again.teacher_logits.dtype == torch.float16


def test_a_clip_whose_predictions_are_not_of_its_response_counts_with_weight_0(
    taught: ShardSet, template: ChatTemplate
) -> None:
    whole, short, bare = taught.read_many([0, 1, 2], with_teacher=True)
    assert isinstance(short, Sample) and short.teacher is not None and isinstance(bare, Sample)
    cut, bare = replace(short, teacher=short.teacher[:-1]), replace(bare, teacher=None)
    corrupt = CorruptSample("row 7: bad")
    batch = collator(template)([whole, cut, bare, corrupt], ["continue_tone"] * 4, 0, 0)
    n = len(short.teacher)
    assert batch.ids[1:] == [FILLER_ID] * 3 and batch.row_weight.tolist()[-3:] == [0, 0, 0]
    assert batch.row_weight[:-3].all() and len(batch.teacher_ids) == len(batch.rows) == len(batch.row_weight)
    assert batch.unreadable[0] == "row 7: bad"
    assert f"predictions for {n - 1} tokens of the response, which has {n}" in batch.unreadable[1]
    assert "predictions for 0 tokens" in batch.unreadable[2]
    assert collator(template)([], [], 7, 3).teacher_log_z.shape == (1, 2)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_reader_reads_it_where_the_batches_need_it(
    taught: ShardSet, template: ChatTemplate, num_workers: int
) -> None:
    make = collator(template)
    sizes = make.sizes(taught.clips, token_counts(taught, template))
    assert not sizes.teacher_tokens.any()
    plan = Plan(sizes, dataset_id=taught.dataset_id, seed=1, clips_per_step=8, micro_batches=3)
    reader = Reader(taught, plan, make, rank=0, world_size=2, num_workers=num_workers)
    _, batches = next(reader.steps())
    assert len(batches) == 2
    for batch in batches:
        assert not batch.unreadable and batch.teacher_ids.shape == (len(batch.rows), SPEC.top_k)
        mass = (batch.teacher_logits.float() - batch.teacher_log_z[:, 1:]).exp().sum(1)
        assert (mass <= 1 + 1e-3).all() and (mass > 0).all()
