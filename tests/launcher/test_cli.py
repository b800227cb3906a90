"""The command as people type it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import train
from launcher.cli import app, main


def blsp(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-m", "launcher", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["blsp", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


def test_help_names_every_verb() -> None:
    help_text = blsp("--help").stdout
    for verb in (
        "ls",
        "cp",
        "validate",
        "manifest",
        "shard",
        "train",
        "checkpoint",
        "eval",
        "report",
        "chat",
        "quickstart",
        "import",
    ):
        assert f" {verb} " in help_text
    assert app.info.help is not None
    assert str(app.info.help) in help_text


def test_help_of_manifest_lists_every_corpus() -> None:
    from shards.corpora.build import CORPORA

    listed = " ".join(blsp("manifest", "--help").stdout.split())
    for name, corpus in CORPORA.items():
        assert f"{name} ({corpus.title})" in listed


def test_ls_shows_every_recipe_with_its_command() -> None:
    listed = blsp("ls").stdout
    assert "stage1_whisper-large-v2_qwen2.5-7b blsp train" in " ".join(listed.split())
    assert "mini_eval" in listed
    assert "blsp eval" in listed


def test_cp_gives_an_editable_copy_and_never_overwrites(tmp_path: Path) -> None:
    copied = blsp("cp", "mini_stage1", "mine.yaml", folder=tmp_path)
    assert copied.returncode == 0
    assert "blsp validate mine.yaml" in copied.stdout
    again = blsp("cp", "mini_stage2", "mine.yaml", folder=tmp_path)
    assert (again.returncode, again.stderr) == (
        2, "blsp: mine.yaml: already there; choose another name or remove it first\n",
    )  # fmt: skip
    assert blsp("validate", "mine.yaml", folder=tmp_path).returncode == 0


def test_validate_prints_the_recipe_with_its_defaults_and_overrides() -> None:
    shown = yaml.safe_load(blsp("validate", "mini_stage1", "data.seed=9").stdout)
    assert (shown["data"]["seed"], shown["optim"]["clip_norm"]) == (9, 1.0)


def test_validate_refuses_with_code_2_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("kind: train\nrun: x\nmodle: {}\n")
    done = blsp("validate", "bad.yaml", folder=tmp_path)
    assert done.returncode == 2
    assert "bad.yaml:3: modle: unknown key (nearest: model)" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_debug_may_stand_anywhere_and_shows_the_traceback() -> None:
    for arguments in (("--debug", "validate", "nothing"), ("validate", "nothing", "--debug")):
        done = blsp(*arguments)
        assert done.returncode == 1
        assert "RecipeError: no recipe file" in done.stderr


def test_a_recipe_of_another_kind_names_the_right_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "shard", "mini_stage1") == 2
    assert "this is a recipe for `blsp train`, not for `blsp shard`" in capsys.readouterr().err


def test_train_refuses_a_wrong_override_before_any_process_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launcher.start.train", lambda *_, **__: pytest.fail("started"))
    assert run_main(monkeypatch, "train", "mini_stage1", "data.sed=1") == 2
    assert "(nearest: seed)" in capsys.readouterr().err


def test_train_returns_the_code_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr("launcher.start.train", lambda *given, **options: started.append((given, options)) or 7)
    assert run_main(monkeypatch, "train", "mini_stage1", "data.seed=3", "--processes", "2", "--debug") == 7
    [((recipe, config, overrides), options)] = started
    assert (recipe.data.seed, config.name, overrides) == (3, "mini_stage1.yaml", ["data.seed=3"])
    assert options == {"processes": 2, "debug": True}


def test_manifest_counts_what_it_kept_and_dropped(tmp_path: Path) -> None:
    rows = [
        {"audio": "a.wav", "text": "one", "emotion": "happy"},
        {"audio": "b.wav", "text": "two", "emotion": "bored"},
    ]
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{not json\n")
    done = blsp("manifest", "jsonl", "corpus.jsonl", "out.jsonl", "--stats", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    counts = [line.split() for line in done.stdout.splitlines()]
    assert ["read", "3"] in counts
    assert ["kept", "1", "1", "happy"] in counts
    assert ["split", "clips", "official", "hours", "speakers", "happy"] in counts
    assert ["train", "1", "?", "0", "1"] in counts
    assert ["dropped", "1", "unknown_emotion"] in counts
    assert ["dropped", "1", "bad_json"] in counts
    assert (tmp_path / "out.rejects.jsonl").exists()


def test_a_missing_corpus_is_one_sentence(tmp_path: Path) -> None:
    done = blsp("manifest", "emodb", "nowhere", "out.jsonl", folder=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("blsp: ")
    assert done.stderr.count("\n") == 1


def test_report_takes_the_page_last(monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher import use

    called = []
    monkeypatch.setattr(use, "report", lambda evaluation, *, runs, out: called.append((evaluation, runs, out)))
    assert run_main(monkeypatch, "report", "evaluation", "runs/a", "runs/b", "page.html") == 0
    assert run_main(monkeypatch, "report", "evaluation", "page.html") == 0
    assert called == [
        (Path("evaluation"), [Path("runs/a"), Path("runs/b")], Path("page.html")),
        (Path("evaluation"), [], Path("page.html")),
    ]


def test_a_rank_refuses_a_port_in_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setattr(sys, "argv", ["train", "--local_rank=0", "--config", "mini_stage1", "data.seed=2"])
        assert train.main() == 2
    assert f"blsp: port {port} on this host is taken by another process" in capsys.readouterr().err


@pytest.mark.slow
def test_import_authors_says_what_it_found_and_what_comes_next(tmp_path: Path) -> None:
    parity = Path(__file__).parents[1] / "fixtures" / "parity"
    done = blsp("import", "authors", str(parity / "stage2"), "ours", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "87 tensors, 0.2 M numbers, with LoRA; all accounted for" in done.stdout
    assert "model.llm=ours/llm model.encoder=ours/encoder model.init=ours" in done.stdout
    assert {path.name for path in (tmp_path / "ours").iterdir()} == {"llm", "encoder", "export"}
    again = blsp("import", "authors", str(parity / "stage2"), "ours", folder=tmp_path)
    assert (again.returncode, again.stderr) == (
        2, "blsp: ours: already there; choose another name or remove it first\n",
    )  # fmt: skip
