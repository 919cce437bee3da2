"""What the proxy says of itself while it has no application, and what it passes on."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from deployments.gateway.backpressure import proxy_middlewares
from deployments.gateway.starting import Starting


async def ask(answer: Response) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Starting(answer)), base_url="http://x") as client:
        return await client.get("/queue/fal-ai/svd/requests/1/status")


async def test_a_proxy_without_an_application_is_unavailable() -> None:
    answer = await ask(
        PlainTextResponse("Path '/queue' not found. Ping http://.../-/routes for available routes.", 404)
    )
    assert (answer.status_code, answer.headers["x-fal-error-type"]) == (503, "internal_error")
    assert answer.json() == {"detail": "The service is starting", "error_type": "internal_error"}


@pytest.mark.parametrize(
    "answer", [JSONResponse({"status": "NOT_FOUND"}, 404), PlainTextResponse("ok"), PlainTextResponse("busy", 429)]
)
async def test_every_other_answer_is_passed_on(answer: Response) -> None:
    passed_on = await ask(answer)
    assert (passed_on.status_code, passed_on.content) == (answer.status_code, answer.body)


async def test_what_is_no_http_request_is_passed_on() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(send)

    send: Any = object()
    await Starting(app)({"type": "websocket"}, send, send)
    assert seen == [send]


def test_serves_proxy_is_started_with_it() -> None:
    assert Starting in [each.cls for each in proxy_middlewares()]
