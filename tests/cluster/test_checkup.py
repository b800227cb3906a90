"""What a host says of its GPUs, whatever nvidia-smi makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import checkup


def facts_with_smi(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str | None) -> tuple[object, str]:
    """The GPUs and what is wrong with them, when `script` is this host's nvidia-smi."""
    if script is not None:
        smi = folder / "nvidia-smi"
        smi.write_text(f"#!/bin/sh\n{script}\n")
        smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    facts = checkup.facts(folder)
    return facts["gpus"], facts["gpu_error"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "version mismatch"),
        ("echo 'No devices were found'", "No devices were found"),
        ("exit 9", "exit code 9"),
    ],
)  # fmt: skip
def test_an_nvidia_smi_that_fails_is_an_error_in_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, words: str
) -> None:
    gpus, error = facts_with_smi(monkeypatch, tmp_path, script)
    assert gpus == [] and error.startswith("nvidia-smi: ") and words in error


def test_gpus_are_read_also_where_memory_is_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = "echo 'NVIDIA A100, 81920, 580.95'; echo 'NVIDIA GB10, [N/A], 580.95'"
    assert facts_with_smi(monkeypatch, tmp_path, script) == (
        [{"name": "NVIDIA A100", "memory_mib": 81920, "driver": "580.95"},
         {"name": "NVIDIA GB10", "memory_mib": None, "driver": "580.95"}],
        "",
    )  # fmt: skip


def test_a_device_without_nvidia_smi_is_an_error_and_none_is_a_host_of_cpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkup, "_NVIDIA_DEVICE", tmp_path / "nvidiactl")
    assert facts_with_smi(monkeypatch, tmp_path, None) == ([], "")
    (tmp_path / "nvidiactl").touch()
    assert "nvidia-smi" in facts_with_smi(monkeypatch, tmp_path, None)[1]


def test_infiniband_is_there_with_a_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkup, "_INFINIBAND", tmp_path / "infiniband")
    assert not checkup.facts(tmp_path)["infiniband"]
    (tmp_path / "infiniband" / "mlx5_0").mkdir(parents=True)
    assert checkup.facts(tmp_path)["infiniband"]
