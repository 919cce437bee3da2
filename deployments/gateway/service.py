"""What every route of the gateway works with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Response

from deployments.errors import NotFound
from deployments.gateway.auth import Authenticator, Caller
from deployments.gateway.polls import Polls
from deployments.gateway.wire import request_urls, result_response
from deployments.models.base import Endpoint
from deployments.queue.keys import Keys
from deployments.queue.request import InferenceRequest
from deployments.queue.store import RequestStore
from deployments.queue.watch import Changes, Positions
from deployments.storage import FileStorage

_REQUEST_ID = re.compile(r"[0-9a-f-]{36}")


@dataclass(frozen=True)
class Service:
    """The gateway's tools, made once in its process."""

    endpoints: Mapping[str, Endpoint]
    authenticate: Authenticator
    keys: Keys
    store: RequestStore
    storage: FileStorage
    positions: Positions
    changes: Changes
    polls: Polls
    public_url: str

    def endpoint(self, endpoint_id: str) -> Endpoint:
        """An endpoint by fal's id.

        Raises:
            NotFound: This server has no such endpoint.
        """
        endpoint = self.endpoints.get(endpoint_id)
        if endpoint is None:
            raise NotFound(f"Path /{endpoint_id} not found")
        return endpoint

    async def request(self, path: str, request_id: str, caller: Caller) -> InferenceRequest | None:
        """A caller's own request under ``owner/alias`` or the full endpoint id; None where there is none."""
        request = await self.store.get(request_id) if _REQUEST_ID.fullmatch(request_id) else None
        if request is None or request.key_id != caller.key_id:
            return None
        return request if path in (request.endpoint, app_of(request)) else None

    async def result(self, request: InferenceRequest) -> Response:
        """How a completed request ended."""
        endpoint = self.endpoints.get(request.endpoint)  # results outlive an endpoint that is no longer served
        units = endpoint.billable_units(request.gpu_seconds or 0.0) if endpoint else 0.0
        return result_response(request, await self.store.output(request.id), units)

    def urls(self, request: InferenceRequest) -> dict[str, str]:
        """Where to follow a request."""
        return request_urls(self.public_url, app_of(request), request.id)


def app_of(request: InferenceRequest) -> str:
    """``owner/alias`` of a request's endpoint."""
    return "/".join(request.endpoint.split("/")[:2])
