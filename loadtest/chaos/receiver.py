"""The receiver of the campaign's webhooks: writes down each POST and answers as the nemesis wants it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from loadtest.chaos.journal import Journal
from tests.receiver import Post, status, verifies

HELD_SECONDS = 20.0
"""Longer than a sender waits."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that is killed hangs up."""


class Receiver:
    """Answers 200, unless it is told otherwise."""

    def __init__(self, journal: Path) -> None:
        """Listen on a free port of this machine."""
        self.jwks: Mapping[str, Any] = {"keys": []}
        self._failures = 0
        self._left: dict[str, int] = {}
        self._lock = threading.Lock()
        self._journal = Journal(journal)
        self._answering = threading.Event()
        self._answering.set()
        self.port = 0
        self.listen(True)

    def listen(self, up: bool) -> None:
        """Be there, on the same port as before, or not at all."""
        if up:
            self._http = _Server(("127.0.0.1", self.port), self._handler())
            self.port = self._http.server_port
            threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        else:
            self._http.shutdown()
            self._http.server_close()

    def fail(self, times: int) -> None:
        """Answer the first so many POSTs of each request that is told of from now on with 500; 0 for no others."""
        with self._lock:
            self._failures = times

    def hold(self, held: bool) -> None:
        """Answer nothing, or again."""
        self._answering.clear() if held else self._answering.set()

    def close(self) -> None:
        """Listen no more."""
        self._answering.set()
        self.listen(False)

    def _answer(self, request_id: str) -> int:
        with self._lock:
            left = self._left.setdefault(request_id, self._failures)
            self._left[request_id] = max(0, left - 1)
            return 500 if left else 200

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        post = Post(handler.path, {name.lower(): value for name, value in handler.headers.items()}, body)
        held = not self._answering.is_set()
        answer = 0 if held else self._answer(post.request_id)
        told = {"request_id": post.request_id, "status": json.loads(body)["status"]}
        self._journal.write("post", **told, verified=verifies(post, self.jwks), answered=answer)
        if held:
            self._answering.wait(HELD_SECONDS)
            handler.close_connection = True
        else:
            status(answer)(handler)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        return Handler
