"""Which members of others' tars form a sample, and what it says in our words."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from shards.sets.foreign import ForeignSample, UnusableError, samples, translate
from shards.sets.index import MAX_AUDIO_BYTES, MAX_RECORD_BYTES
from shards.sets.tar_scan import TarWindow
from tests.fuzzing import fuzz


def tar(*files: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return content.getvalue()


def read(*files: tuple[str, bytes]) -> list[ForeignSample]:
    data = tar(*files)
    return list(samples(TarWindow(lambda offset, size: data[offset : offset + size], len(data))))


def said(fields: Any, *others: tuple[str, bytes]) -> Any:
    (sample,) = read(("a/b.wav", b"RIFF"), ("a/b.json", json.dumps(fields).encode()), *others)
    return translate(sample, "corpus", "CC0", "x.tar")


PARTS = st.sampled_from(["a", "b", "a.b", "d/a", "d.e/a", "__meta__", "é"])
SUFFIXES = st.sampled_from([".wav", ".json", ".WAV", ".x.wav", "", ".cls", ".txt"])


@fuzz
@given(st.lists(st.tuples(PARTS, SUFFIXES).map("".join), max_size=8))
def test_members_form_the_samples_that_webdataset_forms(names: list[str]) -> None:
    data = tar(*((name, b"0") for name in names))
    try:
        members = [{**member, "__url__": ""} for member in webdataset.tariterators.tar_file_iterator(io.BytesIO(data))]
        theirs = [
            (sample["__key__"], {suffix for suffix in sample if not suffix.startswith("__")})
            for sample in webdataset.tariterators.group_by_keys(members)
        ]
    except ValueError:  # it stops at a suffix that comes twice; ours is a fault of that sample
        theirs = None
    ours = read(*((name, b"0") for name in names))
    if theirs is None:
        assert any(sample.fault and sample.fault.reason == "ambiguous" for sample in ours)
    else:
        assert [(sample.key, sample.suffixes) for sample in ours] == theirs


def test_a_record_is_translated_into_ours() -> None:
    utterance, unknown_emotion = said(
        {"text": " Hello there. ", "emotion": "Happy", "speaker": 17, "language": "en", "extra": [1, {"x": None}]}
    )
    assert not unknown_emotion
    assert utterance.to_json() == {
        "id": "corpus/a/b", "audio": "x.tar/a/b.wav", "text": "Hello there.", "corpus": "corpus", "start_s": 0.0,
        "emotion": "happy", "speaker": "17", "language": "en", "split": "train", "licence": "CC0",
    }  # fmt: skip


def test_the_transcript_is_the_first_of_the_fields_that_has_one_or_the_txt() -> None:
    assert said({"transcript": "b", "text": "", "sentence": "c"})[0].text == "b"
    assert said({"sentence": "c", "text": 4})[0].text == "c"
    assert said({"speaker": "x"}, ("a/b.txt", "grün\n".encode()))[0].text == "grün"
    (sample,) = read(("a.flac", b"f"), ("a.txt", b"only text"))
    assert translate(sample, "c", None, "x.tar")[0].text == "only text"


def test_a_label_that_is_none_of_ours_is_left_out_and_told() -> None:
    for label, emotion, unknown in [
        ("sad", "sad", False), ("SAD", "sad", False), (None, None, False), ("", None, False), ("bored", None, True),
        (3, None, True),
    ]:  # fmt: skip
        utterance, unknown_emotion = said({"text": "t", "emotion": label})
        assert (utterance.emotion, unknown_emotion) == (emotion, unknown)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("a.json", b"{}")], "missing_audio"),
        ([("a.wav", b"x")], "no_text"),
        ([("a.wav", b"x"), ("a.json", b'{"text": "  "}')], "no_text"),
        ([("a.wav", b"x"), ("a.txt", b"\xff\xfe")], "no_text"),
        ([("a.wav", b"x"), ("a.json", b"{")], "bad_json"),
        ([("a.wav", b"x"), ("a.json", b"[" * 10_000)], "bad_json"),
        ([("a.wav", b"x"), ("a.json", b'{"text": 1' + b"0" * 5000 + b"}")], "bad_json"),
        ([("a.wav", b"x"), ("a.json", b'["text"]')], "bad_json"),
        ([("a.wav", b"x"), ("a.json", b'{"text": "\\ud800"}')], "bad_json"),
        ([("a.wav", b"x"), ("a.flac", b"x"), ("a.txt", b"t")], "ambiguous"),
        ([("a.wav", b"x"), ("a.wav", b"y"), ("a.txt", b"t")], "ambiguous"),
        ([("a.wav", b"x"), ("a.txt", b"t"), *((f"a.{i}", b"") for i in range(70))], "ambiguous"),
        ([("a.wav", b"x"), ("a.json", bytes(MAX_RECORD_BYTES + 1))], "too_large"),
        ([("a.wav", bytes(MAX_AUDIO_BYTES + 1)), ("a.txt", b"t")], "too_large"),
        ([("a.wav", b"x"), ("a.txt", b"\x01" * (MAX_RECORD_BYTES // 3))], "too_large"),
        ([("../a.wav", b"x"), ("../a.txt", b"t")], "refused_member"),
    ],
)
def test_what_cannot_be_used_has_a_reason(files: list[tuple[str, bytes]], reason: str) -> None:
    (sample,) = read(*files)
    with pytest.raises(UnusableError) as fault:
        translate(sample, "c", None, "x.tar")
    assert fault.value.reason == reason
    assert len(str(fault.value)) < 500


@pytest.mark.slow
@fuzz
@given(
    st.dictionaries(
        st.sampled_from(["text", "transcript", "emotion", "speaker", "speaker_id", "language", "id"]),
        st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x: st.lists(x)),
    )
)
def test_any_json_gives_an_utterance_or_a_reason(fields: dict[str, Any]) -> None:
    try:
        utterance, _ = said(fields)
    except UnusableError as fault:
        assert fault.reason in ("no_text", "bad_json")
    else:
        assert utterance.text.strip()
        assert type(utterance).from_json(utterance.to_json()) == utterance
