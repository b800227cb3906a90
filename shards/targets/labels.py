"""Texts that name the label which the prompt gave, in place of speaking in its tone.

"I am so happy!" is how a happy speaker goes on: that is emotion, and only counted. "in a sad tone", "the sentence
reflects sadness", "(sad)" and "Emotion: sad" speak *about* the emotion of what is said; a model that learns
them learns to announce labels. So the word for an emotion counts as a leak only

- beside a word for the manner of speaking (tone, Ton, tono, тон, 语气), with at most two words between them;
- as what the sentence, text or speaker reflects or conveys, or right before `emotion`;
- alone in brackets, or alone before a colon, at the beginning;
- or when the prompt's own "emotion tone" is repeated.
"""

from __future__ import annotations

import re

# Stems of each label's words, in English, German, French, Spanish, Italian, Portuguese, Russian and Greek.
_STEMS = {
    "neutral": r"neutral\w*|neutre\w*|neutro|neutra|нейтральн\w*|ουδέτερ\w*",
    "happy": r"happy|happily|happiness|joy|joyful\w*|joyous\w*|cheerful\w*|glücklich\w*|fröhlich\w*|freude|freudig\w*"
    r"|heureu\w+|joyeu\w+|joie|feliz|felices|felicidad\w*|alegre\w*|alegría|alegria|felice|felici|felicità|allegr\w+"
    r"|радост\w*|счастлив\w*|счасть\w*|весёл\w*|весел\w*|χαρούμεν\w*|χαρά",
    "angry": r"angry|angrily|anger|furious\w*|wütend\w*|wut|zornig\w*|zorn|ärgerlich\w*|colère|coléreu\w+|fâché\w*"
    r"|enojad\w*|enfadad\w*|enojo|rabia|arrabbiat\w*|rabbia|irritad\w*|raiva|сердит\w*|злост\w*|злой|злым|гнев\w*"
    r"|θυμωμέν\w*|θυμός|θυμό",
    "sad": r"sad|sadly|sadness|sorrow\w*|traurig\w*|trauer|triste\w*|tristesse|tristeza|tristezza|грустн\w*|грусть"
    r"|печальн\w*|печаль\w*|λυπημέν\w*|λύπη",
    "surprise": r"surprise|surprised|überrascht\w*|überraschung|surpris\w*|sorpres\w*|sorprendid\w*"
    r"|surpres\w*|удивл[её]н\w*|удивлени\w*|έκπληκτ\w*|έκπληξη",
}
_CHINESE = {
    "neutral": "中性|中立",
    "happy": "高兴|开心|快乐|喜悦|愉快|欢快",
    "angry": "愤怒|生气|恼怒|气愤",
    "sad": "悲伤|伤心|难过|忧伤|悲哀",
    "surprise": "惊讶|吃惊|惊喜|惊奇",
}
_ANY, _ANY_CHINESE = "|".join(_STEMS.values()), "|".join(_CHINESE.values())
# `ton` is "your" in French and Tom a name: they need an article, or before them an adjective that is German.
_MANNER = (
    r"tones?|intonation|tonfalls?|tonlage|stimmlage|tonalité|tonos?|интонаци\w*|тоне?|тоном|τόνο[ςυ]?"
    r"|(?:un|le|du|der|ein|einen|einem|um) to[nm]"
)
_SAYS = (
    r"reflect\w*|convey\w*|evok\w*|spiegelt|widerspiegelt|vermittelt|reflète\w*|traduit|refleja\w*|transmite\w*|riflette"
    r"|trasmette|отража\w*|переда[её]т\w*"
)
_WHAT = (
    r"sentence|statement|text|utterance|passage|phrase|continuation|speaker(?:'s voice)?|satz"
    r"|aussage|sprecher\w*|énoncé|locuteur|frase|texto|oración|testo|hablante|предложени\w*|фраз\w*|говорящ\w*"
)
_GIVEN = rf"neutral|happy|angry|sad|surprised?|{_ANY_CHINESE}"  # as prompts name them
_ASIDE = r"emotion|tone|mood|gefühl|émotion|emoción|情绪|情感|语气"
_GAP = r"[\s'\"\u201c\u201d\u2018\u2019\u00ab\u00bb-]+"
_WORDS = rf"{_GAP}(?:\w+{_GAP})"  # with {0,n} behind it at most n words
_NOT_OF_IT = r"(?!(?:with|at|by|about|and (?:my|your|his|her|our|their))\b)"  # "happy with the tone of this guitar"
_GERMAN = r"neutral|glücklich|fröhlich|freudig|wütend|zornig|ärgerlich|traurig|überrascht"
_LEAKS = (
    rf"\b(?:{_ANY})\b{_GAP}{_NOT_OF_IT}(?:\w+{_GAP}){{0,2}}(?:{_MANNER})\b",
    rf"\b(?:{_GERMAN})e[mnr]{_GAP}ton\b",
    rf"\b(?:{_MANNER})\b{_WORDS}{{0,2}}(?:{_ANY})\b",
    rf"\b(?:{_ANY})\b{_GAP}(?:emotion(?:al|s)?|эмоци\w*)\b",
    rf"\b(?:{_WHAT})\b{_WORDS}{{0,2}}(?:{_SAYS}|express(?:es|ed)|indicates?|suggests?){_WORDS}{{0,4}}(?:{_ANY})\b",
    rf"^\W*(?:{_SAYS}){_WORDS}{{0,4}}(?:{_ANY})\b",
    rf"^\s*[(\[*<（【]+\s*(?:{_GIVEN}|{_ANY})\s*[)\]*>）】]",
    rf"^\W*(?:{_GIVEN})\s*[:：]|^\W*(?:{_ASIDE})\s*[:：]\W*(?:{_GIVEN}|{_ANY})",
    r"\bemotion tone\b",
    rf"(?:{_ANY_CHINESE})['\"”’」]?的?(?:情绪|情感|感情)?(?:语气|语调|口吻|基调|情感色彩|感情色彩)",
    rf"(?:语气|语调|口吻|基调)(?:是|为|显得|听起来|充满|带有|带着)[^，。！？]{{0,4}}(?:{_ANY_CHINESE})",
    rf"(?:反映|体现|传达|表达)(?:了|出)*[^，。！？]{{0,8}}(?:{_ANY_CHINESE})['\"”’」]?的?(?:情绪|情感|感情)",
)
_LEAK = re.compile("|".join(f"(?:{leak})" for leak in _LEAKS), re.IGNORECASE)
_WORD = {
    label: re.compile(rf"\b(?:{stems})\b|{_CHINESE[label]}", re.IGNORECASE) for label, stems in _STEMS.items()
}  # fmt: skip


def names_label(text: str) -> bool:
    """Whether the text speaks about the emotion of what is said: a label of any emotion, named as one."""
    return _LEAK.search(text) is not None


def has_label_word(text: str, emotion: str) -> bool:
    """Whether the emotion's own word occurs at all, as in "I am so happy": no fault, but a figure worth knowing."""
    return _WORD[emotion].search(text) is not None
