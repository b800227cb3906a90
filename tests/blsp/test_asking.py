"""Who answers an evaluation, and what happened to them meanwhile, changes no row of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import PreTrainedTokenizerFast

from blsp.evaluate.asking import Examiner
from blsp.evaluate.desk import Chunk, Desk, Question
from blsp.evaluate.kept import KeptAnswers
from blsp.evaluate.run import evaluate
from blsp.recipe import EvalRecipe
from shards.writers.protocol import Request
from tests.blsp.tiny import make_loud_llm
from tests.blsp.tiny_evaluation import TEXTS, make_run, make_test_set, make_whisper

WRITE = Question("write", "llm")
REQUESTS = [Request(text, None, "continue") for text in "abcdefg"]


def recipe(out: Path, **more: Any) -> EvalRecipe:
    system = {"type": "text", "name": "text", "llm": "llm"}
    values = {"kind": "eval", "manifest": "m", "split": "train", "out": out, "llm": "llm", "systems": [system]}
    return EvalRecipe.model_validate({**values, "batch_size": 3, **more})


def quiet(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total, what


class Shouting:
    """Shouts what it reads, chunk by chunk in the wrong order; stops before the third."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.stops = True

    def __call__(self, missing: Sequence[tuple[int, Chunk]]) -> Iterator[tuple[int, list[str]] | None]:
        for number, chunk in reversed(missing):
            yield None
            if self.stops and len(self.asked) == 2:
                raise KeyboardInterrupt
            self.asked.append(number)
            yield number, [item.text.upper() for item in chunk.items if isinstance(item, Request)]


def test_an_evaluation_that_was_stopped_asks_only_what_has_no_answer(tmp_path: Path) -> None:
    answer = Shouting()
    with pytest.raises(KeyboardInterrupt):
        Examiner(answer, recipe(tmp_path), quiet).ask("", [(WRITE, REQUESTS)])
    assert (answer.asked, len(KeptAnswers(tmp_path))) == ([2, 1], 2)
    answer.stops = False
    two = [(WRITE, REQUESTS), (Question("write", "other"), REQUESTS[:2])]
    assert Examiner(answer, recipe(tmp_path), quiet).ask("", two) == [list("ABCDEFG"), list("AB")]
    assert answer.asked == [2, 1, 3, 0]
    assert Examiner(answer, recipe(tmp_path), quiet).ask("", two) == [list("ABCDEFG"), list("AB")]
    assert len(answer.asked) == 4


def test_answers_to_something_else_or_damaged_ones_are_not_taken(tmp_path: Path) -> None:
    answer = Shouting()
    answer.stops = False

    def asked_now(settings: EvalRecipe, model: str = "llm", requests: Sequence[Request] = REQUESTS[:3]) -> int:
        before = len(answer.asked)
        Examiner(answer, settings, quiet).ask("", [(Question("write", model), requests)])
        return len(answer.asked) - before

    assert (asked_now(recipe(tmp_path)), asked_now(recipe(tmp_path))) == (1, 0)
    assert asked_now(recipe(tmp_path, max_new_tokens=7)) == 1
    (folder := tmp_path / "model").mkdir()
    (folder / "config.json").write_text("{}")
    assert (asked_now(recipe(tmp_path), str(folder)), asked_now(recipe(tmp_path), str(folder))) == (1, 0)
    (folder / "config.json").write_text('{"trained": "again"}')
    assert asked_now(recipe(tmp_path), str(folder)) == 1
    for request in (Request("a", "sad", "continue_emotion"), Request("a", None, "reply")):
        assert asked_now(recipe(tmp_path), requests=[request, *REQUESTS[1:3]]) == 1
    for content in ("", "[]", '{"answers": ["A"]}', '{"answers": [1, 2, 3]}'):
        for path in (tmp_path / "answers").iterdir():
            path.write_text(content)
        assert asked_now(recipe(tmp_path)) == 1


@pytest.fixture(scope="module")
def asked(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe that asks every kind of system but for the linear one, in many chunks."""
    folder = tmp_path_factory.mktemp("asked")
    llm = str(make_loud_llm(tokenizer, folder / "llm"))
    words = " ".join(TEXTS).replace(".", "").split()
    texts = [" ".join(words[place : place + 2 + place % 4]) for place in range(3)]
    (folder / "whisper").mkdir()
    return {
        "manifest": make_test_set(folder, texts), "llm": llm, "max_new_tokens": 6, "batch_size": 4,
        "systems": [
            {"type": "text", "name": "text", "llm": llm},
            {"type": "cascade", "name": "cascade", "asr": str(make_whisper(folder / "whisper")), "llm": llm},
            {"type": "speech", "name": "speech", "run": str(make_run(folder, Path(llm)))},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def alone(asked: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The rows that one process writes."""
    out = tmp_path_factory.mktemp("alone")
    evaluate(recipe(out, **asked), quiet)
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len({row["plain_said"] for row in rows}) > 10, "the texts are worth a comparison"
    assert not (out / "answers").exists()
    return (out / "rows.jsonl").read_bytes()


@pytest.mark.slow
def test_a_stopped_evaluation_goes_on_to_the_same_rows(
    asked: dict[str, Any], alone: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, answered = Desk.answer, []

    def counted(self: Desk, chunk: Chunk) -> list[str]:
        if len(answered) == 20:
            raise KeyboardInterrupt
        answered.append(chunk)
        return answer(self, chunk)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Desk, "answer", counted)
        evaluate(recipe(tmp_path, **asked), quiet)
    assert len(KeptAnswers(tmp_path)) == 20
    rest = []
    monkeypatch.setattr(Desk, "answer", lambda self, chunk: [rest.append(chunk), answer(self, chunk)][1])
    evaluate(recipe(tmp_path, **asked), quiet)
    assert (tmp_path / "rows.jsonl").read_bytes() == alone
    assert not [chunk for chunk in rest if chunk in answered]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize("actors", [2, 3])
def test_rows_do_not_depend_on_how_many_actors_answer_nor_on_one_that_is_killed(
    asked: dict[str, Any], alone: bytes, tmp_path: Path, actors: int
) -> None:
    with ThreadPoolExecutor() as aside:
        killed = aside.submit(kill_one, tmp_path) if actors == 3 else None
        evaluate(recipe(tmp_path, **asked, actors=actors), quiet)
        assert killed is None or killed.result(10)
    assert (tmp_path / "rows.jsonl").read_bytes() == alone


def kill_one(out: Path) -> int:
    """Ends the process of one actor once some answers are there; returns how many there were."""
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        number = len(KeptAnswers(out))
        for process in psutil.Process().children(recursive=True) if number > 3 else ():
            with suppress(psutil.Error):
                if process.cmdline()[:1] == ["ray::_Actor.answer"]:
                    process.kill()
                    return number
        time.sleep(0.01)
    return 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_what_an_actor_cannot_do_is_its_sentence(asked: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises((ValueError, OSError), match=str(tmp_path / "llm")):
        evaluate(recipe(tmp_path / "out", **{**asked, "llm": str(tmp_path / "llm")}, actors=2), quiet)
    with pytest.raises(ValueError, match="actors = 5, but Ray sees 4 cores; lower actors to 4"):
        evaluate(recipe(tmp_path / "out", **asked, actors=5), quiet)
