"""Continuations by vLLM, on a GPU: the same ids in, and the same greedy choice, as with transformers.

Not tried on a GPU by us: tests hold it to the parts of vLLM's interface that are used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shards.foreign_models import in_a_sentence, refuse_kernels
from shards.prompts import ChatTemplate
from shards.sample import Continuation
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
        # Not the model's own generation settings: they may ask for sampling or a repetition penalty. And not its own
        # greatest length, for which the memory of a GPU may be too small (-1: what fits); prompts here are short.
        self._llm: Any = vllm.LLM(
            model=llm_path, revision=revision, tokenizer_revision=revision, trust_remote_code=False,
            dtype="bfloat16", generation_config="vllm", max_model_len=-1,
        )  # fmt: skip
        self._reading: Any = vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
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
        for number, output in self._run(prompts, self._sampling):
            yield number, generation(self.template, prompts[number], list(output.outputs[0].token_ids))

    def log_probabilities(self, requests: Sequence[Request], continuations: Sequence[Continuation]) -> list[float]:
        """Of each continuation as the answer to its request, in nats; 0 for one without a token."""
        responses = [self.template.response(text.text, text.finished) for text in continuations]
        prompts = [self.prompt(request) for request in requests]
        found = [0.0] * len(requests)
        read = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        for number, output in self._run(read, self._reading):
            response = responses[number]
            told = output.prompt_logprobs[len(prompts[number]) :]  # of each token, by those before it
            found[number] = sum(chosen[token].logprob for chosen, token in zip(told, response, strict=True))
        return found

    def _run(self, prompts: Sequence[list[int]], sampling: Any) -> Iterator[tuple[int, Any]]:
        """(number, output) of each prompt, as they end."""
        engine, numbers = self._llm.llm_engine, {}
        for number, prompt in enumerate(prompts):
            self._num_asked += 1
            numbers[str(self._num_asked)] = number
            engine.add_request(str(self._num_asked), self._prompt(prompt_token_ids=prompt), sampling)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    yield numbers[output.request_id], output
