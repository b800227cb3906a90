"""What a finished run leaves for use: the parts that differ from the pretrained models, and what made them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from blsp.provenance import versions
from blsp.recipe import ModelSection, StageSection
from cluster.files import write_atomically

EXPORT_WEIGHTS, EXPORT_CONFIG = "model.safetensors", "config.json"


def write_export(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    model: ModelSection,
    parts: list[str],
    stage: StageSection,
    frozen: dict[str, str],
    **more: Any,
) -> None:
    """Write what `load_export` reads: weights by `part.name`, and what made them."""
    write_atomically(folder / EXPORT_WEIGHTS, safetensors.torch.save(weights))
    content = {
        "model": json.loads(model.model_dump_json()),
        "parts": parts,
        "stage": json.loads(stage.model_dump_json()),
        "frozen": frozen,
        "versions": versions(),
        **more,
    }
    write_atomically(folder / EXPORT_CONFIG, json.dumps(content, indent=1).encode())


def export_config(folder: Path) -> dict[str, Any]:
    """What an export says of itself. Raises ValueError when there is none."""
    path = folder / EXPORT_CONFIG
    if not path.exists():
        raise ValueError(
            f"{folder}: no export here; has the run of {folder.parent} finished? (`blsp train` writes it at the end)"
        )
    config: dict[str, Any] = json.loads(path.read_text())
    return config
