from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.corpora.build import ManifestCounts, build_manifest
from shards.corpora.overlap import Overlap, SplitTexts, plain
from shards.manifest import read_manifest
from shards.sample import Utterance
from tests.shards.corpora.miniatures import tone

Said = list[tuple[str, str]]


def utterances(said: Said) -> Iterable[Utterance]:
    """One for each (split, text)."""
    for number, (split, text) in enumerate(said):
        yield Utterance(id=f"{number:04d}", audio="a.wav", text=text, corpus="c", split=split)


def texts(said: Said) -> SplitTexts:
    found = SplitTexts()
    for utterance in utterances(said):
        found.add(utterance)
    return found


def left(said: Said) -> list[tuple[str, str]]:
    owners = texts(said).owners()
    return [(u.split.split("-")[0], u.text) for u in utterances(said) if owners.other(u) is None]


@pytest.mark.parametrize("other", ["it's  Eleven o'clock!", "IT’S ELEVEN O’CLOCK", "its eleven oclock"])
def test_texts_are_the_same_but_for_case_punctuation_and_spaces(other: str) -> None:
    assert plain("It's eleven o'clock.") == plain(other)


def test_shared_texts_are_counted_in_clips_of_the_smaller_split() -> None:
    said = [("train", "a"), ("train-other", "a"), ("train", "b"), ("train", "c"), ("test", "A."), ("test", "d")]
    assert texts(said).overlaps() == [Overlap("test", "train", 1, 1, 2)]
    assert texts([("train", "a"), ("test", "b")]).overlaps() == []


def test_test_keeps_its_texts_where_training_loses_few() -> None:
    said = [("train", letter) for letter in "abcdefgh"] + [("dev", "a"), ("test", "a"), ("test", "b"), ("dev", "z")]
    assert left(said) == [("train", letter) for letter in "cdefgh"] + [("test", "a"), ("test", "b"), ("dev", "z")]


def test_parallel_texts_are_dealt_so_that_training_keeps_most() -> None:
    speakers = [("train", 8), ("dev", 1), ("test", 1)]
    said = [(split, f"sentence {n}") for split, number in speakers for _ in range(number) for n in range(100)]
    kept = Counter(split for split, _ in left(said))
    assert kept["train"] > 500
    assert kept["test"] > 2
    assert kept["dev"] > 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["train", "train-b", "dev", "test"]), st.sampled_from("abcdefgh"))))
def test_no_text_is_left_in_two_splits_and_none_is_lost(said: Said) -> None:
    kept = left(said)
    of: dict[str, set[str]] = {}
    for split, text in kept:
        of.setdefault(text, set()).add(split)
    assert all(len(splits) == 1 for splits in of.values())
    assert set(of) == {text for _, text in said}


def lines(said: Said) -> str:
    return "".join(
        f'{{"id": "{n:03d}", "audio": "a.wav", "text": "{t}", "split": "{s}"}}\n' for n, (s, t) in enumerate(said)
    )


def test_a_manifest_of_disjoint_texts_says_what_it_left_out(tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    said = [("train", letter) for letter in "abcdef"] + [("test", "A!"), ("test", "g")]
    (tmp_path / "c.jsonl").write_text(lines(said))

    def build(*, disjoint_texts: bool) -> ManifestCounts:
        return build_manifest("jsonl", tmp_path / "c.jsonl", tmp_path / "m.jsonl", disjoint_texts=disjoint_texts)

    assert build(disjoint_texts=False).texts.overlaps() == [Overlap("test", "train", 1, 1, 2)]
    counts = build(disjoint_texts=True)
    assert counts.texts.overlaps() == []
    assert (counts.read, counts.kept, dict(counts.dropped)) == (8, 7, {"text_in_other_split": 1})
    assert [u.text for u in read_manifest(tmp_path / "m.jsonl") if u.split == "train"] == [*"bcdef"]
    assert "'a' is a text of test too" in (tmp_path / "m.rejects.jsonl").read_text()
