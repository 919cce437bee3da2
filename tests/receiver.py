"""A receiver of webhooks on the loopback, and a verifier of their signatures that knows nothing of our code."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TOLERANCE_SECONDS = 300
PATIENCE = 20.0

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass(frozen=True)
class Post:
    """One POST that came."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def request_id(self) -> str:
        return self.headers["x-fal-webhook-request-id"]


@dataclass
class Receiver:
    """Remembers what comes; answers the first POSTs by ``answers``, the rest by 200."""

    port: int
    answers: list[Answer] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    arrived: threading.Condition = field(default_factory=threading.Condition)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        post = Post(handler.path, {name.lower(): value for name, value in handler.headers.items()}, body)
        with self.arrived:
            answer = self.answers[len(self.posts)] if len(self.posts) < len(self.answers) else status(200)
            self.posts.append(post)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            self.arrived.notify_all()
        try:
            answer(handler)
        finally:
            with self.arrived:
                self.open -= 1

    def wait(self, count: int = 1) -> list[Post]:
        """What came, once so much has."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.posts) >= count, PATIENCE), self.posts
            return list(self.posts)

    def held(self, handler: BaseHTTPRequestHandler) -> None:
        """An answer that comes when ``released`` is set."""
        self.released.wait(PATIENCE)
        status(200)(handler)


def status(code: int, **headers: str) -> Answer:
    """An answer with nothing but a status."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in ({"content-length": "0"} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hangs up is what some tests are about."""


@contextmanager
def run_receiver(*ports: int) -> Iterator[Receiver]:
    """A receiver on the first of these loopback ports that is free; on any port without them."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            receiver.serve(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = _listen(Handler, ports or (0,))
    receiver = Receiver(http.server_port)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        http.shutdown()
        http.server_close()
        thread.join()


def _listen(handler: type[BaseHTTPRequestHandler], ports: tuple[int, ...]) -> ThreadingHTTPServer:
    for port in ports:
        try:
            return _QuietServer(("127.0.0.1", port), handler)
        except OSError:
            continue
    raise OSError(f"none of the ports {ports} is free")


def verifies(post: Post, jwks: Mapping[str, Any]) -> bool:
    """Whether a POST is signed by one of the keys, as fal's documentation tells receivers to find out."""
    headers = post.headers
    if abs(time.time() - int(headers["x-fal-webhook-timestamp"])) > TOLERANCE_SECONDS:
        return False
    signed = [headers[f"x-fal-webhook-{name}"] for name in ("request-id", "user-id", "timestamp")]
    message = "\n".join([*signed, hashlib.sha256(post.body).hexdigest()]).encode()
    signature = bytes.fromhex(headers["x-fal-webhook-signature"])
    return any(_signed_by(key["x"], signature, message) for key in jwks["keys"])


def _signed_by(x: str, signature: bytes, message: bytes) -> bool:
    try:  # fal's sample in Python adds no padding
        Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(x)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
