"""fal's realtime connections (``/{endpoint}/realtime``): inputs and outputs as frames of one WebSocket.

    binary frame (msgpack) | text frame (JSON) ──▶ buffer ──▶ may its caller? ──▶ read, submit, wait ──▶ such a frame

Each input is a request like any other, one after the other. What a caller sends faster than it is answered waits in a
buffer, from which the oldest falls out. A frame is not read before its caller's key and limits let it be an input.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import Annotated, Any, NamedTuple, TypeVar

import msgpack
from fastapi import APIRouter, Query
from starlette.websockets import WebSocket, WebSocketDisconnect

from deployments.errors import BadRequest, InternalError, ServingError
from deployments.gateway import wire
from deployments.gateway.auth import Caller
from deployments.gateway.bodies import parse_json
from deployments.gateway.service import Service
from deployments.models.base import Endpoint

logger = logging.getLogger(__name__)

Container = TypeVar("Container", list[Any], dict[str, Any])

IDLE_SECONDS = 90.0
"""A connection without inputs is closed after this long; clients open it again with their next input."""

MOST_BUFFERED = 60
MOST_BUFFERED_BYTES = 32 * 1024 * 1024
"""Of the inputs that wait on one connection: room for the largest picture that is read, as a data URI."""

MOST_VALUES = 1000
"""Of all lists and maps of a binary frame together. One byte of it can be a list that takes sixty."""


class Frame(NamedTuple):
    """An input as it came."""

    data: bytes | str

    def decode(self) -> dict[str, Any]:
        """The input.

        Raises:
            BadRequest: It is no map, or has too many values.
        """
        try:
            value = parse_json(self.data.encode()) if isinstance(self.data, str) else _unpack(self.data)
            json.dumps(value, allow_nan=False, ensure_ascii=False)  # msgpack has values that JSON has not
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise BadRequest("The frame holds neither JSON (text) nor msgpack of what JSON has (binary)") from error
        if not isinstance(value, dict):
            raise BadRequest("The frame holds no map")
        return value

    def encode(self, body: dict[str, Any]) -> Frame:
        """An answer of the same kind."""
        return Frame(json.dumps(body) if isinstance(self.data, str) else msgpack.packb(body))


def _unpack(data: bytes) -> Any:
    """What msgpack says; it stops where there are too many values.

    Raises:
        ValueError: It is no msgpack, or has too many values.
        msgpack.UnpackException: It is no msgpack.
    """
    seen = 0

    def counted(values: Container) -> Container:
        nonlocal seen
        seen += 1 + len(values)
        if seen > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES} values")
        return values

    most = {"max_array_len": MOST_VALUES, "max_map_len": MOST_VALUES}
    return msgpack.unpackb(data, list_hook=counted, object_hook=counted, **most)


def realtime_router(service: Service) -> APIRouter:
    """The route of all endpoints' realtime connections."""
    router = APIRouter()

    @router.websocket("/{path:path}/realtime")
    async def realtime(
        path: str, socket: WebSocket, max_buffering: Annotated[int, Query(ge=1, le=MOST_BUFFERED)] = MOST_BUFFERED
    ) -> None:
        try:
            endpoint = service.endpoint(path)
            caller = await service.caller(socket, path)
        except ServingError as error:
            await _refuse(socket, error)
            return
        await socket.accept()
        await Connection(service, socket, endpoint, caller, max_buffering).serve()

    return router


class Connection:
    """One open WebSocket."""

    def __init__(
        self, service: Service, socket: WebSocket, endpoint: Endpoint, caller: Caller, max_buffering: int
    ) -> None:
        """Serve nothing yet."""
        self._service = service
        self._socket = socket
        self._endpoint = endpoint
        self._caller = caller
        self._most = max_buffering
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        self._buffered = 0

    async def serve(self) -> None:
        """Answer inputs until either side closes the connection."""
        answering = asyncio.create_task(self._answer_all())
        try:
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                self._put(Frame(message.get("bytes") or message.get("text") or ""))
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    def _put(self, frame: Frame) -> None:
        """Buffer an input; the oldest fall out until it has room."""
        self._buffered += len(frame.data)
        while self._frames.qsize() >= self._most or (self._buffered > MOST_BUFFERED_BYTES and self._frames.qsize()):
            self._buffered -= len(self._frames.get_nowait().data)
        self._frames.put_nowait(frame)

    async def _answer_all(self) -> None:
        try:
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    frame = await self._frames.get()
                self._buffered -= len(frame.data)
                await self._answer(frame)
        except TimeoutError:
            await self._complain("TIMEOUT", "no inputs, reconnect when needed!")
            await self._socket.close()
        except (WebSocketDisconnect, RuntimeError):  # what sending raises once the other side has gone
            return

    async def _answer(self, frame: Frame) -> None:
        echo: dict[str, Any] = {}
        try:
            caller = await self._service.same_caller(self._socket, self._caller)
            await self._service.limiter.admit(caller, self._endpoint)
            payload = frame.decode()
            echo = {name: payload.pop(name) for name in ("request_id",) if name in payload}
            row, refused = await self._service.new_request(self._endpoint, caller, payload, self._socket, retry=False)
            # A connection has one Idempotency-Key and many inputs, so it can be no input's.
            request = await self._service.run(caller, replace(row, idempotency_key=None), refused)
            output = await self._service.store.output(request.id)
        except ServingError as error:
            await self._complain(error.type, error.message, **echo)
        except Exception:
            logger.exception("a realtime input failed")
            await self._complain(InternalError.type, "Internal error", **echo)
        else:
            if request.error is None:
                await self._send(frame.encode(output | echo))
            else:
                await self._complain(request.error_type or InternalError.type, request.error, **echo)

    async def _complain(self, error: str, reason: str, **echo: Any) -> None:
        """Meta frames are text whatever the inputs are."""
        body = {"type": "x-fal-error", "error": error.upper(), "reason": reason, **echo}
        await self._send(Frame(json.dumps(body)))

    async def _send(self, frame: Frame) -> None:
        if isinstance(frame.data, str):
            await self._socket.send_text(frame.data)
        else:
            await self._socket.send_bytes(frame.data)


async def _refuse(socket: WebSocket, error: ServingError) -> None:
    """Answer the handshake with the error, where the server can; else just decline it."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(wire.error_response(error))
    else:
        await socket.close()
