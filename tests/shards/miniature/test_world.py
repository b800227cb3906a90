from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.audio import load_audio
from shards.corpora.build import build_manifest
from shards.miniature import world
from shards.miniature.world import DEV_VOICES, TEST_VOICES, TRAIN_VOICES, split_sentences, takes
from shards.sample import EMOTIONS

SIZES = (40, 60, 5, 3)


def write(root: Path, seed: int = 1, sizes: tuple[int, int, int, int] = (6, 5, 2, 1)) -> Path:
    root.mkdir()
    done = list(world.write_corpora(root, takes(*sizes, seed)))
    assert done[-1] == sizes[0] + sizes[1] + 5 * (sizes[2] + sizes[3])
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("world") / "a")


def bytes_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_voices_are_held_out() -> None:
    voices = (*TRAIN_VOICES, *DEV_VOICES, *TEST_VOICES)
    assert len(set(voices)) == len(voices)
    assert (len(TRAIN_VOICES) >= 24, len(TEST_VOICES) >= 8) == (True, True)
    corpora = takes(400, 400, 60, 40, seed=1)
    heard = {name: {take.voice for take in corpus} for name, corpus in corpora.items()}
    assert heard == {"asr": set(TRAIN_VOICES), "ser": set(TRAIN_VOICES), "dev": set(DEV_VOICES),
                     "test": set(TEST_VOICES)}  # fmt: skip


def test_every_voice_is_one_that_espeak_has() -> None:
    for voice in (*TRAIN_VOICES, *DEV_VOICES, *TEST_VOICES):
        assert len(world.speak("Anna", f"en-us+{voice}", world.TONES["neutral"]).samples)


def test_sentences_are_held_out_and_their_words_are_not() -> None:
    split = split_sentences()
    texts = {name: {sentence.text for sentence in part} for name, part in split.items()}
    assert sum(map(len, texts.values())) == len(world.sentences()) == len(set.union(*texts.values()))
    known = {word for text in texts["train"] for word in text.split()}
    for part in ("dev", "test"):
        assert {word for text in texts[part] for word in text.split()} <= known
    assert split_sentences() == split


def test_corpora_draw_from_their_own_sentences() -> None:
    split = split_sentences()
    for name, corpus in takes(*SIZES, seed=1).items():
        allowed = {sentence.text for sentence in split["train" if name in {"asr", "ser"} else name]}
        assert {take.text for take in corpus} <= allowed


@pytest.mark.parametrize("corpus", ["dev", "test"])
def test_the_words_carry_no_emotion(corpus: str) -> None:
    groups: dict[tuple[str, str], list[str]] = {}
    for take in takes(*SIZES, seed=1)[corpus]:
        groups.setdefault((take.text, take.voice), []).append(take.emotion)
    assert all(Counter(tones) == Counter(EMOTIONS) for tones in groups.values())
    assert len(groups) == SIZES[2 if corpus == "test" else 3]


def test_no_sentence_holds_an_interjection_or_an_opener() -> None:
    telling = [phrase for table in (world.INTERJECTIONS, world.OPENERS) for row in table.values() for phrase in row]
    for sentence in world.sentences():
        assert not any(phrase in sentence.text for phrase in telling)


def test_training_hears_every_tone_of_every_voice_equally() -> None:
    ser = takes(0, 5 * len(TRAIN_VOICES), 0, 0, seed=1)["ser"]
    counts = Counter((take.voice, take.emotion) for take in ser)
    assert set(counts.values()) == {1} and len(counts) == len(ser)


def test_only_emotion_corpora_tell_their_labels(root: Path) -> None:
    for name in ("asr", "ser", "dev", "test"):
        lines = [json.loads(line) for line in (root / f"{name}.jsonl").read_text().splitlines()]
        assert all(("emotion" in line) == (name != "asr") for line in lines)


def test_the_corpora_are_read_as_any_users_are(root: Path, tmp_path: Path) -> None:
    build_manifest("jsonl", root / "ser.jsonl", tmp_path / "ser.jsonl", text="raw")
    lines = [json.loads(line) for line in (tmp_path / "ser.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"ser-{i:05d}" for i in range(5)]
    for line in lines:
        assert 0.5 < len(load_audio(tmp_path / line["audio"])) / 16000 < 6


def test_phone_and_word_times_come_with_the_transcribed_corpus(root: Path) -> None:
    lines = [json.loads(line) for line in (root / "asr.jsonl").read_text().splitlines()]
    marks = {record["id"]: record["marks"] for record in map(json.loads, (root / "asr.marks.jsonl").open())}
    for line in lines:
        words = [mark["name"] for mark in marks[line["id"]] if mark["kind"] == "word"]
        assert set(line["text"].split()) >= set(words)
        assert words[0] == line["text"].split()[0]


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    world.speak("Something before.", "en-us+f3", world.TONES["sad"])  # what a process spoke before must not matter
    assert bytes_below(write(tmp_path / "again")) == bytes_below(root)


def test_another_seed_gives_other_takes() -> None:
    first, second = takes(*SIZES, seed=1), takes(*SIZES, seed=2)
    assert all(a.prosody != b.prosody for a, b in zip(first["test"], second["test"], strict=True))
    assert [take.text for take in first["test"]] == [take.text for take in second["test"]]


def test_a_take_keeps_its_noise_below_its_speech() -> None:
    take = takes(0, 1, 0, 0, seed=1)["ser"][0]
    loud, _ = world.speak_take(take)
    quiet, _ = world.speak_take(replace(take, gain_db=take.gain_db - 20))
    assert loud.dtype == np.int16
    assert 5 < np.abs(loud.astype(float)).mean() / np.abs(quiet.astype(float)).mean() < 20


def test_an_unknown_voice_is_a_sentence() -> None:
    take = takes(0, 1, 0, 0, seed=1)["ser"][0]
    with pytest.raises(ValueError, match=r"espeak-ng has no voice 'en-us\+nobody'"):
        world.speak_take(replace(take, voice="nobody"))
