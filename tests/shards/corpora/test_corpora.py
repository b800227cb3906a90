from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards.corpora import ManifestCounts, build_manifest, emodb, jsonl
from shards.manifest import Reject, read_manifest
from shards.sample import Utterance


def clip(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(8000) / 10), 16000)


def test_emodb_names_say_everything(tmp_path: Path) -> None:
    for name in ("03a01Fa", "16b10Wb", "08a05Nc", "09b02Td"):
        clip(tmp_path / "wav" / f"{name}.wav")
    build_manifest("emodb", tmp_path, tmp_path / "m.jsonl")
    found = [(u.id, u.speaker, u.emotion, u.text.split()[-1]) for u in read_manifest(tmp_path / "m.jsonl")]
    assert found == [
        ("emodb-03a01Fa", "03", "happy", "Eisschrank."),
        ("emodb-08a05Nc", "08", "neutral", "Holzstück."),
        ("emodb-09b02Td", "09", "sad", "runter."),
        ("emodb-16b10Wb", "16", "angry", "hinlegen."),
    ]


def test_emodb_emotions_that_are_not_ours_are_counted(tmp_path: Path) -> None:
    for name in ("03a01Fa", "03a01Aa", "03a01Ea", "03a01La", "03a09Na", "readme"):
        clip(tmp_path / "wav" / f"{name}.wav")
    counts = build_manifest("emodb", tmp_path, tmp_path / "m.jsonl")
    assert counts == ManifestCounts(6, 1, {"unknown_emotion": 3, "unreadable": 2}, {"happy": 1})
    assert (tmp_path / "m.rejects.jsonl").read_text().count("fear has no place") == 1


def test_emodb_without_its_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a folder 'wav'"):
        list(emodb.read(tmp_path))


def test_the_authors_own_lines_are_enough(tmp_path: Path) -> None:
    clip(tmp_path / "wav" / "a.b.flac")
    (tmp_path / "train.jsonl").write_text('{"audio": "wav/a.b.flac", "text": "I saw it.", "emotion": "sad"}')
    audio = str(tmp_path / "wav" / "a.b.flac")
    assert list(jsonl.read(tmp_path / "train.jsonl")) == [
        Utterance(id="wav/a.b", audio=audio, text="I saw it.", corpus="train", emotion="sad")
    ]


def test_a_bad_line_is_counted_and_the_next_is_read(tmp_path: Path) -> None:
    clip(tmp_path / "a.wav")
    lines = [
        "not json",
        '{"audio": "a.wav", "text": "x", "emotion": "bored"}',
        '{"audio": "a.wav", "text": " "}',
        '{"audio": "b.wav", "text": "x"}',
        '{"text": "x"}',
        '{"audio": "a.wav", "text": "x", "age": 3}',
        '{"audio": "a.wav", "text": "x", "messages": ['
        '{"role": "user", "text": "y", "audio": "b.wav"}, {"role": "assistant", "text": "z"}]}',
        '{"audio": "a.wav", "text": "x"}',
    ]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    items = list(jsonl.read(tmp_path / "c.jsonl"))
    assert isinstance(items[-1], Utterance)
    found = [(item.source.rpartition(":")[2], item.reason) for item in items if isinstance(item, Reject)]
    reasons = ("bad_json", "unknown_emotion", "no_text", "missing_audio", "bad_json", "bad_json", "missing_audio")
    assert found == [(str(line), reason) for line, reason in enumerate(reasons, start=1)]


def test_an_id_counts_once_and_a_corpus_of_nothing_is_refused(tmp_path: Path) -> None:
    clip(tmp_path / "a.wav")
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"audio": "a.wav", "text": "x"}\n' * 3)
    counts = build_manifest("jsonl", corpus, tmp_path / "m.jsonl")
    assert (counts.read, counts.kept, counts.dropped) == (3, 1, {"duplicate_id": 2})
    corpus.write_text('{"audio": "gone.wav", "text": "x"}\n' * 2)
    with pytest.raises(ValueError, match=r"no utterance could be kept \(2 missing_audio\)"):
        build_manifest("jsonl", corpus, tmp_path / "n.jsonl")
    assert not (tmp_path / "n.jsonl").exists()


def test_an_unknown_reader_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no reader 'iemocap'; there are emodb, jsonl"):
        build_manifest("iemocap", tmp_path, tmp_path / "m.jsonl")
