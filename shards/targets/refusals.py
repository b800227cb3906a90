"""Texts in which the LLM refuses or speaks of itself in place of going on."""

from __future__ import annotations

import re

_REFUSALS = (
    r"\bas an? (ai|artificial intelligence)\b|\b(language|ai) model\b|\bi('m| am) sorry, but\b",
    r"\bi (cannot|can't|am unable to|am not able to|'m unable to|'m not able to) "
    r"(assist|help|continue|provide|fulfil|comply)",
    r"\bi('m| am) not sure what you\b",  # the authors' list has it (clean_noise_examples.py), and two of those above
    r"作为(一个|一名)?(人工智能|AI|语言模型)|(很抱歉|对不起|抱歉).{0,8}(无法|不能)|我是(一个)?(人工智能|AI|语言模型)",
    r"\bals (eine? )?(ki|künstliche intelligenz|sprachmodell)\b|\bes tut mir leid, aber ich kann\b",
    r"\ben tant qu'?(ia|intelligence artificielle|modèle de langage)\b|\bje suis désolée?, mais je ne peux\b",
    r"\bcomo (una? )?(ia|inteligencia artificial|modelo de lenguaje)\b|\blo siento, pero no puedo\b",
    r"\bcome (un'? ?)?(ia|intelligenza artificiale|modello linguistico)\b|\bmi dispiace, ma non posso\b",
    r"\bcomo (uma? )?(ia|inteligência artificial|modelo de linguagem)\b|\b(desculpe|sinto muito), mas não posso\b",
    r"\bкак (ии|искусственный интеллект|языковая модель)\b|\b(извините|простите|к сожалению), (но )?я не могу\b",
    r"\bως (τεχνητή νοημοσύνη|γλωσσικό μοντέλο)\b|\bλυπάμαι, αλλά δεν μπορώ\b",
    r"申し訳ありませんが|AI(言語モデル)?として|인공지능으로서|죄송하지만.{0,12}없습니다",
)
_REFUSAL = re.compile("|".join(_REFUSALS), re.IGNORECASE)


def refuses(text: str) -> bool:
    """Whether it holds a phrase of refusals, in English, Chinese, German, French, Spanish, Italian, Portuguese,
    Russian, Greek, Japanese or Korean."""
    return _REFUSAL.search(text.replace("\u2019", "'")) is not None
