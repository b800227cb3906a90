"""What is known of an endpoint that others run: its address, how fast it may be asked, and what it may cost."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

_MILLION = 1e6


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible one. `key` names the environment variable that holds its key, None where it asks for none;
    limits that are None are none. Prices are dollars for a million tokens."""

    url: str
    key: str | None
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    dollars_per_million_read: float | None = None
    dollars_per_million_written: float | None = None
    max_dollars: float | None = None
    timeout_s: float = 60.0

    @property
    def host(self) -> str:
        """Its name and port, for people and for the names of writers."""
        parts = urlsplit(self.url)
        return parts.hostname or self.url if parts.port is None else f"{parts.hostname}:{parts.port}"

    def dollars(self, prompt_tokens: float, new_tokens: float) -> float | None:
        """None where the recipe names no prices."""
        if self.dollars_per_million_read is None or self.dollars_per_million_written is None:
            return None
        read, written = prompt_tokens * self.dollars_per_million_read, new_tokens * self.dollars_per_million_written
        return (read + written) / _MILLION


class Pace:
    """Lets through so many requests and tokens a minute and no more, evenly, from any thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._s_per_request = 60 / endpoint.requests_per_minute if endpoint.requests_per_minute else 0.0
        self._s_per_token = 60 / endpoint.tokens_per_minute if endpoint.tokens_per_minute else 0.0
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def wait(self, tokens: int, stopped: threading.Event) -> None:
        """Until a request of so many tokens may be sent, or `stopped` is set."""
        with self._lock:
            begin_s = max(self._free_at_s, time.monotonic())
            self._free_at_s = begin_s + max(self._s_per_request, tokens * self._s_per_token)
        pause_s = begin_s - time.monotonic()
        if pause_s > 0:
            stopped.wait(pause_s)


class CostCapReached(ValueError):
    """The next request might cost more than the recipe allows."""


class Spending:
    """What an endpoint has been paid, and a cap that it never passes: a request is sent only while all that are in
    flight, should each cost the most that it can, stay below it."""

    def __init__(self, endpoint: Endpoint, prompt_tokens: int, new_tokens: int) -> None:
        """Begins with what was read and written before."""
        self._endpoint = endpoint
        self._read, self._written = prompt_tokens, new_tokens
        self._in_flight = 0.0
        self._settled = threading.Condition()

    @property
    def dollars(self) -> float:
        """So far; 0 without prices."""
        return self._endpoint.dollars(self._read, self._written) or 0.0

    def reserve(self, most_read: int, most_written: int) -> float:
        """The most that a request may cost, which then counts until `settle`. Raises CostCapReached."""
        most, cap = self._endpoint.dollars(most_read, most_written) or 0.0, self._endpoint.max_dollars
        with self._settled:
            while cap is not None and self.dollars + self._in_flight + most > cap:
                if not self._in_flight:
                    raise CostCapReached(
                        f"writer.max_dollars = {cap:g} is reached: {self.dollars:.4f} dollars are spent on "
                        f"{self._endpoint.host} and the next request may cost {most:.4f}; what is written is kept, and "
                        "with a higher cap the same command goes on from there"
                    )
                self._settled.wait()
            self._in_flight += most
        return most

    def settle(self, reserved: float, prompt_tokens: int, new_tokens: int) -> None:
        """What the request that `reserved` was for has really taken."""
        with self._settled:
            self._in_flight -= reserved
            if abs(self._in_flight) < 1e-12:
                self._in_flight = 0.0
            self._read += prompt_tokens
            self._written += new_tokens
            self._settled.notify_all()
