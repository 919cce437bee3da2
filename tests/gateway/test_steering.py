"""What callers may not tell Serve, and what the proxy is started with."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn import config as uvicorn_config

from deployments.gateway import patience
from deployments.gateway.backpressure import proxy_middlewares
from deployments.gateway.headers import Headers
from deployments.gateway.steering import Steering


async def seen_by_serve(headers: list[tuple[bytes, bytes]], kind: str = "http") -> list[str]:
    """The names of the headers that get through."""
    seen: list[str] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(bytes(name).decode() for name, _ in scope["headers"])

    nobody: Any = None
    await Steering(serve)({"type": kind, "path": "/", "headers": headers}, nobody, nobody)
    return seen


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "name",
    [
        b"serve_multiplexed_model_id",
        b"Serve-Multiplexed-Model-Id",
        b"x-session-id",
        b"x_session_id",
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
    ],
)
async def test_serves_own_headers_are_no_callers(name: bytes, kind: str) -> None:
    assert await seen_by_serve([(name, b"1"), (b"authorization", b"Key a:b")], kind) == ["authorization"]


@pytest.mark.parametrize(("id", "is_taken"), [(b"0f-1_a.b:c/d=", True), (b"\xff\xfe", False), (b"a" * 129, False)])
async def test_an_id_of_the_callers_is_taken_if_it_looks_like_one(id: bytes, is_taken: bool) -> None:
    assert bool(await seen_by_serve([(b"x-request-id", id)])) is is_taken


async def test_nobody_is_told_which_applications_there_are() -> None:
    transport = httpx.ASGITransport(Steering(JSONResponse({"/": "svd-serve"})))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        assert (await client.get("/-/routes")).status_code == 404
        assert (await client.get("/-/healthz")).status_code == 200


def test_serves_proxy_is_started_with_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uvicorn_config.HTTP_PROTOCOLS, "auto", "")
    classes: list[Any] = [each.cls for each in proxy_middlewares()]

    assert Steering in classes
    assert classes[-1] is Headers  # the outermost: what the others answer is an answer too
    assert uvicorn_config.HTTP_PROTOCOLS["auto"] == f"{patience.__name__}:PatientProtocol"
