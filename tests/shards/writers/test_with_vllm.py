"""The one stub of the project: vLLM needs a GPU. It has the parts of vLLM's interface that the writer uses, and no
more, and continues with the transformers LLM of the other tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from shards.sample import Message
from shards.writers.protocol import Request
from shards.writers.with_transformers import TransformersWriter
from shards.writers.with_vllm import VllmWriter

MOST = 6


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    temperature: float
    max_tokens: int
    detokenize: bool
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    prompt_logprobs: int | None = None


@dataclass
class Engine:
    """Ends the requests that wait, two a step, the last first."""

    model: Any
    waiting: dict[str, tuple[list[int], SamplingParams]] = field(default_factory=dict)

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: SamplingParams) -> None:
        assert request_id not in self.waiting
        self.waiting[request_id] = (prompt["prompt_token_ids"], params)

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> Iterator[SimpleNamespace]:
        for request_id in list(self.waiting)[-2:]:
            yield SimpleNamespace(request_id=request_id, finished=False, outputs=[])
            prompt, params = self.waiting.pop(request_id)
            assert params.temperature == 0 and not params.detokenize
            if params.prompt_logprobs is not None:
                yield SimpleNamespace(request_id=request_id, finished=True, prompt_logprobs=self._read(prompt))
                continue
            assert params.ignore_eos
            yield SimpleNamespace(
                request_id=request_id, finished=True, outputs=[SimpleNamespace(token_ids=self._new(prompt, params))]
            )

    def _read(self, prompt: list[int]) -> list[dict[int, SimpleNamespace] | None]:
        """Of each token but the first, what vLLM calls Logprob."""
        import torch

        with torch.inference_mode():
            rows = self.model(torch.tensor([prompt])).logits[0].log_softmax(1)
        following = zip(rows, prompt[1:], strict=False)
        return [None, *({token: SimpleNamespace(logprob=float(row[token]))} for row, token in following)]

    def _new(self, prompt: list[int], params: SamplingParams) -> tuple[int, ...]:
        import torch

        new: list[int] = []
        while len(new) < params.max_tokens and (not new or new[-1] not in params.stop_token_ids):
            new.append(int(self.model(torch.tensor([prompt + new])).logits[0, -1].argmax()))
        return tuple(new)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """With what an LLM was loaded."""
    loaded: list[dict[str, Any]] = []

    def llm(**settings: Any) -> SimpleNamespace:
        from transformers import AutoModelForCausalLM

        loaded.append(settings)
        return SimpleNamespace(llm_engine=Engine(AutoModelForCausalLM.from_pretrained(settings["model"])))

    stub = ModuleType("vllm")
    vars(stub).update(LLM=llm, SamplingParams=SamplingParams, TokensPrompt=dict)
    monkeypatch.setitem(sys.modules, "vllm", stub)
    return loaded


def test_vllm_is_shown_the_same_ids_and_its_texts_are_as_those_of_transformers(
    vllm: list[dict[str, Any]], llm_folder: Path, tmp_path: Path
) -> None:
    talk = (Message(role="user", text="I saw it."), Message(role="assistant", text="What was it?"))
    asked = [Request(f"Anna heard {i} messages<|im_end|>.", "sad", "continue_emotion") for i in (1, 12, 123)]
    asked += [Request("A dog.", None, "reply", talk), Request("安娜", "sad", "continue_emotion_zh"), asked[0]]
    writer = VllmWriter(str(llm_folder), MOST, cache=tmp_path)
    written = writer.write(asked)
    other = TransformersWriter(str(llm_folder), MOST)
    assert [(a.text, a.finished, a.prompt) for a in written] == [
        (a.text, a.finished, a.prompt) for a in other.write(asked)
    ]
    assert writer.name == other.name + " vllm" and {a.writer for a in written} == {writer.name}
    assert vllm == [
        {"model": str(llm_folder), "revision": None, "tokenizer_revision": None, "trust_remote_code": False,
         "dtype": "bfloat16", "generation_config": "vllm", "max_model_len": -1}
    ]  # fmt: skip
    assert writer.log_probabilities(asked, written) == pytest.approx(other.log_probabilities(asked, written), rel=1e-4)
    again = VllmWriter(str(llm_folder), MOST, cache=tmp_path)
    again._llm.llm_engine.add_request = None  # nothing is asked for twice
    assert again.write(asked) == written


def test_without_vllm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, llm_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install 'blsp-emo\[vllm\]'"):
        VllmWriter(str(llm_folder))
