"""The bars and notices of others, off: a command prints its own progress and nothing else."""

from __future__ import annotations

import os
from pathlib import Path


def has_gpu() -> bool:
    """Whether this process may use a GPU of this host; tells without torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))


def num_gpus() -> int:
    """How many GPUs of this host this process may use; tells without torch."""
    if not has_gpu():
        return 0
    for variable in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if variable in os.environ:
            return len([name for name in os.environ[variable].split(",") if name.strip()])
    nvidia = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    amd = [
        path for path in Path("/sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id") if path.read_text().strip() != "0"
    ]
    return len(nvidia) or len(amd) or 1


def silence_libraries() -> None:
    """Call before models are loaded or saved. Downloads keep their bars: they can take long."""
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns when it has to find that out
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    enable_progress_bars()
