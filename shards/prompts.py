"""Every wording, and the one seam to a chat template.

The writer of continuations, the trainer, the evaluator and the chat all import from here, so that none can drift from
the others. English strings are the authors' own (cwang621/blsp-emo, README). A transcript is always encoded with
special tokens split into plain characters: it cannot open or close a turn.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from shards.sample import EMOTIONS, ROLES

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
    "reply": Prompt(PLAIN_SYSTEM, ""),
    "reply_emotion": Prompt(EMPATHY_SYSTEM, "Answer the following, which is said in a '{emotion}' emotion tone: "),
}

# The prompt under which a continuation is learnt from speech. The writer of stage-2 targets sees the label; the
# model that learns them never does. Under the last two the LLM answers in place of going on: conversations.
TRAINED_UNDER = {
    "continue": "continue", "continue_emotion": "continue_tone", "reply": "reply", "reply_emotion": "chat"
}  # fmt: skip
# Where the student's prompt is the writer's, so that the text LLM is its own teacher.
SAME_PROMPT = tuple(writing for writing, trained in TRAINED_UNDER.items() if writing == trained)

# Written for it is what may be replayed beside another prompt, and trained under it: the LLM's plain behaviour.
REPLAYED = "continue"

# Llama's templates say what day it is. It is always this one, which theirs fall back to: what was written and taught on
# one day is asked for and answered on another.
_TODAY = time.strptime("2024-07-26", "%Y-%m-%d")

_SLOT = "\u241fspeech\u241f"
_MAX_TEMPLATE, _MAX_RENDERED = 2**18, 2**20  # characters; the longest templates of chat LLMs have some 20,000


class ChatTemplate:
    """Token ids of everything around the speech, for one LLM's tokenizer and chat template.

    A sequence is `prefix(prompt) + [speech slots or transcript ids] + suffix() + response(...)`; in a conversation
    `around` says what stands between the turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; use the LLM's chat version"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError(f"{tokenizer.name_or_path}: the tokenizer names no end-of-turn (eos) token")
        if len(str(tokenizer.chat_template)) > _MAX_TEMPLATE:
            raise ValueError(f"{tokenizer.name_or_path}: its chat template has more than {_MAX_TEMPLATE:,} characters")
        self.tokenizer = tokenizer
        self._around: dict[tuple[str, str | None, int], list[list[int]]] = {}
        behind = self._behind_an_answer()
        self.end_of_turn_id: int = tokenizer.eos_token_id if behind is None else behind

    def _behind_an_answer(self) -> int | None:
        """The special token that ends an assistant's turn within a conversation. The tokenizer's own eos may end
        whole texts instead: Gemma's turns end with <end_of_turn>, Phi-3's with <|end|>."""
        rendered = self._render([{"role": role, "content": _SLOT} for role in (*ROLES, ROLES[0])])
        pieces = (rendered or "").split(_SLOT)
        behind = self._ids(pieces[2].lstrip()) if len(pieces) == 4 else []
        ends = behind and behind[0] in self.tokenizer.added_tokens_decoder and behind[0] != self.tokenizer.bos_token_id
        return behind[0] if ends else None

    def _split(self, prompt: str, emotion: str | None, num_earlier: int) -> list[str]:
        wording = PROMPTS[prompt]
        instruction = wording.instruction.format(emotion=emotion) if emotion else wording.instruction
        contents = [_SLOT] * num_earlier + [instruction + _SLOT]
        turns = [{"role": ROLES[i % 2], "content": content} for i, content in enumerate(contents)]
        rendered = self._render([{"role": "system", "content": wording.system}, *turns])
        if rendered is None or wording.system not in rendered:
            # Mistral 7B's template knows no system turn: its words open the user's.
            turns[0]["content"] = f"{wording.system}\n\n{contents[0]}"
            rendered = self._render(turns)
        pieces = (rendered or "").split(_SLOT)
        if len(pieces) != len(turns) + 1:
            how = "repeats" if len(pieces) > len(turns) + 1 else "drops"
            which = "an earlier turn of a conversation" if num_earlier else "the user's message"
            raise ValueError(f"{self.tokenizer.name_or_path}: its chat template {how} {which}")
        return pieces

    def _render(self, turns: list[dict[str, str]]) -> str | None:
        """A conversation as text, up to where the answer starts; None when the template refuses it."""
        from jinja2 import TemplateError

        try:
            # Targets are answers, not thoughts: templates of reasoning LLMs (Qwen3) then close the thinking at once.
            rendered = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, enable_thinking=False,
                strftime_now=lambda form: time.strftime(form, _TODAY),
            )  # fmt: skip
        except TemplateError:
            return None
        except (ArithmeticError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            why = str(error)[:200] or type(error).__name__
            raise ValueError(f"{self.tokenizer.name_or_path}: its chat template fails ({why})") from error
        assert isinstance(rendered, str)
        if len(rendered) > _MAX_RENDERED:
            raise ValueError(
                f"{self.tokenizer.name_or_path}: its chat template makes {len(rendered):,} characters of a short turn"
            )
        return rendered

    def around(self, prompt: str, emotion: str | None = None, num_earlier: int = 0) -> list[list[int]]:
        """Ids before, between and behind the contents of the turns: of `num_earlier` messages, then of the last turn,
        before which the instruction stands. `emotion` fills its placeholder. Raises ValueError when the chat template
        does not render such a conversation."""
        key = (prompt, emotion, num_earlier)
        if key not in self._around:
            self._around[key] = [self._ids(piece) for piece in self._split(prompt, emotion, num_earlier)]
        return self._around[key]

    def context(self, prompt: str, emotion: str | None, contents: Sequence[list[int]]) -> list[int]:
        """Ids of a conversation up to where the response starts; `contents` are those of its turns."""
        first, *others = self.around(prompt, emotion, len(contents) - 1)
        ids = list(first)
        for content, behind in zip(contents, others, strict=True):
            ids += content + behind
        return ids

    def num_around(self, prompt: str, emotion: str | None = None, num_earlier: int = 0) -> int:
        """How many ids `around` has."""
        return sum(map(len, self.around(prompt, emotion, num_earlier)))

    def prefix(self, prompt: str, emotion: str | None = None) -> list[int]:
        """Ids before the speech: system turn, start of the user turn, instruction. `emotion` fills its placeholder."""
        return self.around(prompt, emotion)[0]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def suffix(self) -> list[int]:
        """Ids between the speech and the response: end of the user turn, start of the assistant turn."""
        return self.around("continue")[1]

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
        named = [prompt.instruction for prompt in PROMPTS.values() if "{emotion}" in prompt.instruction]
        turns = self._render([{"role": role, "content": _SLOT} for role in (*ROLES, ROLES[0])])
        content: list[Any] = [prefixes, self.suffix(), vocabulary, named, turns]
        if self.end_of_turn_id != self.tokenizer.eos_token_id:
            content.append(self.end_of_turn_id)
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
