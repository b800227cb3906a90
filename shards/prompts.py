"""Every wording, and the one seam to a chat template.

The writer of continuations, the trainer, the evaluator and the chat all import from here, so that none can drift from
the others. English strings are the authors' own (cwang621/blsp-emo, README). A transcript is always encoded with
special tokens split into plain characters: it cannot open or close a turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from shards.sample import EMOTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_SYSTEM = "You are a helpful assistant."
EMPATHY_SYSTEM = (
    "You are a helpful assistant. Your response should fulfill requests with empathy toward user's emotion tone."
)


@dataclass(frozen=True)
class Prompt:
    """A system message and the instruction that directly precedes the speech (or its transcript)."""

    system: str
    instruction: str


PROMPTS = {
    "continue": Prompt(PLAIN_SYSTEM, "Continue the following sentence in a coherent style: "),
    "continue_emotion": Prompt(
        EMPATHY_SYSTEM,
        "Continue the following sentence that reflects a '{emotion}' emotion tone in a coherent style: ",
    ),
    "continue_tone": Prompt(
        EMPATHY_SYSTEM,
        "Continue the following sentence based on the conveyed emotion tone in a coherent style: ",
    ),
    "identify": Prompt(
        PLAIN_SYSTEM,
        "Please identify the emotion tone of the speech provided below. Select from the following options: "
        "neutral, sad, angry, happy, or surprise.\n\nSpeech: ",
    ),
    "chat": Prompt(EMPATHY_SYSTEM, ""),
}

# The prompt under which a continuation is learnt from speech. The writer of stage-2 targets sees the label; the
# model that learns them never does.
TRAINED_UNDER = {"continue": "continue", "continue_emotion": "continue_tone"}

_SLOT = "\u241fspeech\u241f"


class ChatTemplate:
    """Token ids of everything around the speech, for one LLM's tokenizer and chat template.

    A sequence is `prefix(prompt) + [speech slots or transcript ids] + suffix() + response(...)`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; use the LLM's chat version"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{tokenizer.name_or_path}: the tokenizer names no end-of-turn (eos) token")
        self.tokenizer = tokenizer
        self.end_of_turn_id: int = tokenizer.eos_token_id
        self._prefixes: dict[tuple[str, str | None], list[int]] = {}

    def _split(self, prompt: str, emotion: str | None) -> tuple[str, str]:
        wording = PROMPTS[prompt]
        instruction = wording.instruction.format(emotion=emotion) if emotion else wording.instruction
        user = instruction + _SLOT
        rendered = self._render([{"role": "system", "content": wording.system}, {"role": "user", "content": user}])
        if rendered is None or wording.system not in rendered:
            # Mistral's and Gemma's templates know no system turn: its words open the user's.
            rendered = self._render([{"role": "user", "content": f"{wording.system}\n\n{user}"}])
        before, *after = (rendered or "").split(_SLOT)
        if len(after) != 1:
            how = "repeats" if after else "drops"
            raise ValueError(f"{self.tokenizer.name_or_path}: its chat template {how} the user's message")
        return before, after[0]

    def _render(self, turns: list[dict[str, str]]) -> str | None:
        """A conversation as text, up to where the answer starts; None when the template refuses it."""
        from jinja2 import TemplateError

        try:
            # Targets are answers, not thoughts: templates of reasoning LLMs (Qwen3) then close the thinking at once.
            rendered = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        except TemplateError:
            return None
        assert isinstance(rendered, str)
        return rendered

    def prefix(self, prompt: str, emotion: str | None = None) -> list[int]:
        """Ids before the speech: system turn, start of the user turn, instruction. `emotion` fills its placeholder."""
        key = (prompt, emotion)
        if key not in self._prefixes:
            self._prefixes[key] = self._ids(self._split(prompt, emotion)[0])
        return self._prefixes[key]

    @cached_property
    def _suffix(self) -> list[int]:
        return self._ids(self._split("continue", None)[1])

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def suffix(self) -> list[int]:
        """Ids between the speech and the response: end of the user turn, start of the assistant turn."""
        return self._suffix

    def encode(self, text: str) -> list[int]:
        """Ids of a transcript or response; special tokens inside it are spelled out as characters."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in much less time."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def response(self, text: str, finished: bool) -> list[int]:
        """Ids that are learnt: the text and, unless the token limit cut it, the end of the turn."""
        return self.encode(text) + ([self.end_of_turn_id] if finished else [])

    def decode(self, ids: list[int]) -> str:
        """The text of generated ids, without special tokens and surrounding white space."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text.strip()

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change when the vocabulary, the chat template or any wording changes."""
        prefixes = {name: self.prefix(name, EMOTIONS[0] if "{emotion}" in p.instruction else None)
                    for name, p in PROMPTS.items()}  # fmt: skip
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        content = json.dumps([prefixes, self.suffix(), vocabulary, PROMPTS["continue_emotion"].instruction])
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
