from __future__ import annotations

import pytest

from shards.targets.repeats import repeats, units

SAID = "Nina found the old piano in the hall after lunch"


@pytest.mark.parametrize(
    ("text", "transcript"),
    [
        (SAID.lower() + ".", SAID),
        (f"{SAID}, and she smiled.", SAID),
        ("Yes!", "yes"),
        ("我今天很高兴，因为你来了", "我今天很高兴因为你来了。"),
        ("and then she went home " + "and then she went home " * 5, SAID),
        ("well no " + "no " * 20, SAID),
        ("好的，" + "我知道了，" * 6, SAID),
    ],
)
def test_the_transcript_again_and_loops_are_repetitions(text: str, transcript: str) -> None:
    assert repeats(text, transcript)


@pytest.mark.parametrize(
    ("text", "transcript"),
    [
        ("and played it until her brother came home from school with a smile on his face", SAID),
        ("Nina found the old piano, but nobody had tuned it for years, and so she called a man from the town.", SAID),
        ("No, no, no, no! Not again, please.", SAID),
        ("ha ha ha ha ha, that is so funny", SAID),
        ("Yes, I will.", "yes"),
        ("", "yes"),
        ("!?", SAID),
    ],
)
def test_what_goes_on_is_none(text: str, transcript: str) -> None:
    assert not repeats(text, transcript)


def test_units_are_words_or_characters() -> None:
    assert units("It's 5 o’clock, 我来了") == ["it", "s", "5", "o", "clock", "我", "来", "了"]
