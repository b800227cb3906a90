from __future__ import annotations

from pathlib import Path

import pytest

from shards.pipeline.writers import Request, TransformersWriter, drop_reason, model_fingerprint
from shards.prompts import ChatTemplate

TEXTS = ("Hi.", "Anna heard the phone message last night, and then she went home.", "The old house.", "Hi.")


@pytest.fixture(scope="module")
def writer(llm_folder: Path) -> TransformersWriter:
    return TransformersWriter(str(llm_folder), max_new_tokens=6, batch_size=2)


def test_a_continuation_does_not_depend_on_its_neighbours(writer: TransformersWriter) -> None:
    requests = [Request(text, "sad", "continue_emotion") for text in TEXTS]
    together = writer.write(requests)
    assert together == [writer.write([request])[0] for request in requests]
    assert all(c.prompt == "continue_emotion" and c.writer == writer.name for c in together)


def test_the_llm_reads_exactly_what_training_shows_it(writer: TransformersWriter, llm_folder: Path) -> None:
    import torch
    from transformers import Qwen2ForCausalLM

    template: ChatTemplate = writer.template
    ids = template.prefix("continue_emotion", "angry") + template.encode(TEXTS[1]) + template.suffix()
    model, written = Qwen2ForCausalLM.from_pretrained(llm_folder), []
    for _ in range(6):
        written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
        if written[-1] == template.end_of_turn_id:
            break
    continuation = writer.write([Request(TEXTS[1], "angry", "continue_emotion")])[0]
    assert continuation.text == template.decode(written)
    assert continuation.finished == (written[-1] == template.end_of_turn_id)


def test_the_plain_prompt_does_not_see_the_label(writer: TransformersWriter) -> None:
    labelled, plain = (writer.write([Request(TEXTS[2], emotion, "continue")])[0] for emotion in ("happy", None))
    assert labelled == plain


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("and then she smiled.", None),
        ("she said: I'm sorry, Anna.", None),
        ("  \n", "llm_empty"),
        ("As an AI language model, I cannot feel.", "llm_refusal"),
        ("I'm sorry, but I can't continue this.", "llm_refusal"),
        ("I cannot assist with that.", "llm_refusal"),
        ("作为一个人工智能，我没有感情。", "llm_refusal"),
        ("Als KI kann ich das nicht.", "llm_refusal"),
    ],
)
def test_refusals_and_silence_are_no_targets(text: str, reason: str | None) -> None:
    assert drop_reason(text) == reason


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_another_training_is_another_version(tmp_path: Path, weights: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / weights).write_bytes(bytes(3 * 2**20))
    first = model_fingerprint(str(tmp_path), None)
    (tmp_path / weights).write_bytes(bytes(3 * 2**20 - 1) + b"1")
    assert model_fingerprint(str(tmp_path), None) != first
    assert model_fingerprint("Qwen/Qwen2.5-7B-Instruct", None) == "Qwen/Qwen2.5-7B-Instruct@main"


def test_a_folder_without_an_llm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        model_fingerprint(str(tmp_path), None)
    with pytest.raises(ValueError, match="no such folder"):
        model_fingerprint(str(tmp_path / "absent"), None)
