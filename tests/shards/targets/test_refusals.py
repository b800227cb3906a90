from __future__ import annotations

import pytest

from shards.targets.refusals import refuses


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I cannot feel.",
        "I'm sorry, but I can't continue this.",
        "I\u2019m sorry, but I\u2019m not sure what to say.",
        "I'm not sure what you mean by that.",
        "I cannot assist with that.",
        "作为一个人工智能，我没有感情。",
        "抱歉，我无法继续这句话。",
        "Als KI kann ich das nicht.",
        "Je suis désolé, mais je ne peux pas continuer.",
        "Lo siento, pero no puedo ayudar.",
        "Mi dispiace, ma non posso continuare.",
        "Desculpe, mas não posso continuar.",
        "Извините, но я не могу продолжить.",
        "Λυπάμαι, αλλά δεν μπορώ να συνεχίσω.",
        "申し訳ありませんが、お手伝いできません。",
    ],
)
def test_a_refusal_is_known_in_every_language(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "and then she smiled.",
        "she said: I'm sorry, Anna.",
        "I'm not sure about the weather, but we can go.",
        "对不起，我来晚了。",
        "Es tut mir leid, dass du gehst.",
        "Извините за опоздание.",
    ],
)
def test_an_apology_is_none(text: str) -> None:
    assert not refuses(text)
