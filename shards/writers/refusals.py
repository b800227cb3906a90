"""Which continuations are no targets to learn: a text that says nothing or refuses is dropped with a reason."""

from __future__ import annotations

import re

_REFUSALS = (
    r"\bas an? (ai|artificial intelligence)\b|\b(language|ai) model\b|\bi('m| am) sorry, but\b",
    r"\bi (cannot|can't|am unable to|am not able to) (assist|help|continue|provide|fulfil)",
    r"作为(一个|一名)?(人工智能|AI|语言模型)|(很抱歉|对不起).{0,8}(无法|不能)",
    r"\bals (eine? )?(ki|künstliche intelligenz|sprachmodell)\b|\bes tut mir leid, aber ich kann\b",
    r"\ben tant qu'?(ia|intelligence artificielle|modèle de langage)\b|\bje suis désolée?, mais je ne peux\b",
    r"\bcomo (una? )?(ia|inteligencia artificial|modelo de lenguaje)\b|\blo siento, pero no puedo\b",
)
_REFUSAL = re.compile("|".join(_REFUSALS), re.IGNORECASE)


def drop_reason(text: str) -> str | None:
    """Why a continuation is no target to learn: `llm_empty`, `llm_refusal`, or None when it is one."""
    if not text.strip():
        return "llm_empty"
    return "llm_refusal" if _REFUSAL.search(text) else None
