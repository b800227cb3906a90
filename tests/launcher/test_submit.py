"""`blsp submit` with an sbatch that only looks; the real one is in tests/testbed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main

RECIPE = "mini_stage1"


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["blsp", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, and an sbatch that takes what bash can parse."""
    work = tmp_path / "here"
    work.mkdir()
    monkeypatch.chdir(work)
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nbash -n "$2" && echo 4711\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    return work


def test_a_dry_run_prints_the_script_and_writes_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--nodes", "2", "--time", "4:00:00", "--gres", "gpu:8", "--sbatch=--exclusive", "--after", "17"]
    assert run_main(monkeypatch, "submit", RECIPE, "data.seed=3", *options, "--processes", "8", "--dry-run") == 0
    script = capsys.readouterr().out.splitlines()
    assert f"#SBATCH --output={here}/runs/stage1/slurm/%j.log" in script
    for option in ("nodes=2", "time=4:00:00", "gres=gpu:8", "exclusive", "dependency=afterok:17", "requeue"):
        assert f"#SBATCH --{option}" in script
    (command,) = [line for line in script if line.startswith(sys.executable)]
    begins = f"{sys.executable} -m launcher launch {here}/runs/stage1/slurm/{RECIPE}-"
    assert command.startswith(begins) and command.endswith(".yaml data.seed=3 --processes 8 &")
    assert list(here.iterdir()) == []


def test_the_script_is_kept_under_the_number_of_the_job(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "submit", RECIPE) == 0
    kept = Path("runs/stage1/slurm/4711.sh")
    assert capsys.readouterr().out == "4711\n"
    assert subprocess.run(["bash", "-n", kept]).returncode == 0
    assert sorted(path.suffix for path in (here / kept).parent.iterdir()) == [".sh", ".yaml"]


def test_what_becomes_of_the_recipe_behind_a_submitted_job_is_not_the_jobs_concern(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = here / "my recipe.yaml"
    assert run_main(monkeypatch, "cp", RECIPE, mine.name) == 0
    submitted = []
    for change in ("", "\n# another\n"):
        mine.write_text(mine.read_text() + change)
        submitted.append(mine.read_text())
        assert run_main(monkeypatch, "submit", mine.name) == 0
        script = Path("runs/stage1/slurm/4711.sh").read_text()
        (command,) = [line for line in script.splitlines() if line.startswith(sys.executable)]
        copy = shlex.split(command)[4]
    mine.unlink()
    copies = sorted(Path("runs/stage1/slurm").glob("my recipe-????????.yaml"))
    assert sorted(path.read_text() for path in copies) == sorted(submitted), "nor is a later job's"
    assert Path(copy).read_text() == submitted[-1] and Path(copy).is_absolute()


def test_options_stand_above_the_recipes_section(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "cp", RECIPE, "mine.yaml") == 0
    with Path("mine.yaml").open("a") as file:
        file.write("slurm: {partition: slow, account: lab, modules: [cuda/12.8], container: a b.sif}\n")
    assert run_main(monkeypatch, "submit", "mine.yaml", "--partition", "fast,slow", "--dry-run") == 0
    script = capsys.readouterr().out
    assert script.startswith("blsp: ") or "#!/bin/bash -l\n" in script
    for line in ("#SBATCH --partition=fast,slow", "#SBATCH --account=lab", "module load cuda/12.8 || exit"):
        assert f"\n{line}\n" in script
    assert "--container 'a b.sif' &\n" in script


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--partition", "a; rm -rf b"], "slurm.partition: 'a; rm -rf b' does not fit; it is one or several"),
        (["--account", "-x"], "slurm.account: '-x' does not fit"),
        (["--constraint", "a$(b)"], "slurm.constraint: 'a$(b)' does not fit"),
        (["--module", "x`y`"], "slurm.modules.0: 'x`y`' does not fit"),
        (["--sbatch=--wrap=rm"], "--wrap is set by `blsp submit`"),
        (["--sbatch=--gres=gpu:1"], "--gres has a field of its own; set slurm.gres"),
        (["--sbatch", "--comment=a\nb"], "slurm.sbatch.0"),
        (["--time", "90"], "slurm.time: '90' does not fit; it is walltime, as [days-]HH:MM:SS"),
        (["--time", "0:06:00"], "is over almost before the job begins"),
        (["--tasks-per", "gpu"], "slurm.tasks_per: 'gpu' needs gres, as 'gpu:8', or processes"),
        (["--tasks-per", "core"], "slurm.tasks_per: 'core' is not one of node, gpu"),
        (
            ["--tasks-per", "gpu", "--gres", "gpu:8", "--sbatch=--gpus-per-task=1"],
            "keeps the GPUs of one host from each",
        ),
        (["--sbatch=--ntasks-per-node=8"], "--ntasks-per-node is set by `blsp submit`"),
        (["--nodes", "0"], "slurm.nodes: should be greater than 0"),
    ],
)
def test_a_wrong_option_is_a_sentence_and_nothing_is_submitted(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert run_main(monkeypatch, "submit", RECIPE, *options) == 2
    assert sentence in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "tasks"),
    [
        (["--gres", "gpu:8"], 1),
        (["--gres", "gpu:8", "--tasks-per", "gpu"], 8),
        (["--gres", "gpu", "--tasks-per", "gpu"], 1),
        (["--gres", "gpu:a100", "--tasks-per", "gpu"], 1),
        (["--gres", "nvme:100,gpu:1g.10gb:2,gpu:a100:3", "--tasks-per", "gpu"], 5),
        (["--gres", "gpu:8", "--processes", "4", "--tasks-per", "gpu"], 4),
        (["--processes", "2", "--tasks-per", "gpu"], 2),
    ],
)
def test_a_task_is_a_host_or_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], tasks: int
) -> None:
    assert run_main(monkeypatch, "submit", RECIPE, *options, "--dry-run") == 0
    assert f"#SBATCH --ntasks-per-node={tasks}\n" in capsys.readouterr().out


def test_shards_and_evaluations_are_jobs_on_as_many_hosts_as_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "submit", "mini_shard_asr", "--dry-run") == 0
    assert "-m launcher shard /" in capsys.readouterr().out
    assert run_main(monkeypatch, "submit", "mini_shard_asr", "--nodes", "2", "--dry-run") == 0
    assert "#SBATCH --nodes=2\n" in capsys.readouterr().out
    assert run_main(monkeypatch, "submit", "mini_eval", "out=other", "--nodes", "2", "--dry-run") == 0
    script = capsys.readouterr().out
    assert f"-m launcher eval {Path.cwd()}/other/slurm/mini_eval-" in script and "#SBATCH --nodes=2\n" in script
    assert f"#SBATCH --output={Path.cwd()}/other/slurm/%j.log\n" in script
    assert run_main(monkeypatch, "submit", "mini_eval", "--processes", "2", "--dry-run") == 2
    assert "slurm.processes is of training" in capsys.readouterr().err
