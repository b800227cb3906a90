from __future__ import annotations

import pytest

from shards.targets.labels import has_label_word, names_label

LEAKS = (
    "she said in a sad tone.",
    "The tone is angry, and he goes on.",
    "The sentence reflects sadness and loss.",
    "the speaker's voice conveys a sense of deep happiness",
    "Conveying surprise, she looked at the door.",
    "with a 'happy' emotion tone, they sang",
    "(sad) and then he left.",
    "[angrily] leave me alone!",
    "Sad: and then he left.",
    "Emotion: surprise. What is that?",
    "based on the emotion tone, I would go on like this",
    "all of it full of happy emotions",
    "以悲伤的语气说道，我走了。",
    "语气显得很愤怒。",
    "这句话反映了她的悲伤情绪。",
    "sagte sie in einem traurigen Ton.",
    "Sie sprach in fröhlichem Ton weiter.",
    "there was anger in his tone",
    "Der Satz spiegelt Trauer wider.",
    "dit-il d'un ton joyeux.",
    "La phrase reflète la tristesse.",
    "en un tono triste y lento.",
    "disse con un tono arrabbiato.",
    "сказала она грустным тоном.",
    "είπε με λυπημένο τόνο.",
)
HONEST = (
    "I am so happy for you, this is wonderful!",
    "I understand your anger, the piano must be hard to accept",
    "what a heavy heart, I could cry all day",
    "The tone of the piano was warm, and she smiled.",
    "Tom is sad that she left him.",
    "He was sad. Her emotions were running high.",
    "She was full of emotion, joy and relief at once.",
    "What a surprise! I did not expect you.",
    "a sad story about a dog: it never came back",
    "我今天很高兴，因为你来了。",
    "他很生气地离开了。",
    "Ich bin so traurig, dass du gehst.",
    "Ton triste visage me fait mal.",
    "Je suis si heureux de ton succès, tu le mérites.",
    "Je suis triste pour ton père.",
    "Elle est en colère contre ton frère depuis hier.",
    "J'ai une surprise pour ton anniversaire.",
    "Quelle joie de voir ton sourire !",
    "Ich bin so glücklich über den Ton deiner Gitarre.",
    "I am so happy with the tone of this guitar.",
    "He was angry and his tone was cold.",
    "I'm happy a ton of people came.",
    "Estoy tan feliz de verte otra vez.",
    "Мне очень грустно без тебя.",
    "The mirror reflects the light of the morning.",
    "",
)


@pytest.mark.parametrize("text", LEAKS)
def test_speaking_about_the_emotion_is_a_leak(text: str) -> None:
    assert names_label(text)


@pytest.mark.parametrize("text", HONEST)
def test_feeling_it_is_none(text: str) -> None:
    assert not names_label(text)


def test_the_plain_word_is_a_figure_of_its_own_emotion() -> None:
    assert has_label_word("I am so happy for you", "happy") and not has_label_word("I am so happy for you", "sad")
    assert has_label_word("我很难过", "sad") and has_label_word("Ich bin wütend", "angry")
    assert not has_label_word("what a heavy heart", "sad") and not has_label_word("the sadder part", "sad")
