from __future__ import annotations

from pathlib import Path

import pytest

from shards.prompts import ChatTemplate
from shards.writers.protocol import Request
from shards.writers.with_transformers import TransformersWriter

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
