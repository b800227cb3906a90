"""What is special to corpora of dialogues, television and long films: turns, speakers, words, labels and splits."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest

from shards.audio import AudioError, load_audio
from shards.corpora import mosei
from shards.corpora.build import CORPORA, build_manifest
from shards.manifest import read_manifest
from shards.sample import Utterance
from tests.shards.corpora.miniatures import esd, miniature, tone


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
        ("Ses01F_impro01_F000", "Ses01F_impro01", 0, "01", "Ses01F", "neutral", "train-1"),
        ("Ses01F_impro01_M000", "Ses01F_impro01", 1, "01", "Ses01M", "surprise", "train-1"),
        ("Ses01F_impro01_M001", "Ses01F_impro01", 2, "01", "Ses01M", "angry", "train-1"),
        ("Ses01F_script01_1_M000", "Ses01F_script01_1", 0, "01", "Ses01M", "happy", "train-1"),
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


def test_meld_names_of_clips_recur_in_each_split_and_are_told_apart(tmp_path: Path) -> None:
    found = {u.id: u for u in utterances("meld", tmp_path)}
    assert found["meld-train-dia0_utt1"].text == 'You’ve had your "hands" full.'
    assert found["meld-test-dia0_utt1"].text == "Oh."
    assert [(u.dialogue, u.turn, u.session, u.speaker, u.emotion, u.split) for u in found.values()] == [
        ("dev-dia0", 0, "s4e7", "Phoebe", "happy", "dev"),
        ("test-dia0", 0, "s3e19", "Mark", "angry", "test"),
        ("test-dia0", 1, "s3e19", "Rachel", "sad", "test"),
        ("train-dia0", 0, "s8e21", "Chandler", "neutral", "train"),
        ("train-dia0", 1, "s8e21", "The Interviewer", "surprise", "train"),
    ]


def test_meld_in_windows_1252_says_the_same(tmp_path: Path) -> None:
    assert {u.text for u in utterances("meld", tmp_path / "a")} == {
        u.text for u in utterances("meld", tmp_path / "b", "windows_1252")
    }


def test_meld_films_are_heard_and_half_a_film_is_found_when_it_is(tmp_path: Path) -> None:
    found = {u.id: u for u in utterances("meld", tmp_path, "half_a_film")}
    assert len(load_audio(Path(found["meld-train-dia0_utt0"].audio))) == pytest.approx(16000, abs=1600)
    with pytest.raises(AudioError, match="FFmpeg cannot read it"):
        load_audio(Path(found["meld-train-dia49_utt4"].audio))


def test_without_pyav_films_are_dropped_when_the_manifest_is_made_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = miniature("meld").make(tmp_path / "corpus")
    tone(made.root / "train_splits" / "dia0_utt0.wav")
    (made.root / "train_splits" / "dia0_utt0.mp4").unlink()
    monkeypatch.setitem(sys.modules, "av", None)
    counts = build_manifest("meld", made.root, tmp_path / "m.jsonl")
    assert (counts.kept, counts.dropped) == (1, Counter(unreadable=4))
    assert "pip install 'blsp-emo[av]'" in (tmp_path / "m.rejects.jsonl").read_text()


def test_meld_with_films_and_no_table_or_a_table_and_no_films_is_refused(tmp_path: Path) -> None:
    top = miniature("meld").make(tmp_path / "corpus").root
    shutil.rmtree(top / "dev_splits_complete")
    with pytest.raises(ValueError, match=r"no dev_splits_complete with its clips; unpack dev\.tar\.gz"):
        build_manifest("meld", top, tmp_path / "m.jsonl")
    (top / "dev_sent_emo.csv").unlink()
    build_manifest("meld", top, tmp_path / "m.jsonl")  # a split that is not there at all is nobody's fault
    (top / "test_sent_emo.csv").unlink()
    with pytest.raises(ValueError, match=r"there is no test_sent_emo\.csv for it"):
        build_manifest("meld", top, tmp_path / "m.jsonl")


MELD = {  # by emotion: train, dev, test, counted in its tables
    "neutral": (4710, 470, 1256), "happy": (1743, 163, 402), "surprise": (1205, 150, 281), "angry": (1109, 153, 345),
    "sad": (683, 111, 208), "disgust": (271, 22, 68), "fear": (268, 40, 50),
}  # fmt: skip


def test_meld_counts_are_the_tables_own() -> None:
    corpus = CORPORA["meld"]
    assert tuple(corpus.official.values()) == tuple(map(sum, zip(*MELD.values(), strict=True)))
    assert corpus.official_emotions == {name: sum(MELD[name]) for name in corpus.official_emotions}


def test_mead_words_are_those_of_the_table_that_its_user_made(tmp_path: Path) -> None:
    assert [(u.id, u.text, u.emotion, u.speaker, u.split) for u in utterances("mead", tmp_path)] == [
        ("mead-M003-angry-3-030", "Sentence of M003 angry 3 030.", "angry", "M003", "train"),
        ("mead-M003-neutral-1-001", "Sentence of M003 neutral 1 001.", "neutral", "M003", "train"),
        ("mead-M040-happy-2-005", "Sentence of M040 happy 2 005.", "happy", "M040", "dev"),
        ("mead-W009-sad-2-001", "Sentence of W009 sad 2 001.", "sad", "W009", "train"),
        ("mead-W040-surprised-1-012", "Sentence of W040 surprised 1 012.", "surprise", "W040", "test"),
    ]


def test_mead_without_transcripts_is_refused_with_what_to_do(tmp_path: Path) -> None:
    root = miniature("mead").make(tmp_path / "corpus").root
    (root / "transcripts.tsv").unlink()
    with pytest.raises(ValueError, match=r"transcripts\.tsv: no such file, .* a line of names, speaker, emotion,"):
        build_manifest("mead", root, tmp_path / "m.jsonl")


@pytest.mark.parametrize("defect", [None, "split_folders", "broken_lines"])
def test_esd_says_the_same_in_each_layout_and_encoding(defect: str | None, tmp_path: Path) -> None:
    found = utterances("esd", tmp_path, defect)
    assert [(u.id.removeprefix("esd-"), u.emotion, u.split, u.language) for u in found] == [
        ("0001_000001", "neutral", "dev", "zh"),
        ("0001_000380", "angry", "test", "zh"),
        ("0003_001750", "surprise", "train", "zh"),
        ("0011_000021", "neutral", "test", "en"),
        ("0011_000701", "happy", "dev", "en"),
        ("0012_001051", "sad", "dev", "en"),
        ("0016_001401", "surprise", "dev", "en"),
    ]
    for u in found:
        speaker, number = u.id.removeprefix("esd-").split("_")
        assert u.text == esd.text_of(speaker, int(number))


def test_esd_folders_of_splits_count_more_than_numbers(tmp_path: Path) -> None:
    root = miniature("esd").make(tmp_path / "corpus", "split_folders").root
    folder = root / "0011" / "Neutral"
    (folder / "test" / "0011_000021.wav").rename(folder / "test" / "0011_000099.wav")
    table = root / "0011" / "0011.txt"
    table.write_text(table.read_text().replace("0011_000021", "0011_000099"))
    build_manifest("esd", root, tmp_path / "m.jsonl")
    assert {u.split for u in read_manifest(tmp_path / "m.jsonl") if u.id == "esd-0011_000099"} == {"test"}


def test_mer2023_clips_are_found_in_the_folders_of_their_tests(tmp_path: Path) -> None:
    found = utterances("mer2023", tmp_path, "chinese_encoding")
    assert [(u.id, u.emotion, u.split, Path(u.audio).suffix) for u in found] == [
        ("mer2023-test1-samplenew_00000001", "angry", "test-1", ".avi"),
        ("mer2023-test2-samplenew_00000007", "sad", "test-2", ".avi"),
        ("mer2023-test3-sample_00000009", "surprise", "test-3", ".mp4"),
        ("mer2023-train-sample_00000001", "neutral", "train", ".avi"),
        ("mer2023-train-sample_00000002", "happy", "train", ".avi"),
    ]
    assert found[0].text == "你好，samplenew_00000001。"


@pytest.mark.parametrize("defect", [None, "labels_in_csd"])
def test_mosei_labels_are_the_strongest_emotion_of_a_piece_of_the_film(defect: str | None, tmp_path: Path) -> None:
    assert [(u.id, u.emotion, u.start_s, u.duration_s, u.text) for u in utterances("mosei", tmp_path, defect)] == [
        ("mosei---qXJuDtHPw-0", "happy", 0.0, 1.25, "I see that a writer is ___ somebody."),
        ("mosei---qXJuDtHPw-1", "sad", 1.25, 1.2623, "It was (umm) sad."),
        ("mosei---qXJuDtHPw-3", "angry", 2.6, 1.3, "This is so wrong."),
        ("mosei-x_-7", "surprise", 0.5, 1.0, "Really?"),
        ("mosei-x_-8", "neutral", 1.5, 1.5, "It is a film."),
    ]


def test_mosei_splits_are_the_makers_where_their_list_is_there_and_by_video_where_not(tmp_path: Path) -> None:
    with_list = {u.speaker: u.split for u in utterances("mosei", tmp_path / "a", "with_folds")}
    assert with_list == {"--qXJuDtHPw": "train", "x_": "test"}
    without = {u.speaker: u.split for u in utterances("mosei", tmp_path / "b")}
    assert without == {"--qXJuDtHPw": "test", "x_": "train"}  # for ever: a hash
    many = Counter(mosei._split_by_hash(f"video{number}") for number in range(3000))
    assert [round(many[split] / 3000, 2) for split in ("train", "dev", "test")] == pytest.approx(
        [0.7, 0.09, 0.21], abs=0.02
    )


def test_mosei_faults_of_labels_and_lists_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = miniature("mosei").make(tmp_path / "corpus", "labels_in_csd").root
    (root / "cmu_mosei_std_folds.py").write_text("standard_train_fold = open('/etc/passwd')")
    with pytest.raises(ValueError, match="not three lists of videos"):
        build_manifest("mosei", root, tmp_path / "m.jsonl")
    (root / "cmu_mosei_std_folds.py").write_text("standard_train_fold = ['x_']")
    with pytest.raises(ValueError, match="holds no lists standard_train_fold"):
        build_manifest("mosei", root, tmp_path / "m.jsonl")
    (root / "cmu_mosei_std_folds.py").unlink()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "h5py", None)
        with pytest.raises(ValueError, match=r"pip install 'blsp-emo\[csd\]'"):
            build_manifest("mosei", root, tmp_path / "m.jsonl")
    (root / "CMU_MOSEI_Labels.csd").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match="not labels of CMU-MOSEI"):
        build_manifest("mosei", root, tmp_path / "m.jsonl")
    (root / "CMU_MOSEI_Labels.csd").unlink()
    with pytest.raises(ValueError, match=r"no CMU_MOSEI_Labels\.csd and no Raw/Labels"):
        build_manifest("mosei", root, tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("name", "clips", "of_five"),
    [("iemocap", 10_039, 5531 + 107), ("esd", 35_000, 35_000), ("mer2023", 5030, 5030 - 616)],
)
def test_counts_are_the_official_ones(name: str, clips: int, of_five: int) -> None:
    corpus = CORPORA[name]
    assert (sum(corpus.official.values()), sum(corpus.official_emotions.values())) == (clips, of_five)


@pytest.mark.parametrize(
    ("name", "words"), [("iemocap", "no Session1/dialog/EmoEvaluation"), ("meld", "MELD.Raw holds train_sent_emo.csv")]
)
def test_a_folder_that_is_not_the_corpus_is_refused_with_what_was_expected(
    name: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        build_manifest(name, tmp_path, tmp_path / "m.jsonl")
