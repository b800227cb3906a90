from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from shards.prompts import PROMPTS
from shards.sample import Continuation, Message
from shards.writers import with_openai
from shards.writers.endpoint import CostCapReached, Endpoint
from shards.writers.protocol import NoAnswer, Request
from shards.writers.with_openai import OpenAIWriter
from tests.shards.writers.chat_server import KEY, ChatServer, Reply, chat_server, said

ASKED = [Request(f"Sentence {i}.", None, "continue") for i in range(6)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)


def writer(server: ChatServer, cache: Path | None = None, max_new_tokens: int = 8, **more: Any) -> OpenAIWriter:
    return OpenAIWriter("gpt-x", Endpoint(**{"url": server.url, "key": "TEST_KEY", **more}), max_new_tokens, cache)


def echo(request: dict[str, Any], before: int) -> Reply:
    return said(f" and {request['messages'][-1]['content'][-11:]} ")


def texts(written: list[Continuation | NoAnswer]) -> list[str]:
    return [answer.text if isinstance(answer, Continuation) else f"! {answer.why}" for answer in written]


def test_an_endpoint_is_shown_the_same_words_as_a_local_llm() -> None:
    talk = (Message(role="user", text="I saw it."), Message(role="assistant", text="What was it?"))
    asked = [Request("A dog.", "sad", "reply_emotion", talk), Request("一只狗。", "sad", "continue_emotion_zh")]
    with chat_server(echo) as server:
        written = writer(server).write(asked)
    contents = [[message["content"] for message in request["messages"]] for request in server.requests]
    system = PROMPTS["reply_emotion"].system
    told = "Answer the following, which is said in a 'sad' emotion tone: A dog."
    assert sorted(contents, key=len)[1] == [system, "I saw it.", "What was it?", told]
    assert sorted(contents, key=len)[0][1] == "下面的句子带有“悲伤”的情感语气，请以连贯的风格续写：一只狗。"
    assert [message["role"] for message in server.requests[0]["messages"]][:2] == ["system", "user"]
    for request in server.requests:
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("gpt-x", 0, 8)
    host = server.url.split("/")[2]
    assert written[0].writer.startswith(f"gpt-x@{host} wording=") and written[0].prompt == "reply_emotion"


def test_a_length_is_a_cut() -> None:
    with chat_server(lambda request, _: said("and", "length" if "2" in str(request) else "stop")) as server:
        assert [answer.finished for answer in writer(server).write(ASKED)] == [True, True, False, True, True, True]


def test_what_passes_is_tried_again_and_retry_after_is_honoured() -> None:
    first = [
        Reply(429, "{}", {"Retry-After": "1"}), Reply(500, "oops"), Reply(503, ""), Reply(0),
        said("late", tokens=None), Reply(200, '{"id": 1}', cut=4),
    ]  # fmt: skip
    first[4].after_s = 1.5

    def answer(request: dict[str, Any], before: int) -> Reply:
        number = int(request["messages"][-1]["content"][-2])
        return first[number] if before == 0 else echo(request, before)

    with chat_server(answer) as server:
        began = time.monotonic()
        written = writer(server, timeout_s=0.6).write(ASKED)
        assert texts(written) == [f"and Sentence {i}." for i in range(6)]
        assert len(server.requests) == 12
    of_first = [at for at, asked in zip(server.at_s, server.requests, strict=True) if "ce 0." in str(asked)]
    assert of_first[1] - of_first[0] >= 1 and time.monotonic() - began < 6


@pytest.mark.parametrize(
    "body",
    [
        "<html>busy</html>", '{"choices": [', "[]", "{}", '{"choices": []}', '{"choices": {"a": 1}}', "null", '"text"',
        said(None).body, said(["and"]).body, said("and", "content_filter").body, said("and " * 9000).body,
        '{"choices": [null]}', '{"choices": [{"finish_reason": "stop"}]}',
        '{"choices": [{"finish_reason": "stop", "message": 3}]}',
    ],
)  # fmt: skip
def test_answers_of_no_use_cost_one_clip_after_three_tries(body: str, tmp_path: Path) -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        bad = "ce 3." in str(request) or ("ce 4." in str(request) and before == 0)
        return Reply(200, body) if bad else echo(request, before)

    with chat_server(answer) as server:
        written = writer(server, tmp_path).write(ASKED)
        assert len(server.requests) == 9
        good = texts(written)
        assert [text for i, text in enumerate(good) if i != 3] == [f"and Sentence {i}." for i in (0, 1, 2, 4, 5)]
        assert good[3].startswith("! 127.0.0.1") and "3 answers of no use" in good[3]
        again = writer(server, tmp_path).write(ASKED)
        assert len(server.requests) == 12 and texts(again)[:3] == good[:3]  # the bad one alone is asked again


def test_a_request_that_is_refused_costs_one_clip() -> None:
    refusal = Reply(400, '{"error": {"message": "content policy\\u001b[31m"}}')
    with chat_server(lambda request, n: refusal if "ce 1." in str(request) else echo(request, n)) as server:
        written = texts(writer(server).write(ASKED))
    assert written[1].startswith("! 127.0.0.1") and "content policy" in written[1] and written[1].isprintable()
    assert len(server.requests) == 6


def test_an_endpoint_that_refuses_everything_stops_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Request(f"Sentence {i}.", None, "continue") for i in range(60)]
    with chat_server(lambda *_: Reply(400, '{"error": {"message": "max_tokens is not known"}}')) as server:
        with pytest.raises(OSError, match=r"20 clips in a row are without an answer.*max_tokens is not known"):
            writer(server).write(asked)
        assert len(server.requests) < 40


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (Reply(401, '{"error": {"message": "bad key ' + KEY + '"}}'), ValueError, "refuses the key from TEST_KEY"),
        (Reply(404, '{"error": {"message": "no such model"}}'), ValueError, "knows no gpt-x .*no such model"),
        (Reply(500, f"sorry, {KEY}"), OSError, "does not answer .*the same command goes on"),
    ],
)
def test_what_is_not_about_one_clip_stops_with_a_sentence_and_keeps_what_is_there(
    reply: Reply, error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(with_openai, "_RETRIES", 1)
    with chat_server(lambda request, n: reply if "ce 5." in str(request) else echo(request, n)) as server:
        with pytest.raises(error, match=words) as caught:
            writer(server, tmp_path, concurrency=1).write(ASKED)
        assert KEY not in str(caught.value)
        asked = len(server.requests)
        with pytest.raises(error):
            writer(server, tmp_path).write(ASKED)
        assert {str(request) for request in server.requests[asked:]} == {str(server.requests[asked])}
    assert all(KEY not in path.read_text() for path in tmp_path.rglob("*.jsonl"))


def test_a_key_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ValueError, match="the environment variable TEST_KEY is not set"):
        OpenAIWriter("m", Endpoint(url="http://127.0.0.1:9/v1", key="TEST_KEY"))


def test_an_endpoint_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_openai, "_RETRIES", 1)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9 does not answer"):
        OpenAIWriter("m", Endpoint(url="http://127.0.0.1:9/v1", key="TEST_KEY")).write(ASKED[:1])


def test_no_more_is_in_flight_than_was_asked_for() -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        reply = echo(request, before)
        reply.after_s = 0.1
        return reply

    with chat_server(answer) as server:
        began = time.monotonic()
        writer(server, concurrency=3).write([*ASKED, *ASKED])  # each once
        assert server.most_at_once == 3 and len(server.requests) == 6
        assert time.monotonic() - began < 6 * 0.1 + 1


@pytest.mark.parametrize("limit", [{"requests_per_minute": 600}, {"tokens_per_minute": 600 * 190}])
def test_no_minute_sees_more_than_the_limit(limit: dict[str, float]) -> None:
    with chat_server(echo) as server:
        writer(server, **limit).write(ASKED)
    pauses = [after - before for before, after in zip(sorted(server.at_s), sorted(server.at_s)[1:], strict=False)]
    assert sum(pauses) >= 0.35 and len(pauses) == 5


def test_the_cap_is_never_passed_and_what_is_written_is_kept(tmp_path: Path) -> None:
    prices = {"dollars_per_million_read": 1000.0, "dollars_per_million_written": 2000.0}
    with chat_server(echo) as server:  # 20 read and 5 written: 0.03 dollars
        with pytest.raises(CostCapReached, match=r"writer\.max_dollars = 0\.25 is reached: 0\.\d+ dollars are spent"):
            writer(server, tmp_path, max_dollars=0.25, **prices).write(ASKED)
        paid = len(server.requests)
        assert 0 < paid < 6 and paid * 0.03 <= 0.25
        with pytest.raises(CostCapReached):  # what was paid before counts
            writer(server, tmp_path, max_dollars=0.25, **prices).write(ASKED)
        assert len(server.requests) == paid
        written = writer(server, tmp_path, max_dollars=1.0, **prices).write(ASKED)
        assert texts(written) == [f"and Sentence {i}." for i in range(6)] and len(server.requests) == 6


def test_answers_of_no_use_are_paid_for_too(tmp_path: Path) -> None:
    with chat_server(lambda *_: said(None, tokens=(100, 7))) as server:
        first = writer(server, tmp_path, concurrency=1)
        first.write(ASKED[:1])
        again = writer(server, tmp_path)
        assert again.cache is not None and again.cache.tokens() == (300, 21)


@pytest.mark.parametrize(
    ("reply", "requests"),
    [(said("and", tokens=None), 1), (Reply(200, '{"choices": ['), 3), (Reply(0), 1)],
)
def test_what_does_not_tell_its_tokens_counts_at_its_most_in_the_next_job_too(
    reply: Reply, requests: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(with_openai, "_RETRIES", 0)
    with chat_server(lambda *_: reply) as server:
        with contextlib.suppress(OSError):
            writer(server, tmp_path).write(ASKED[:1])
        again = writer(server, tmp_path)
    read = sum(len(message["content"]) + 16 for message in server.requests[0]["messages"]) + 16
    assert again.cache is not None and again.cache.tokens() == (requests * read, requests * 8)


def test_an_endpoint_that_was_never_reached_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_openai, "_RETRIES", 0)
    with chat_server(echo) as server:
        pass
    with pytest.raises(OSError, match="does not answer"):
        writer(server, tmp_path).write(ASKED[:1])
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("text", ["<|im_end|>\n<|im_start|>system", "so [/INST] it", "<end_of_turn>", "a </s> b"])
def test_words_that_may_end_a_turn_over_there_are_not_sent(text: str) -> None:
    with chat_server(echo) as server:
        written = writer(server).write([Request(text, None, "continue"), ASKED[0]])
    assert isinstance(written[0], NoAnswer) and isinstance(written[1], Continuation) and len(server.requests) == 1


def test_after_an_error_what_was_in_flight_is_kept(tmp_path: Path) -> None:
    def answer(request: dict[str, Any], before: int) -> Reply:
        if "ce 0." in str(request):
            return Reply(401, "{}")
        reply = echo(request, before)
        reply.after_s = 0.4
        return reply

    with chat_server(answer) as server:
        with pytest.raises(ValueError, match="refuses the key"):
            writer(server, tmp_path, concurrency=3).write(ASKED)
        sent = len(server.requests)
        assert sent <= 4
        again = writer(server, tmp_path)
        assert again.cache is not None and len(again.cache) == sent - 1
