"""The bars and notices of others, off: a command prints its own progress and nothing else."""

from __future__ import annotations

import os
from pathlib import Path


def has_gpu() -> bool:
    """Whether this process may use a GPU of this host; tells without torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))


def silence_libraries() -> None:
    """Call before models are loaded or saved. Downloads keep their bars: they can take long."""
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns when it has to find that out
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    enable_progress_bars()
