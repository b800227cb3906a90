"""From answers to rows, measures and matrices, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from blsp.evaluate.metrics import AMBIGUOUS, NO_TONE, UNPARSED
from blsp.evaluate.result import read_result, read_rows, write_result
from blsp.evaluate.scoring import Answers, References, Row, measures, score, summary, tone_groups
from shards.sample import EMOTIONS, Utterance

TOLD = {
    "neutral": "as planned Anna will talk",
    "happy": "great news Anna will celebrate",
    "angry": "so unfair Anna will shout",
    "sad": "the tears fall Anna will cry",
    "surprise": "hard to believe Anna will stare",
}
REFERENCES = {text: References(TOLD["neutral"], TOLD) for text in ("Anna came home", "Anna went out")}


def clips() -> list[Utterance]:
    """Two sentences by one speaker each, in five tones."""
    return [
        Utterance(id=f"{speaker}-{emotion}", audio="a.wav", text=text, corpus="c", emotion=emotion, speaker=speaker)
        for speaker, text in zip(("s1", "s2"), REFERENCES, strict=True)
        for emotion in EMOTIONS
    ]


def by_name(rows: list[Row]) -> dict[str, float | None]:
    return {name: None if value is None else value.value for name, value in measures(rows).items()}


def test_a_system_without_ears() -> None:
    same = [TOLD["neutral"]] * 10
    rows = score("text", clips(), REFERENCES, Answers(same, same, ["neutral"] * 10, None, None))
    assert by_name(rows) == {
        "classifier": None, "tone": 0.2, "label": 0.2, "plain_exact": 1.0, "plain_content": 1.0, "tone_exact": 0.2,
        "tone_content": 1.0, "distinct": 1.0, "word_errors": None,
    }  # fmt: skip


def test_a_perfect_listener() -> None:
    tones = [TOLD[str(clip.emotion)] for clip in clips()]
    labels = [str(clip.emotion) for clip in clips()]
    heard = [clip.text for clip in clips()]
    rows = score("perfect", clips(), REFERENCES, Answers([TOLD["neutral"]] * 10, tones, labels, labels, heard))
    expected = dict.fromkeys(measures(rows), 1.0) | {"distinct": 5.0, "word_errors": 0.0}
    assert by_name(rows) == expected
    assert summary(rows)["balanced_accuracy"] == {"classifier": 1.0, "tone": 1.0, "label": 1.0}


def test_answers_without_an_emotion_are_wrong_and_counted_apart() -> None:
    tones = ["Anna will", *[TOLD["neutral"]] * 9]
    labels = ["no idea", "happy or sad", *["neutral"] * 8]
    rows = score("x", clips(), REFERENCES, Answers(None, tones, labels, None, None))
    assert [row.tone for row in rows[:2]] == [NO_TONE, "neutral"]
    found = summary(rows)
    assert found["without_emotion"] == {NO_TONE: 1, UNPARSED: 1, AMBIGUOUS: 1}
    assert found["measures"]["tone"]["value"] == 0.1
    assert found["confusion"]["tone"][0] == [1, 0, 0, 0, 0, 1]
    assert found["confusion"]["classifier"] is None
    assert found["measures"]["plain_exact"] is None


def test_word_errors_are_weighted_by_words() -> None:
    heard = ["Anna came", *[clip.text for clip in clips()[1:]]]
    rows = score("asr", clips(), REFERENCES, Answers(None, None, None, None, heard))
    assert by_name(rows)["word_errors"] == pytest.approx(1 / 30)


def test_groups_need_all_five_tones_of_the_same_words_and_speaker() -> None:
    same = [TOLD["neutral"]] * 9
    rows = score("x", clips()[1:], REFERENCES, Answers(None, same, None, None, None))
    assert [[row.emotion for row in group] for group in tone_groups(rows)] == [list(EMOTIONS)]
    assert {row.speaker for row in tone_groups(rows)[0]} == {"s2"}


def test_clips_without_a_speaker_are_their_own_clusters() -> None:
    lone = Utterance(id="1", audio="a.wav", text="Anna came home", corpus="c", emotion="sad")
    row = score("x", [lone], REFERENCES, Answers(None, None, None, ["sad"], None))[0]
    assert row.cluster == "clip 1"


def test_results_survive_the_disk(tmp_path: Path) -> None:
    rows = score("x", clips(), REFERENCES, Answers(None, ["ä 中 </script>"] * 10, None, None, None))
    write_result(tmp_path / "new", {"format": 1}, rows)
    assert read_rows(tmp_path / "new") == rows
    assert read_result(tmp_path / "new") == {"format": 1}


def test_an_unfinished_or_foreign_result_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `blsp eval` first"):
        read_result(tmp_path)
    write_result(tmp_path, {"format": 99}, [])
    with pytest.raises(ValueError, match="evaluate again"):
        read_result(tmp_path)
