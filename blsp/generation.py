"""Answers: the LLM writes on where a clip, some words or a conversation of both end.

One way for `blsp chat`, evaluation and transformers' `generate`: token ids with the positions of speech marked, padded
on the left. n sequences, T positions, S speech tokens of a clip, H LLM width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from blsp.lora import LoraGate
from shards.prompts import ChatTemplate, in_language

HEARD = -1  # among token ids: here stands one embedding of speech
_READERS_OF_IDS = (
    "prompt_lookup_num_tokens", "assistant_model", "assistant_early_exit", "use_mtp", "prefill_chunk_size",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """Sequences of any length as one batch, padded on the left: int64, int64 and bool, all [n, T]."""

    input_ids: Tensor
    attention_mask: Tensor
    speech_mask: Tensor


def left_padded(sequences: Sequence[list[int]], pad_id: int = 0, device: torch.device | None = None) -> Asked:
    """Sequences of token ids in which `HEARD` marks the positions of speech."""
    longest = max(map(len, sequences))
    ids, attended = (torch.zeros(len(sequences), longest, dtype=torch.int64) for _ in range(2))
    ids.fill_(pad_id)
    for row, sequence in enumerate(sequences):
        if sequence:
            ids[row, -len(sequence) :] = torch.tensor(sequence, dtype=torch.int64)
            attended[row, -len(sequence) :] = 1
    heard = ids == HEARD
    return Asked(ids.masked_fill(heard, pad_id).to(device), attended.to(device), heard.to(device))


def greedy(max_new_tokens: int, end: int | None) -> GenerationConfig:
    """The likeliest token each time. Not the LLM's own file of settings: it may ask for sampling or a penalty."""
    return GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=end, pad_token_id=end)


class Answering(nn.Module, ABC):
    """What a model does with what it hears when nobody trains it."""

    llm: PreTrainedModel
    gate: LoraGate

    @property
    @abstractmethod
    def template(self) -> ChatTemplate:
        """Token ids of everything around the speech."""

    @abstractmethod
    def hear(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, list[int]]:
        """int16 [sum N], int64 [n] -> speech embeddings [sum S, H] and S of each clip."""

    @abstractmethod
    def emotion_logits(self, speech: Tensor, lengths: list[int]) -> Tensor:
        """[n, 5] of clips with these speech embeddings [sum S, H]."""

    @property
    def device(self) -> torch.device:
        """Where the LLM is."""
        return next(self.llm.parameters()).device

    def embed(self, input_ids: Tensor, speech_mask: Tensor, speech: Tensor) -> Tensor:
        """[..., T] ids, [..., T] marked positions and what is heard there, [sum S, H], in order -> [..., T, H]."""
        embeddings: Tensor = self.llm.get_input_embeddings()(input_ids)
        return embeddings.masked_scatter(speech_mask[..., None], speech)

    @contextmanager
    def asked(self, asked: Asked, speech: Tensor | None) -> Iterator[Tensor]:
        """The sequences as embeddings [n, T, H], with LoRA as it must be in passes over them. `speech` [sum S, H]
        stands at the marked positions; without it this is the text LLM, with LoRA closed."""
        if speech is None:
            embeddings: Tensor = self.llm.get_input_embeddings()(asked.input_ids)
            self.gate.close()
        else:
            embeddings = self.embed(asked.input_ids, asked.speech_mask, speech)
            self.gate.open(asked.speech_mask)
        try:
            yield embeddings
        finally:
            self.gate.close()

    @torch.inference_mode()
    def write(self, asked: Asked, speech: Tensor | None, settings: GenerationConfig, **more: Any) -> Tensor:
        """The ids that the LLM writes after each sequence, [n, steps]: transformers' `generate` with its settings.
        Raises ValueError for ways to generate that read the ids of what was asked."""
        _refuse_readers_of_ids(settings, more)
        self.llm.generation_config = settings
        llm: Any = self.llm  # transformers' types leave `generate` out
        with self.asked(asked, speech) as embeddings:
            ids: Tensor = llm.generate(inputs_embeds=embeddings, attention_mask=asked.attention_mask, **more)
        return ids

    def generate(
        self,
        waveforms: Sequence[NDArray[np.int16]],
        prompt: str,
        max_new_tokens: int,
        languages: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Greedy answers to clips (int16, 16 kHz mono) under one prompt, which each is asked in its language; those of
        one language as one left-padded batch."""
        template = self.template
        told = [in_language(prompt, language) for language in languages or [None] * len(waveforms)]
        answers = [""] * len(waveforms)
        for each in dict.fromkeys(told):
            places = [place for place, its in enumerate(told) if its == each]
            before, after, clips = template.prefix(each), template.suffix(), [waveforms[place] for place in places]
            written = self.generate_ids(clips, before, after, max_new_tokens, template.end_of_turn_id)
            for place, ids in zip(places, written, strict=True):
                answers[place] = template.decode(ids)
        return answers

    @torch.inference_mode()
    def generate_ids(
        self,
        waveforms: list[NDArray[np.int16]],
        before: list[int],
        after: list[int],
        max_new_tokens: int,
        end: int | None = None,
    ) -> list[list[int]]:
        """Greedy token ids after `before`, a clip (int16, 16 kHz mono) and `after`, the clips as one left-padded batch.
        An answer that reaches `end` is filled up with it; without `end` all are `max_new_tokens` long."""
        speech, lengths = self.hear(*pack(waveforms, self.device))
        sequences = [[*before, *[HEARD] * length, *after] for length in lengths]
        asked = left_padded(sequences, device=self.device)
        answers: list[list[int]] = self.write(asked, speech, greedy(max_new_tokens, end)).tolist()
        return answers

    def answer(self, text: str, prompt: str, max_new_tokens: int) -> str:
        """Greedy answer to typed words: the LLM as it was before it learnt to hear, with LoRA closed."""
        template = self.template
        ids = template.prefix(prompt) + template.encode(text) + template.suffix()
        asked = left_padded([ids], device=self.device)
        (answer,) = self.write(asked, None, greedy(max_new_tokens, template.end_of_turn_id)).tolist()
        return template.decode(answer)

    @torch.inference_mode()
    def classify(self, waveforms: list[NDArray[np.int16]]) -> NDArray[np.float32]:
        """The emotion classifier's log-probabilities [n, 5], in the order of EMOTIONS."""
        logits = self.emotion_logits(*self.hear(*pack(waveforms, self.device)))
        result: NDArray[np.float32] = logits.float().log_softmax(-1).cpu().numpy()
        return result


def _refuse_readers_of_ids(settings: GenerationConfig, more: dict[str, Any]) -> None:
    """The LLM is given embeddings, and these would draft, or split, an empty prompt."""
    for name in _READERS_OF_IDS:
        given = more.get("generation_config")
        value = getattr(given, name, None) or getattr(settings, name, None)
        if more.get(name, value):
            raise ValueError(
                f"{name}: reads the token ids of what was asked, and speech has none; leave it out. Answers stay the "
                "same: it is there for speed or memory only"
            )


def pack(waveforms: list[NDArray[np.int16]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Clips end to end: int16 [sum N] and int64 [n]. Raises ValueError for one that is empty or of another type."""
    for place, clip in enumerate(waveforms):
        if clip.dtype != np.int16 or clip.ndim != 1:
            raise ValueError(
                f"clip {place} is {clip.dtype} {list(clip.shape)}, not int16 samples of one channel at 16 kHz; "
                "shards.audio makes them of files and arrays"
            )
        if not len(clip):
            raise ValueError(f"clip {place} holds no samples; leave it out")
    waveform = torch.from_numpy(np.concatenate(waveforms)).to(device)
    return waveform, torch.tensor([len(clip) for clip in waveforms], device=device)
