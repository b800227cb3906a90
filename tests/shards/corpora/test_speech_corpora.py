"""What is special of the corpora of transcribed speech: their texts, spans, splits and variants of layout."""

from __future__ import annotations

import json
import re
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from shards.audio import load_audio
from shards.corpora.build import CORPORA, build_manifest
from shards.corpora.text import TextStyle
from shards.manifest import read_manifest
from shards.sample import Utterance
from tests.shards.corpora.miniatures import miniature

NAMES = ("aishell", "commonvoice", "gigaspeech", "librispeech", "mls", "voxpopuli", "wenetspeech")


def built(name: str, folder: Path, defect: str | None = None, text: TextStyle = "raw") -> list[Utterance]:
    """The manifest of a miniature."""
    made = miniature(name).make(folder / "corpus", defect)
    build_manifest(name, made.root, folder / "m.jsonl", text, made.subset)
    return read_manifest(folder / "m.jsonl")


@pytest.mark.parametrize(
    ("name", "defect", "text"),
    [
        ("librispeech", None, "GO DO YOU HEAR NUMBER 0"),
        ("gigaspeech", None, "FOUR O'CLOCK, SAID WILLIAMS."),
        ("aishell", None, "而对楼市成交抑制作用最大的限购"),
        ("aishell", "full_width_letters", "k歌和t恤"),
        ("wenetspeech", "full_width_space", "怎么样 我说 OK"),
        ("commonvoice", "unbalanced_quote", '"Number 0.'),
        ("commonvoice", "crlf", "Number 0."),
        ("mls", None, "voilà łódź"),
        ("voxpopuli", None, 'He said "yes.'),
        ("voxpopuli", "no_raw_text", "he said yes"),
        ("voxpopuli", "sessions", "Thank you."),
    ],
)
def test_texts_are_the_corpus_s_own_without_its_tags(name: str, defect: str | None, text: str, tmp_path: Path) -> None:
    assert text in {utterance.text for utterance in built(name, tmp_path, defect)}


@pytest.mark.parametrize(
    ("name", "splits", "languages", "speakers"),
    [
        ("librispeech", {"train-clean-100", "dev-clean", "test-other"}, {"en"}, {"84", "1272", "367"}),
        ("gigaspeech", {"train", "dev", "test"}, {"en"}, {None}),
        ("aishell", {"train", "dev", "test"}, {"zh"}, {"S0002", "S0724", "S0764"}),
        ("wenetspeech", {"train", "dev", "test-net", "test-meeting"}, {"zh"}, {None}),
        ("commonvoice", {"train", "dev", "test"}, {"en"}, {f"{s}{'0' * 120}" for s in ("train", "dev", "test")}),
        ("mls", {"train", "dev", "test"}, {"fr", "pl"}, {"1", "2", "3", "11", "12", "13"}),
        ("voxpopuli", {"train", "dev", "test"}, {"en"}, {"train1", "dev1", "test1"}),
    ],
)
def test_splits_languages_and_speakers_are_official(
    name: str, splits: set[str], languages: set[str], speakers: set[str | None], tmp_path: Path
) -> None:
    found = built(name, tmp_path)
    assert {utterance.split for utterance in found} == splits
    assert {utterance.language for utterance in found} == languages
    assert {utterance.speaker for utterance in found} == speakers


def test_a_speaker_whom_the_corpus_does_not_name_is_none(tmp_path: Path) -> None:
    assert {utterance.speaker for utterance in built("voxpopuli", tmp_path, "nobody")} == {None, "dev1", "test1"}


@pytest.mark.parametrize(("name", "defect"), [("gigaspeech", None), ("wenetspeech", None), ("voxpopuli", "sessions")])
def test_a_span_of_a_long_recording_is_read_as_it_stands_in_the_corpus(
    name: str, defect: str | None, tmp_path: Path
) -> None:
    for utterance in built(name, tmp_path, defect):
        assert utterance.duration_s in (0.35, 0.4, 0.75)
        samples = load_audio(Path(utterance.audio), utterance.start_s, utterance.duration_s)
        assert len(samples) == pytest.approx(utterance.duration_s * 16000, abs=2)


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("aishell", "data_aishell"),
        ("commonvoice", "cv-corpus-17.0-2024-03-15"),
        ("commonvoice", "cv-corpus-17.0-2024-03-15/en"),
        ("gigaspeech", "GigaSpeech"),
        ("librispeech", "LibriSpeech"),
        ("voxpopuli", "transcribed_data"),
        ("voxpopuli", "transcribed_data/en"),
    ],
)
def test_the_folder_itself_does_as_well_as_the_one_above(name: str, inner: str, tmp_path: Path) -> None:
    found = built(name, tmp_path)
    build_manifest(name, tmp_path / "corpus" / inner, tmp_path / "inner.jsonl", "raw")
    assert read_manifest(tmp_path / "inner.jsonl") == found


@pytest.mark.parametrize(("name", "inner"), [("librispeech", "LibriSpeech/dev-clean"), ("mls", "mls_polish")])
def test_a_part_of_a_corpus_is_a_corpus(name: str, inner: str, tmp_path: Path) -> None:
    found = built(name, tmp_path)
    build_manifest(name, tmp_path / "corpus" / inner, tmp_path / "inner.jsonl", "raw")
    part = [utterance for utterance in found if inner in utterance.audio]
    assert 0 < len(part) < len(found)
    assert read_manifest(tmp_path / "inner.jsonl") == part


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_that_is_not_there_is_told_with_what_is_expected(name: str, tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    with pytest.raises(ValueError, match=r"(unpack|give the folder|get_asr_data)"):
        list(CORPORA[name].read(tmp_path))


def test_the_command_that_aishell_s_archives_need_is_told_and_unpacks_them(tmp_path: Path) -> None:
    made = miniature("aishell").make(tmp_path / "cor pus", "packed_speaker")
    for split in ("train", "dev", "test"):
        (made.root / "data_aishell" / "wav" / split).rename(tmp_path / split)
    with pytest.raises(ValueError, match=r"each speaker is an archive of its own") as error:
        list(CORPORA["aishell"].read(made.root))
    subprocess.run(["bash", "-c", re.sub(r".*of its own: ", "", str(error.value))], check=True)
    kept = {item.id for item in CORPORA["aishell"].read(made.root) if isinstance(item, Utterance)}
    assert kept == {"aishell-BAC009S0003W0121"}


def test_a_delta_release_of_common_voice_is_told(tmp_path: Path) -> None:
    (tmp_path / "validated.tsv").touch()
    with pytest.raises(ValueError, match="a delta release has no splits"):
        list(CORPORA["commonvoice"].read(tmp_path))


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("client_id\tfile\tsentence\n")
    with pytest.raises(ValueError, match=r"no column path; it has client_id, file, sentence"):
        list(CORPORA["commonvoice"].read(tmp_path))


@pytest.mark.parametrize("name", ["gigaspeech", "wenetspeech"])
def test_a_table_that_breaks_off_is_refused(name: str, tmp_path: Path) -> None:
    made = miniature(name).make(tmp_path)
    (table,) = tmp_path.glob("**/*Speech.json")
    table.write_text(table.read_text("utf-8")[:-200], "utf-8")
    with pytest.raises(ValueError, match=r"breaks off or is not JSON after \d recordings .* download it again"):
        list(CORPORA[name].read(made.root))
    table.write_text('{"audios": []}')
    with pytest.raises(ValueError, match="names no recordings"):
        list(CORPORA[name].read(made.root))


def test_gzip_that_breaks_off_or_is_damaged_is_refused(tmp_path: Path) -> None:
    made = miniature("voxpopuli").make(tmp_path, "sessions")
    table = tmp_path / "asr_en.tsv.gz"
    data = table.read_bytes()
    for bad in (data[:-12], data[:40] + bytes(8) + data[48:], b"none" + data):
        table.write_bytes(bad)
        with pytest.raises(ValueError, match=r"broken off after line .* download it again"):
            list(CORPORA["voxpopuli"].read(made.root))


def test_names_of_files_that_are_no_names_cost_their_clip_alone(tmp_path: Path) -> None:
    miniature("commonvoice").make(tmp_path)
    (table,) = tmp_path.glob("**/train.tsv")
    text = table.read_text()
    table.write_text(text.replace("common_voice_en_1.mp3", "a\0b.mp3"))
    (path,) = tmp_path.glob("**/clips")
    counts = build_manifest("commonvoice", tmp_path, tmp_path / "m.jsonl")
    assert (counts.kept, dict(counts.dropped)) == (5, {"missing_audio": 1})
    table.write_text(text.replace("common_voice_en_1.mp3", "../../../../../etc/passwd"))
    counts = build_manifest("commonvoice", tmp_path, tmp_path / "m.jsonl")
    assert (counts.kept, dict(counts.dropped)) == (5, {"missing_audio": 1})
    assert str(path) in (tmp_path / "m.rejects.jsonl").read_text()  # it is looked for among the clips


@pytest.mark.slow
def test_a_table_of_megabytes_is_read_in_a_part_of_its_size(tmp_path: Path) -> None:
    said = {"text_tn": "SO IT IS <PERIOD>" * 20, "subsets": ["{XL}"], "begin_time": 0.1, "end_time": 0.5}
    with (tmp_path / "GigaSpeech.json").open("w") as file:
        file.write('{"audios": [')
        for place in range(250):
            segments = [{"sid": f"POD{place}_S{number}", **said} for number in range(100)]
            recording = {"aid": f"POD{place}", "path": f"audio/{place}.opus", "segments": segments}
            file.write(f"{',' if place else ''}{json.dumps(recording)}")
        file.write("]}")
    size = (tmp_path / "GigaSpeech.json").stat().st_size
    tracemalloc.start()
    try:
        assert sum(1 for _ in CORPORA["gigaspeech"].read(tmp_path)) == 25_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 10e6
    assert peak < size / 10


@pytest.mark.slow
def test_a_corpus_of_nothing_but_rejects_is_not_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "mls_dutch" / "train").mkdir(parents=True)
    with (tmp_path / "mls_dutch" / "train" / "transcripts.txt").open("w") as file:
        file.writelines(f"1_2_{number:06d}\tja\n" for number in range(10_000))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="10000 missing_audio"):
            build_manifest("mls", tmp_path, tmp_path / "m.jsonl")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6
