from __future__ import annotations

import numpy as np
import pytest

from shards.sample import EMOTIONS
from shards.targets.leakage import guess_emotion

WORDS = [
    "anna",
    "found",
    "the",
    "old",
    "piano",
    "after",
    "lunch",
    "and",
    "went",
    "home",
    "with",
    "her",
    "brother",
    "to",
    "see",
    "a",
    "long",
    "film",
    "about",
    "trains",
]
TELLING = dict(zip(EMOTIONS, ("okay", "hooray", "damn", "alas", "wow"), strict=True))


def corpus(leaky: bool, clips: int = 600) -> tuple[list[str], list[str], list[str]]:
    """Texts of random words, emotions in turn, twenty speakers; a leaky one tells the emotion by a word."""
    random = np.random.default_rng(0)
    emotions = [EMOTIONS[i % 5] for i in range(clips)]
    texts = [" ".join(random.choice(WORDS, 8)) for _ in range(clips)]
    if leaky:
        texts = [f"{TELLING[emotion]} {text}" for emotion, text in zip(emotions, texts, strict=True)]
    return texts, emotions, [f"speaker {i // 5 % 20}" for i in range(clips)]


def test_a_leaky_corpus_is_guessed_and_a_clean_one_is_not() -> None:
    leaky, clean = guess_emotion(*corpus(leaky=True)), guess_emotion(*corpus(leaky=False))
    assert leaky is not None and clean is not None
    assert leaky.accuracy > 0.97 and leaky.chance == clean.chance == 0.2
    assert clean.low < 0.2 < clean.high and clean.high - clean.low < 0.15
    assert (leaky.clips, leaky.groups) == (600, 20)


@pytest.mark.slow
def test_what_only_tells_speakers_apart_is_no_leak() -> None:
    """Each speaker has one emotion and a word of their own: over speakers that were not seen it says nothing."""
    texts, _, speakers = corpus(leaky=False)
    texts = [f"{speaker.replace(' ', '')} {text}" for speaker, text in zip(speakers, texts, strict=True)]
    emotions = [EMOTIONS[int(speaker.split()[1]) % 5] for speaker in speakers]
    apart, together = (guess_emotion(texts, emotions, groups) for groups in (speakers, [*map(str, range(600))]))
    assert apart is not None and together is not None
    assert apart.accuracy < 0.4 and together.accuracy > 0.97


@pytest.mark.slow
def test_of_too_little_nothing_is_said() -> None:
    texts, emotions, speakers = corpus(leaky=True, clips=50)
    assert guess_emotion(texts, ["sad"] * 50, speakers) is None
    assert guess_emotion(texts, emotions, ["one"] * 50) is None
    assert guess_emotion([], [], []) is None
    few = guess_emotion(texts, ["sad"] * 25 + ["happy"] * 20 + ["angry"] * 5, speakers)  # five are none
    assert few is not None and (few.clips, few.chance) == (45, 0.5)
    silent = guess_emotion(["", "!"] * 25, emotions, speakers)
    assert silent is not None and silent.accuracy < 0.5


def test_with_few_speakers_the_interval_is_no_narrower_than_that_of_as_many_clips() -> None:
    """Redrawn whole, two speakers of whom as much is guessed right would give no interval at all."""
    random = np.random.default_rng(5)
    texts = [" ".join(random.choice(["a", "b", "c", "d"], 6)) for _ in range(400)]
    emotions = random.choice(["happy", "sad"], 400).tolist()
    guess = guess_emotion(texts, emotions, [f"s{i % 2}" for i in range(400)])
    assert guess is not None
    assert guess.high - guess.low > 0.04
    assert guess.low < guess.chance < guess.high
