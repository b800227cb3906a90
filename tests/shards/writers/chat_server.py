"""An OpenAI-compatible endpoint on this machine, as slow, busy or broken as a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0123456789"


@dataclass
class Reply:
    """What the server sends; `cut` bytes of the body are left out although they are announced."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    cut: int = 0


def said(text: object, reason: str = "stop", tokens: tuple[int, int] | None = (20, 5)) -> Reply:
    """A good answer."""
    body: dict[str, Any] = {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}],
    }  # fmt: skip
    if tokens is not None:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return Reply(body=json.dumps(body))


class ChatServer:
    """`requests` are the bodies that came, `at_s` when."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Reply]) -> None:
        """`answer` gets a request, and how often it came before."""
        self.requests: list[dict[str, Any]] = []
        self.at_s: list[float] = []
        self.most_at_once = self._now = 0
        lock, chat = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                assert self.path == "/v1/chat/completions"
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    before = sum(request == content for request in chat.requests)
                    chat.requests.append(content)
                    chat.at_s.append(time.monotonic())
                    chat._now += 1
                    chat.most_at_once = max(chat.most_at_once, chat._now)
                allowed = self.headers["Authorization"] == f"Bearer {KEY}"
                reply = answer(content, before) if allowed else Reply(401, f'{{"error": "{self.headers}"}}')
                time.sleep(reply.after_s)
                with lock:
                    chat._now -= 1
                if reply.status == 0:  # a reset
                    self.close_connection = True
                    return
                body = reply.body.encode()
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) - reply.cut])
                self.close_connection = bool(reply.cut)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    server = ChatServer(answer)
    try:
        yield server
    finally:
        server.close()
