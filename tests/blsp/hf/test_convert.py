"""A finished run as one folder that transformers loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from blsp.evaluate.systems import prompts_learnt
from blsp.export import write_export
from blsp.hf import BlspEmoForConditionalGeneration, BlspEmoProcessor
from blsp.hf.convert import export_run, load_model
from blsp.model import SpeechLM
from tests.blsp.hf.test_round_trip import CLIPS, make
from tests.blsp.test_llms import batch_of
from tests.blsp.tiny import CPU, STAGE_1, STAGE_2, clip

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
FIRST = {"stage": STAGE_1.model_dump(mode="json"), "steps": 3, "versions": {},
         "corpora": [{"corpus": "asr", "licence": "CC-BY-4.0", "clips": 9}]}  # fmt: skip
SECOND = [{"corpus": "ser", "licence": None, "clips": 5}]


def make_run(root: Path, family: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    """What a second stage leaves."""
    model = make(root, family, tokenizer)
    weights = {f"{part}.{name}": value.contiguous() for part, module in model.parts.items()
               for name, value in module.state_dict().items()}  # fmt: skip
    write_export(
        root / "run" / "export", weights, model=model.config, parts=sorted(model.parts), stage=STAGE_2,
        frozen=model.frozen, history=[FIRST], corpora=SECOND, steps=4,
    )  # fmt: skip
    return root / "run"


@pytest.fixture(scope="module")
def speech_run(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA of scope `speech`."""
    return make_run(tmp_path_factory.mktemp("speech"), "qwen2", tokenizer)


@pytest.fixture(scope="module")
def all_run(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA of scope `all`."""
    return make_run(tmp_path_factory.mktemp("all"), "llama", tokenizer)


@pytest.fixture(scope="module")
def exported(speech_run: Path) -> Path:
    """As a user's command writes it, in a process that has neither DeepSpeed nor Ray."""
    out = speech_run.parent / "exported"
    code = "import sys; sys.modules.update(deepspeed=None, ray=None); from launcher.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, "export", str(speech_run), str(out)], check=True, capture_output=True)
    return out


def test_an_export_computes_bit_for_bit_what_the_run_does(speech_run: Path, exported: Path) -> None:
    model, loaded = SpeechLM.load(speech_run, CPU), load_model(exported, CPU)
    for ours, theirs in zip(
        model.response_logits(batch_of(model)), loaded.response_logits(batch_of(loaded)), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert loaded.generate(CLIPS, "chat", 8) == model.generate(CLIPS, "chat", 8)
    assert (loaded.classify(CLIPS) == model.classify(CLIPS)).all()
    assert prompts_learnt(exported) == ["continue", "continue_tone"]


def test_its_card_tells_both_stages_and_the_licences_of_both(exported: Path, tmp_path: Path) -> None:
    card = (exported / "README.md").read_text()
    for words in ("1. trained adapter with", "2. trained adapter, encoder, lora, classifier", "speech positions only",
                  "| asr | CC-BY-4.0 | 9 |", "| ser | unknown | 5 |", "ask whoever owns the corpus"):  # fmt: skip
        assert words in card
    BlspEmoForConditionalGeneration.from_pretrained(exported).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == card


def test_the_lines_of_the_card_run(exported: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", clip(9000), 16000)
    (lines,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    lines = lines.replace("PATH/TO/THIS/FOLDER", str(exported)).replace("max_new_tokens=128", "max_new_tokens=4")
    subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, check=True, capture_output=True)


def test_the_lines_of_the_documentation_run(exported: Path, tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, clip(9000), 16000)
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "use.md").read_text(), re.DOTALL)
    (tmp_path / "exported").symlink_to(exported)
    lines = lines.replace("max_new_tokens=128", "max_new_tokens=4")
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "tensor([[" in done.stdout


def test_the_classifier_may_stay_at_home(speech_run: Path, tmp_path: Path) -> None:
    config = export_run(speech_run, tmp_path / "out", classifier=False)
    assert config.emotions is None
    assert not any("classifier" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    hf = BlspEmoForConditionalGeneration.from_pretrained(tmp_path / "out")
    inputs = BlspEmoProcessor.from_pretrained(tmp_path / "out")(audio=CLIPS, sampling_rate=16000)
    with pytest.raises(ValueError, match="was saved without its emotion classifier"):
        hf.emotions(inputs["input_values"], inputs["num_samples"])
    assert load_model(tmp_path / "out", CPU).exported_parts == {"adapter"}


def test_lora_of_scope_all_merges_to_rounding(all_run: Path, tmp_path: Path) -> None:
    export_run(all_run, tmp_path / "out", merge=True)
    assert not any("lora" in name for name in load_file(tmp_path / "out" / "model.safetensors"))
    model, merged = SpeechLM.load(all_run, CPU), load_model(tmp_path / "out", CPU)
    ours, plain = model.response_logits(batch_of(model))
    theirs, _ = merged.response_logits(batch_of(merged))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-5)
    assert (ours - plain).abs().max() > 0.1
    assert "LoRA merged into the LLM" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("change", [{}, {"lora": None}])
def test_what_cannot_be_merged_is_refused_with_the_reason(
    speech_run: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, change: dict[str, Any]
) -> None:
    run = make_run(tmp_path / "run", "qwen3", tokenizer) if change else speech_run
    complaint = "has no LoRA to merge" if change else "it would act on every word; leave --merge-lora out"
    with pytest.raises(ValueError, match=complaint):
        export_run(run, tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_an_unfinished_run_is_named(
    speech_run: Path, exported: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in exported.iterdir()}
    with pytest.raises(ValueError, match="already there"):
        export_run(speech_run, exported)
    assert {path: path.stat().st_mtime_ns for path in exported.iterdir()} == before
    with pytest.raises(ValueError, match=r"no export here; has the run of .* finished"):
        export_run(tmp_path / "run", tmp_path / "out")


def test_speech_and_text_alone_are_asked_apart_under_scope_all(all_run: Path, tmp_path: Path) -> None:
    export_run(all_run, tmp_path / "out")
    hf = BlspEmoForConditionalGeneration.from_pretrained(tmp_path / "out")
    processor = BlspEmoProcessor.from_pretrained(tmp_path / "out")
    text = [{"role": "user", "content": "Good morning"}]
    heard = [{"role": "user", "content": [{"type": "audio", "audio": CLIPS[0], "sampling_rate": 16000}]}]
    with pytest.raises(ValueError, match="ask them in two calls"):
        hf.generate(**processor([text, heard]), max_new_tokens=2)
    ids = hf.generate(**processor(text), max_new_tokens=6)
    assert processor.decode(ids[0]) == SpeechLM.load(all_run, CPU).answer("Good morning", "chat", 6)
    inputs = processor(heard)
    inputs["speech_mask"][0, inputs["speech_mask"][0].nonzero()[0]] = False
    with pytest.raises(ValueError, match=r"speech_mask marks \d+ positions, but the clips take \d+"):
        hf(**inputs)
