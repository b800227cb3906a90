from __future__ import annotations

import pytest

from shards.targets.languages import in_another_language

EN = "and then he went home to see his mother, who was waiting for him"
DE = "sie ging nach Hause und weinte die ganze Nacht, weil er nicht kam"
FR = "je ne sais pas pourquoi il a fait ça, mais je suis très triste pour elle"
ZH = "他昨天晚上很晚才回家，什么也没有说就睡觉了。"
RU = "он вернулся домой очень поздно и ничего не сказал"
EL = "γύρισε πολύ αργά στο σπίτι και δεν είπε τίποτα"


@pytest.mark.parametrize(("transcript", "text"), [(DE, EN), (FR, EN), (EN, ZH), (ZH, EN), (RU, EN), (EL, EN), (FR, DE)])
def test_another_language_is_known_with_and_without_the_manifests_word(transcript: str, text: str) -> None:
    language = {DE: "de", EN: "en", FR: "fr", ZH: "zh-CN", RU: "ru", EL: "el"}[transcript]
    assert in_another_language(text, transcript, None)
    assert in_another_language(text, transcript, language)
    assert not in_another_language(transcript, transcript, language)
    assert in_another_language(EN, ZH, "cmn")


@pytest.mark.parametrize(
    ("text", "transcript", "language"),
    [
        ("oh my god, no way", DE, "de"),  # too short to tell
        (EN, "okay", None),  # what it should be is not known
        (EN, EN, "de"),  # the manifest is wrong, not the LLM
        (EN.upper(), EN, "en"),
        ("la la la la la la la la la la la", EN, "en"),
        ("desculpe, não sei o que dizer, mas estou muito contente", "no sé qué decirte, pero estoy muy contento", "es"),
        (EN, DE, "tlh"),  # a language that the classifier does not know
    ],
)
def test_what_is_not_sure_is_kept(text: str, transcript: str, language: str | None) -> None:
    assert not in_another_language(text, transcript, language)
