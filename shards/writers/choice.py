"""Which writer a job gets."""

from __future__ import annotations

import importlib.util

from shards.writers.endpoint import Endpoint
from shards.writers.fingerprint import model_fingerprint

BACKENDS = ("transformers", "vllm", "openai")


def chosen_backend(backend: str, with_teacher: bool) -> tuple[str, str]:
    """One of BACKENDS, and why, in words: what 'auto' comes to on this machine. All others are themselves."""
    if backend != "auto":
        return backend, "as the recipe says"
    if with_teacher:
        return "transformers", "it alone says what the LLM predicts"
    if importlib.util.find_spec("vllm") is None:
        return "transformers", "vLLM is not installed"
    import torch

    if not torch.cuda.is_available():
        return "transformers", "vLLM is installed, but this machine has no GPU"
    return "vllm", "it is installed, and this machine has a GPU"


def llm_version(backend: str, llm: str, revision: str | None, endpoint: Endpoint | None) -> str:
    """What a set's job.json calls the LLM. Raises ValueError for a folder without a model, or that is not there."""
    if backend == "openai":
        assert endpoint is not None
        return f"{llm}@{endpoint.host}"
    return model_fingerprint(llm, revision)
