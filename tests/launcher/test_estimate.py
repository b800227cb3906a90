"""`blsp estimate` as a person types it."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main
from tests.bench.train.shapes import SHAPES
from tests.blsp.tiny import make_shards
from tests.launcher import page

REPOSITORY = Path(__file__).parents[2]
STAGE_1, STAGE_2 = (f"stage{number}_whisper-large-v2_qwen2.5-7b" for number in (1, 2))
TABLES = page.shown("How many GPUs")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configurations of Whisper-large-v2 and Qwen2.5-7B where the recipes look for them, and nothing else."""
    for name, config in (
        ("Qwen/Qwen2.5-7B-Instruct", SHAPES["large"].llm), ("openai/whisper-large-v2", SHAPES["large"].encoder)
    ):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(json.dumps(config.to_dict()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and output of `blsp estimate`."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", ["blsp", "estimate", *arguments])
        main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out + printed.err


@pytest.mark.parametrize(("command", "output"), TABLES, ids=[command for command, _ in TABLES])
def test_the_pages_tables_are_what_the_command_prints(
    models: Path, capsys: pytest.CaptureFixture[str], command: str, output: str
) -> None:
    assert said(capsys, *command.removeprefix("blsp estimate ").split()) == (0, output + "\n")


def test_the_page_has_both_stages() -> None:
    commands = [command for command, _ in TABLES]
    assert [STAGE_1 in commands[0], STAGE_2 in commands[1]] == [True, True]


@pytest.mark.slow
def test_it_answers_in_a_second_without_torch(models: Path) -> None:
    code = (
        f"import sys; from launcher.cli import main; sys.argv[1:] = ['estimate', '{STAGE_2}']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('loaded:', *(name for name in ('torch', 'transformers', 'deepspeed') if name in sys.modules))"
    )
    used = []  # by the process: other tests may want the cores too
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=models, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True,
            capture_output=True, check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.stdout.endswith("\nloaded:\n")
    assert min(used) < 1


def test_everything_that_is_asked_of_it_is_there(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = said(capsys, STAGE_1, "data.micro_batches=64")
    assert code == 0
    for words in (
        "8.25 B weights, 16.5 GB", "82.3 M weights: adapter", "TFLOP: encoder", "checkpoint", "Memory of each of 64 x",
        "ZeRO-1", "ZeRO-2", "ZeRO-3 whole", "ZeRO-3 cut", "grads", "optim", "activ", "logits", "gather", "alloc",
        "  clips  step, s", "NVLink  8 x HDR  4 x 100 Gb  1 x 100 Gb  sent, GB", "Continuations for 1,000 hours of ",
        "Take 64 x a100-80 with ZeRO-3, frozen resident, as the recipe says", "data.micro_batches = 64",
        "Assumed, not measured",
    ):  # fmt: skip
        assert words in output, words
    assert all(len(line) <= 100 for line in output.splitlines())


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--gpu", "a100-40", "--gpus", "1"], "set data.caps.audio_s to "),
        (["--gpu", "a100-40", "--gpus", "1", "data.caps.tokens=20000"], "engine.gradient_checkpointing to [llm]"),
        (["--gpu", "a100-40", "data.caps.tokens=30000", "engine.frozen=resident"], "engine.frozen to partitioned"),
        (["--gpus", "64"], "data.micro_batches = 48 is too few for 64 ranks; raise it to 64"),
        (["data.clips_per_step=64", "data.micro_batches=512"], "some would hold no clip; set it to 64 or fewer"),
        (["data.clips_per_step=32", "data.micro_batches=32", "--gpus", "64"], "raise it and data.micro_batches to 64"),
        (["--gpus", "16", "--fabric", "nvlink"], "--fabric nvlink: joins the GPUs of one host"),
        (["--gpu", "v100"], "--gpu v100: is not one of a100-40, a100-80, h100, h200"),
        (["--fabric", "tin"], "--fabric tin: is not one of nvlink, 8xhdr, 4x100gb, 1x100gb"),
        (["engine.zero_stage=0"], "engine.zero_stage: there is no formula for 0"),
        (["model.adapter.type=qformer"], "model.adapter: there is no formula for 'qformer'"),
        (["engine.deepspeed.zero_optimization.offload_optimizer.device=cpu"], "offload_optimizer is not reckoned with"),
        (["model.llm=some/other"], "hf download some/other config.json"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field_to_change(
    models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], remedy: str
) -> None:
    code, output = said(capsys, STAGE_1, *arguments)
    assert code == 2
    assert remedy in output
    assert len(output.splitlines()) == 1


def test_small_micro_batches_are_not_advised(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = said(capsys, STAGE_2, "data.micro_batches=128")
    output = " ".join(output.split())
    assert code == 0
    number = int(output.partition("Set data.micro_batches to ")[2].partition(",")[0])
    assert number < 128
    assert int(output.partition("Take ")[2].split()[0]) <= number
    assert "Set data.micro_batches" not in said(capsys, STAGE_2, f"data.micro_batches={number}")[1]


def remedies(output: str) -> list[str]:
    """As overrides of the recipe."""
    changes = re.split(r", (?=\w+\.)", output.partition("; set ")[2].strip())
    return [change.replace(" to ", "=") for change in changes]


def test_the_remedy_helps(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, output = said(capsys, STAGE_1, "--gpu", "a100-40", "--gpus", "1")
    settings = remedies(output)
    assert len(settings) == 4
    code, output = said(capsys, STAGE_1, "--gpu", "a100-40", "--gpus", "1", *settings)
    assert code == 0
    assert "Take 1 x a100-40" in output


def test_with_a_shard_set_its_plan_decides(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = make_shards(models / "data", "continue_emotion", 23)
    asked = [STAGE_2, "--gpu", "a100-40", "--gpus", "1", f"data.shards={shards}", "data.clips_per_step=23",
             "engine.gradient_checkpointing=[]", "data.caps={}"]  # fmt: skip
    code, output = said(capsys, *asked, "data.micro_batches=1")
    assert code == 2
    code, output = said(capsys, *asked, *remedies(output))
    assert code == 0
    output = " ".join(output.split())
    assert f"{shards}: 23 clips, " in output
    assert "epoch 1 steps" in output
    assert "hours for 3 epochs" in output
    assert "Continuations for 23 clips" in output


def test_a_shard_recipe_has_the_cost_of_its_continuations(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = said(capsys, "shard_stage1_qwen2.5-7b", "--gpu", "h100")
    assert code == 0
    assert output.strip().startswith("Continuations for 1,000 hours of speech: ")
    assert "64 at once, 48 tokens each" in " ".join(output.split())


LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip


def test_a_writer_that_does_not_fit_is_refused(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = said(capsys, "shard_stage1_qwen2.5-7b", "writer.batch_size=20000")
    fits = int(output.partition("set writer.batch_size to ")[2].split()[0])
    assert (code, len(output.splitlines())) == (2, 1)
    assert said(capsys, "shard_stage1_qwen2.5-7b", f"writer.batch_size={fits}")[0] == 0
    assert said(capsys, "shard_stage1_qwen2.5-7b", f"writer.batch_size={fits + 1}")[0] == 2
    (models / "llama").mkdir()
    (models / "llama/config.json").write_text(json.dumps(LLAMA_70B))
    code, output = said(capsys, "shard_stage1_qwen2.5-7b", "writer.llm=llama")
    assert code == 2
    assert "weights 141.1 GB" in output and "name a smaller writer.llm" in output


def test_an_evaluation_is_not_estimated(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = said(capsys, "mini_eval")
    assert code == 2
    assert "an evaluation is not estimated" in output
