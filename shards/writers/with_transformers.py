"""Continuations by any chat LLM that transformers loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.foreign_models import in_a_sentence, refuse_kernels
from shards.prompts import ChatTemplate
from shards.sample import Continuation
from shards.sets.teacher import TeacherSpec
from shards.writers.fingerprint import model_fingerprint, named_in_errors
from shards.writers.greedy import GreedyWriter, generation, prompt_ids
from shards.writers.protocol import Generation, NoAnswer, Request

if TYPE_CHECKING:
    from torch import Tensor

_GOING_SHARE = 0.9  # of a batch: with fewer it is made smaller, which copies its keys and values


def kept_predictions(logits: Tensor, spec: TeacherSpec) -> NDArray[np.void]:
    """What shards keep of an LLM's logits [R, V] before each response token: rows of `spec.row`."""
    logits = logits.float()
    logits = logits - logits.amax(1, keepdim=True)
    top = logits.topk(min(spec.top_k, logits.shape[1]), dim=1)
    rows = np.zeros(len(logits), spec.row)
    rows["logits"] = -np.inf  # of the places that a small vocabulary leaves free
    rows["ids"][:, : top.indices.shape[1]] = top.indices.cpu().numpy()
    rows["logits"][:, : top.values.shape[1]] = top.values.cpu().numpy()
    for i, temperature in enumerate(spec.temperatures):
        rows["log_z"][:, i] = (logits / temperature).logsumexp(1).cpu().numpy()
    return rows


class TransformersWriter(GreedyWriter[list[int]]):
    """Any chat LLM that transformers loads: greedy, batched by length, on the GPU if there is one."""

    template: ChatTemplate

    def __init__(
        self,
        llm_path: str,
        max_new_tokens: int = 48,
        batch_size: int = 32,
        revision: str | None = None,
        cache: Path | None = None,
    ) -> None:
        """Raises OSError or ValueError in transformers' words when the model or its chat template cannot be loaded."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if on_gpu else "cpu")
        with named_in_errors(llm_path), in_a_sentence(llm_path, "writer.llm"):
            refuse_kernels(llm_path, revision, "writer.llm")
            tokenizer = AutoTokenizer.from_pretrained(llm_path, revision=revision, trust_remote_code=False)
        template = ChatTemplate(tokenizer)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        with in_a_sentence(llm_path, "writer.llm"):
            model: Any = AutoModelForCausalLM.from_pretrained(
                llm_path, revision=revision, dtype=dtype, trust_remote_code=False
            )
        self._model: Any = model.to(self._device)
        self._max_new_tokens = max_new_tokens
        self._batch_size = batch_size
        version = model_fingerprint(llm_path, getattr(self._model.config, "_commit_hash", None) or revision)
        name = f"{version} wording={template.wording} greedy max_new_tokens={max_new_tokens}"
        super().__init__(name, template, cache)

    def generate(self, prompts: Sequence[list[int]]) -> Iterator[tuple[int, Generation | NoAnswer]]:
        """Batch by batch, each of prompts of about the same length."""
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(prompts), self._batch_size):
            batch = by_length[start : start + self._batch_size]
            yield from zip(batch, self._generate([prompts[i] for i in batch]), strict=True)

    def teach(
        self, requests: Sequence[Request], continuations: Sequence[Continuation], spec: TeacherSpec
    ) -> list[NDArray[np.void]]:
        """What the LLM predicts at each response token of each continuation: rows of `spec.row`, in order."""
        taught = [np.empty(0, spec.row) for _ in requests]
        for i, _, logits in self._predictions(requests, continuations):
            taught[i] = kept_predictions(logits, spec)
        return taught

    def log_probabilities(self, requests: Sequence[Request], continuations: Sequence[Continuation]) -> list[float]:
        """Of each continuation as the answer to its request, in nats; 0 for one without a token."""
        import torch

        found = [0.0] * len(requests)
        for i, response, logits in self._predictions(requests, continuations):
            tokens = torch.tensor(response, device=logits.device)
            found[i] = -float(torch.nn.functional.cross_entropy(logits.float(), tokens, reduction="sum"))
        return found

    def _predictions(
        self, requests: Sequence[Request], continuations: Sequence[Continuation]
    ) -> Iterator[tuple[int, list[int], Tensor]]:
        """(number, response ids, logits [R, V] that predict them) of each continuation that has a token, in batches of
        about the same length."""
        prompts = [self.prompt(request) for request in requests]
        responses = [self.template.response(c.text, c.finished) for c in continuations]
        lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
        by_length = sorted((i for i, response in enumerate(responses) if response), key=lengths.__getitem__)
        for start in range(0, len(by_length), self._batch_size):
            batch = by_length[start : start + self._batch_size]
            predicted = self._predict([prompts[i] for i in batch], [responses[i] for i in batch])
            for i, logits in zip(batch, predicted, strict=True):
                yield i, responses[i], logits

    def _predict(self, prompts: list[list[int]], responses: list[list[int]]) -> list[Tensor]:
        """The logits before each response token of one batch, padded on the left: all responses end together."""
        import torch

        texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        width, longest = max(map(len, texts)), max(map(len, responses))
        pad = self.template.end_of_turn_id
        ids = torch.tensor([[pad] * (width - len(text)) + text for text in texts], device=self._device)
        lengths = torch.tensor([len(text) for text in texts], device=self._device)
        mask = torch.arange(width, device=self._device) >= (width - lengths)[:, None]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            output = self._model(
                input_ids=ids, attention_mask=mask.long(), position_ids=positions, logits_to_keep=longest + 1
            )
            # The row before a token predicts it.
            return [logits[-len(rows) - 1 : -1] for logits, rows in zip(output.logits, responses, strict=True)]

    def prompt(self, request: Request) -> list[int]:
        """The ids that training shows the LLM too."""
        return prompt_ids(self.template, request)

    def _generate(self, prompts: list[list[int]]) -> list[Generation]:
        """Of one batch, padded on the left. What all prompts begin with is read once; texts that have ended leave."""
        import torch

        end, shared = self.template.end_of_turn_id, self._shared_prefix(prompts)
        width = max(map(len, prompts)) - shared
        rest = [prompt[shared:] for prompt in prompts]
        ids = torch.tensor([[end] * (width - len(each)) + each for each in rest], device=self._device)
        lengths = torch.tensor([len(each) for each in rest], device=self._device)
        own = (torch.arange(width, device=self._device) >= (width - lengths)[:, None]).long()
        positions = (own.cumsum(1) - 1).clamp(min=0) + shared
        mask = torch.cat([own.new_ones(len(rest), shared), own], 1)
        new: list[list[int]] = [[] for _ in prompts]
        rows, cache = list(range(len(prompts))), None
        with torch.inference_mode():
            if shared:
                prefix = torch.tensor([prompts[0][:shared]], device=self._device)
                at = torch.arange(shared, device=self._device)[None]
                cache = self._model(input_ids=prefix, position_ids=at, use_cache=True, logits_to_keep=1).past_key_values
                cache.batch_repeat_interleave(len(prompts))
            while True:
                output = self._model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
                    logits_to_keep=1,
                )  # fmt: skip
                ids, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
                for row, token in zip(rows, ids[:, 0].tolist(), strict=True):
                    new[row].append(token)
                going = [place for place, row in enumerate(rows) if end not in new[row]]
                if not going or len(new[rows[going[0]]]) == self._max_new_tokens:
                    break
                positions = positions[:, -1:] + 1
                if len(going) <= _GOING_SHARE * len(rows) and hasattr(cache, "batch_select_indices"):
                    kept = torch.tensor(going, device=self._device)
                    cache.batch_select_indices(kept)
                    ids, mask, positions, rows = ids[kept], mask[kept], positions[kept], [rows[i] for i in going]
                mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        return [generation(self.template, prompt, ids) for prompt, ids in zip(prompts, new, strict=True)]

    def _shared_prefix(self, prompts: Sequence[list[int]]) -> int:
        """How many ids all prompts begin with, which are then read once for all; 0 where padding behind them would move
        what a layer sees (sliding windows, recurrences)."""
        config = self._model.config.get_text_config()
        layers = set(getattr(config, "layer_types", None) or ())
        if len(prompts) < 2 or layers - {"full_attention"} or (not layers and getattr(config, "sliding_window", None)):
            return 0
        first, last = min(prompts), max(prompts)
        same = next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
        return min(same, *(len(prompt) - 1 for prompt in prompts))
