"""What is special to corpora of dialogues, television and long films: turns, speakers, words, labels and splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.corpora.build import CORPORA, build_manifest
from shards.manifest import read_manifest
from shards.sample import Utterance
from tests.shards.corpora.miniatures import miniature


def utterances(name: str, tmp_path: Path, defect: str | None = None) -> list[Utterance]:
    made = miniature(name).make(tmp_path / "corpus", defect)
    build_manifest(name, made.root, tmp_path / "m.jsonl", text="raw")
    return read_manifest(tmp_path / "m.jsonl")


def test_iemocap_turns_are_in_order_of_time_and_said_by_who_speaks(tmp_path: Path) -> None:
    found = [
        (u.id.removeprefix("iemocap-"), u.dialogue, u.turn, u.session, u.speaker, u.emotion, u.split)
        for u in utterances("iemocap", tmp_path)
    ]
    assert found == [
        ("Ses01F_impro01_F000", "Ses01F_impro01", 0, "01", "Ses01F", "neutral", "train"),
        ("Ses01F_impro01_M000", "Ses01F_impro01", 1, "01", "Ses01M", "surprise", "train"),
        ("Ses01F_impro01_M001", "Ses01F_impro01", 2, "01", "Ses01M", "angry", "train"),
        ("Ses01F_script01_1_M000", "Ses01F_script01_1", 0, "01", "Ses01M", "happy", "train"),
        ("Ses05M_script01_1b_F000", "Ses05M_script01_1b", 0, "05", "Ses05F", "happy", "test"),
        ("Ses05M_script01_1b_M000", "Ses05M_script01_1b", 1, "05", "Ses05M", "sad", "test"),
    ]


def test_iemocap_transcripts_lose_their_noises(tmp_path: Path) -> None:
    texts = {u.id: u.text for u in utterances("iemocap", tmp_path, "windows_text")}
    assert texts["iemocap-Ses01F_impro01_M001"] == "Okay. Did you have the forms?"
    assert texts["iemocap-Ses01F_impro01_F000"] == "That’s me…"


def test_iemocap_turns_that_are_dropped_keep_their_number(tmp_path: Path) -> None:
    made = miniature("iemocap").make(tmp_path / "corpus")
    path = made.root / "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"
    path.write_text(path.read_text().replace("M000\tsur", "M000\tfru"))
    build_manifest("iemocap", made.root, tmp_path / "m.jsonl")
    assert [u.turn for u in read_manifest(tmp_path / "m.jsonl") if u.dialogue == "Ses01F_impro01"] == [0, 2]


@pytest.mark.parametrize(("name", "clips", "of_five"), [("iemocap", 10_039, 5531 + 107)])
def test_counts_are_the_official_ones(name: str, clips: int, of_five: int) -> None:
    corpus = CORPORA[name]
    assert (sum(corpus.official.values()), sum(corpus.official_emotions.values())) == (clips, of_five)


@pytest.mark.parametrize(("name", "words"), [("iemocap", "no Session1/dialog/EmoEvaluation")])
def test_a_folder_that_is_not_the_corpus_is_refused_with_what_was_expected(
    name: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        build_manifest(name, tmp_path, tmp_path / "m.jsonl")
