"""Every wording, and the one seam to a chat template.

The writer of continuations, the trainer, the evaluator and the chat all import from here, so that none can drift from
the others. English strings are the authors' own (cwang621/blsp-emo, README); the Chinese ones are ours, for theirs are
not published. A transcript is always encoded with special tokens split into plain characters: it cannot open or close a
turn.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Sequence
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
_PLAIN_SYSTEM_ZH = "你是一个乐于助人的助手。"
_EMPATHY_SYSTEM_ZH = "你是一个乐于助人的助手。请体会用户的情感语气，以同理心回应用户的请求。"


@dataclass(frozen=True)
class Prompt:
    """A system message and the instruction that directly precedes the speech (or its transcript)."""

    system: str
    instruction: str


_ENGLISH = {
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
_CHINESE = {
    "continue": Prompt(_PLAIN_SYSTEM_ZH, "请以连贯的风格续写下面的句子："),
    "continue_emotion": Prompt(_EMPATHY_SYSTEM_ZH, "下面的句子带有“{emotion}”的情感语气，请以连贯的风格续写："),
    "continue_tone": Prompt(_EMPATHY_SYSTEM_ZH, "请根据下面的句子所传达的情感语气，以连贯的风格续写："),
    "identify": Prompt(
        _PLAIN_SYSTEM_ZH,
        "请识别下面这段语音的情感语气，从以下选项中选择一个英文单词作答：neutral（中性）、sad（悲伤）、angry（愤怒）、"
        "happy（高兴）或 surprise（惊讶）。\n\n语音：",
    ),
    "chat": Prompt(_EMPATHY_SYSTEM_ZH, ""),
    "reply": Prompt(_PLAIN_SYSTEM_ZH, ""),
    "reply_emotion": Prompt(_EMPATHY_SYSTEM_ZH, "请回答下面的话，说话人的情感语气是“{emotion}”："),
}
_ZH = "_zh"  # behind the name of a prompt: the same in Chinese. A record's prompt says in which language it was
PROMPTS = {**_ENGLISH, **{name + _ZH: prompt for name, prompt in _CHINESE.items()}}
LANGUAGES = ("en", "zh")
_CHINESE_EMOTIONS = dict(zip(EMOTIONS, ("中性", "高兴", "愤怒", "悲伤", "惊讶"), strict=True))
_CHINESE_CODES = {"zh", "cmn", "chinese", "mandarin"}

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


def written_for(task: str) -> list[str]:
    """The prompts whose continuations are trained under a task."""
    return [writing for writing, trained in TRAINED_UNDER.items() if trained == task]


def in_language(prompt: str, language: str | None) -> str:
    """The prompt in the language of an utterance (a code such as 'zh-CN', None for unknown): Chinese in Chinese, all
    others in English."""
    code = re.split("[-_]", language.lower())[0] if language else ""
    return prompt + _ZH if code in _CHINESE_CODES else prompt


def language_of(prompt: str) -> str:
    """One of LANGUAGES."""
    return "zh" if prompt.endswith(_ZH) else "en"


def emotion_name(emotion: str, language: str) -> str:
    """How prompts of one of LANGUAGES name one of EMOTIONS. Answers to `identify` are EMOTIONS in each."""
    return _CHINESE_EMOTIONS[emotion] if language == "zh" else emotion


def chat_messages(prompt: str, emotion: str | None, texts: Sequence[str]) -> list[dict[str, str]]:
    """System message and turns of a conversation whose turns say `texts`, the instruction before the last. `emotion`
    fills its placeholder."""
    wording, language = PROMPTS[prompt], language_of(prompt)
    instruction = wording.instruction
    if emotion:
        instruction = instruction.format(emotion=emotion_name(emotion, language))
    contents = [*texts[:-1], instruction + texts[-1]]
    turns = [{"role": ROLES[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": wording.system}, *turns]


def wordings_fingerprint() -> str:
    """16 hex digits that change with any wording: for those who are shown words and not ids."""
    content = [[name, prompt.system, prompt.instruction] for name, prompt in PROMPTS.items()]
    return hashlib.blake2b(json.dumps([content, _CHINESE_EMOTIONS]).encode(), digest_size=8).hexdigest()


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
        system, *turns = chat_messages(prompt, emotion, [_SLOT] * (num_earlier + 1))
        rendered = self._render([system, *turns])
        if rendered is None or system["content"] not in rendered:
            # Mistral 7B's template knows no system turn: its words open the user's.
            turns[0]["content"] = f"{system['content']}\n\n{turns[0]['content']}"
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
        """16 hex digits that change when the vocabulary, the chat template or any English wording changes."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        named = [prompt.instruction for prompt in _ENGLISH.values() if "{emotion}" in prompt.instruction]
        turns = self._render([{"role": role, "content": _SLOT} for role in (*ROLES, ROLES[0])])
        content: list[Any] = [self._prefixes(_ENGLISH), self.suffix(), vocabulary, named, turns]
        if self.end_of_turn_id != self.tokenizer.eos_token_id:
            content.append(self.end_of_turn_id)
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()

    @cached_property
    def wording(self) -> str:
        """`fingerprint`, a dot, and 8 hex digits that change when any Chinese wording changes. Sets that were written
        before there were any have the first alone."""
        content = [self._prefixes(name + _ZH for name in _CHINESE), _CHINESE_EMOTIONS]
        return f"{self.fingerprint}.{hashlib.blake2b(json.dumps(content).encode(), digest_size=4).hexdigest()}"

    def _prefixes(self, prompts: Iterable[str]) -> dict[str, list[int]]:
        told = {name: EMOTIONS[0] if "{emotion}" in PROMPTS[name].instruction else None for name in prompts}
        return {name: self.prefix(name, emotion) for name, emotion in told.items()}
