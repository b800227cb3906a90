"""Continuations by an LLM behind an OpenAI-compatible endpoint: BLSP-ChatGPT's writer.

The endpoint is shown the same wordings as a local LLM, as chat messages. One bad answer costs one clip, an endpoint
that is away or refuses all stops the job with a sentence, and what was written is in the cache.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.prompts import chat_messages, wordings_fingerprint
from shards.writers.endpoint import Endpoint, Pace, Spending
from shards.writers.greedy import GreedyWriter, emotion_told
from shards.writers.protocol import Generation, NoAnswer, Request

Messages = list[dict[str, str]]

_RETRIES = 10  # by the official client: 429, 5xx, time-outs and broken connections, waiting as Retry-After asks
_TRIES_OF_AN_ANSWER = 3  # where what comes back is no answer
_MOST_IN_A_ROW = 20  # clips without an answer and none with one: then it is not the clips
_TOKENS_AROUND = 16  # of a message, at most, beside those of its text
_LONGEST_ANSWER = 64  # characters a token, at most
_NEVER_SENT = ("ConnectError", "ConnectTimeout")  # what else ends without a status may have been worked on, and paid
_SAID = 200  # characters of what an endpoint says that are repeated
# Its server may read these as the ends of turns, and there is no telling it not to.
_SPECIAL = re.compile(
    r"<\|[^|\s]{1,40}\|>|</?s>|\[/?INST\]|<(start|end)_of_turn>|<｜[^｜]{1,40}｜>|<\|(im|eot|end)_?\w*"
)


@dataclass(frozen=True)
class _Unusable:
    """An answer that is none."""

    why: str
    prompt_tokens: int
    new_tokens: int


class OpenAIWriter(GreedyWriter[Messages]):
    """An endpoint that answers `chat/completions`. It is asked from several threads at once."""

    def __init__(self, model: str, endpoint: Endpoint, max_new_tokens: int = 48, cache: Path | None = None) -> None:
        """Raises ValueError when the package `openai` or the key is missing."""
        try:
            import openai
        except ImportError:
            raise ValueError(
                "writer.backend: 'openai' needs the package openai; pip install 'blsp-emo[openai]'"
            ) from None
        self._key = "none" if endpoint.key is None else os.environ.get(endpoint.key, "")
        if not self._key:
            raise ValueError(
                f"writer.key: the environment variable {endpoint.key} is not set on {socket.gethostname()}; it holds "
                f"the key of {endpoint.host}"
            )
        self._client = openai.OpenAI(
            api_key=self._key, base_url=endpoint.url, timeout=endpoint.timeout_s, max_retries=_RETRIES
        )
        self._model, self._endpoint, self._max_new_tokens = model, endpoint, max_new_tokens
        super().__init__(
            f"{model}@{endpoint.host} wording={wordings_fingerprint()} greedy max_new_tokens={max_new_tokens}",
            None,
            cache,
        )
        self._pace = Pace(endpoint)
        self._spending = Spending(endpoint, *(self.cache.tokens() if self.cache else (0, 0)))
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._in_a_row = 0  # without an answer

    def prompt(self, request: Request) -> Messages:
        """System message, earlier turns, and the instruction with the transcript."""
        texts = [*(message.text for message in request.messages), request.text]
        return chat_messages(request.prompt, emotion_told(request), texts)

    def generate(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Generation | NoAnswer]]:
        """As answers come. After an error the requests that are in flight still bring theirs."""
        self._stopped.clear()
        first_error: Exception | None = None
        with ThreadPoolExecutor(self._endpoint.concurrency) as pool:
            try:
                numbers = {pool.submit(self._ask, prompt): number for number, prompt in enumerate(prompts)}
                for asked in as_completed(numbers):
                    try:
                        answer = asked.result()
                    except (ValueError, OSError) as error:
                        self._stopped.set()
                        first_error = first_error or error
                        continue
                    if answer is not None:
                        yield numbers[asked], answer
            finally:
                self._stopped.set()
        if first_error is not None:
            raise first_error

    def _ask(self, messages: Messages) -> Generation | NoAnswer | None:
        """None when others have stopped. Raises ValueError or OSError for what stops the job."""
        if any(_SPECIAL.search(message["content"]) for message in messages):
            return NoAnswer("its words hold what may be a special token of the endpoint's LLM")
        why = ""
        for _ in range(_TRIES_OF_AN_ANSWER):
            answer = self._try(messages)
            if not isinstance(answer, _Unusable):
                if isinstance(answer, Generation):
                    with self._lock:
                        self._in_a_row = 0
                return answer
            why = answer.why
        return self._without_answer(f"{self._endpoint.host} gave {_TRIES_OF_AN_ANSWER} answers of no use: {why}")

    def _try(self, messages: Messages) -> Generation | NoAnswer | _Unusable | None:
        import openai

        most_read = sum(len(message["content"].encode()) + _TOKENS_AROUND for message in messages) + _TOKENS_AROUND
        most = (most_read, self._max_new_tokens)
        reserved = self._spending.reserve(*most)
        used: tuple[int, int] = (0, 0)
        answer: Generation | _Unusable | None = None
        try:
            self._pace.wait(sum(most), self._stopped)
            if self._stopped.is_set():
                return None
            used = most  # unless it says what it has used, or that it has done nothing
            shown: Any = messages  # to the client each role has a type of its own
            reply = self._client.chat.completions.create(
                model=self._model, messages=shown, temperature=0, max_tokens=self._max_new_tokens
            )
            answer = self._read(reply, most)
            used = (answer.prompt_tokens, answer.new_tokens)
            return answer
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            used = (0, 0)
            return self._without_answer(f"{self._endpoint.host} refused: {self._said(error)}")
        except openai.APIResponseValidationError as error:
            return _Unusable(f"not as the API describes it ({self._said(error)})", *most)
        except openai.APIError as error:
            if isinstance(error, openai.APIStatusError) or type(error.__cause__).__name__ in _NEVER_SENT:
                used = (0, 0)
            raise self._stop(error) from None
        except (ValueError, TypeError, AttributeError, LookupError) as error:  # JSON that is none
            return _Unusable(f"{type(error).__name__}: {self._said(error)}", *most)
        finally:
            self._spending.settle(reserved, *used)
            if used != (0, 0) and self.cache is not None and not isinstance(answer, Generation):
                with self._lock:
                    self.cache.put_unusable(*used)

    def _read(self, reply: Any, most: tuple[int, int]) -> Generation | _Unusable:
        """What a reply says; the client checks next to nothing of it. One that does not tell its tokens took the
        most that it could."""
        usage = getattr(reply, "usage", None)
        told = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
        counts = [count for count in told if type(count) is int and count >= 0]
        read, written = counts if len(counts) == 2 else most
        choices = getattr(reply, "choices", None)
        if not isinstance(choices, list) or not choices:
            return _Unusable("there is no choice in it", read, written)
        text, reason = getattr(getattr(choices[0], "message", None), "content", None), choices[0].finish_reason
        if not isinstance(text, str) or reason not in ("stop", "length"):
            return _Unusable(f"it ended by {self._said(reason)} with {type(text).__name__} as text", read, written)
        if len(text) > _LONGEST_ANSWER * self._max_new_tokens:
            return _Unusable(f"{len(text)} characters are no {self._max_new_tokens} tokens", read, written)
        text = text.encode("utf-8", "replace").decode()
        return Generation(text.strip(), reason == "stop", read, written)

    def _without_answer(self, why: str) -> NoAnswer:
        """Raises OSError where this is not about one clip."""
        with self._lock:
            self._in_a_row += 1
            in_a_row = self._in_a_row
        if in_a_row >= _MOST_IN_A_ROW:
            raise OSError(f"{in_a_row} clips in a row are without an answer, so it is not their doing; the last: {why}")
        return NoAnswer(why)

    def _stop(self, error: Any) -> Exception:
        """The sentence that a job stops with."""
        import openai

        host = self._endpoint.host
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            named = "it asks for one: name its variable" if self._endpoint.key is None else "look at that variable"
            return ValueError(
                f"writer.key: {host} refuses the key from {self._endpoint.key} (status {error.status_code}); {named}"
            )
        if isinstance(error, openai.NotFoundError):
            return ValueError(f"writer.llm: {host} knows no {self._model} at this address: {self._said(error)}")
        tried = f"after {_RETRIES + 1} tries; what is written is kept, and the same command goes on from there"
        return OSError(f"{host} does not answer ({self._said(error)}), {tried}")

    def _said(self, error: object) -> str:
        """Words of others: short, printable, and without the key, which some repeat."""
        words = " ".join(str(error).replace(self._key, "***").split())
        return "".join(letter if letter.isprintable() else "?" for letter in words)[:_SAID]
