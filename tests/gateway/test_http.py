"""What is true of every route: headers, methods, kinds of body, hostile JSON, and that memory has an end.

Rows of the bad-input table stand beside their tests.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from deployments.gateway import bodies, polls
from deployments.gateway.bodies import MOST_BYTES, MOST_BYTES_OF_A_FORM
from deployments.gateway.polls import Polls
from deployments.queue.request import NewRequest
from deployments.queue.store import RequestStore
from deployments.queue.watch import Changes, Positions
from deployments.storage import FileStorage
from loadtest.postgres import Postgres
from tests.gateway.conftest import INPUT, SVD, TEXT_TO_VIDEO, URL, Gateway, open_gateway, served_endpoints

QUEUE, RUN = f"/queue/{SVD}", f"/{SVD}"
PAGE = "https://app.example.com"
JSON = {"content-type": "application/json"}


@pytest.fixture(params=["sqlite", "postgresql"])
def kept_url(request: pytest.FixtureRequest, database_url: str) -> str:
    """The URL of an empty database of either kind."""
    if request.param == "sqlite":
        return database_url
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.create(f"test_{uuid4().hex}", template="migrated")


@pytest.fixture
async def kept(kept_url: str, storage: FileStorage) -> AsyncIterator[Gateway]:
    """A gateway on either database."""
    store = await RequestStore.open(kept_url)
    async with open_gateway(store, storage, served_endpoints()) as gateway:
        yield gateway
    await store.close()


# ---------------------------------------------------------------- headers of every answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health/live", 200),
        ("GET", "/", 307),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/keys", 200),
        ("GET", "/v1/nothing", 404),
        ("GET", "/fal-ai/nothing", 404),
        ("GET", "/files/b/nothing", 404),
        ("GET", f"{QUEUE}/requests/nothing/status", 404),
        ("POST", QUEUE, 422),
        ("PUT", QUEUE, 405),
        ("GET", "/llms.txt", 200),
        ("OPTIONS", QUEUE, 200),
        ("GET", "/%00", 404),
    ],
)
async def test_every_answer_says_what_a_browser_may_do_with_it(
    gateway: Gateway, method: str, path: str, status: int
) -> None:
    ask = {"origin": PAGE, "access-control-request-method": "POST"} if method == "OPTIONS" else {}
    reply = await gateway.client.request(method, path, headers=ask)

    assert reply.status_code == status
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-fal-request-id"]


async def test_an_answer_to_a_fault_of_ours_says_so_too(store: RequestStore, storage: FileStorage) -> None:
    fault = RuntimeError("/etc/secret could not be read")
    async with open_gateway(store, storage, served_endpoints(), not_ready=fault) as gateway:
        reply = await gateway.client.get("/health/ready")
    assert reply.status_code == 500
    assert reply.json() == {"detail": "Internal error", "error_type": "internal_error"}
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_status_result_keys_and_tokens_are_never_kept_by_a_cache(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    url = f"{QUEUE}/requests/{request_id}"
    replies = [
        await gateway.client.get(f"{url}/status"),
        await gateway.client.get(url),
        await gateway.client.get("/v1/keys"),
        await gateway.client.post("/storage/auth/token"),
        await gateway.client.post("/storage/upload/initiate", json={"file_name": "a.png"}),
    ]
    assert {reply.headers["cache-control"] for reply in replies} == {"no-store"}


# 69: what a browser could run is kept, not shown; and nobody's page is hurt by what may be shown
@pytest.mark.parametrize(
    ("name", "content_type", "is_shown"),
    [
        ("a.html", "text/html", False),
        ("a.svg", "image/svg+xml", False),
        ("a.xml", "application/xml", False),
        ("a.xhtml", "application/xhtml+xml", False),
        ("a.js", "text/javascript", False),
        ("a.pdf", "application/pdf", False),
        ("a.mp4", "text/html; charset=utf-8", False),
        ("a.png", "IMAGE/SVG+XML", False),
        ("a.bin", "multipart/x-mixed-replace", False),
        ("a.png", "image/png", True),
        ("a.mp4", "video/mp4", True),
    ],
)
async def test_a_file_is_shown_only_if_it_can_only_be_looked_at(
    gateway: Gateway, name: str, content_type: str, is_shown: bool
) -> None:
    headers = {"x-fal-file-name": name, "content-type": content_type}
    sent = await gateway.client.post("/files/upload", content=b"<script>alert(1)</script>", headers=headers)
    for method in ("GET", "HEAD"):
        reply = await gateway.client.request(method, sent.json()["access_url"], headers={"authorization": ""})
        assert reply.status_code == 200
        assert reply.headers.get("content-disposition", "").startswith("attachment") is not is_shown
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-security-policy"].startswith("default-src 'none';")
        assert reply.headers["content-security-policy"].endswith("; sandbox")
        assert reply.headers["cross-origin-resource-policy"] == "cross-origin"


# 68
@pytest.mark.parametrize(
    "name",
    [
        "../../x.html",
        "/etc/passwd",
        'a".html',
        "a;b=c.html",
        "CON",
        "CON.html",
        ".htaccess",
        "a\u202egpj.html",
        "%0d%0aSet-Cookie:x.html",
        "a\\b.html",
        "ü" * 1000 + ".html",
        "a" * 1000,
        "..",
        " ",
    ],
)
async def test_a_files_name_is_nothing_but_a_name(gateway: Gateway, name: str) -> None:
    asked = await gateway.client.post("/storage/upload/initiate", json={"file_name": name, "content_type": "text/html"})
    urls = asked.json()
    await gateway.client.put(urls["upload_url"], content=b"x")
    reply = await gateway.client.get(urls["file_url"])

    disposition = reply.headers["content-disposition"]
    assert reply.status_code == 200
    assert disposition.startswith("attachment; filename*=UTF-8''")
    assert set(disposition.removeprefix("attachment; filename*=UTF-8''")) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%"
    )
    assert "%2F" not in disposition
    assert "%E2%80%AE" not in disposition  # it would write the rest backwards
    assert "set-cookie" not in reply.headers
    assert len(disposition) < 800


# ---------------------------------------------------------------- pages of other origins


async def test_any_page_may_call_where_nothing_else_is_said(gateway: Gateway) -> None:
    reply = await gateway.client.get("/v1/models", headers={"origin": PAGE})
    exposed = {name.strip() for name in reply.headers["access-control-expose-headers"].lower().split(",")}

    assert reply.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in reply.headers
    assert exposed >= {
        "x-fal-request-id",
        "x-fal-request-timeout-type",
        "x-fal-error-type",
        "x-fal-billable-units",
        "etag",
        "retry-after",
    }


async def test_a_preflight_is_remembered(gateway: Gateway) -> None:
    wanted = "authorization,x-fal-queue-priority,x-fal-target-url"
    ask = {"origin": PAGE, "access-control-request-method": "PATCH", "access-control-request-headers": wanted}
    reply = await gateway.client.options("/v1/keys/id", headers=ask)

    assert reply.status_code == 200
    assert int(reply.headers["access-control-max-age"]) >= 3600
    assert "PATCH" in reply.headers["access-control-allow-methods"]
    assert reply.headers["access-control-allow-headers"] == wanted


@pytest.mark.parametrize(("origin", "may"), [(PAGE, True), ("https://evil.example", False), ("null", False)])
async def test_only_the_pages_that_are_listed_may_call(
    store: RequestStore, storage: FileStorage, origin: str, may: bool
) -> None:
    async with open_gateway(store, storage, served_endpoints(), cors_origins=[PAGE]) as gateway:
        ask = {"origin": origin, "access-control-request-method": "POST"}
        preflight = await gateway.client.options(QUEUE, headers=ask)
        reply = await gateway.client.get("/v1/models", headers={"origin": origin})
        error = await gateway.client.get("/fal-ai/nothing", headers={"origin": origin})
    assert preflight.status_code == (200 if may else 400)
    for each in (preflight, reply, error):
        assert each.headers.get("access-control-allow-origin") == (PAGE if may else None)
        assert "origin" in each.headers["vary"].lower()


# ---------------------------------------------------------------- methods and paths (78)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", QUEUE, "POST"),
        ("GET", QUEUE, "POST"),
        ("DELETE", RUN, "GET, POST"),
        ("TRACE", RUN, "GET, POST"),
        ("HEAD", RUN, "GET, POST"),
        ("DELETE", "/v1/keys", "GET, HEAD, POST"),
        ("POST", "/health/live", "GET, HEAD"),
        ("TRACE", "/health/live", "GET, HEAD"),
        ("PATCH", "/files/b/x/clip.mp4", "GET, HEAD, PUT"),
        ("POST", f"{QUEUE}/requests/x/cancel", "PUT"),
        ("DELETE", f"{QUEUE}/requests/x/status", "GET, HEAD"),
    ],
)
async def test_a_method_that_a_path_does_not_know(gateway: Gateway, method: str, path: str, allowed: str) -> None:
    reply = await gateway.client.request(method, path)

    assert reply.status_code == 405
    assert reply.headers["allow"] == allowed
    if method == "HEAD":
        assert not reply.content
    elif path.startswith("/v1/"):
        assert reply.json()["error"]["type"] == "validation_error"
    else:
        assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "bad_request"


@pytest.mark.parametrize("path", ["/health/live", "/v1/models", "/llms.txt", f"/models/{SVD}", "/playground/app.js"])
async def test_the_head_of_an_answer_is_that_of_the_answer(gateway: Gateway, path: str) -> None:
    got, head = await gateway.client.get(path), await gateway.client.head(path)
    changing = {"x-fal-request-id"}
    assert head.status_code == got.status_code == 200
    assert {**head.headers, **dict.fromkeys(changing)} == {**got.headers, **dict.fromkeys(changing)}


async def test_who_asks_for_a_head_runs_nothing(gateway: Gateway) -> None:
    reply = await gateway.client.head(RUN, params=INPUT)
    assert (reply.status_code, await gateway.waiting()) == (405, 0)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/fal-ai/nothing",
        f"{RUN}/",
        f"/{RUN}",
        f"//queue/{SVD}",
        f"{QUEUE}/",
        "/health/live/",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/files/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/files/..%2f..%2f..%2fetc%2fpasswd",
        "/files//etc/passwd",
        "/playground/%2e%2e/api.py",
        "/playground/..%5capi.py",
        "/models/%2e%2e/%2e%2e/api.py",
        "/files/b/x%00.mp4",
        "/" + "a" * 10_000,
        "/%ff%fe",
        "/%ed%a0%80",
    ],
)
async def test_a_path_that_is_none_of_ours(gateway: Gateway, method: str, path: str) -> None:
    reply = await gateway.client.request(method, URL + path)

    assert reply.status_code == 404 or (reply.status_code == 405 and method == "POST")
    assert "root:" not in reply.text
    assert "FastAPI" not in reply.text
    assert "location" not in reply.headers


@pytest.mark.parametrize(
    "request_id", ["x", "..%2fx", "%2e%2e", "A" * 36, "0" * 10_000, "%00", "%27%20or%201=1", "{7*7}", "%ff" * 36]
)
async def test_an_id_that_is_none(gateway: Gateway, request_id: str) -> None:  # 76
    for path in ("", "/status", "/response"):
        reply = await gateway.client.get(f"{QUEUE}/requests/{request_id}{path}")
        assert reply.status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "place"),
    [("GET", "/api/openapi/queue/openapi.json?endpoint_id=%00", None), ("PUT", "/files/b/x/multipart/u/0", "number")],
)
async def test_a_parameter_that_is_wrong(gateway: Gateway, method: str, path: str, place: str | None) -> None:
    reply = await gateway.client.request(method, path)
    if place is None:
        assert (reply.status_code, reply.json()["error_type"]) == (400, "bad_request")
        return
    [error] = reply.json()["detail"]
    assert reply.status_code == 422
    assert error["loc"] == ["path", place]
    assert error["url"] == f"https://docs.fal.ai/errors#{error['type']}"


# ---------------------------------------------------------------- kinds of body (4)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/x+json",
        "text/plain",
        "application/x-www-form-urlencoded",
        "",
    ],
)
async def test_what_is_read_as_json(gateway: Gateway, content_type: str) -> None:
    headers = {"content-type": content_type} if content_type else {}
    reply = await gateway.client.post(QUEUE, content=json.dumps(INPUT).encode(), headers=headers)
    assert reply.status_code == 200


async def test_a_form_is_no_json(gateway: Gateway) -> None:
    reply = await gateway.client.post(QUEUE, data=INPUT)
    assert (reply.status_code, reply.json()["detail"][0]["type"]) == (422, "json_invalid")


@pytest.mark.parametrize("path", [QUEUE, RUN])
@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=x",
        "text/html",
        "application/xml",
        "image/png",
        "application/octet-stream",
        "nonsense",
    ],
)
async def test_what_is_not_read_as_json(gateway: Gateway, path: str, content_type: str) -> None:
    headers = {"content-type": content_type}
    reply = await gateway.client.post(path, content=json.dumps(INPUT).encode(), headers=headers)
    [error] = reply.json()["detail"]

    assert reply.status_code == 422
    assert (error["loc"], error["type"]) == (["body"], "model_attributes_type")
    assert await gateway.waiting() == 0


@pytest.mark.parametrize("path", [QUEUE, RUN, "/v1/keys", "/files/upload", "/storage/upload/initiate"])
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity", "nonsense"])
async def test_a_compressed_body_is_not_even_read(gateway: Gateway, path: str, coding: str) -> None:
    read = False

    async def bomb() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b"\x1f\x8b" + b"\0" * 100

    reply = await gateway.client.post(path, content=bomb(), headers={"content-encoding": coding, **JSON})
    assert reply.status_code == 415
    assert not read


# ---------------------------------------------------------------- sizes and clocks (63, 64)


@pytest.mark.parametrize(
    ("path", "most"),
    [
        (QUEUE, MOST_BYTES),
        (RUN, MOST_BYTES),
        ("/storage/upload/initiate", MOST_BYTES_OF_A_FORM),
        ("/tokens/", MOST_BYTES_OF_A_FORM),
        ("/v1/keys", MOST_BYTES_OF_A_FORM),
        ("/v1/models/pricing/estimate", MOST_BYTES_OF_A_FORM),
    ],
)
async def test_a_body_has_a_size_for_its_route(gateway: Gateway, path: str, most: int) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 4 * most:
            sent += 65536
            yield b" " * 65536

    status = 400 if path.startswith("/v1/") else 413
    reply = await gateway.client.post(path, content=endless(), headers=JSON)
    assert reply.status_code == status, reply.text
    assert sent <= most + 2 * 65536

    sent = 0
    told = {"content-length": str(2 * 1024**3), **JSON}
    reply = await gateway.client.post(path, content=endless(), headers=told)
    assert reply.status_code == status
    assert sent == 0  # nothing of what says itself that it is too large is read


async def test_a_body_has_a_time(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(bodies, "LEAST_BYTES_PER_SECOND", bodies.MOST_BYTES / 0.1)

    async def dripping() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    reply = await gateway.client.post(QUEUE, content=dripping(), headers=JSON)
    assert (reply.status_code, reply.json()["error_type"]) == (408, "bad_request")


# ---------------------------------------------------------------- hostile JSON, in the databases too


def field(text: str) -> bytes:
    return b'{"prompt": "a", "image_url": "https://example.com/a.png", "seed": ' + text.encode() + b"}"


@pytest.mark.parametrize("road", ["/queue/", "/"])
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"image_url":', "json_invalid"),  # 1
        (b"", "missing"),  # 2
        (b" \n", "missing"),
        (b"[]", None),  # 3
        (b'"x"', None),
        (b"null", None),
        (b"1", None),
        ('{"image_url": "x"}'.encode("utf-16"), "json_invalid"),  # 5
        (b'\xef\xbb\xbf{"image_url": "x"}', "json_invalid"),
        (b'{"image_url": "\xff\xfe"}', "json_invalid"),
        (b"[" * 100_000, "json_invalid"),  # 6
        (b'{"a":' * 100_000, "json_invalid"),
        (b"[" * 100_000 + b"]" * 100_000, "json_invalid"),
        (field("1" + "0" * 400), None),  # 15
        (field("1" + "0" * 5000), None),
        (field("1e400"), None),
        (field("NaN"), None),  # 16
        (field("-Infinity"), None),
        (field('"\\u0000"'), "string_type"),
        (b'{"image_url": "\\ud800"}', "json_invalid"),  # 21
        (b'{"image_url": "a\\u0000b"}', "string_type"),
        (b'{"prompt": "a\\u0000b"}', "string_type"),
        (b'{"image_url": {"\\u0000": 1}}', "string_type"),
        (b'{"image_url": ["a", {"b": ["\\u0000"]}]}', "string_type"),
        (b'{"image_url": "a\0b"}', "json_invalid"),
    ],
)
async def test_json_that_means_harm_is_refused(kept: Gateway, road: str, body: bytes, kind: str | None) -> None:
    for endpoint in (SVD, TEXT_TO_VIDEO):
        reply = await kept.client.post(f"{road}{endpoint}", content=body, headers=JSON)
        if road == "/queue/" and reply.status_code == 200:  # it was accepted, and has failed
            reply = await kept.client.get(f"/queue/{SVD}/requests/{reply.json()['request_id']}")
            if reply.status_code == 404:
                continue
        assert reply.status_code == 422, reply.text
        errors = json.loads(reply.content, parse_constant=lambda name: pytest.fail(name))["detail"]
        assert all(error["loc"][0] == "body" and error["msg"] and error["type"] for error in errors)
        assert kind is None or errors[0]["type"] == kind
    good = await kept.client.post(QUEUE, json=INPUT)
    assert good.status_code == 200


async def test_a_nul_is_named_by_its_place(gateway: Gateway) -> None:
    body = b'{"a": [1, {"b": "x\\u0000"}], "c": "\\\\u0000 is no NUL"}'
    reply = await gateway.client.post(QUEUE, content=body, headers=JSON)
    assert reply.json()["detail"][0]["loc"] == ["body", "a", 1, "b"]
    fine = json.dumps({**INPUT, "other": "\\u0000 is no NUL"})
    assert (await gateway.client.post(QUEUE, content=fine, headers=JSON)).status_code == 200


async def test_of_two_equal_names_the_last_counts(gateway: Gateway) -> None:  # 7
    body = b'{"image_url": "https://example.com/a.png", "seed": 1, "seed": 2}'
    request_id = (await gateway.client.post(QUEUE, content=body, headers=JSON)).json()["request_id"]
    attempt = await gateway.claim()
    assert attempt.request_id == request_id
    assert json.loads(attempt.input)["seed"] == 2


# 84: data is data, and comes back as it is
@pytest.mark.parametrize(
    "value",
    ["{{7*7}}", "${jndi:ldap://127.0.0.1/a}", "\x1b[31mred", "a\nb", "'; DROP TABLE requests;--", "%s%n", "\u202e"],
)
async def test_what_looks_like_a_template_is_text(kept: Gateway, value: str) -> None:
    odd = {**INPUT, "__proto__": {"a": 1}, "$ref": value, "motion_bucket_id": value}
    for headers in ({}, {"idempotency-key": "{{7*7}}", "x-fal-runner-hint": "${jndi:x}"}):
        reply = await kept.client.post(QUEUE, json=odd, headers=headers)
        assert reply.status_code == 200
        result = await kept.client.get(f"{QUEUE}/requests/{reply.json()['request_id']}")
        [error] = result.json()["detail"]
        assert result.status_code == 422
        assert error["input"] == value
    assert (await kept.client.post(RUN, json={**INPUT, "image_url": {"$gt": ""}})).status_code == 422


async def test_a_nul_in_an_address_reaches_no_database(kept: Gateway) -> None:
    for path in ("/v1/keys/%00", f"{QUEUE}/requests/%00", "/files/%00", "/%00"):
        for method in ("GET", "DELETE", "PUT", "POST"):
            assert (await kept.client.request(method, path)).status_code == 404
    for path in ("/v1/models/requests/by-endpoint?endpoint_id=%00", "/v1/models/usage?start=%00", f"{RUN}?prompt=%00"):
        assert (await kept.client.get(path)).status_code == 400
    alias = await kept.client.post("/v1/keys", content=b'{"alias": "a\\u0000"}', headers=JSON)
    assert alias.status_code == 400
    name = await kept.client.post("/storage/upload/initiate", content=b'{"file_name": "a\\u0000.png"}', headers=JSON)
    assert name.status_code == 422


# ---------------------------------------------------------------- what is held in memory (87)


async def test_nothing_grows_with_what_nobody_has(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[str, Any] = {}
    for kind in (Polls, Positions, Changes):
        made = kind.__init__

        def remember(self: Any, *args: Any, _made: Any = made, _kind: Any = kind, **options: Any) -> None:
            held[_kind.__name__] = self
            _made(self, *args, **options)

        monkeypatch.setattr(kind, "__init__", remember)
    async with open_gateway(gateway.store, gateway.storage, served_endpoints()) as watched:
        for number in range(500):
            await watched.client.get(f"/queue/fal-ai/unknown-{number}/requests/{number:036d}/status")
            await watched.client.post(f"/fal-ai/unknown-{number}", json=INPUT)
            await watched.client.get("/v1/models", headers={"authorization": f"Key unknown-{number}:x"})
        assert len(held["Polls"]._told) == 0
        assert len(held["Positions"]._snapshots) == len(held["Positions"]._locks) == 0
        assert len(held["Changes"]._watched) == len(held["Changes"]._versions) == len(held["Changes"]._gone) == 0


async def test_what_polls_remember_has_an_end(store: RequestStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polls, "REMEMBERED", 10)
    changes, positions = Changes(store), Positions(store)
    told = Polls(changes, positions, hold_seconds=1.0)

    async with asyncio.timeout(20):
        for number in range(30):
            row = await store.submit(NewRequest(endpoint=SVD, model="m", key_id=f"k{number}", input="{}"))
            await told.look(number, functools.partial(store.get, row.id), with_logs=False)
    assert len(told._told) == 10
    await changes.close()


# ---------------------------------------------------------------- health


async def test_health_tells_a_stranger_nothing_of_the_inside(store: RequestStore, storage: FileStorage) -> None:
    async with open_gateway(store, storage, served_endpoints(), not_ready="fal-ai--svd is UPDATING") as gateway:
        live = await gateway.client.get("/health/live", headers={"authorization": ""})
        ready = await gateway.client.get("/health/ready", headers={"authorization": ""})
    assert live.json() == {"status": "live"}
    assert (ready.status_code, ready.json()) == (503, {"status": "fal-ai--svd is UPDATING"})


async def test_a_database_that_is_away_is_not_named(
    gateway: Gateway, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await gateway.store.close()
    reply = await gateway.client.get("/health/ready")
    assert reply.status_code >= 500
    assert "/" not in reply.text.replace("application/json", "")
    assert database_url not in reply.text
