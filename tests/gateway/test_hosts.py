from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from deployments.queue.store import RequestStore
from deployments.storage import FileStorage
from tests.gateway.conftest import INPUT, OUTPUT, SVD, URL, Gateway, open_gateway, served_endpoints

NO_SUCH_ID = "00000000-0000-4000-8000-000000000000"

PROXY = "/api/fal/proxy"


def proxied(gateway: Gateway, method: str, url: str, **options: object) -> asyncio.Task[httpx.Response]:
    """A call as a client sends it to a proxy."""
    headers = {"x-fal-target-url": url}
    return asyncio.create_task(gateway.client.request(method, PROXY, headers=headers, **options))  # type: ignore[arg-type]


# ---------------------------------------------------------------- the proxy


async def test_the_proxy_routes_the_queue_host_to_the_queue(gateway: Gateway) -> None:
    submitted = await proxied(gateway, "POST", f"https://queue.fal.run/{SVD}", json=INPUT)

    follow = f"https://queue.fal.run/{SVD}/requests/{submitted.json()['request_id']}"
    status = await proxied(gateway, "GET", f"{follow}/status?logs=1")
    cancelled = await proxied(gateway, "PUT", f"{follow}/cancel")
    result = await proxied(gateway, "GET", follow)
    assert submitted.status_code == 200
    assert status.json()["logs"] == []
    assert cancelled.json() == {"status": "CANCELLATION_REQUESTED"}
    assert result.status_code == 499


async def test_the_proxy_routes_the_run_host_to_a_run(gateway: Gateway) -> None:
    running = proxied(gateway, "POST", f"https://fal.run/{SVD}", json=INPUT)
    await gateway.finish(await gateway.claim())

    assert (await running).json() == OUTPUT


async def test_the_proxy_passes_the_targets_query_on(gateway: Gateway) -> None:
    running = proxied(gateway, "GET", f"https://fal.run/{SVD}?image_url=https%3A%2F%2Fexample.com%2Fa%3Fb&steps=2")
    attempt = await gateway.claim()
    await gateway.finish(attempt)

    assert (await running).status_code == 200
    assert json.loads(attempt.input)["image_url"] == "https://example.com/a?b"


async def test_the_proxys_own_query_is_not_the_targets(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    reply = await gateway.client.get(
        f"{PROXY}?logs=1",
        headers={"x-fal-target-url": f"https://queue.fal.run/{SVD}/requests/{request_id}/status"},
    )

    assert reply.json()["logs"] is None


@pytest.mark.parametrize(
    "target",
    [
        None,
        "",
        "https://example.com/fal-ai/svd",
        "https://auth.fal.ai/tokens/",
        "https://evil-fal.run/fal-ai/svd",
        "https://fal.run.example.com/fal-ai/svd",
        "https://queue.fal.run@example.com/fal-ai/svd",
        "fal.run/fal-ai/svd",
        "/fal-ai/svd",
        "http://[",
        "https://[fal.run]/fal-ai/svd",
        b"https://fal.run/fal-ai/svd?a=\xff",  # nothing behind could read this query
        "garbage",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_the_proxy_refuses_any_other_target(gateway: Gateway, method: str, target: str | bytes | None) -> None:
    headers = {} if target is None else {"x-fal-target-url": target}
    reply = await gateway.client.request(method, PROXY, headers=headers)

    assert (reply.status_code, reply.json()) == (400, "Invalid request")
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-fal-request-id"]


async def test_the_proxy_wants_the_key(gateway: Gateway) -> None:
    headers = {"x-fal-target-url": f"https://queue.fal.run/{SVD}", "authorization": "Key id:wrong"}
    reply = await gateway.client.post(PROXY, json=INPUT, headers=headers)

    assert reply.status_code == 401


@pytest.mark.parametrize(
    "target", ["https://fal.run", "https://queue.fal.run", "https://fal.run/", "https://fal.run/x"]
)
async def test_the_proxy_finds_nothing_where_there_is_nothing(gateway: Gateway, target: str) -> None:
    assert (await proxied(gateway, "POST", target, json=INPUT)).status_code in (307, 404, 405)


async def test_an_encoded_path_of_the_target_means_what_it_means_elsewhere(gateway: Gateway) -> None:
    reply = await proxied(gateway, "POST", "https://queue.fal.run/fal-ai/%73vd", json=INPUT)

    assert reply.status_code == 200


# ---------------------------------------------------------------- host names


async def test_a_request_for_the_queue_host_goes_to_the_queue(gateway: Gateway) -> None:
    reply = await gateway.client.post(f"/{SVD}", json=INPUT, headers={"host": "queue.fal.run"})

    assert reply.json()["status"] == "IN_QUEUE"


async def test_a_request_for_the_run_host_is_a_run(gateway: Gateway) -> None:
    running = asyncio.create_task(gateway.client.post(f"/{SVD}", json=INPUT, headers={"host": "fal.run"}))
    await gateway.finish(await gateway.claim())

    assert (await running).json() == OUTPUT


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "svd.example.com", "queue.example.com"])
async def test_a_request_for_our_own_name_is_routed_by_its_path(gateway: Gateway, host: str) -> None:
    reply = await gateway.client.post(f"/queue/{SVD}", json=INPUT, headers={"host": host})

    assert reply.json()["status"] == "IN_QUEUE"


@pytest.mark.parametrize("host", ["QUEUE.fal.run", "queue.fal.run:443"])
async def test_a_host_is_known_in_any_case_and_with_its_port(gateway: Gateway, host: str) -> None:
    reply = await gateway.client.post(f"/{SVD}", json={}, headers={"host": host})

    assert (reply.status_code, reply.json().get("status")) == (200, "IN_QUEUE")


# ---------------------------------------------------------------- CORS


@pytest.mark.parametrize("path", [f"/queue/{SVD}", f"/{SVD}", PROXY, "/files/b/1/clip.mp4"])
async def test_a_page_from_anywhere_may_ask_whether_it_may_call(gateway: Gateway, path: str) -> None:
    headers = {
        "origin": "https://app.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-fal-target-url,x-fal-queue-priority",
        "authorization": "",
    }
    reply = await gateway.client.options(path, headers=headers)

    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "*"
    assert {"GET", "POST", "PUT", "DELETE"} <= set(reply.headers["access-control-allow-methods"].split(", "))
    allowed = {name.strip().lower() for name in reply.headers["access-control-allow-headers"].split(",")}
    assert {"authorization", "content-type", "x-fal-target-url", "x-fal-queue-priority"} <= allowed
    assert reply.headers["x-fal-request-id"]


async def test_a_page_may_read_fals_headers(gateway: Gateway) -> None:
    reply = await gateway.client.post(f"/queue/{SVD}", json=INPUT, headers={"origin": "https://app.example.com"})

    exposed = set(reply.headers["access-control-expose-headers"].split(", "))
    assert reply.headers["access-control-allow-origin"] == "*"
    assert {"x-fal-request-id", "x-fal-request-timeout-type", "x-fal-error-type", "etag"} <= exposed


# ---------------------------------------------------------------- x-fal-request-id


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/health/live", {}, 200),
        ("GET", "/models/fal-ai/svd", {}, 200),
        ("POST", "/queue/fal-ai/unknown", {}, 404),
        ("POST", "/fal-ai/unknown", {}, 404),
        ("GET", f"/queue/{SVD}/requests/1", {}, 404),
        ("GET", "/files/none", {}, 404),
        ("POST", f"/{SVD}", {"authorization": "Key id:wrong"}, 401),
        ("POST", f"/{SVD}", {"x-fal-request-timeout": "x"}, 422),
        ("PUT", f"/{SVD}", {}, 405),
        ("POST", PROXY, {}, 400),
    ],
)
async def test_every_reply_has_a_request_id_that_is_its_own(
    gateway: Gateway, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    replies = [await gateway.client.request(method, path, headers=headers) for _ in range(2)]

    assert [reply.status_code for reply in replies] == [status, status]
    assert len({reply.headers["x-fal-request-id"] for reply in replies}) == 2


async def test_an_unexpected_error_has_a_request_id_and_tells_no_details(
    store: RequestStore, storage: FileStorage
) -> None:
    async with open_gateway(store, storage, served_endpoints(), RuntimeError("the password is 1234")) as gateway:
        reply = await gateway.client.get("/health/ready", headers={"origin": "https://app.example.com"})

    assert reply.status_code == 500
    assert reply.json() == {"detail": "Internal error", "error_type": "internal_error"}
    assert reply.headers["x-fal-request-id"]
    assert reply.headers["access-control-allow-origin"] == "*"


# ---------------------------------------------------------------- health


async def test_a_gateway_is_ready_when_nothing_stands_against_it(gateway: Gateway) -> None:
    reply = await gateway.client.get("/health/ready", headers={"authorization": ""})

    assert (reply.status_code, reply.json()) == (200, {"status": "ready"})


async def test_a_gateway_that_is_not_ready_tells_why(store: RequestStore, storage: FileStorage) -> None:
    async with open_gateway(store, storage, served_endpoints(), "fal-ai--svd is UPDATING") as gateway:
        ready = await gateway.client.get("/health/ready")
        live = await gateway.client.get("/health/live")

    assert (ready.status_code, ready.json()) == (503, {"status": "fal-ai--svd is UPDATING"})
    assert live.status_code == 200


async def test_a_gateway_whose_disk_is_full_is_not_ready(
    store: RequestStore, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 3_500_000)
    away = (503, {"status": "The file storage is not available at the moment"})
    async with open_gateway(store, FileStorage(small_disk / "files", URL), served_endpoints()) as gateway:

        async def ready() -> tuple[int, dict[str, str]]:
            reply = await gateway.client.get("/health/ready")
            return reply.status_code, reply.json()

        assert await ready() == away
        ballast.unlink()
        assert await ready() == away, "the answer holds for a while"
        monkeypatch.setattr("deployments.gateway.health_routes.STORAGE_SECONDS", 0.0)
        assert await ready() == (200, {"status": "ready"})


@pytest.mark.parametrize(
    ("host", "path", "ours"),
    [
        ("rest.fal.ai", "/.well-known/jwks.json", "/.well-known/jwks.json"),
        ("rest.alpha.fal.ai", "/.well-known/jwks.json", "/.well-known/jwks.json"),
        ("api.fal.ai", "/v1/models", "/v1/models"),
        ("fal.ai", f"/models/{SVD}/llms.txt", f"/models/{SVD}/llms.txt"),
        ("queue.falrun.com", f"/{SVD}/requests/{NO_SUCH_ID}/status", f"/queue/{SVD}/requests/{NO_SUCH_ID}/status"),
    ],
)
async def test_each_host_of_fal_means_a_path_of_ours(gateway: Gateway, host: str, path: str, ours: str) -> None:
    direct = await gateway.client.get(ours)
    by_host = await gateway.client.get(path, headers={"host": host})
    by_proxy = await gateway.client.get("/api/fal/proxy", headers={"x-fal-target-url": f"https://{host}{path}"})
    for reply in (by_host, by_proxy):
        assert (reply.status_code, reply.text) == (direct.status_code, direct.text)


@pytest.mark.parametrize("host", ["v3.fal.media", "v3b.fal.media", "fal.media"])
async def test_the_cdns_hosts_take_uploads_and_give_files(gateway: Gateway, host: str) -> None:
    token = (await gateway.client.post("/storage/auth/token", json={})).json()["token"]
    headers = {"host": host, "authorization": f"Bearer {token}", "content-type": "text/plain"}
    url = (await gateway.client.post("/files/upload", content=b"x", headers=headers)).json()["access_url"]
    assert (await gateway.client.get(url.removeprefix(URL), headers={"host": host})).content == b"x"
