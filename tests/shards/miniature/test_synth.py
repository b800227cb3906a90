from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest

from shards.audio import SAMPLE_RATE
from shards.miniature.synth import Mark, Prosody, Speech, restart, speak

PLAIN = Prosody(50, 50, 175, 100)
TEXT = "Anna bought the piano"


@pytest.fixture(scope="module")
def speech() -> Speech:
    return speak(TEXT, "en-us+m5", PLAIN)


def test_samples_are_loud_from_the_first_to_the_last(speech: Speech) -> None:
    assert speech.samples.dtype == np.float32
    assert 0.1 < np.abs(speech.samples).max() <= 1
    assert min(np.abs(speech.samples[:40]).max(), np.abs(speech.samples[-40:]).max()) > 0.002
    assert 0.5 < len(speech.samples) / SAMPLE_RATE < 2


def test_the_words_are_marked_in_order_within_the_clip(speech: Speech) -> None:
    words = [mark for mark in speech.marks if mark.kind == "word"]
    assert [mark.name for mark in words] == TEXT.split()
    assert words[0].start_s == 0
    assert all(before.start_s < after.start_s for before, after in pairwise(words))
    assert words[-1].start_s < len(speech.samples) / SAMPLE_RATE


def test_phones_are_marked_between_the_words(speech: Speech) -> None:
    assert {mark.kind for mark in speech.marks} == {"phone", "word"}
    assert Mark("phone", "n", 0).name in {mark.name for mark in speech.marks if mark.kind == "phone"}
    assert sum(mark.kind == "phone" for mark in speech.marks) > len(TEXT.split())


@pytest.mark.parametrize(("changed", "ratio"), [(Prosody(50, 50, 350, 100), 0.7), (Prosody(50, 50, 90, 100), 1.4)])
def test_the_rate_changes_the_length(speech: Speech, changed: Prosody, ratio: float) -> None:
    length = len(speak(TEXT, "en-us+m5", changed).samples) / len(speech.samples)
    assert length < ratio if ratio < 1 else length > ratio


def test_the_volume_changes_the_loudness(speech: Speech) -> None:
    quiet = speak(TEXT, "en-us+m5", Prosody(50, 50, 175, 40))
    assert np.square(quiet.samples).mean() < 0.5 * np.square(speech.samples).mean()


def test_after_a_restart_the_same_is_spoken_bit_for_bit() -> None:
    takes = []
    for before in ("f3", "adam"):
        speak("Something else entirely.", f"en-us+{before}", PLAIN)
        restart()
        time.sleep(1.1)  # espeak-ng's own seed is the second of the day
        takes.append([speak(TEXT, f"en-us+{voice}", PLAIN) for voice in ("m5", "f3", "m5")])
    for first, second in zip(*takes, strict=True):
        np.testing.assert_array_equal(first.samples, second.samples)
        assert first.marks == second.marks


@pytest.mark.parametrize("voice", ["xx-nowhere", "en-us+michael", "xx-nowhere+m5"])
def test_an_unknown_voice_is_a_sentence(voice: str) -> None:
    with pytest.raises(ValueError, match=f"espeak-ng has no voice '{voice.replace('+', '[+]')}'"):
        speak(TEXT, voice, PLAIN)


def test_a_text_without_sound_is_an_error() -> None:
    with pytest.raises(OSError, match="no sound for ''"):
        speak("", "en-us", PLAIN)
