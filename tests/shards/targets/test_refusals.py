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
        "As a large language model, I don't have feelings.",
        "I'm an AI and do not have emotions.",
        "I'm sorry, but the sentence is not complete.",
        "I'm sorry, I can't help with that request.",
        "Sorry, but I can't continue that sentence.",
        "I'm unable to provide a continuation.",
        "<think> Okay, the user wants",
        "The user wants me to go on.",
        "作为一个人工智能，我没有感情。",
        "作为一个大型语言模型，我没有感情。",
        "很抱歉，我不能提供这样的内容。",
        "Ich bin eine KI und habe keine Gefühle.",
        "Es tut mir leid, aber ich kann diese Anfrage nicht erfüllen.",
        "En tant que modèle de langage, je n'ai pas d'émotions.",
        "Je ne peux pas répondre à cette demande.",
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
        "I'm sorry, but you should have called me first.",
        "I am sorry, but this is not fair!",
        "I can't help it, I love you.",
        "I can't help but smile when I see you.",
        "I can't continue like this anymore.",
        "I can't provide for my family.",
        "I can't help you with your luggage, my back hurts.",
        "She speaks of the language model of her youth.",
        "对不起，我来晚了。",
        "对不起，我不能来参加你的婚礼了。",
        "抱歉，我今天无法赶到。",
        "Es tut mir leid, aber ich kann heute nicht kommen.",
        "Je suis désolé, mais je ne peux pas venir ce soir.",
        "Lo siento, pero no puedo ir contigo.",
        "Простите, я не могу прийти сегодня.",
        "Es tut mir leid, dass du gehst.",
        "Извините за опоздание.",
    ],
)
def test_an_apology_is_none(text: str) -> None:
    assert not refuses(text)
