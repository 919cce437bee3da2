"""What is another key's looks, to everybody else, like what nobody ever made. This holds for each route there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from deployments.queue.admin import Admin
from deployments.queue.keys import Keys
from tests.gateway.conftest import STABLE_VIDEO, SVD, URL, Gateway

OF_A_REQUEST = {
    ("GET", "/queue/{path:path}/requests/{request_id}/status"): f"/queue/{SVD}/requests/{{}}/status?logs=1",
    ("GET", "/queue/{path:path}/requests/{request_id}/status/stream"): f"/queue/{SVD}/requests/{{}}/status/stream",
    ("PUT", "/queue/{path:path}/requests/{request_id}/cancel"): f"/queue/{SVD}/requests/{{}}/cancel",
    ("GET", "/queue/{path:path}/requests/{request_id}/response"): f"/queue/{SVD}/requests/{{}}/response",
    ("GET", "/queue/{path:path}/requests/{request_id}"): f"/queue/{SVD}/requests/{{}}",
    ("DELETE", "/v1/models/requests/{request_id}/payloads"): "/v1/models/requests/{}/payloads",
    ("PUT", "/requests/delete_io/{request_id}"): "/requests/delete_io/{}",
}
"""How each route that takes a request's id is called."""

OF_A_REQUEST |= {
    ("HEAD", route): path for (method, route), path in OF_A_REQUEST.items() if method == "GET" and "stream" not in path
}

LISTS = {
    "/v1/models/usage": {"expand": "summary"},
    "/v1/models/analytics": {"endpoint_id": SVD, "expand": "summary,request_count,success_count"},
    "/v1/models/billing-events": {},
    "/v1/models/requests/by-endpoint": {"endpoint_id": SVD, "expand": "payloads"},
    "/v1/models/requests/search": {"expand": "payloads"},
    "/v1/storage/settings": {},
}
"""How each route is asked that answers with what a caller's own requests and files were."""

FOR_ALL = {
    "/v1/meta",
    "/v1/models",
    "/v1/models/pricing",
    "/v1/{path:path}",
    "/v1/serverless/apps/{owner}/{name}/queue",
}
"""What tells everybody the same, and nothing of a single request."""

FOR_ADMINISTRATORS = {"/v1/keys", "/v1/serverless/metrics", "/v1/costs"}
OF_A_FILE = {
    ("GET", "/v1/storage/files/acl"),
    ("HEAD", "/v1/storage/files/acl"),
    ("PUT", "/v1/storage/files/acl"),
    ("POST", "/v1/storage/files/sign"),
}


@dataclass
class House:
    """A gateway with two keys: what the owner made, and what the other may not see."""

    gateway: Gateway
    owner: dict[str, str]
    other: dict[str, str]
    waiting: str
    running: str
    ended: str
    failed: str

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """A call with the other's key."""
        return await self.gateway.client.request(method, path, headers=self.other, **options)


@pytest.fixture
async def house(gateway: Gateway) -> House:
    headers = []
    for alias in ("owner", "other"):
        key, secret = await Keys(gateway.store.database).create(alias)
        headers.append({"authorization": f"Key {key.id}:{secret}"})
    owner, other = headers
    lives = {"expiration_duration_seconds": 3600}
    assert (await gateway.client.put("/v1/storage/settings", json=lives, headers=owner)).status_code == 200
    ended, failed = await gateway.submit(headers=owner), await gateway.submit(headers=owner, json={})
    await gateway.finish(await gateway.claim())
    running = await gateway.submit(headers=owner)
    await gateway.claim()
    waiting = await gateway.submit(headers=owner)
    return House(gateway, owner, other, waiting, running, ended, failed)


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Method and path of each route of an application, whatever is around it."""
    while not isinstance(app, FastAPI):
        app = app.app if hasattr(app, "app") else app._app
    for route in iter_route_contexts(app.routes):
        for method in route.methods or ["WEBSOCKET"]:
            yield method, str(route.path)


async def kept(house: House, request_id: str) -> tuple[Any, ...]:
    """All that is known of a request."""
    dossier = await Admin(house.gateway.store.database).show(request_id)
    return dict(dossier.record.columns), dossier.input, dossier.output, dossier.lines


def alike(reply: httpx.Response, *hidden: str) -> tuple[int, str, dict[str, str]]:
    """What a caller can tell of an answer; ids that are new with each are left out."""
    text, headers = reply.text, dict(reply.headers)
    for each in hidden:
        assert each not in headers.get("x-fal-request-id", "")
        text = text.replace(each, "ID")
    headers.pop("x-fal-request-id", None)
    return reply.status_code, re.sub('"request_id":"[0-9a-f-]{36}"', "", text), headers


def test_every_route_that_takes_a_request_is_tried(gateway: Gateway) -> None:
    found = set(routes(gateway.app))

    assert {(method, path) for method, path in found if "request_id" in path} == set(OF_A_REQUEST)
    assert {(method, path) for method, path in found if path.startswith("/v1/storage/files/")} == OF_A_FILE
    listing = {path for method, path in found if method == "GET" and path.startswith("/v1/")}
    assert listing == set(LISTS) | FOR_ALL | FOR_ADMINISTRATORS | {
        path for method, path in OF_A_FILE if method == "GET"
    }


@pytest.mark.parametrize("state", ["waiting", "running", "ended", "failed"])
@pytest.mark.parametrize(("method", "path"), [(method, path) for (method, _), path in OF_A_REQUEST.items()])
async def test_anothers_request_is_one_that_nobody_made(house: House, method: str, path: str, state: str) -> None:
    request_id, unknown = getattr(house, state), str(uuid4())
    before = await kept(house, request_id)
    reply, of_none = [await house.call(method, path.format(each)) for each in (request_id, unknown)]

    assert reply.status_code == 404
    assert alike(reply, request_id) == alike(of_none, unknown)
    assert await kept(house, request_id) == before


async def test_its_owner_sees_it_by_the_same_routes(house: House) -> None:
    for (method, _), path in sorted(OF_A_REQUEST.items(), key=lambda each: each[0][0] in ("PUT", "DELETE")):
        reply = await house.gateway.client.request(method, path.format(house.ended), headers=house.owner)
        assert reply.status_code != 404 or "was deleted" in reply.text, path


@pytest.mark.parametrize("path", LISTS)
async def test_anothers_requests_are_in_no_list(house: House, path: str) -> None:
    asked = {**LISTS[path], "limit": 100} if "storage" not in path else {}
    before = await house.call("GET", path, params=asked)
    assert before.status_code == 200, before.text
    mine = await house.gateway.client.get(path, params=asked, headers=house.owner)
    assert re.sub(r"\d", "", mine.text) != re.sub(r"\d", "", before.text), "it shows nothing to its owner"

    for request_id in (house.waiting, house.running, house.ended, house.failed):
        assert request_id not in before.text


@pytest.mark.parametrize("path", ["/v1/models/billing-events", "/v1/models/requests/search"])
async def test_a_list_that_is_asked_for_anothers_request_is_empty(house: House, path: str) -> None:
    reply, of_none = [
        await house.call("GET", path, params={"request_id": each}) for each in (house.ended, str(uuid4()))
    ]

    assert alike(reply) == alike(of_none)
    assert house.ended not in reply.text


@pytest.mark.parametrize("path", sorted(FOR_ADMINISTRATORS))
async def test_what_shows_all_is_an_administrators(house: House, path: str) -> None:
    assert (await house.call("GET", path)).status_code == 403


@pytest.mark.parametrize(("method", "path"), sorted(OF_A_FILE))
async def test_anothers_file_is_nobodys(house: House, method: str, path: str) -> None:
    upload = await house.gateway.client.post("/files/upload", content=b"x", headers=house.owner)
    url = upload.json()["access_url"]
    body = {"default": "forbid"} if method == "PUT" else {"expiration_seconds": 60}
    options = {} if method in ("GET", "HEAD") else {"json": body}
    reply = await house.call(method, path, params={"url": url}, **options)
    of_none = await house.call(method, path, params={"url": f"{URL}/files/b/{uuid4()}/file"}, **options)

    assert reply.status_code == 404
    assert alike(reply) == alike(of_none)
    mine = await house.gateway.client.request(method, path, params={"url": url}, headers=house.owner, **options)
    assert mine.status_code == 200


async def test_an_idempotency_key_is_its_callers_own(house: House) -> None:
    once = {"idempotency-key": "once"}
    mine = await house.gateway.submit(headers=house.owner | once)
    theirs = await house.gateway.submit(headers=house.other | once)

    assert mine != theirs
    assert await house.gateway.submit(headers=house.owner | once) == mine


async def test_a_request_is_not_found_under_another_endpoint(house: House) -> None:
    for method, path in [(method, path) for (method, _), path in OF_A_REQUEST.items() if SVD in path]:
        elsewhere = path.replace(SVD, STABLE_VIDEO).format(house.ended)
        assert (await house.gateway.client.request(method, elsewhere, headers=house.owner)).status_code == 404
