"""What is special to corpora whose file names say everything: emotions, speakers, words and splits by example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shards.corpora.build import CORPORA, build_manifest
from shards.manifest import read_manifest
from tests.shards.corpora.miniatures import cafe, miniature, tone

SAID = {
    "aesdd": [
        ("a03-1", "1", "angry", "Το παιδί ήρθε.", "train"),
        ("a06-5b", "5", "angry", "Πού πάμε;", "test"),
        ("h01-4", "4", "happy", "Το παιδί ήρθε.", "dev"),
        ("s20-6", "6", "sad", 'Είπε "όχι.', "test"),
    ],
    "resd": [
        ("08_sadness_anger a_010", "08a", "angry", "Да что ты?", "test"),
        ("08_sadness_anger s_020", "08s", "sad", "Да что ты?", "train"),
        ("32_happiness_neutral_h_010", "32h", "happy", "Да что ты?", "train"),
        ("32_happiness_neutral_h_020", "32h", "happy", "Да что ты?", "test"),
        ("32_happiness_neutral_n_010", "32n", "neutral", "Да что ты?", "train"),
    ],
    "speechalpaca": [
        ("00003-en-US-JasonNeural-cheerful", "JasonNeural", "happy", "Come up with a birthday message.", "test"),
        ("00104-en-US-AriaNeural-neutral", "AriaNeural", "neutral", "Name three colours.", "test"),
        ("00203-en-US-GuyNeural-sad", "GuyNeural", "sad", "Write to my landlord.", "test"),
        ("00310-en-US-JennyNeural-angry", "JennyNeural", "angry", "Write a complaint.", "test"),
    ],
    "ravdess": [
        ("03-01-01-01-01-01-01", "01", "neutral", "Kids are talking by the door.", "test"),
        ("03-01-03-02-02-01-02", "02", "happy", "Dogs are sitting by the door.", "train"),
        ("03-01-04-01-01-02-04", "04", "sad", "Kids are talking by the door.", "dev"),
        ("03-01-05-02-02-02-11", "11", "angry", "Dogs are sitting by the door.", "test"),
        ("03-01-08-01-01-01-24", "24", "surprise", "Kids are talking by the door.", "train"),
    ],
    "cremad": [
        ("1001_DFA_ANG_XX", "1001", "angry", "Don't forget a jacket.", "train"),
        ("1001_IEO_HAP_HI", "1001", "happy", "It's eleven o'clock.", "train"),
        ("1063_TSI_SAD_LO", "1063", "sad", "The surface is slick.", "train"),
        ("1064_ITS_NEU_XX", "1064", "neutral", "I think I've seen this before.", "dev"),
        ("1091_WSI_SAD_MD", "1091", "sad", "We'll stop in a couple of minutes.", "test"),
    ],
    "cafe": [
        ("01-C-2-1", "01", "angry", "Un cheval fou dans mon jardin.", "test"),
        ("02-N-1-1", "02", "neutral", "Un cheval fou dans mon jardin.", "dev"),
        ("03-J-1-2", "03", "happy", "Deux ânes aigris au pelage brun.", "train"),
        ("11-T-2-6", "11", "sad", "Six ours aimants domestiqués.", "train"),
        ("12-S-1-3", "12", "surprise", "Trois cygnes aveugles au bord du lac.", "train"),
    ],
    "emodb": [
        ("03a01Fa", "03", "happy", "Der Lappen liegt auf dem Eisschrank.", "train"),
        ("03b01Nb", "03", "neutral", "Was sind denn das für Tüten, die da unter dem Tisch stehen?", "train"),
        ("08a05Nc", "08", "neutral", "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.", "train"),
        ("09b02Td", "09", "sad", "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.", "train"),
        ("16b10Wb", "16", "angry", "Die wird auf dem Platz sein, wo wir sie immer hinlegen.", "test"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_names_say_everything(name: str, tmp_path: Path) -> None:
    made = miniature(name).make(tmp_path / "corpus")
    build_manifest(name, made.root, tmp_path / "m.jsonl", text="raw")
    found = [(u.id, u.speaker, u.emotion, u.text, u.split) for u in read_manifest(tmp_path / "m.jsonl")]
    assert found == [(f"{name}-{stem}", *rest) for stem, *rest in SAID[name]]


@pytest.mark.parametrize(
    ("name", "clips"), [("ravdess", 1440), ("cremad", 7442), ("cafe", 936), ("emodb", 535), ("aesdd", 604)]
)
def test_official_splits_hold_all_clips(name: str, clips: int) -> None:
    corpus = CORPORA[name]
    assert sum(corpus.official.values()) == clips
    assert set(corpus.official) == {"train", "dev", "test"}


def test_ravdess_without_calm_is_what_the_paper_counts() -> None:
    emotions = CORPORA["ravdess"].official_emotions
    assert sum(emotions.values()) == 864
    assert round(100 * emotions["neutral"] / 864, 1) == 11.1  # of a system that always says neutral


def test_cafe_at_48_khz_is_preferred(tmp_path: Path) -> None:
    made = cafe.make(tmp_path / "corpus", "aiff_too")
    build_manifest("cafe", made.root, tmp_path / "m.jsonl")
    assert {Path(utterance.audio).suffix for utterance in read_manifest(tmp_path / "m.jsonl")} == {".wav"}


def test_a_path_that_is_no_utf8_is_told_in_the_rejects(tmp_path: Path) -> None:
    made = cafe.make(tmp_path / "corpus", "path_is_not_utf8")
    build_manifest("cafe", made.root, tmp_path / "m.jsonl")
    (reject,) = map(json.loads, (tmp_path / "m.rejects.jsonl").read_text("utf-8").splitlines())
    assert (reject["reason"], "rename the folder" in reject["detail"]) == ("unreadable", True)
    assert Path(reject["source"]).is_file()  # escaped, and still the path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ravdess", "no .wav file in this folder or below; RAVDESS's root holds folders Actor_01 to Actor_24"),
        ("cremad", "AudioWAV: no such folder; CREMA-D's root holds a folder 'AudioWAV'"),
        ("aesdd", "no .wav file in this folder or below; AESDD's root holds folders anger, disgust"),
        ("resd", "no train.csv or test.csv; RESD's root holds train.csv"),
        ("speechalpaca", "no folder audios; SpeechAlpaca's root holds a folder 'audios' and a .jsonl file"),
        ("cafe", "no .wav or .aiff or .aif file in this folder or below; CaFE's root holds a folder 'CaFE_48k'"),
    ],
)
def test_another_folder_is_refused(name: str, told: str, tmp_path: Path) -> None:
    tone(tmp_path / "song.mp3", rate=48000)
    with pytest.raises(ValueError, match=told):
        build_manifest(name, tmp_path, tmp_path / "m.jsonl")


def test_aesdd_without_transcripts_says_what_to_write(tmp_path: Path) -> None:
    made = miniature("aesdd").make(tmp_path)
    (tmp_path / "transcripts.tsv").unlink()
    with pytest.raises(ValueError, match=r"transcripts.tsv: no such file; .* its name without .wav, a tab, the words"):
        build_manifest("aesdd", made.root, tmp_path / "m.jsonl")


def test_resd_without_its_tables_or_their_texts_says_what_to_get(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"RESD in parquet files; unpack them first, as docs/corpora\.md shows"):
        build_manifest("resd", tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "train.csv").write_text("name,path,emotion\n")
    with pytest.raises(ValueError, match=r"no column text; .* `resd` has no transcripts, `resd_annotated` has"):
        build_manifest("resd", tmp_path, tmp_path / "m.jsonl")
