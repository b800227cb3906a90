"""A whole evaluation with tiny random models: every kind of system, files, errors."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from blsp.evaluate.desk import Items, Question
from blsp.evaluate.result import read_result, read_rows, write_result
from blsp.evaluate.run import evaluate
from blsp.evaluate.systems import TextLLM, prompts_learnt
from blsp.model import SpeechLM
from blsp.recipe import EvalRecipe
from launcher import use
from shards.manifest import write_manifest
from shards.sample import EMOTIONS, Message, Utterance
from shards.writers.protocol import Request
from shards.writers.with_transformers import TransformersWriter
from tests.blsp.tiny_evaluation import TEXTS, make_run, make_test_set


def silent_progress(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total, what


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_test_set(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run_folder(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), llm_folder)


class DeafRecogniser:
    """Hears the first sentence always."""

    def transcribe(self, waveforms: Sequence[NDArray[np.int16]]) -> list[str]:
        return [TEXTS[0]] * len(waveforms)


def recipe(manifest: Path, llm: Path, out: Path, *entries: dict[str, str]) -> EvalRecipe:
    values = {
        "kind": "eval",
        "manifest": manifest,
        "split": "train",
        "out": out,
        "llm": str(llm),
        "max_new_tokens": 6,
        "batch_size": 16,
    }
    return EvalRecipe.model_validate({**values, "systems": entries})


def test_every_kind_of_system(
    manifest: Path, llm_folder: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blsp.evaluate.desk.open_recogniser", lambda path: DeafRecogniser())
    entries: tuple[dict[str, str], ...] = (
        {"type": "linear", "name": "linear", "train": str(manifest)},
        {"type": "text", "name": "text", "llm": str(llm_folder)},
        {"type": "cascade", "name": "cascade", "asr": str(llm_folder), "llm": str(llm_folder)},
        {"type": "speech", "name": "speech", "run": str(run_folder)},
        {"type": "speech", "name": "stage 1", "run": str(run_folder.parent / "stage1")},
    )
    result = evaluate(recipe(manifest, llm_folder, tmp_path / "eval", *entries), silent_progress)
    assert read_result(tmp_path / "eval") == json.loads(json.dumps(result))
    assert len(read_rows(tmp_path / "eval")) == 20 * len(entries)
    linear, text, cascade, speech, stage_1 = (
        {name: value and value["value"] for name, value in system["measures"].items()} for system in result["systems"]
    )
    assert linear["classifier"] == 1.0
    assert {name for name, value in linear.items() if value is not None} == {"classifier"}
    assert (text["plain_exact"], text["distinct"], text["word_errors"]) == (1.0, 1.0, None)
    assert text["classifier"] is None
    assert 0.0 < cascade["word_errors"] < 1.0
    assert cascade["distinct"] == 1.0
    assert speech["classifier"] is not None
    assert stage_1["classifier"] is None, "an untrained classifier is not asked"
    assert stage_1["tone"] is not None
    assert [system["prompts_learnt"] for system in result["systems"][3:]] == [
        ["continue", "continue_tone"],
        ["continue"],
    ]
    assert result["test_set"]["num_speakers"] == 2
    assert result["example"]["same_words"]
    assert len(result["example"]["clips"]) == 5


def test_clips_that_cannot_be_heard_are_all_named_before_anything_runs(
    manifest: Path, llm_folder: Path, tmp_path: Path
) -> None:
    gone = [
        Utterance(id=name, audio=str(tmp_path / f"{name}.wav"), text="a b", corpus="c", emotion="sad")
        for name in ("one", "two")
    ]
    write_manifest(tmp_path / "test.jsonl", gone)
    entry = {"type": "text", "name": "text", "llm": str(llm_folder)}
    with pytest.raises(ValueError, match=r"2 of 2 clips cannot be heard(?s:.*)one\.wav(?s:.*)two\.wav"):
        evaluate(recipe(tmp_path / "test.jsonl", llm_folder, tmp_path / "eval", entry), silent_progress)
    assert not (tmp_path / "eval" / "result.json").exists()


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"type": "speech", "run": "no_run"}, "no_run/export: no export here"),
        ({"type": "linear", "train": "none.jsonl"}, "none.jsonl"),
        ({"type": "cascade", "asr": "./none", "llm": "some/llm"}, "./none: no such folder"),
        ({"type": "text", "llm": "./none"}, "./none: no such folder"),
    ],
)
def test_a_system_that_cannot_be_opened_is_named_before_anything_runs(
    manifest: Path, llm_folder: Path, tmp_path: Path, entry: dict[str, str], said: str
) -> None:
    first = {"type": "text", "name": "text", "llm": str(llm_folder)}
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        evaluate(
            recipe(manifest, llm_folder, tmp_path / "eval", first, {"name": "second", **entry}),
            lambda what, done, total: pytest.fail(what),
        )


def test_a_full_disk_keeps_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_result(tmp_path, {"format": 1, "systems": ["old"]}, [])

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("blsp.evaluate.result.write_atomically", full)
        write_result(tmp_path, {"format": 1, "systems": ["new"]}, [])
    assert read_result(tmp_path)["systems"] == ["old"]
    write_result(tmp_path, {"format": 1, "systems": ["new"]}, [])
    assert read_result(tmp_path)["systems"] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "rows.jsonl"}


def test_a_test_set_without_labels_is_refused(llm_folder: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "test.jsonl", [Utterance(id="x", audio="x.wav", text="a b", corpus="c")])
    entry = {"type": "text", "name": "text", "llm": str(llm_folder)}
    with pytest.raises(ValueError, match="1 of 1 utterances have no emotion, first 'x'"):
        evaluate(recipe(tmp_path / "test.jsonl", llm_folder, tmp_path / "eval", entry), silent_progress)
    messages = (Message(role="user", text="c"), Message(role="assistant", text="d"))
    write_manifest(tmp_path / "test.jsonl", [Utterance(id="x", audio="x", text="a", corpus="c", messages=messages)])
    with pytest.raises(ValueError, match="1 of its lines are conversations, the first 'x'; systems are compared on"):
        evaluate(recipe(tmp_path / "test.jsonl", llm_folder, tmp_path / "eval", entry), silent_progress)


def test_a_text_llm_is_asked_each_thing_once() -> None:
    asked: list[str] = []

    def ask(what: str, questions: Sequence[tuple[Question, Items]]) -> list[list[str]]:
        ((question, items),) = questions
        assert question == Question("write", "llm")
        texts = [item.text for item in items]
        asked.extend(texts)
        return [[text.upper() for text in texts]]

    llm = TextLLM("llm", ask)
    requests = [Request(text, None, "continue") for text in ("aa", "b", "aa")]
    assert llm.answer("", requests) == ["AA", "B", "AA"]
    assert llm.answer("", requests[1:]) == ["B", "AA"]
    assert asked == ["b", "aa"]


def test_prompts_learnt_goes_back_as_far_as_exports_exist(tmp_path: Path) -> None:
    assert prompts_learnt(tmp_path) == []


def test_chat_hears_files(manifest: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav = manifest.parent / "s1-0-sad.wav"
    use.chat(run_folder, [wav])
    name, sounds, *_ = capsys.readouterr().out.splitlines()
    assert name == "s1-0-sad.wav"
    assert re.fullmatch(rf"sounds ({'|'.join(EMOTIONS)}) \([1-9][0-9]?%\)", sounds)
    use.chat(run_folder.parent / "stage1", [wav])
    assert "sounds" not in capsys.readouterr().out, "an untrained classifier is not asked"


def test_chat_refuses_a_bad_file_before_it_loads_a_model(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.wav: no such file"):
        use.chat(tmp_path / "no run", [manifest.parent / "s1-0-sad.wav", tmp_path / "missing.wav"])


class Parrot:
    """A model that says how it was asked."""

    exported_parts = frozenset({"adapter"})

    def answer(self, text: str, prompt: str, max_new_tokens: int) -> str:
        return f"read [{text}]"

    def generate(self, waveforms: list[NDArray[np.int16]], prompt: str, max_new_tokens: int) -> list[str]:
        return [f"heard {len(clip)} samples" for clip in waveforms]


def test_chat_reads_what_is_no_path_and_goes_on_after_an_error(
    manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wav = manifest.parent / "s1-0-sad.wav"
    lines = iter(["missing.wav", f"'{wav}'", TEXTS[0], "Anna lost one.wav", ""])
    monkeypatch.setattr("rich.console.Console.input", lambda self, prompt: next(lines))
    monkeypatch.setattr("blsp.hf.convert.load_model", lambda run: Parrot())
    use.chat(Path("run"), [])
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "missing.wav: no such file", "heard 8000 samples", f"read [{TEXTS[0]}]", "read [Anna lost one.wav]",
    ]  # fmt: skip


@pytest.mark.parametrize("leave", [EOFError, KeyboardInterrupt])
def test_ctrl_d_and_ctrl_c_leave_the_chat(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, leave: type[BaseException]
) -> None:
    def stop(self: object, prompt: str) -> str:
        raise leave

    monkeypatch.setattr("rich.console.Console.input", stop)
    use.chat(run_folder, [])


def test_a_typed_turn_is_answered_as_the_text_llm_would(run_folder: Path, llm_folder: Path) -> None:
    writer = TransformersWriter(str(llm_folder), max_new_tokens=12)
    model = SpeechLM.load(run_folder)
    for text in TEXTS:
        assert model.answer(text, "chat", 12) == writer.write([Request(text, None, "chat")])[0].text
