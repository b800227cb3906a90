"""Conversations of words and clips -> what the model takes: the LLM's own chat template around counted positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from blsp.adapter import make_adapter
from blsp.encoder import longest_clip, num_positions
from blsp.features import AudioWindow
from blsp.generation import HEARD, left_padded
from blsp.recipe import ModelSection
from shards.audio import SAMPLE_RATE, load_audio, samples_of
from shards.prompts import PROMPTS, ChatTemplate
from shards.sample import ROLES

_IGNORED = -100  # of labels
_MESSAGES = 'give a list of messages {"role": "user", "content": ...}'
_CONTENT = 'content is words, or a list of {"type": "text", "text": ...} and {"type": "audio", "audio": ...}'


class BlspEmoProcessor(ProcessorMixin):
    """`processor(conversations)` or `processor(audio=...)`.

    A conversation is a list of messages {"role": "user" | "assistant", "content": str or parts}; a part is
    {"type": "text", "text": ...} or {"type": "audio", "audio": path or samples, "sampling_rate": 16000}. The system
    message and the words before the last turn are those that the model was trained with: `prompt` chooses them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        audio: dict[str, Any] | None = None,
        adapter: dict[str, Any] | None = None,
        audio_window: str = "30s",
        chat_template: str | None = None,
    ) -> None:
        """`audio` holds what of the encoder's configuration decides how many positions a clip takes; `adapter` and
        `audio_window` are as in the model's configuration."""
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)  # type: ignore[no-untyped-call]
        self.audio = audio or {"model_type": "whisper", "max_source_positions": 1500}
        self.adapter, self.audio_window = adapter, audio_window
        self._template = ChatTemplate(tokenizer)
        self._audio_config = AutoConfig.for_model(**self.audio)
        given = {} if adapter is None else {"adapter": adapter}
        section = ModelSection.model_validate({"llm": "text_config", "encoder": "audio_config", **given})
        with torch.device("meta"):  # for its arithmetic alone
            self._adapter = make_adapter(section.adapter, 8, 8)

    @staticmethod
    def of(config: Any, tokenizer: PreTrainedTokenizerBase) -> BlspEmoProcessor:
        """The processor that belongs to a `BlspEmoConfig`."""
        fields = ("model_type", "max_source_positions", "conv_kernel", "conv_stride")
        audio = {name: getattr(config.audio_config, name) for name in fields if hasattr(config.audio_config, name)}
        return BlspEmoProcessor(tokenizer, audio, config.adapter, config.audio_window)

    def num_speech_tokens(self, num_samples: int) -> int:
        """Positions that a clip takes in the LLM's sequence. Raises ValueError for one longer than the window."""
        limit = longest_clip(self._audio_config, AudioWindow(self.audio_window))
        if num_samples > limit:
            raise ValueError(
                f"a clip of {num_samples / SAMPLE_RATE:.2f} s is longer than the {limit / SAMPLE_RATE:.1f} s that the "
                f"encoder hears with audio_window {self.audio_window!r}; cut it"
            )
        return self._adapter.num_tokens(num_positions(self._audio_config, num_samples))

    def __call__(
        self,
        conversations: Any = None,
        *,
        audio: Any = None,
        sampling_rate: int | None = None,
        prompt: str = "chat",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """A batch of conversations (or one), or of single clips in `audio` (or one), padded on the left.

        Where every conversation ends with the assistant, `labels` are that answer's ids and -100 elsewhere.
        Raises ValueError for audio that cannot be heard and conversations that the model was not made for.
        """
        if (conversations is None) == (audio is None):
            raise ValueError("give either conversations or audio, one of the two")
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r}: the model takes torch's tensors, 'pt'")
        if prompt not in PROMPTS or "{emotion}" in PROMPTS[prompt].instruction:
            known = [name for name, wording in PROMPTS.items() if "{emotion}" not in wording.instruction]
            raise ValueError(f"prompt {prompt!r} is not one of {', '.join(known)}")
        if audio is not None:
            several = isinstance(audio, list | tuple)
            parts = [
                {"type": "audio", "audio": clip, "sampling_rate": sampling_rate}
                for clip in (audio if several else [audio])
            ]
            conversations = [[{"role": "user", "content": [part]}] for part in parts]
        elif not isinstance(conversations, list | tuple):
            raise ValueError(f"{_told(conversations)} is not a conversation; {_MESSAGES}")
        elif conversations and isinstance(conversations[0], Mapping):
            conversations = [conversations]
        if not conversations:
            raise ValueError("there is no conversation in this batch")
        clips: list[NDArray[np.int16]] = []
        pairs = [self._sequence(conversation, prompt, clips) for conversation in conversations]
        return self._batch(pairs, clips)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, **kwargs: Any
    ) -> Any:
        """As transformers' with `tokenize=True, return_dict=True`: the same as calling the processor, so an answer
        follows a user's last turn. Raises ValueError for what would be something else."""
        if chat_template is not None:
            raise ValueError("another chat template than the LLM's own is not what the model was trained with")
        asked_for = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, **kwargs}
        for name in ("tokenize", "return_dict"):
            if not asked_for.pop(name):
                raise ValueError(f"{name}=False: positions of speech have no text; leave it out")
        open_ended = not asked_for.pop("add_generation_prompt")
        inputs = self(conversation, **asked_for)
        if open_ended and "labels" not in inputs:
            raise ValueError(
                "add_generation_prompt=False: the model only ever saw a user's turn with the start of an answer behind "
                "it; leave it out, or end the conversation with the assistant"
            )
        return inputs

    def _batch(self, pairs: list[tuple[list[int], list[int]]], clips: list[NDArray[np.int16]]) -> BatchFeature:
        asked = left_padded([context + answer for context, answer in pairs], pad_id=self.tokenizer.pad_token_id or 0)
        data = {**vars(asked)}
        answered = {bool(answer) for _, answer in pairs}
        if len(answered) > 1:
            raise ValueError(
                "some of these conversations end with the assistant and are to be learnt, others are to be answered; "
                "make two batches of them"
            )
        if answered == {True}:
            data["labels"] = left_padded([[_IGNORED] * len(c) + a for c, a in pairs], pad_id=_IGNORED).input_ids
        if clips:
            data["input_values"] = pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
            data["num_samples"] = torch.tensor([len(clip) for clip in clips])
        return BatchFeature(data)

    def _sequence(
        self, conversation: Sequence[Mapping[str, Any]], prompt: str, clips: list[NDArray[np.int16]]
    ) -> tuple[list[int], list[int]]:
        """Ids before the answer and, of a conversation that ends with it, those of the answer."""
        if not isinstance(conversation, list | tuple):
            raise ValueError(f"{_told(conversation)} is not a conversation; {_MESSAGES}")
        for place, message in enumerate(conversation):
            if not isinstance(message, Mapping):
                raise ValueError(f"message {place} is {_told(message)}; {_MESSAGES}")
            if message.get("role") != ROLES[place % 2]:
                raise ValueError(
                    f"message {place} is of {message.get('role')!r}, not of {ROLES[place % 2]!r}: user and assistant "
                    "take turns; the system message is chosen by `prompt`"
                )
        if not conversation:
            raise ValueError("a conversation of no messages has nothing to answer")
        contents = [self._content(message, clips) for message in conversation]
        answer = contents.pop() if len(contents) % 2 == 0 else []
        if HEARD in answer:
            raise ValueError("the assistant's answer holds a clip; it answers in words")
        context = self._template.context(prompt, None, contents)
        return context, [*answer, self._template.end_of_turn_id] if answer else []

    def _content(self, message: Mapping[str, Any], clips: list[NDArray[np.int16]]) -> list[int]:
        content = message.get("content")
        parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        if not isinstance(parts, list | tuple):
            raise ValueError(f"the content {_told(parts)}; {_CONTENT}")
        ids: list[int] = []
        for part in parts:
            if not isinstance(part, Mapping):
                raise ValueError(f"the part {_told(part)}; {_CONTENT}")
            if part.get("type") == "text":
                if not isinstance(part.get("text"), str):
                    raise ValueError(f"a part of type 'text' without text in it: {_told(part)}; {_CONTENT}")
                ids += self._template.encode(part["text"])
            elif part.get("type") == "audio":
                clips.append(_samples(part.get("audio"), part.get("sampling_rate")))
                ids += [HEARD] * self.num_speech_tokens(len(clips[-1]))
            else:
                raise ValueError(f"a part of type {part.get('type')!r}: known are 'text' and 'audio'")
        if not ids:
            raise ValueError(f"a message of {message.get('role')!r} without content")
        return ids

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """The text of generated ids, without special tokens and surrounding white space."""
        ids = torch.as_tensor(token_ids)
        return [self.decode(row) for row in ids] if ids.ndim == 2 else self._template.decode(ids.tolist())

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """`decode` of each row."""
        return [self.decode(row) for row in sequences]


def _told(given: Any) -> str:
    """A wrong thing in an error, in one line."""
    words = repr(given)
    return words if len(words) <= 60 else f"{words[:57]}..."


def _samples(audio: Any, rate: int | None) -> NDArray[np.int16]:
    if isinstance(audio, str | Path):
        return load_audio(Path(audio))
    if isinstance(audio, Mapping):  # as the library `datasets` gives clips
        audio, rate = audio.get("array"), audio.get("sampling_rate")
    return samples_of(np.asarray(audio), rate)
