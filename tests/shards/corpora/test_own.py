"""Corpora of one's own: JSON lines with the authors' addresses, and tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.corpora import jsonl, table
from shards.manifest import Reject
from shards.sample import Utterance
from tests.shards.corpora.miniatures import csv, tone


def test_an_address_counts_frames_at_the_rate_of_its_file(tmp_path: Path) -> None:
    tone(tmp_path / "talk.wav", rate=8000)
    (tmp_path / "c.jsonl").write_text(
        '{"audio": "talk.wav:4000:2000", "text": "a"}\n{"audio": "talk.wav:800:-1", "text": "b"}\n'
        '{"id": "t", "audio": "talk.wav", "text": "c", "messages": [{"role": "user", "audio": "talk.wav:0:800", '
        '"text": "d"}, {"role": "assistant", "text": "e"}]}'
    )
    found = list(jsonl.read(tmp_path / "c.jsonl"))
    assert all(isinstance(item, Utterance) for item in found)
    path = str(tmp_path / "talk.wav")
    assert [(item.id, item.spans) for item in found if isinstance(item, Utterance)] == [
        ("c/talk-4000-2000", [(path, 0.5, 0.25)]),
        ("c/talk-800--1", [(path, 0.1, None)]),
        ("t", [(path, 0.0, 0.1), (path, 0.0, None)]),
    ]


@pytest.mark.parametrize(
    ("line", "reason", "told"),
    [
        ('{"audio": "a.zip:40:900", "text": "x"}', "unreadable", "unzip it, and give the file's own path"),
        ('{"audio": "a.wav:0:9", "start_s": 1, "text": "x"}', "bad_json", "leave start_s and duration_s out"),
        ('{"audio": "b.wav:0:9", "text": "x"}', "missing_audio", "b.wav: no such file"),
    ],
)
def test_an_address_that_is_of_no_use_is_told(line: str, reason: str, told: str, tmp_path: Path) -> None:
    tone(tmp_path / "a.wav")
    (tmp_path / "c.jsonl").write_text(line)
    (found,) = jsonl.read(tmp_path / "c.jsonl")
    assert isinstance(found, Reject)
    assert (found.reason, told in found.detail) == (reason, True)


def test_cells_are_fields_and_empty_ones_are_not_given(tmp_path: Path) -> None:
    made = csv.make(tmp_path)
    found = [item for item in table.read(made.root) if isinstance(item, Utterance)]
    assert [(u.text, u.emotion, u.speaker, u.split, u.start_s, u.corpus) for u in found] == [
        ('Oh, "you".', "surprise", "anna", "train", 0.25, "corpus"),
        ("Nothing.", "sad", "anna", "train", 0.0, "corpus"),
        ("No; yes", None, "bob", "test", 0.0, "corpus"),
    ]


def test_quotes_are_letters_in_a_table_of_tabs(tmp_path: Path) -> None:
    made = csv.make(tmp_path, "tabs")
    first = next(table.read(made.root))
    assert isinstance(first, Utterance)
    assert first.text == '"one quote only'


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "an empty file; its first line names the columns"),
        (b"audio;text\n", "no column 'audio'; .* with commas between them, and reads 'audio;text'"),
        (b"audio,text,emotoin\n", "unknown column 'emotoin'; is it 'emotion'?"),
        (b"audio,text,gender\n", "unknown column 'gender'; rename or remove it; columns are id, audio, text"),
        (b"audio,text,text\n", "2 columns 'text'; leave one"),
        ("audio,text\n".encode("utf-16"), "corpus.csv:1: no row of a UTF-8 table"),
    ],
)
def test_names_that_are_none_are_refused(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "corpus.csv").write_bytes(data)
    with pytest.raises(ValueError, match=told):
        list(table.read(tmp_path / "corpus.csv"))
