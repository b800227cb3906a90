from __future__ import annotations

import dataclasses

import pytest

from shards.corpora.text import styled, tidy
from shards.sample import Message, Utterance

SAID = Utterance(
    id="a", audio="a.wav", corpus="c", text="\ufeff  Où est\tla  Clé ? ",
    messages=(Message(role="user", text="Hé!"), Message(role="assistant", text="Oui?")),
)  # fmt: skip


def test_text_is_one_line_in_composed_form() -> None:
    assert tidy("\ufeff Cafe\u0301 \n noir\t") == "Café noir"


@pytest.mark.parametrize(
    ("style", "text", "raw", "before"),
    [
        ("lower", "où est la clé ?", None, "hé!"),
        ("raw", "Où est la Clé ?", None, "Hé!"),
        ("both", "où est la clé ?", "Où est la Clé ?", "hé!"),
    ],
)
def test_styles(style: str, text: str, raw: str | None, before: str) -> None:
    found = styled(SAID, style)  # type: ignore[arg-type]
    assert (found.text, found.text_raw, found.messages[0].text) == (text, raw, before)
    assert styled(found, style).text == text  # type: ignore[arg-type]


@pytest.mark.parametrize(("language", "lower"), [("tr", "ılık istanbul"), ("az", "ılık istanbul"), ("en", None)])
def test_turkish_keeps_its_two_letters_i(language: str, lower: str | None) -> None:
    said = dataclasses.replace(SAID, text="ILIK İstanbul", language=language)
    assert styled(said, "lower").text == (lower or said.text.lower())
