"""Pictures as bytes, processes that open them, and a small web server on the loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployments.inference.decoder.pool import Decoder
from deployments.storage import FileStorage
from tests.inference.hostile import image_bytes as image_bytes

URL = "http://127.0.0.1:8000"

Respond = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class WebServer:
    """A server that answers each path by a function, and remembers which paths were asked for."""

    port: int
    answers: dict[str, Respond] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, path: str, body: bytes = b"", status: int = 200, **headers: str) -> str:
        """Answer a path with these bytes; return its URL. Underscores in names of headers stand for hyphens."""

        def respond(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(body)

        return self.answer(path, respond)

    def answer(self, path: str, respond: Respond) -> str:
        """Answer a path by a function; return its URL."""
        self.answers[path] = respond
        return self.url + path


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about."""


@contextmanager
def run_web_server(*ports: int) -> Iterator[WebServer]:
    """A server on the first of these loopback ports that is free."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.path)
            server.answers[self.path](self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = _listen(Handler, *ports)
    server = WebServer(http.server_port)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        http.server_close()
        thread.join()


def _listen(handler: type[BaseHTTPRequestHandler], *ports: int) -> ThreadingHTTPServer:
    for port in ports:
        try:
            return _QuietServer(("127.0.0.1", port), handler)
        except OSError:
            continue
    raise OSError(f"none of the ports {ports} is free")


@pytest.fixture
def web() -> Iterator[WebServer]:
    """A web server on any port."""
    with run_web_server(0) as server:
        yield server


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    """Processes that open what callers send, as a replica has them."""
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    """Files in an empty directory."""
    return FileStorage(tmp_path / "files", URL)
