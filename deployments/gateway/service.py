"""What every route of the gateway works with."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fastapi import Response
from starlette.requests import HTTPConnection

from deployments import tracing
from deployments.errors import FileDamaged, FileDownloadError, Forbidden, NotFound, ServingError, Unauthenticated
from deployments.gateway.auth import Authenticator, Caller
from deployments.gateway.limits import Limiter
from deployments.gateway.polls import Polls
from deployments.gateway.submission import new_request
from deployments.gateway.tokens import Tokens
from deployments.gateway.wire import request_urls, result_response
from deployments.models.base import Endpoint
from deployments.queue.files import FileRecord, Files
from deployments.queue.keys import Keys
from deployments.queue.reports import Reports
from deployments.queue.request import InferenceRequest, LogLine, NewRequest
from deployments.queue.store import RequestStore
from deployments.queue.watch import Changes, Positions
from deployments.storage import FileStorage, Stat, without_secrets
from deployments.web import Reach

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[0-9a-f-]{36}")


@dataclass(frozen=True)
class Service:
    """The gateway's tools, made once in its process."""

    endpoints: Mapping[str, Endpoint]
    authenticate: Authenticator
    keys: Keys
    reports: Reports
    store: RequestStore
    limiter: Limiter
    storage: FileStorage
    files: Files
    tokens: Tokens
    positions: Positions
    changes: Changes
    polls: Polls
    public_url: str
    max_upload_bytes: int
    signed_seconds: float = 0.0
    webhook_reach: Reach = field(default_factory=Reach)

    def endpoint(self, endpoint_id: str) -> Endpoint:
        """An endpoint by fal's id.

        Raises:
            NotFound: This server has no such endpoint.
        """
        endpoint = self.endpoints.get(endpoint_id)
        if endpoint is None:
            raise NotFound(f"Path /{endpoint_id} not found")
        return endpoint

    async def caller(self, connection: HTTPConnection, path: str) -> Caller:
        """Who streams from an endpoint: by a token in the URL, where a browser can send no header, or by a key.

        Raises:
            Unauthenticated: Neither, or not a valid one.
        """
        token = connection.query_params.get("fal_jwt_token")
        if token is None:
            return await self.authenticate(connection)
        return await self.authenticate.bearer(await self.tokens.verify_app(token, path))

    async def same_caller(self, connection: HTTPConnection, caller: Caller) -> Caller:
        """Who has opened a connection, as it is by now: whoever came by a key must have its secret still.

        A token may end before what it has opened. Its key may not.

        Raises:
            Unauthenticated: The key has been revoked or has expired, or its secret is another now.
            Unavailable: The database cannot say.
        """
        if "fal_jwt_token" in connection.query_params:
            return await self.authenticate.bearer(caller.key_id)
        return await self.authenticate(connection)

    async def request(self, path: str, request_id: str, caller: Caller) -> InferenceRequest | None:
        """A caller's own request under ``owner/alias`` or the full endpoint id; None where there is none."""
        request = await self.store.get(request_id) if _REQUEST_ID.fullmatch(request_id) else None
        if request is None or request.key_id != caller.key_id:
            return None
        return request if path in (request.endpoint, app_of(request)) else None

    async def admit(self, caller: Caller, path: str, connection: HTTPConnection) -> Endpoint:
        """The endpoint for which a caller makes work, before anything more of its call is read.

        Raises:
            IdempotencyKeyReused: The Idempotency-Key was used for another endpoint.
            NotFound: This server has no such endpoint.
            RateLimited: The caller's key makes more calls a second than it may.
        """
        endpoint = self.endpoint(path)
        await self.limiter.admit(caller, endpoint, connection.headers.get("idempotency-key"))
        return endpoint

    async def new_request(
        self, endpoint: Endpoint, caller: Caller, payload: Any, connection: HTTPConnection, *, retry: bool
    ) -> tuple[NewRequest, ServingError | None]:
        """As ``submission.new_request``, with its files living as their owner wants it.

        An input that names a file of ours which its caller may not read is refused: replicas read them unasked.
        """
        asked = connection.headers.get("x-fal-object-lifecycle-preference")
        lifecycle = await self.files.lifecycle(caller.key_id, asked)
        row, refused = new_request(endpoint, caller, payload, connection, lifecycle, retry=retry)
        tracing.describe(request_id=row.id, endpoint=row.endpoint)
        return row, refused or await self._unreadable(caller, json.loads(row.input))

    async def _unreadable(self, caller: Caller, input: Mapping[str, Any]) -> ServingError | None:
        for name, url in input.items():
            if name.endswith("_url") and (key := self.storage.key_of(str(url))):
                try:
                    await self.may_read(key, caller.key_id, *parse_qs(urlsplit(url).query).get("token", [])[:1])
                except (Forbidden, NotFound, Unauthenticated):
                    return FileDownloadError("There is no such file on this server", ("body", name))
        return None

    async def may_read(self, key: str, user: str | None, token: str | None = None) -> FileRecord | None:
        """Check that somebody may read a file; answer its record, or None where it has none and is anybody's.

        Args:
            key: The file's key.
            user: The id of the reader's key; None without one.
            token: From a signed URL: it overrides the ACL, not the end of the file's life.

        Raises:
            Forbidden: Its owner forbids it.
            NotFound: It is hidden from this reader, has expired, or is not whole yet.
            Unauthenticated: The token is no good.
        """
        file = await self.files.get(key)
        if file is None:
            return None
        if token is not None:
            await self.tokens.verify_reading(token, key)
            user = file.key_id
        decision = file.decide(user)
        if decision == "forbid":
            raise Forbidden("This file may not be read with this key, or without one")
        if decision == "hide":
            raise NotFound("No such file")
        return file

    async def intact(self, key: str, file: FileRecord | None) -> Stat:
        """What the storage knows of a file, which has the bytes that its record tells of.

        Args:
            key: The file's key.
            file: Its record; None where it has none.

        Raises:
            FileDamaged: It is lost, or has other bytes.
            NotFound: It has no record, and is not there; or it was deleted just now.
            StorageUnavailable: The storage cannot be reached.
        """
        if file is None or file.size is None:
            return await self.storage.stat(key)
        try:
            return await self.storage.verify(key, file.size, file.sha256)
        except FileDamaged as damage:
            known = await self.files.get(key)
            if known is None or known.expired:
                raise NotFound("No such file") from None
            made_by = f"request {file.request_id}" if file.request_id else f"an upload of key {file.key_id}"
            logger.error("%s: %s, of %s", damage.message, without_secrets(key), made_by)
            raise

    async def run(self, caller: Caller, row: NewRequest, refused: ServingError | None) -> InferenceRequest:
        """Submit, and wait for the end. A caller who goes away meanwhile no longer wants the clip."""
        try:
            accepted = await self.limiter.submit(caller, row, refused, synchronous=True)
            await self.changes.completion(accepted.id)
        except asyncio.CancelledError:
            await self.store.cancel(row.id)  # which is nobody's if an earlier request was accepted in its place
            raise
        ended = await self.store.get(accepted.id)
        assert ended is not None
        return ended

    async def result(self, request: InferenceRequest) -> Response:
        """How a completed request ended."""
        endpoint = self.endpoints.get(request.endpoint)  # results outlive an endpoint that is no longer served
        units = endpoint.billable_units(request.gpu_seconds or 0.0) if endpoint else 0.0
        return result_response(request, await self.store.output(request.id), units)

    def preview_url(self, line: LogLine) -> str | None:
        """Where the picture is that goes with a line of a log; None where none does."""
        return self.storage.url_of(line.preview) if line.preview else None

    def urls(self, request: InferenceRequest) -> dict[str, str]:
        """Where to follow a request."""
        return request_urls(self.public_url, app_of(request), request.id)


def app_of(request: InferenceRequest) -> str:
    """``owner/alias`` of a request's endpoint."""
    return app_id(request.endpoint)


def app_id(endpoint_id: str) -> str:
    """``owner/alias`` of an endpoint."""
    return "/".join(endpoint_id.split("/")[:2])
