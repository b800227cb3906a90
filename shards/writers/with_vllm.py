"""Continuations by vLLM, on a GPU: the same ids in, and the same greedy choice, as with transformers.

Not tried on a GPU by us: tests hold it to the parts of vLLM's interface that are used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shards.foreign_models import in_a_sentence, refuse_kernels
from shards.prompts import ChatTemplate
from shards.writers.fingerprint import model_fingerprint, named_in_errors
from shards.writers.greedy import GreedyWriter, generation, prompt_ids
from shards.writers.protocol import Generation, NoAnswer, Request


class VllmWriter(GreedyWriter[list[int]]):
    """Any chat LLM that vLLM loads. It batches by itself, and hands over each text as it ends."""

    template: ChatTemplate

    def __init__(
        self, llm_path: str, max_new_tokens: int = 48, revision: str | None = None, cache: Path | None = None
    ) -> None:
        """Raises ValueError when vLLM is missing, OSError or ValueError when the model or its chat template cannot be
        loaded."""
        try:
            import vllm
        except ImportError:
            raise ValueError("writer.backend: 'vllm' needs the package vllm; pip install 'blsp-emo[vllm]'") from None
        from transformers import AutoTokenizer

        with named_in_errors(llm_path), in_a_sentence(llm_path, "writer.llm"):
            refuse_kernels(llm_path, revision, "writer.llm")
            tokenizer = AutoTokenizer.from_pretrained(llm_path, revision=revision, trust_remote_code=False)
        template = ChatTemplate(tokenizer)
        self._prompt: Any = vllm.TokensPrompt
        # Not the model's own generation settings: they may ask for sampling or a repetition penalty.
        self._llm: Any = vllm.LLM(
            model=llm_path, revision=revision, tokenizer_revision=revision, trust_remote_code=False,
            dtype="bfloat16", generation_config="vllm",
        )  # fmt: skip
        # As with transformers the one end of a text is the end of the turn.
        self._sampling: Any = vllm.SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=[template.end_of_turn_id], ignore_eos=True,
            detokenize=False,
        )  # fmt: skip
        self._num_asked = 0
        version = model_fingerprint(llm_path, revision)
        name = f"{version} wording={template.wording} greedy max_new_tokens={max_new_tokens} vllm"
        super().__init__(name, template, cache)

    def prompt(self, request: Request) -> list[int]:
        """The ids that training shows the LLM too."""
        return prompt_ids(self.template, request)

    def generate(self, prompts: Sequence[list[int]]) -> Iterator[tuple[int, Generation | NoAnswer]]:
        """As texts end: vLLM decides what is decoded together."""
        engine, numbers = self._llm.llm_engine, {}
        for number, prompt in enumerate(prompts):
            self._num_asked += 1
            numbers[str(self._num_asked)] = number
            engine.add_request(str(self._num_asked), self._prompt(prompt_token_ids=prompt), self._sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    number = numbers[output.request_id]
                    yield number, generation(self.template, prompts[number], list(output.outputs[0].token_ids))
