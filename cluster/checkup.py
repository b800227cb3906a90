"""What a host says of itself before a job is sent there: `blsp doctor` asks every host of a run the same questions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.interface import address_towards, interface_of

# What all ranks of a run must have in the same version.
PACKAGES = ("torch", "deepspeed", "transformers", "peft", "flash-attn", "safetensors", "numpy", "ray")
_CONNECT_S = 5.0
_INFINIBAND = Path("/sys/class/infiniband")
_NVIDIA_DEVICE = Path("/dev/nvidiactl")
_SMI_S = 15.0
_QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]


def facts(folder: Path) -> dict[str, Any]:
    """Versions, GPUs, room and limits of this host; `folder` is where the run will be written."""
    gpus, gpu_error = _gpus()
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "code": code_hash(),
        "gpus": gpus,
        "gpu_error": gpu_error,
        "infiniband": _INFINIBAND.is_dir() and any(_INFINIBAND.iterdir()),
        "free_bytes": shutil.disk_usage(_existing(folder)).free,
        "shm_bytes": shutil.disk_usage("/dev/shm").free,
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "locked_bytes": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
    }


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def code_hash() -> str:
    """12 hex digits of our own sources: a copy that was not brought up to date is another one."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.blake2b(digest_size=6)
    for package in ("launcher", "blsp", "shards", "cluster"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _gpus() -> tuple[list[dict[str, Any]], str]:
    """The GPUs, and what is wrong with them or the driver; a host that has neither is no error."""
    try:
        said = subprocess.run(_QUERY, capture_output=True, text=True, errors="replace", timeout=_SMI_S)
    except FileNotFoundError:
        there = _NVIDIA_DEVICE.exists()
        return [], f"{_NVIDIA_DEVICE} is there, but no nvidia-smi is in PATH" if there else ""
    except OSError as error:
        return [], f"nvidia-smi: {error.strerror}"
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi gives no answer in {_SMI_S:.0f} s"
    lines = said.stdout.splitlines()
    found = [[word.strip() for word in line.rsplit(",", 2)] for line in lines if line.strip()]
    if said.returncode != 0 or any(len(words) != 3 for words in found):
        words = " ".join(f"{said.stdout} {said.stderr}".split())
        return [], f"nvidia-smi: {words or f'ended with exit code {said.returncode}'}"
    # A GPU that shares the host's memory has [N/A] of its own.
    return [
        {"name": name, "memory_mib": int(mib) if mib.isdecimal() else None, "driver": driver}
        for name, mib, driver in found
    ], ""


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())


def leave_token(folder: Path, name: str) -> str:
    """Write a file that every other host must see. Returns its path; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(name)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return str(path)


def tokens(folder: Path) -> list[str]:
    """The tokens that this host sees."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def way_to(host: str) -> dict[str, Any]:
    """This host's address and interface on the way to `host`. Raises OSError when no way leads there."""
    address = address_towards(host)
    return {"address": address, "interface": interface_of(address) if address else "lo"}


def connect(address: str, port: int) -> str:
    """This host's address of a connection to there. Raises OSError when nothing answers."""
    with socket.create_connection((address, port), _CONNECT_S) as connection:
        own: str = connection.getsockname()[0]
        return own
