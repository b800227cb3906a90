from __future__ import annotations

from pathlib import Path

import pytest

from shards.writers.fingerprint import model_fingerprint


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_another_training_is_another_version(tmp_path: Path, weights: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / weights).write_bytes(bytes(3 * 2**20))
    first = model_fingerprint(str(tmp_path), None)
    (tmp_path / weights).write_bytes(bytes(3 * 2**20 - 1) + b"1")
    assert model_fingerprint(str(tmp_path), None) != first
    assert model_fingerprint("Qwen/Qwen2.5-7B-Instruct", None) == "Qwen/Qwen2.5-7B-Instruct@main"


def test_a_folder_without_an_llm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        model_fingerprint(str(tmp_path), None)
    with pytest.raises(ValueError, match="no such folder"):
        model_fingerprint(str(tmp_path / "absent"), None)
