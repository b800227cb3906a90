"""An S3 on loopback: moto's application behind a server that counts, and that fails on demand."""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from threading import Lock, Thread
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

# What the server is asked with, and the place that tests write to.
KEY, SECRET, TOKEN = "AKIAMADEUPFORTESTS", "made-up-secret-of-tests", "made-up-token-of-tests"
BUCKET = "speech-corpora"
ROOT = f"s3://{BUCKET}/sets/one"

Answer = Callable[[str, list[tuple[str, str]]], Any]
Fault = Callable[[dict[str, Any], Answer], Iterable[bytes] | None]  # None: nothing happens to this request


class _Handler(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


class S3Server:
    """`requests` counts (method, path, Range); `fault` sees every request first; `delay_s` makes each of them last."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._lock, self._fault_lock = Lock(), Lock()
        self._in_flight = 0
        self.reset()
        Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        with self._lock:
            self.requests: Counter[tuple[str, str, str | None]] = Counter()
            self.bytes_sent = self.most_in_flight = 0
            self.fault: Fault = lambda environ, answer: None
            self.delay_s = 0.0

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def __call__(self, environ: dict[str, Any], answer: Answer) -> Iterable[bytes]:
        with self._lock:
            self.requests[environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE")] += 1
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            time.sleep(self.delay_s)
            with self._fault_lock:
                fault = self.fault(environ, answer)
            body = fault if fault is not None else list(self.application(environ, answer))
            with self._lock:
                self.bytes_sent += sum(map(len, body))
            return body
        finally:
            with self._lock:
                self._in_flight -= 1


def failing(status: str, times: float, matching: str = "") -> Fault:
    """The first `times` requests for paths with `matching` in them get this status; "drop": the line goes dead."""
    seen = 0

    def fault(environ: dict[str, Any], answer: Answer) -> Iterable[bytes] | None:
        nonlocal seen
        if matching not in environ["PATH_INFO"] or seen >= times:
            return None
        seen += 1
        if status == "drop":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answer(status, [("Content-Type", "application/xml")])
        if environ["REQUEST_METHOD"] == "HEAD":
            return [b""]
        code = status.split(" ", 1)[1].replace(" ", "")
        key = environ.get("HTTP_AUTHORIZATION", "")  # as some stores do, the answer repeats what it was asked with
        return [f"<Error><Code>{code}</Code><Message>refused: {key}</Message></Error>".encode()]

    return fault
