"""The quickstart's own logic with a fake `blsp`, and then the real thing once, end to end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blsp.recipe import EvalRecipe, ShardRecipe, SpeechSystem, TrainRecipe
from launcher import quickstart
from launcher.quickstart import Step
from launcher.recipe_files import load_kind

CORPORA = ("asr", "ser", "dev", "test")

# Stands in for `python -m launcher`.
FAKE = """#!/bin/sh
shift 2
echo "$@" >> ran
case "$1" in
  fail) exit 3 ;;
  repaired) test -e mended || exit 3 ;;
  wait-for) touch "$2"; while ! test -e "$3"; do sleep 0.02; done; echo "threads $OMP_NUM_THREADS" >> ran ;;
  checkpoint) mkdir step-1; sleep 60; echo survived >> ran ;;
  sleep) exec sleep 60 ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "python"
    script.write_text(FAKE)
    script.chmod(0o755)
    monkeypatch.setattr(quickstart, "sys", SimpleNamespace(executable=str(script)))
    return tmp_path / "quickstart"


@pytest.fixture
def set_steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(*steps: Step) -> None:
        monkeypatch.setattr(quickstart, "steps", lambda seed: list(steps))

    return use


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().splitlines()


def record(folder: Path) -> list[dict[str, Any]]:
    path = folder / "commands.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_commands_run_in_order_and_are_recorded_with_their_times(
    folder: Path, set_steps: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    set_steps(Step("first phase", ("one 'a b'",)), Step("second phase", ("two",)))
    quickstart.run(folder, 1)
    assert ran(folder) == ["one a b", "two"]
    assert [(line["command"], line["phase"]) for line in record(folder)] == [
        ("blsp one 'a b'", "first phase"),
        ("blsp two", "second phase"),
    ]
    assert all(0 <= line["seconds"] < 5 for line in record(folder))
    said = capsys.readouterr().out
    for text in (f"$ cd {folder}", "$ blsp one 'a b'", "$ blsp two", "first phase", "peak memory"):
        assert text in said


def test_what_is_done_is_not_done_again(folder: Path, set_steps: Any) -> None:
    set_steps(Step("a", ("one",)))
    quickstart.run(folder, 1)
    set_steps(Step("a", ("one",)), Step("b", ("two",)))
    quickstart.run(folder, 1)
    quickstart.run(folder, 1)
    assert ran(folder) == ["one", "two"]


def test_another_seed_is_refused(folder: Path, set_steps: Any) -> None:
    set_steps(Step("a", ("one",)))
    quickstart.run(folder, 1)
    with pytest.raises(ValueError, match="began with seed 1, not 2; choose another folder"):
        quickstart.run(folder, 2)
    assert ran(folder) == ["one"]


def test_a_command_that_fails_is_named_and_comes_first_the_next_time(folder: Path, set_steps: Any) -> None:
    set_steps(Step("a", ("one",)), Step("b", ("repaired now",)), Step("c", ("three",)))
    with pytest.raises(ValueError, match="blsp repaired now ended with exit code 3; mend it and start the quickstart"):
        quickstart.run(folder, 1)
    assert [line["command"] for line in record(folder)] == ["blsp one"]
    (folder / "mended").touch()
    quickstart.run(folder, 1)
    assert ran(folder) == ["one", "repaired now", "repaired now", "three"]


def test_commands_of_one_step_run_side_by_side_on_a_core_each(folder: Path, set_steps: Any) -> None:
    set_steps(Step("a", ("wait-for x y", "wait-for y x")))
    quickstart.run(folder, 1)
    assert sorted(ran(folder)) == ["threads 1", "threads 1", "wait-for x y", "wait-for y x"]
    assert record(folder)[0]["command"] == "blsp wait-for x y & blsp wait-for y x"


def test_when_one_of_two_fails_the_other_is_interrupted(folder: Path, set_steps: Any) -> None:
    set_steps(Step("a", ("fail", "sleep")))
    began_s = time.monotonic()
    with pytest.raises(ValueError, match="blsp fail ended with exit code 3"):
        quickstart.run(folder, 1)
    assert time.monotonic() - began_s < 20
    assert not record(folder)


def test_the_kill_comes_after_the_checkpoint_and_leaves_nobody(folder: Path, set_steps: Any) -> None:
    set_steps(Step("a", ("checkpoint",), kill_at=Path("step-1")), Step("b", ("two",)))
    quickstart.run(folder, 1)
    assert ran(folder) == ["checkpoint", "two"]
    assert len(record(folder)) == 2


def test_a_training_that_ends_before_its_checkpoint_is_an_error(folder: Path, set_steps: Any) -> None:
    set_steps(Step("a", ("fail",), kill_at=Path("step-1")))
    with pytest.raises(ValueError, match=r"training ended with exit code 3 before it wrote .*step-1"):
        quickstart.run(folder, 1)


def test_every_command_needs_only_what_earlier_ones_make() -> None:
    made: set[str] = set()
    for step in quickstart.steps(seed=7):
        makes = []
        for verb, *arguments in (command.split() for command in step.commands):
            if verb == "miniature" and arguments[0] == "world":
                makes += [f"world/{name}" for name in ("asr.marks.jsonl", *(f"{c}.jsonl" for c in CORPORA))]
                needs = []
            elif verb == "miniature":
                out = next(i for i, word in enumerate(arguments) if word.startswith("models/"))
                needs, makes = arguments[1:out], [*makes, arguments[out]]
            elif verb == "manifest":
                needs, makes = [arguments[1]], [*makes, arguments[2]]
            elif verb == "shard":
                recipe = load_kind(ShardRecipe, arguments[0], [])
                needs, makes = [*map(str, recipe.manifests), recipe.writer.llm], [*makes, str(recipe.out)]
            elif verb == "train":
                trained = load_kind(TrainRecipe, arguments[0], [a for a in arguments if "=" in a])
                assert trained.data.seed == 7
                needs = [trained.model.llm, trained.model.encoder, *trained.data.shards]
                needs += trained.data.replay.shards if trained.data.replay else []
                needs += [str(trained.model.init)] if trained.model.init else []
                makes += [str(trained.run)]
            elif verb == "eval":
                evaluated = load_kind(EvalRecipe, arguments[0], [])
                needs = [str(evaluated.manifest), evaluated.llm]
                needs += [str(system.run) for system in evaluated.systems if isinstance(system, SpeechSystem)]
                makes += [str(evaluated.out)]
            elif verb == "report":
                needs = arguments[:-1]
            else:
                assert verb == "chat"
                needs = [arguments[0]]
            assert set(needs) <= made, step
        made |= set(makes)


def test_the_kill_is_in_the_middle_of_stage_2_and_the_same_command_follows() -> None:
    steps = quickstart.steps(seed=1)
    (killed,) = [i for i, step in enumerate(steps) if step.kill_at]
    assert steps[killed + 1].commands == steps[killed].commands
    recipe = load_kind(TrainRecipe, steps[killed].commands[0].split()[1], [])
    assert str(steps[killed].kill_at).startswith(f"{recipe.run}/checkpoints/")
    step = int(str(steps[killed].kill_at).rpartition("-")[2])
    assert step % recipe.engine.checkpoint_every_steps == 0
    assert 0 < step < (recipe.optim.steps or 0) - 30


@dataclass(frozen=True)
class Finished:
    """What the real quickstart printed and left behind."""

    folder: Path
    printed: str
    commands: list[dict[str, Any]]
    systems: dict[str, dict[str, Any]]

    def percent(self, system: str, measure: str) -> float:
        return 100 * float(self.systems[system]["measures"][measure]["value"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("real") / "quickstart"
    command = [sys.executable, "-m", "launcher", "quickstart", str(folder), "--seed", "1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    result = json.loads((folder / "evaluation" / "result.json").read_text())
    return Finished(folder, done.stdout, record(folder), {system["name"]: system for system in result["systems"]})


class Loads(HTMLParser):
    """What a browser would fetch for the page, and the audio in it."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.audio: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"src", "srcset", "poster", "data"} or (name == "href" and tag in {"link", "image", "use"}):
                (self.audio if tag == "audio" or tag == "source" else self.fetched).append(value or "")


@pytest.mark.slow
@pytest.mark.timeout(2400)
class TestTheWholeMethod:
    """Gates are roomy: docs/results.md has the figures."""

    def test_every_command_was_run_and_recorded(self, finished: Finished) -> None:
        expected = [command for step in quickstart.steps(seed=1) for command in step.commands]
        recorded = [command for line in finished.commands for command in line["command"].split(" & ")]
        assert recorded == [f"blsp {command}" for command in expected]
        for command in recorded:
            assert f"$ {command}" in finished.printed
        assert "Traceback" not in finished.printed

    def test_it_stays_below_6_gb(self, finished: Finished) -> None:
        assert 0.5 < max(line["peak_memory_gb"] for line in finished.commands) <= 6

    def test_stage_2_was_killed_and_went_on(self, finished: Finished) -> None:
        assert "killed all its processes (SIGKILL)" in finished.printed
        assert "going on from runs/stage2/checkpoints/step-" in finished.printed
        log = [json.loads(line) for line in (finished.folder / "runs/stage2/log.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in log]
        assert steps == sorted(set(steps))
        assert steps[-1] == load_kind(TrainRecipe, "mini_stage2", []).optim.steps

    def test_words_alone_are_exactly_at_chance(self, finished: Finished) -> None:
        assert finished.percent("Text+LLM", "tone") == 20.0

    def test_blsp_continues_as_the_text_llm_but_hears_no_emotion(self, finished: Finished) -> None:
        assert finished.percent("BLSP", "label") <= 30
        assert finished.percent("BLSP", "tone") <= 30
        assert finished.percent("BLSP", "plain_exact") >= 70

    def test_blsp_emo_hears_the_emotion_and_keeps_the_content(self, finished: Finished) -> None:
        assert finished.percent("BLSP-Emo", "classifier") >= 50
        assert finished.percent("BLSP-Emo", "tone") >= 50
        assert finished.percent("BLSP-Emo", "tone_content") >= 80

    def test_replay_keeps_plain_answers_plain(self, finished: Finished) -> None:
        assert finished.percent("BLSP-Emo", "plain_exact") >= 70
        assert finished.percent("BLSP-MultiTask", "plain_exact") <= 50

    def test_without_stage_1_the_content_is_lost(self, finished: Finished) -> None:
        assert finished.percent("Without stage 1", "tone_content") <= 40

    def test_the_label_is_asked_fairly_of_multitask(self, finished: Finished) -> None:
        assert finished.percent("BLSP-MultiTask", "label") >= 40

    def test_the_test_set_is_balanced_and_held_out(self, finished: Finished) -> None:
        lines = {
            name: [json.loads(line) for line in (finished.folder / f"manifests/{name}.jsonl").read_text().splitlines()]
            for name in CORPORA
        }
        for field in ("speaker", "text"):
            heard = {line[field] for name in ("asr", "ser", "dev") for line in lines[name]}
            assert not heard & {line[field] for line in lines["test"]}
        assert len({line["speaker"] for line in lines["test"]}) >= 8

    def test_chat_answered(self, finished: Finished) -> None:
        _, _, after = finished.printed.partition("$ blsp chat ")
        heard = r"^test-000-sad\.flac\s*\nsounds (?:neutral|happy|angry|sad|surprise) \(\d+%\)\s*\n(.+)$"
        answer = re.search(heard, after, re.M)
        assert answer is not None
        assert len(answer[1].split()) >= 3

    def test_the_report_is_one_file_with_five_voices(self, finished: Finished) -> None:
        page = (finished.folder / "report.html").read_text()
        loads = Loads()
        loads.feed(page)
        assert not [url for url in loads.fetched if not url.startswith("data:")]
        assert not re.search(r"@import|url\(\s*['\"]?(?!data:|#)", page)
        assert "<script src" not in page
        assert len(loads.audio) >= 5
        assert all(url.startswith("data:audio/") for url in loads.audio)
        for text in (*finished.systems, "blsp train mini_stage2"):
            assert text in page
        assert len(page) < 10e6
