"""The section `writer` of a shard recipe: which LLM writes, where it runs, and what it may cost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, PositiveFloat, PositiveInt, Tag
from pydantic_core import PydanticCustomError

from blsp.section import FilePath, NonEmpty, Problem, Section, Text


def _checked_variable(name: str) -> str:
    """Who writes the key itself in its place must not find it in the message."""
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
        why = "must be the name of an environment variable, in capitals, that holds the key; never the key itself"
        raise PydanticCustomError("location", "{why}", {"why": why})
    return name


Variable = Annotated[str, AfterValidator(_checked_variable)]


class TeacherSection(Section):
    top_k: PositiveInt = Field(32, description="likeliest tokens kept of each distribution; 6 bytes each")
    temperatures: NonEmpty[PositiveFloat] = Field(
        (1.0, 2.0), description="what stage.kl_temperature may then be; 1 is among them, for the log"
    )

    def problems(self) -> Iterator[Problem]:
        if 1 not in self.temperatures:
            yield ("temperatures",), f"{list(self.temperatures)} must hold 1, at which training logs its loss; add it"


class _Writer(Section):
    llm: Text = Field(description="the chat LLM that writes the continuations: a folder or a hub id")
    prompt: Literal["continue", "continue_emotion", "reply", "reply_emotion"] = Field(
        description="continue: the words alone (stage 1); continue_emotion: the LLM also sees the label (stage 2); "
        "reply, reply_emotion: the same with an answer in place of a continuation, for conversations"
    )
    max_new_tokens: PositiveInt = Field(48, description="a longer continuation is cut and teaches no end of turn")
    cache: FilePath | None = Field(
        None, description="folder for what the LLM has written, which sets may share; null: OUT.generations beside the "
        "set, and none beside a set in a bucket"
    )  # fmt: skip


class _LocalWriter(_Writer):
    revision: str | None = Field(None, description="hub revision; null for the newest")
    batch_size: PositiveInt = Field(32, description="utterances per generation batch; vLLM chooses its own")
    teacher: TeacherSection | None = Field(
        None, description="keep what the LLM predicts at each response token in the shards; null for not"
    )
    gain: bool = Field(
        True, description="where the prompt names the emotion: measure how much of it each continuation carries"
    )


class AutoWriterSection(_LocalWriter):
    """vLLM where it is installed and this machine has a GPU and no teacher is asked for, else transformers."""

    backend: Literal["auto"] = Field("auto", description="auto, transformers, vllm, or openai for an endpoint")


class TransformersWriterSection(_LocalWriter):
    """On a GPU where there is one, else on the CPU."""

    backend: Literal["transformers"]


class VllmWriterSection(_LocalWriter):
    """On GPUs, with pip install 'blsp-emo[vllm]'."""

    backend: Literal["vllm"]

    def problems(self) -> Iterator[Problem]:
        if self.teacher is not None:
            yield (
                ("teacher",),
                "vLLM gives no log-partition at other temperatures; remove it, or use backend: transformers",
            )


class OpenAIWriterSection(_Writer):
    """An OpenAI-compatible endpoint, with pip install 'blsp-emo[openai]'. `llm` is its name for the model."""

    backend: Literal["openai"]
    url: Text = Field("https://api.openai.com/v1", description="the endpoint's address, up to /v1")
    key: Variable | None = Field(
        "OPENAI_API_KEY",
        description="the environment variable that holds the key, never the key; null for none",
    )
    concurrency: PositiveInt = Field(8, description="requests in flight")
    requests_per_minute: PositiveFloat | None = Field(None, description="never more; null for no limit")
    tokens_per_minute: PositiveFloat | None = Field(
        None, description="never more, read and written, each request counted at its most; null for no limit"
    )
    dollars_per_million_read: float | None = Field(None, ge=0, description="price of a million tokens of prompts")
    dollars_per_million_written: float | None = Field(None, ge=0, description="price of a million tokens of answers")
    max_dollars: PositiveFloat | None = Field(
        None, description="stops before all that the cache knows of has cost more; null for no limit"
    )
    timeout_s: PositiveFloat = Field(60.0, description="without a byte for so long a request is sent again")

    def problems(self) -> Iterator[Problem]:
        parts = urlsplit(self.url)
        here = parts.hostname in ("127.0.0.1", "::1", "localhost")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            yield ("url",), "must be http(s)://HOST/PATH without a user, a key or a query in it"
        elif parts.scheme == "http" and self.key is not None and not here:
            yield ("url",), "would send the key in the clear; use https, or key: null for an endpoint that needs none"
        prices = self.dollars_per_million_read, self.dollars_per_million_written
        if self.max_dollars is not None and None in prices:
            yield (
                ("max_dollars",),
                "cannot be kept without prices; add dollars_per_million_read and dollars_per_million_written",
            )


def _backend(value: Any) -> Any:
    return value.get("backend", "auto") if isinstance(value, dict) else getattr(value, "backend", None)


WriterSection = Annotated[
    Annotated[AutoWriterSection, Tag("auto")]
    | Annotated[TransformersWriterSection, Tag("transformers")]
    | Annotated[VllmWriterSection, Tag("vllm")]
    | Annotated[OpenAIWriterSection, Tag("openai")],
    Discriminator(_backend),
]
