"""`blsp checkpoint` as people type it, over folders that look like a run's."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from blsp.checkpoint_folder import STATE, TrainingState, write_manifest
from cluster.owner import owned
from launcher.cli import main


def blsp(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["blsp", "checkpoint", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of the steps 10, 20 and 30 of two ranks, each 1 MB and a little."""
    for step in (10, 20, 30):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:06d}"
        (folder / "zero").mkdir(parents=True)
        (folder / "zero" / "weights.pt").write_bytes(bytes(10**6))
        state = TrainingState(step, "0123", 2, {}, {}, saved_at_s=1.7e9 + step)
        (folder / STATE).write_text(json.dumps(asdict(state)))
        write_manifest(folder)
    return tmp_path / "run"


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def damage(run: Path, step: int) -> None:
    path = run / "checkpoints" / f"step-{step:06d}" / "zero" / "weights.pt"
    path.write_bytes(b"1" + bytes(10**6 - 1))


def test_ls_shows_step_time_size_ranks_and_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    (run / "checkpoints" / "step-000020" / "zero" / "weights.pt").unlink()
    (run / "checkpoints" / ".step-000040.tmp").mkdir()
    assert blsp(monkeypatch, "ls", run) == 0
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["step", "saved", "MB", "ranks", "files"]
    assert [(row[0], row[1].startswith("2023-11-1"), row[3], row[4]) for row in rows] == [
        ("10", True, "1.0", "2"), ("20", True, "0.0", "2"), ("30", True, "1.0", "2")
    ]  # fmt: skip
    assert " ".join(rows[0][5:]) == "all there, of the right sizes"
    assert " ".join(rows[1][5:]) == "zero/weights.pt is missing"


def test_verify_reads_every_byte_and_its_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    assert blsp(monkeypatch, "verify", run) == 0
    assert capsys.readouterr().out.count(": intact\n") == 3
    damage(run, 20)
    assert blsp(monkeypatch, "verify", run) == 1
    said = capsys.readouterr().out
    assert f"{run / 'checkpoints' / 'step-000020'}: zero/weights.pt is not as it was written\n" in said
    assert said.count(": intact\n") == 2


def test_prune_keeps_the_newest_intact_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    damage(run, 30)
    assert blsp(monkeypatch, "prune", run, "--keep", 1) == 0
    assert steps(run) == ["step-000020"]
    said = capsys.readouterr().out
    assert "step-000010: deleted (1.0 MB)" in said
    assert f"{run}: kept step-000020" in said


def test_prune_keeps_that_of_the_best_validation(monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    newest = run / "checkpoints" / "step-000030"
    state = json.loads((newest / STATE).read_text())
    (newest / STATE).write_text(json.dumps({**state, "best": {"step": 10, "value": 1.0}}))
    write_manifest(newest)
    assert blsp(monkeypatch, "prune", run, "--keep", 1) == 0
    assert steps(run) == ["step-000010", "step-000030"]


def test_prune_is_refused_beside_a_training_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    with owned(run):
        assert blsp(monkeypatch, "prune", run, "--keep", 1) == 2
    assert "already in use by process" in capsys.readouterr().err
    assert len(steps(run)) == 3


def test_prune_deletes_nothing_when_none_is_intact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    for step in (10, 20, 30):
        damage(run, step)
    assert blsp(monkeypatch, "prune", run, "--keep", 1) == 2
    assert "none of its checkpoints is intact, so none was deleted" in capsys.readouterr().err
    assert len(steps(run)) == 3
    assert blsp(monkeypatch, "prune", run, "--keep", 0) == 2


def test_a_folder_without_checkpoints_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert blsp(monkeypatch, "ls", tmp_path) == 2
    assert "no checkpoints here; give the run folder" in capsys.readouterr().err


def test_a_state_that_is_none_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    folder = run / "checkpoints" / "step-000030"
    (folder / STATE).write_text('["nonsense"]')
    write_manifest(folder)
    assert blsp(monkeypatch, "ls", run) == 0
    assert "is not the state of a training run" in capsys.readouterr().out


def test_ls_is_quick_because_it_loads_no_torch(run: Path) -> None:
    code = "import sys; from launcher import checkpoints; checkpoints.show(__import__('pathlib').Path(sys.argv[1])); "
    code += "print({'torch', 'deepspeed', 'numpy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
