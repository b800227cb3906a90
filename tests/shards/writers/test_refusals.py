from __future__ import annotations

import pytest

from shards.writers.refusals import drop_reason


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
