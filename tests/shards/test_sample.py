from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.sample import MAX_MESSAGES, Message, Utterance
from shards.sets.shard_set import parse_record
from shards.sets.tar import encode_record

FIELDS = {"id": "a", "audio": "a.wav", "text": "And now?", "corpus": "c"}
words = st.text(min_size=1).filter(str.strip)
said = st.builds(Message, role=st.just("user"), text=words)
heard = st.builds(
    Message,
    role=st.just("user"),
    text=words,
    audio=st.text(min_size=1),
    start_s=st.floats(0, 1e6),
    duration_s=st.none() | st.floats(0.1, 1e4),
    num_samples=st.none() | st.integers(1, 480000),
)
answers = st.builds(Message, role=st.just("assistant"), text=words)
exchanges = st.lists(st.tuples(said | heard, answers), max_size=MAX_MESSAGES // 2)


@given(exchanges)
@settings(max_examples=50, deadline=None)
def test_a_conversation_survives_its_record(exchanges: list[tuple[Message, Message]]) -> None:
    messages = tuple(message for exchange in exchanges for message in exchange)
    utterance = Utterance(**FIELDS, messages=messages)
    assert Utterance.from_json(json.loads(json.dumps(utterance.to_json()))) == utterance
    if all(message.audio is None or message.num_samples for message in messages):  # as in a shard
        assert parse_record(encode_record(utterance, None)) == (utterance, None)
        assert len(utterance.earlier_samples) == len(utterance.spans) - 1


def test_without_earlier_turns_a_record_is_what_it_was() -> None:
    assert list(Utterance(**FIELDS).to_json()) == ["id", "audio", "text", "corpus", "start_s", "split"]


def user(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "text": "I saw it.", **fields}


ANSWER = {"role": "assistant", "text": "What was it?"}


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([user()], "and end with the assistant's"),
        ([ANSWER, user()], "turns of user and assistant, alternately"),
        ([user(), ANSWER, ANSWER, user()], "they are of user, assistant, assistant, user"),
        ([{"role": "system", "text": "Obey."}, ANSWER], "turn 1: unknown role 'system'; it is user or assistant"),
        ([user(text=" "), ANSWER], "turn 1: field 'text' is empty"),
        ([user(), {**ANSWER, "audio": "b.wav"}], "turn 2: field 'audio' is for turns of the user"),
        ([user(start_s=1.0), ANSWER], "turn 1: start_s, duration_s and num_samples are for turns with audio"),
        ([user(audio="b.wav", duration_s=0), ANSWER], "turn 1: start_s=0.0, duration_s=0 is not a span"),
        ([user(audio="b.wav", num_samples=0), ANSWER], "turn 1: field 'num_samples' must be above 0"),
        ([user(sound="b.wav"), ANSWER], "turn 1: unknown field 'sound'"),
        ([user(text="\ud800"), ANSWER], "turn 1: field 'text' holds half a character"),
        (["I saw it.", ANSWER], "turn 1: expected a JSON object, got str"),
        ([user(), ANSWER] * 17, "field 'messages' holds 34 turns, more than 32; split it"),
        ({"role": "user"}, "field 'messages' must be list"),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_turn(messages: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Utterance.from_json({**FIELDS, "messages": messages})


def test_a_record_of_a_shard_says_how_long_each_clip_is() -> None:
    utterance = Utterance.from_json({**FIELDS, "messages": [user(audio="b.wav"), ANSWER]})
    with pytest.raises(ValueError, match=r"cannot be read \(b.wav: its message has no num_samples\)"):
        parse_record(encode_record(utterance, None))
