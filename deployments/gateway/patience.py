"""How long, how large and in what form a caller may speak: the HTTP/1.1 protocol of the proxy, below any application.

    connection ──▶ head ──────────────▶ body ──────────────────▶ answer ──▶ idle ──▶ head …
       │            ≤ 10 s, ≤ 32 KB       ≥ 8 KB in each 30 s       read on within 60 s
       └─▶ too many are open: the one that has waited longest for its caller makes room; is there none, 503

The parser of uvicorn refuses by itself what is no HTTP, two lengths for one body, folded lines, and ends of lines that
other servers read otherwise. It has no clock and no measure. Those are added here, and what it lets pass is refused: a
request without a host or with two, a transfer encoding beside ``chunked``. Whoever is refused is told so in fal's form,
and the connection is closed: what follows on it may be anything.

Serve starts uvicorn without a word on its protocol, which uvicorn then looks up in its own table. ``install`` puts this
one there, before the server starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from uvicorn import config as uvicorn_config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from deployments.errors import BadRequest, HeadersTooLarge, PlatformError, RequestTimeout, Unavailable, UriTooLong
from deployments.gateway.headers import SECURITY
from deployments.gateway.wire import REQUEST_ID, error_response

HEAD_SECONDS = 10.0
"""How long a new connection may be silent, and how long a request's head may take."""

BODY_SECONDS, LEAST_BODY_BYTES = 30.0, 8 * 1024
"""How much of a body must come in how long, while it is read."""

STUCK_SECONDS = 60.0
"""How long an answer may wait for a caller who does not read it."""

PARTING_SECONDS, PARTING_BYTES = 2.0, 4 * 1024 * 1024
"""How long, and for how much more, a caller is listened to who has been answered already: until it has read that."""

MOST_HEAD_BYTES, MOST_HEADERS, MOST_TARGET_BYTES = 32 * 1024, 200, 32 * 1024
MOST_CONNECTIONS = 2000
MOST_PIPELINED = 32
"""Of requests that come before an earlier one is answered."""


def install() -> None:
    """Let the servers that this process starts from now on speak so."""
    uvicorn_config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{PatientProtocol.__name__}"
    uvicorn_config.WS_PROTOCOLS["auto"] = f"{__name__}:{PatientWebSocket.__name__}"


class _Refused(Exception):
    """What the parser is stopped by."""


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with an end to its patience."""

    def __init__(self, config: uvicorn_config.Config, *others: Any, **options: Any) -> None:
        """Serve one connection."""
        super().__init__(config, *others, **options)
        config.encoded_headers = _without_banner(config.encoded_headers)
        config.ws_per_message_deflate = False  # a frame costs its sender as much as us, as a body does
        self.server_state.default_headers = _without_banner(self.server_state.default_headers)
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._refusal: PlatformError | None = None
        self._speaking = self._parting = self._held_up = False
        self._unused = self._body_bytes = self._parting_bytes = 0
        self._running: RequestResponseCycle | None = None
        self.waits_since = self.loop.time()

    # ------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a first request, if there is room."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._set_timer(HEAD_SECONDS, self._head_is_late)
        if len(self.connections) > MOST_CONNECTIONS and not self._make_room():
            self._refuse(Unavailable("Too many connections are open"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the caller, and let the request that runs know: it may not be the newest."""
        self._drop_timers()
        if self._running and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether the caller has not said what it wants, or has got it."""
        return not self._parting and (self.cycle is None or self.cycle.response_complete)

    @property
    def waits(self) -> bool:
        """Whether it is the caller's move: to ask, or to read what it has been answered."""
        return self._parting or self.is_idle or self.flow.write_paused

    def _make_room(self) -> bool:
        """Close the connection that has waited longest. This one has not yet."""
        others = (each for each in self.connections if isinstance(each, PatientProtocol) and each is not self)
        longest = min((each for each in others if each.waits), key=lambda each: each.waits_since, default=None)
        if longest is not None:
            longest.connections.discard(longest)
            longest.transport.abort()
        return longest is not None

    # ------------------------------------------------------------ the request

    def data_received(self, data: bytes) -> None:
        """Read on, unless what is read leads to nothing."""
        if self._parting:
            self._hear_out(len(data))
            return
        if self.is_idle and not self._timer:
            self._set_timer(HEAD_SECONDS, self._head_is_late)
        self._unused += len(data)
        super().data_received(data)
        if self._speaking and self._unused > MOST_HEAD_BYTES and not self._parting and not self.transport.is_closing():
            self._refuse(HeadersTooLarge(_HEADERS) if self.headers else UriTooLong(_TARGET))

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._speaking, self._unused = True, 0

    def on_headers_complete(self) -> None:
        """The head of a request is whole."""
        if refusal := self._problem():
            self._refusal = refusal
            raise _Refused
        if len(self.pipeline) == MOST_PIPELINED:  # one read can hold thousands
            raise _Refused
        former = self.cycle
        super().on_headers_complete()
        if self.cycle is former:  # it becomes a WebSocket
            return
        if self.pipeline:
            self.flow.resume_reading()  # it waits; without reading on, nobody would notice that the caller hangs up
        self.cycle.transport = _Transport(self.transport, self.part)  # type: ignore[assignment]
        self.cycle.send = _announcing(self.cycle)  # type: ignore[method-assign,assignment]
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # the parser takes what follows for another protocol
        self._unused = self._body_bytes = 0
        self._held_up = False
        self._set_timer(BODY_SECONDS, self._look_at_body)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        super().on_body(body)
        self._unused = 0
        self._body_bytes += len(body)
        self._held_up = self._held_up or self.flow.read_paused

    def on_message_complete(self) -> None:
        """A request is whole; the next move is ours."""
        super().on_message_complete()
        self._speaking = False
        self._set_timer(None)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over to ``PatientWebSocket``."""
        self._drop_timers()
        super().handle_websocket_upgrade()

    def _problem(self) -> PlatformError | None:
        """Why a request is not even looked at, by its head."""
        if len(self.url) > MOST_TARGET_BYTES:
            return UriTooLong(_TARGET)
        size = sum(len(name) + len(value) for name, value in self.headers)
        if size > MOST_HEAD_BYTES or len(self.headers) > MOST_HEADERS:
            return HeadersTooLarge(_HEADERS)
        reason = self._malformed()
        return BadRequest(reason) if reason else None

    def _malformed(self) -> str | None:
        version = self.parser.get_http_version()
        hosts = [value for name, value in self.headers if name == b"host"]
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if version not in ("1.0", "1.1"):
            return "This server speaks HTTP/1.1"
        if len(hosts) > 1 or (not hosts and version == "1.1"):
            return "A request names one host"
        if codings not in ([], [b"chunked"]):
            return "The only transfer encoding is chunked"
        if not self.url.lower().startswith((b"/", b"http://", b"https://")):
            return "A request is for a path"
        if self.parser.should_upgrade() and (codings or _has_length(self.headers)):
            return "A request with a body cannot change the protocol"
        return None

    def _head_is_late(self) -> None:
        if self._speaking:
            self._refuse(RequestTimeout(f"The head of a request must come within {HEAD_SECONDS:.0f} seconds"))
        else:
            self._leave()

    def _look_at_body(self) -> None:
        """Go on if enough has come, or if it was we who did not read."""
        if self._held_up or self.flow.read_paused or self._body_bytes >= LEAST_BODY_BYTES:
            self._held_up, self._body_bytes = self.flow.read_paused, 0
            self._set_timer(BODY_SECONDS, self._look_at_body)
        else:
            self._refuse(RequestTimeout(f"Too little of the body has come within {BODY_SECONDS:.0f} seconds"))

    # ------------------------------------------------------------ the answer

    def on_response_complete(self) -> None:
        """An answer is whole. A caller who had not finished speaking when it began has been parted from."""
        self.waits_since = self.loop.time()
        if self._parting:
            return
        super().on_response_complete()
        if self._speaking and not self.pipeline:  # half a head came before its turn
            self._set_timer(HEAD_SECONDS, self._head_is_late)

    def pause_writing(self) -> None:
        """The caller reads more slowly than is written."""
        super().pause_writing()
        self.waits_since = self.loop.time()
        self._stuck = self.loop.call_later(STUCK_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        self._unset_stuck()

    def send_400_response(self, msg: str) -> None:
        """Say why the parser stopped."""
        self._refuse(self._refusal or BadRequest("This is no HTTP request that can be served"))

    def _refuse(self, error: PlatformError) -> None:
        """Say no, unless an answer is on its way already, and close the connection."""
        if self.transport.is_closing() or self._parting:
            return
        if self.cycle and not self.cycle.response_complete:
            if self.cycle.response_started or not self.cycle.more_body:  # the answer is due to an earlier request
                self._leave()
                return
            self.cycle.disconnected = True  # whatever it answers, nobody hears it
            self.cycle.message_event.set()
        self.transport.write(_written(error))
        self.part(at_once=False)

    def part(self, *, at_once: bool | None = None) -> None:
        """Close the connection; where the caller is still speaking, once it has had time to read the answer.

        Closed at once it would be reset, and an answer that has arrived be lost with it.
        """
        if self._parting or self.transport.is_closing():
            return
        self._drop_timers()
        self._unset_keepalive_if_required()
        self._parting, self.waits_since = True, self.loop.time()
        speaking = self._speaking if at_once is None else not at_once
        if not speaking:
            self._leave()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(PARTING_SECONDS, self._leave)

    def timeout_keep_alive_handler(self) -> None:
        """The caller has no more requests."""
        self._leave()

    def _hear_out(self, length: int) -> None:
        self._parting_bytes += length
        if self._parting_bytes > PARTING_BYTES:
            self._leave()

    def _leave(self) -> None:
        """Close the connection as soon as the caller has read what was written, if it does."""
        self._set_timer(STUCK_SECONDS, self.transport.abort)
        self.transport.close()

    # ------------------------------------------------------------ clocks

    def _set_timer(self, seconds: float | None, act: Callable[[], None] | None = None) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, act) if seconds is not None and act else None

    def _unset_stuck(self) -> None:
        if self._stuck:
            self._stuck.cancel()
            self._stuck = None

    def _drop_timers(self) -> None:
        self._set_timer(None)
        self._unset_stuck()


class PatientWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which says why it opens none, and reads no more than its caller does."""

    def __init__(self, *others: Any, **options: Any) -> None:
        """Serve one connection, whose head has been read."""
        super().__init__(*others, **options)
        self._stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Go on with a connection."""
        self._leave = transport.close
        super().connection_made(_Transport(transport, self._close))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the caller."""
        self._unset_stuck()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on. A head that its parser finds too large, which has other measures, it drops without a word."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(_written(HeadersTooLarge("The headers of a WebSocket are too many, or too large")))
            self.transport.close()
        elif not self.writable.is_set():
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """The caller reads more slowly than is written; each of its pings would be answered all the same."""
        super().pause_writing()
        self.transport.pause_reading()
        self._set_stuck()

    def resume_writing(self) -> None:
        """It has read on."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._unset_stuck()
            if not self.read_paused:
                self.transport.resume_reading()

    def _close(self) -> None:
        """Close the connection as soon as the caller has read what was written, if it does."""
        self._set_stuck()
        self._leave()

    def _set_stuck(self) -> None:
        self._stuck = self._stuck or self.loop.call_later(STUCK_SECONDS, self.transport.abort)

    def _unset_stuck(self) -> None:
        if self._stuck:
            self._stuck.cancel()
            self._stuck = None


class _Transport:
    """A transport that is closed in another way."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _announcing(cycle: RequestResponseCycle) -> Callable[[Any], Coroutine[Any, Any, None]]:
    """How an answer is sent; one that begins before its request has ended says that the connection ends with it.

    Otherwise the caller could use it again, for a request that nobody reads.
    """
    send = cycle.send

    async def announce(message: Any) -> None:
        if cycle.more_body and not cycle.response_started:
            cycle.keep_alive = False
        await send(message)

    return announce


_HEADERS = f"The headers have more than {MOST_HEAD_BYTES} bytes, or are more than {MOST_HEADERS}"
_TARGET = f"The URL has more than {MOST_TARGET_BYTES} bytes"


def _without_banner(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers that do not say by whom they are sent."""
    return [header for header in headers if header[0] != b"server"]


def _has_length(headers: list[tuple[bytes, bytes]]) -> bool:
    return any(name == b"content-length" and value.strip(b"0 \t") for name, value in headers)


def _written(error: PlatformError) -> bytes:
    """An error as it goes over the wire."""
    answer = error_response(error)
    own = {**SECURITY, REQUEST_ID: str(uuid4()), "connection": "close", "date": formatdate(usegmt=True)}
    for name, value in own.items():
        answer.headers[name] = value
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
    lines += [name + b": " + value for name, value in answer.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])
