from __future__ import annotations

from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize("ends", [1, 3])
def test_texts_that_have_ended_leave_the_batch_and_the_others_go_on_as_alone(llm_folder: Path, ends: int) -> None:
    """As transformers' own `generate` writes them, one at a time."""
    import torch
    from transformers import GenerationConfig

    writer = TransformersWriter(str(llm_folder), max_new_tokens=9, batch_size=8)
    model, end, widths = writer._model, writer.template.end_of_turn_id, []

    def hook(module: object, args: object, given: dict[str, Any], output: Any) -> None:
        positions = given["position_ids"][:, -1]
        output.logits[:, -1, end] += 1e4 * (positions % (4 * ends) < ends)  # ends a text at some lengths
        widths.append(len(positions))

    model.register_forward_hook(hook, with_kwargs=True)
    texts = [" ".join([*TEXTS[:2]] * (i % 3) + ["a"] * (i + 1)) for i in range(8)]
    prompts = [writer.prompt(Request(text, None, "continue")) for text in texts]
    written = dict(writer.generate(prompts))
    alone, *calls = widths
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=9, eos_token_id=end, pad_token_id=end)
    for number, prompt in enumerate(prompts):
        ids = model.generate(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=int))
        new = ids[0, len(prompt) :].tolist()
        assert written[number].text == writer.template.decode([token for token in new if token != end])
        assert (written[number].finished, written[number].new_tokens) == (end in new, len(new))
    assert alone == 1  # what all begin with
    assert calls == sorted(calls, reverse=True) and calls[0] == 8
    assert calls[-1] < 8
