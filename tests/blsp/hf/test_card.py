from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from blsp.hf import BlspEmoConfig
from blsp.hf.card import model_card


def stage(corpora: list[tuple[str, str | None, int]] | None, train: str = "adapter") -> dict[str, Any]:
    rows = None if corpora is None else [dict(zip(("corpus", "licence", "clips"), row, strict=True)) for row in corpora]
    section = {"train": [train], "losses": {"kl": 1.0}, "prompts": {"continue": 1.0}}
    return {"stage": section, "steps": 70, "corpora": rows, "versions": {}, "imported_from": None}


def card(*stages: dict[str, Any], **training: Any) -> str:
    config = BlspEmoConfig(adapter={"type": "conv", "bottleneck": 8}, audio_window="30s")
    config.training = {"stages": list(stages), "versions": {"torch": "2.13.0"}, **training}
    return model_card(config)


def test_every_licence_of_every_stage_is_listed_and_read_strictly() -> None:
    first = stage([("librispeech", "CC-BY-4.0", 300), ("private", None, 7)])
    second = stage(
        [("ravdess", "CC BY-NC-SA 4.0", 20), ("librispeech", "CC-BY-4.0", 100), ("mini", "CC0-1.0", 1)], "lora"
    )
    text = card(first, second)
    for row in ("| librispeech | CC-BY-4.0 | 300 |", "| private | unknown | 7 |", "| ravdess | CC BY-NC-SA 4.0 | 20 |"):
        assert row in text
    assert (
        "- CC BY-NC-SA 4.0: no commercial use; what is derived is passed on under the same licence; the authors" in text
    )
    assert "- unknown: not recorded: ask whoever owns the corpus before the model leaves your hands" in text
    assert "- CC-BY-4.0: the authors are named" in text
    assert "- CC0-1.0: no condition" in text
    assert "1. trained adapter with the losses 1 x kl, under the prompt continue, 70 steps" in text
    assert "2. trained lora" in text
    assert "torch 2.13.0" in text


def test_a_licence_that_nobody_knows_is_not_read_as_free() -> None:
    text = card(stage([("emodb", "free", 500), ("tv", "MER2023 EULA", 1)]))
    assert "- free: read it: its conditions are not known here" in text
    assert "- MER2023 EULA: research only" in text


def test_data_that_was_not_recorded_is_said_to_be_unknown() -> None:
    assert "The data of stage 1 is not recorded: take its licences as unknown." in card(stage(None))
    assert "The data is not recorded" in card()


def test_names_of_others_stay_names_and_the_header_is_plain_yaml() -> None:
    text = card(
        stage([("a|b](http://x) <script>", "MIT\n---\nlicense: mit", 1)]),
        frozen={"llm": "Qwen/Qwen2.5-7B-Instruct@abc", "encoder": "/somewhere/else@123"},
    )
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "other"
    assert header["base_model"] == ["Qwen/Qwen2.5-7B-Instruct"]
    assert header["library_name"] == "transformers"
    assert r"| a\|b\](http://x) \<script\> | MIT --- license: mit | 1 |" in text
    assert "/somewhere" not in text


def test_the_card_is_the_same_wherever_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = card(frozen={"llm": "Qwen/Qwen2.5-7B-Instruct@abc"})
    (tmp_path / "Qwen" / "Qwen2.5-7B-Instruct").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert card(frozen={"llm": "Qwen/Qwen2.5-7B-Instruct@abc"}) == before
