"""Texts in which the LLM refuses or speaks of itself in place of going on."""

from __future__ import annotations

import re

# "I'm sorry, but you should have called" and "I can't help it" is how people speak, the sad above all: what counts is
# what is refused.
_REFUSALS = (
    r"\bas an? (large )?(ai|artificial intelligence|language model)\b",
    r"\bi('m| am) an? (ai|language model)\b|\bai model\b|\b(large|ai) language model\b",
    r"^\W*<think\b|\bthe user (wants|asks|asked|is asking) me to\b",
    r"\bsorry, but (as an?|it (seems|appears|looks)|(the|this|your) (sentence|text|statement|phrase|prompt|request))\b",
    r"\bi( cannot| can't| am unable to| am not able to|'m unable to|'m not able to) "
    r"(assist|fulfil\w*|comply|provide(?! for\b)|generate|help (you )?with (that|this|your|the) (request|task)"
    r"|(continue|complete) (with )?(the|this|that|your) (sentence|text|story|phrase|prompt|conversation))\b",
    # The authors' list (clean_noise_examples.py) has these, and some of the above.
    r"\bi('m| am) sorry, but i\b|\bi('m| am) not sure what you\b",
    r"作为(一个|一名|一款|一种)?(大型)?(人工智能|AI|语言模型)|我(只)?是(一个|一名|一款)?(大型)?(人工智能|AI|语言模型)",
    r"(对不起|抱歉).{0,8}(无法|不能).{0,4}(继续|续写|提供|回答|完成|满足|协助|帮助|帮您|理解|生成|处理|回应|回复|给出|创作)",
    r"\b(als|ich bin( nur)?) (eine? )?(ki|künstliche intelligenz|sprachmodell)\b"
    r"|\bes tut mir leid, (aber )?ich kann\b.{0,40}\b(anfrage|satz|text|fortsetzen|beantworten|weiterhelfen)\b",
    r"\ben tant qu('|e )(ia|intelligence artificielle|modèle de langage)\b"
    r"|\bje ne peux pas (continuer|répondre|poursuivre|compléter|satisfaire)"
    r"( à)?( (cette|votre|ta|la) (demande|requête|phrase|question|texte)|[.,])",
    r"\bcomo (una? )?(ia|inteligencia artificial|modelo de lenguaje)\b"
    r"|\blo siento, pero no puedo (continuar|ayudar\w*|responder|proporcionar|completar|cumplir|generar)\b",
    r"\bcome (un'? ?)?(ia|intelligenza artificiale|modello linguistico)\b"
    r"|\bmi dispiace, ma non posso (continuare|aiutar\w*|rispondere|fornire|completare|generare)\b",
    r"\bcomo (uma? )?(ia|inteligência artificial|modelo de linguagem)\b"
    r"|\b(desculpe|sinto muito), mas não posso (continuar|ajud\w*|responder|fornecer|completar|gerar)\b",
    r"\bкак (ии|искусственный интеллект|языковая модель)\b"
    r"|\b(извините|простите|к сожалению), (но )?я не могу (продолж\w*|помочь|ответить|предоставить|выполнить)\b",
    r"\bως (τεχνητή νοημοσύνη|γλωσσικό μοντέλο)\b"
    r"|\bλυπάμαι, αλλά δεν μπορώ να (συνεχίσω|βοηθήσω|απαντήσω|παρέχω|ολοκληρώσω)\b",
    r"申し訳ありませんが.{0,30}(できません|かねます)|AI(言語モデル)?として|인공지능으로서|죄송하지만.{0,12}없습니다",
)
_REFUSAL = re.compile("|".join(_REFUSALS), re.IGNORECASE)


def refuses(text: str) -> bool:
    """Whether it holds a phrase of refusals, in English, Chinese, German, French, Spanish, Italian, Portuguese,
    Russian, Greek, Japanese or Korean."""
    return _REFUSAL.search(text.replace("\u2019", "'")) is not None
