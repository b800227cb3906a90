from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blsp.data_section import DataSection
from blsp.estimate.workload import mixture
from shards.pipeline.job import ShardJob, Summary
from shards.pipeline.run import load_writer_of
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS, Continuation
from shards.sets.gains import emotion_gains, gains_file
from shards.sets.remove import Selection, remove
from shards.sets.shard_set import ShardSet
from shards.targets.filters import Filters
from shards.targets.gain import learners_prompt, with_gains
from shards.writers.protocol import Request, Writer
from shards.writers.with_transformers import TransformersWriter

TEXTS = ("Hi.", "Anna heard the phone message last night, and then she went home.", "The old house.", "Hi.")


def _directly(folder: Path, template: ChatTemplate, request: Request, text: Continuation) -> float:
    """One clip at a time, without padding, by the formula."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    response = template.response(text.text, text.finished)
    sums = []
    for prompt, emotion in (("continue_emotion", request.emotion), ("continue_tone", None)):
        words = template.prefix(prompt, emotion) + template.encode(request.text) + template.suffix()
        with torch.inference_mode():
            logits = model(torch.tensor([words + response])).logits[0].double().log_softmax(1)
        sums.append(sum(float(logits[len(words) - 1 + i, token]) for i, token in enumerate(response)))
    return (sums[0] - sums[1]) / len(response)


def test_the_gain_is_what_the_formula_says(llm_folder: Path) -> None:
    writer = TransformersWriter(str(llm_folder), max_new_tokens=6, batch_size=3)
    asked = [Request(text, EMOTIONS[i], "continue_emotion") for i, text in enumerate(TEXTS)]
    written = [*writer.write(asked[:2]), replace(writer.write(asked[2:3])[0], text="and so on, all day", finished=True)]
    written.append(replace(written[0], text="", finished=False))
    measured = [text for text in with_gains(writer, asked, written) if isinstance(text, Continuation)]
    for request, text, before in zip(asked[:3], measured, written, strict=False):
        assert text.gain == pytest.approx(_directly(llm_folder, writer.template, request, before), abs=1e-5)
        assert replace(text, gain=None) == before
    assert measured[3].gain is None  # there is no token to gain by
    assert learners_prompt("continue_emotion_zh") == "continue_tone_zh"
    assert learners_prompt("reply_emotion") == "chat"
    plain = [replace(request, prompt="continue") for request in asked]
    assert with_gains(writer, plain, written) == written  # nothing was told


def _copyist(tokenizer: Any, folder: Path) -> Path:
    """An LLM that likes to say the label that it has read: one layer whose attention looks at all tokens alike, and
    copies those of labels."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    width = -(-len(tokenizer) // 2) * 2
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    llm = Qwen2ForCausalLM(config)
    layer, template = llm.model.layers[0], ChatTemplate(tokenizer)
    labels = {token for emotion in EMOTIONS for token in template.encode(emotion)} - {*template.prefix("continue_tone")}
    copied = torch.diag(torch.tensor([0.1 * (token in labels) for token in range(width)]))
    with torch.no_grad():
        for part in (*layer.self_attn.parameters(), *layer.mlp.parameters()):
            part.zero_()
        llm.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), width))
        layer.self_attn.v_proj.weight.copy_(torch.eye(width))
        layer.self_attn.o_proj.weight.copy_(copied)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_emotional_targets_have_a_gain_and_those_that_ignore_the_emotion_have_none(
    tokenizer: Any, tmp_path: Path
) -> None:
    writer = TransformersWriter(str(_copyist(tokenizer, tmp_path)), batch_size=4)
    asked = [Request(text, emotion, "continue_emotion") for text in TEXTS for emotion in EMOTIONS]

    def gains(words: Sequence[str]) -> list[float]:
        texts = [Continuation(prompt="continue_emotion", text=word, finished=True, writer="w") for word in words]
        found = [text.gain for text in with_gains(writer, asked, texts) if isinstance(text, Continuation)]
        return [gain for gain in found if gain is not None]

    emotional = gains([request.emotion or "" for request in asked])
    deaf = gains(["4711, 4711"] * len(asked))  # which neither prompt has
    assert len(emotional) == len(deaf) == len(asked)
    assert min(emotional) > 0.25 and np.abs(deaf).max() < 0.04


@pytest.fixture
def measured(job: ShardJob, corpus: Path, llm_folder: Path, make_shards: Callable[..., Summary]) -> ShardJob:
    records = [json.loads(line) for line in corpus.read_text().splitlines()]
    lines = [json.dumps({**record, "speaker": f"s{i % 2}"}) + "\n" for i, record in enumerate(records)]
    corpus.write_text("".join(lines))
    job = replace(job, llm=str(llm_folder), max_new_tokens=6, gain=True)
    make_shards(job, load_writer=load_writer_of)
    return job


def test_gains_lie_in_the_records_beside_the_index_and_in_the_report(measured: ShardJob, tmp_path: Path) -> None:
    shard_set = ShardSet.open(measured.out)
    records = [continuation for _, continuation in shard_set.records(range(len(shard_set)))]
    gains = [continuation.gain for continuation in records if continuation is not None]
    assert all(gain is not None and math.isfinite(gain) for gain in gains) and len({*gains}) > 5
    assert np.allclose(emotion_gains(shard_set), np.array(gains, float), atol=1e-6)
    report = json.loads((Path(measured.out) / "report.json").read_text())["emotion_gain"]
    assert sum(row["clips"] for row in report) == len(gains) and {row["corpus"] for row in report} == {"tones"}
    for row in report:
        label = EMOTIONS.index(row["emotion"])
        of_it = [gain for gain, at in zip(gains, shard_set.rows["emotion"], strict=True) if at == label]
        assert row["mean"] == pytest.approx(np.mean(np.array(of_it, float)), abs=1e-4)
    assert "| tones, sad | " in (Path(measured.out) / "report.md").read_text()
    # Where the file is gone, or of a set made from this one, the records tell.
    path = Path(measured.out) / gains_file(shard_set.shards[0][1].name)
    path.write_bytes(path.read_bytes()[:-1])
    assert np.allclose(emotion_gains(ShardSet.open(measured.out)), np.array(gains, float), atol=1e-6)
    remove(str(measured.out), str(tmp_path / "without"), Selection(speaker="s1"))
    assert len(emotion_gains(ShardSet.open(tmp_path / "without"))) == 12


def test_low_gains_are_left_out_with_their_reason(
    measured: ShardJob, make_shards: Callable[..., Summary], tmp_path: Path
) -> None:
    gains = emotion_gains(ShardSet.open(measured.out))
    bound = float(np.median(gains)) + 1e-5
    filtered = replace(measured, out=tmp_path / "high", filters=Filters(min_gain=bound))
    summary = make_shards(filtered, load_writer=load_writer_of)
    assert summary.rejected == {"llm_low_gain": int((gains < bound).sum())}
    assert (emotion_gains(ShardSet.open(filtered.out)) >= bound).all()


def test_a_writer_that_knows_no_probabilities_leaves_none(
    job: ShardJob, make_shards: Callable[..., Summary], echo: Callable[[ShardJob], Writer]
) -> None:
    def load(job: ShardJob) -> Writer:
        writer: Any = echo(job)

        def unknown(requests: Sequence[Request], continuations: Sequence[Continuation]) -> None:
            return None

        writer.log_probabilities = unknown
        return writer  # type: ignore[no-any-return]

    make_shards(replace(job, gain=True), load_writer=load)
    assert json.loads((Path(job.out) / "report.json").read_text())["emotion_gain"] == []
    assert np.isnan(emotion_gains(ShardSet.open(job.out))).all()


def test_a_training_can_leave_low_gains_out_by_the_files_beside_the_index(measured: ShardJob) -> None:
    shard_set = ShardSet.open(measured.out)
    gains = emotion_gains(shard_set)
    bound = float(np.median(gains)) + 1e-5
    data = DataSection(shards=(str(measured.out),), clips_per_step=4, min_gain=bound)
    mixed = mixture(data, shard_set)
    assert mixed is not None
    for epoch in range(3):
        assert np.array_equal(mixed.copies(epoch), (gains >= bound).astype(np.int64))
    assert mixed.mean_clips == mixed.fewest_clips == (gains >= bound).sum()
    with pytest.raises(ValueError, match=r"data\.min_gain, with data\.mixture, leaves epochs without a clip; lower it"):
        mixture(data.model_copy(update={"min_gain": 1e6}), shard_set)
