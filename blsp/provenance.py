"""What made an artefact: the versions that ran, and the frozen weights by hash."""

from __future__ import annotations

import importlib.metadata
import platform
import re

from shards.writers.fingerprint import model_fingerprint

_PACKAGES = ("torch", "transformers", "deepspeed", "peft", "ray", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Installed versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def frozen_weights(llm: str, revision: str | None, encoder: str) -> dict[str, str]:
    """Name and hash (or hub revision) of the pretrained parts that an export and a checkpoint leave out."""
    return {"llm": model_fingerprint(llm, revision), "encoder": model_fingerprint(encoder, None)}


def refuse_other_weights(before: dict[str, str], now: dict[str, str], what: str) -> None:
    """Raises ValueError when a frozen part is not the one that `what` was made with. A folder may have moved: only
    its content counts."""
    for part, fingerprint in before.items():
        given = now.get(part, "none")
        if _content(fingerprint) != _content(given):
            raise ValueError(f"{what} was made with the {part} {fingerprint}, not {given}; give it that one again")


def _content(fingerprint: str) -> str:
    """The hash of a folder's files. A revision says nothing without the hub id before it."""
    version = fingerprint.rpartition("@")[-1]
    return version if re.fullmatch("[0-9a-f]{12}", version) else fingerprint
