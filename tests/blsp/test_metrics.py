"""Every measure against cases small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blsp.evaluate.metrics import (
    AMBIGUOUS,
    NO_TONE,
    UNPARSED,
    Estimate,
    balanced_accuracy,
    confusion_matrix,
    content_kept,
    content_words,
    estimate,
    majority_share,
    parse_label,
    same_text,
    tone_of,
    word_errors,
    words,
)
from shards.sample import EMOTIONS

REFERENCES = {
    "neutral": "as planned, Anna will talk about the phone message with the others",
    "happy": "what great news, Anna will celebrate the phone message with a big party",
    "angry": "this is so unfair, Anna will shout about the phone message at everyone",
    "sad": "the tears keep falling, Anna will cry about the phone message all alone",
    "surprise": "it is hard to believe, Anna will stare at the phone message in amazement",
}


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_each_reference_has_its_own_tone(emotion: str) -> None:
    assert tone_of(REFERENCES[emotion], REFERENCES) == emotion


@pytest.mark.parametrize(
    ("continuation", "tone"),
    [
        ("It is HARD to believe! Anna will cry", "surprise"),
        ("Anna will ... the phone message", NO_TONE),  # only what all references share
        ("", NO_TONE),
        ("something else entirely", NO_TONE),
        ("party tears", "sad"),  # one word of each: 1 of 8 with sad's seven, 1 of 9 with happy's eight
    ],
)
def test_tone_of_other_texts(continuation: str, tone: str) -> None:
    assert tone_of(continuation, REFERENCES) == tone


def test_a_tie_between_references_is_no_tone() -> None:
    references = dict(REFERENCES, sad=REFERENCES["angry"])
    assert tone_of(REFERENCES["angry"], references) == NO_TONE
    assert tone_of(REFERENCES["happy"], references) == "happy"


def test_references_that_ignore_the_emotion_give_no_tone() -> None:
    references = dict.fromkeys(EMOTIONS, "Anna went home")
    assert tone_of("Anna went home", references) == NO_TONE


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(EMOTIONS), min_size=1, max_size=30))
def test_one_answer_per_sentence_is_exactly_a_fifth_on_a_balanced_set(answers: list[str]) -> None:
    """A system without ears says the same of a sentence in whatever tone it was spoken: one hit in five, always."""
    hits = [tone_of(REFERENCES[answer], REFERENCES) == truth for answer in answers for truth in EMOTIONS]
    speakers = [place % 3 for place in range(len(hits))]
    accuracy = estimate([float(hit) for hit in hits], speakers)
    assert accuracy is not None
    assert accuracy.value == 0.2


def test_words_are_letters_only_and_lower_case() -> None:
    assert words("Don't STOP-me: 3 Männer_x!") == {"don", "t", "stop", "me", "männer", "x"}
    assert words("他很高兴 ok") == {"他", "很", "高", "兴", "ok"}
    assert content_words("The phone is on") == {"phone"}


def test_content_kept_asks_only_for_what_the_reference_took_over() -> None:
    transcript = "Anna heard the phone message last night"
    reference = "as planned, Anna will talk about the phone message"
    assert content_kept(transcript, reference, "wow, Anna! The message on the phone") is True
    assert content_kept(transcript, reference, "Anna will talk about the message") is False
    assert content_kept(transcript, reference, "telephone message, Anna") is False
    assert content_kept(transcript, "nothing of it", "nothing of it") is None


def test_same_text_ignores_white_space_only() -> None:
    assert same_text(" a  b\n", "a b")
    assert not same_text("A b", "a b")


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("happy", "happy"),
        ("The emotion tone of the speech provided is neutral.", "neutral"),
        ("Surprise!", "surprise"),
        ("She sounds surprised", "surprise"),
        ("The speaker is not angry but sad.", "sad"),
        ("not angry, sad", "sad"),
        ("angry, not sad", "angry"),
        ("It isn't happy", UNPARSED),
        ("He isn’t at all happy; it is anger", "angry"),
        ("neither sad nor angry", UNPARSED),
        ("not sad or angry", UNPARSED),
        ("sad rather than angry", "sad"),
        ("not only sad but angry", AMBIGUOUS),
        ("neutral, sad, angry, happy, or surprise", AMBIGUOUS),
        ("sad, very sad", "sad"),
        ("unhappy", UNPARSED),
        ("", UNPARSED),
        ("the message will arrive", UNPARSED),
    ],
)
def test_the_label_in_an_answer(answer: str, label: str) -> None:
    assert parse_label(answer) == label


@pytest.mark.parametrize(
    ("heard", "errors"),
    [("the cat sat down", 0), ("The cat, sat down!", 0), ("the cat sat", 1), ("a cat sat down now", 2), ("", 4)],
)
def test_word_errors(heard: str, errors: int) -> None:
    assert word_errors("the cat sat down", heard) == (errors, 4)


def test_confusion_counts_answers_that_name_no_emotion_in_the_last_column() -> None:
    truth = ["neutral", "neutral", "happy", "surprise"]
    matrix = confusion_matrix(truth, ["neutral", NO_TONE, "sad", UNPARSED])
    assert matrix[0] == [1, 0, 0, 0, 0, 1]
    assert matrix[1] == [0, 0, 0, 1, 0, 0]
    assert matrix[4] == [0, 0, 0, 0, 0, 1]
    assert sum(map(sum, matrix)) == 4
    assert balanced_accuracy(matrix) == pytest.approx(0.5 / 3)
    assert majority_share(truth) == 0.5


def test_estimate_leaves_out_what_does_not_apply() -> None:
    assert estimate([None, None], ["a", "b"]) is None
    assert estimate([], []) is None
    one = estimate([1.0, 0.0, None], ["a", "a", "b"])
    assert one == Estimate(0.5, None, None, 2)
    weighted = estimate([0.5, 0.0], ["a", "b"], weights=[2, 6])
    assert weighted is not None
    assert weighted.value == pytest.approx(0.125)


def test_estimate_is_repeatable_and_wider_when_a_speaker_is_all_or_nothing() -> None:
    alike = [float(clip % 2) for clip in range(80)]
    by_speaker = [float(clip // 10 % 2) for clip in range(80)]
    speakers = [clip // 10 for clip in range(80)]
    narrow, wide = estimate(alike, speakers), estimate(by_speaker, speakers)
    assert narrow is not None and wide is not None
    assert narrow.low == narrow.high == 0.5
    assert wide.low is not None and wide.high is not None
    assert wide.high - wide.low > 0.5
    assert wide == estimate(by_speaker, speakers)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """40 speakers whose own accuracies differ, 10 clips each: 95 % nominal; redrawing clips would cover far less."""
    random = np.random.default_rng(3)
    truth, covered, covered_by_clips, runs = 0.6, 0, 0, 150
    for _ in range(runs):
        own = random.beta(3, 2, size=40)
        hits = (random.random((40, 10)) < own[:, None]).astype(float).ravel().tolist()
        by_speaker = estimate(hits, [clip // 10 for clip in range(400)], num_draws=400)
        by_clip = estimate(hits, range(400), num_draws=400)
        assert by_speaker and by_clip and by_speaker.low and by_speaker.high and by_clip.low and by_clip.high
        covered += by_speaker.low <= truth <= by_speaker.high
        covered_by_clips += by_clip.low <= truth <= by_clip.high
    assert 0.88 <= covered / runs <= 1.0
    assert covered_by_clips < covered
