"""Streaming runs: progress, then the output."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from deployments.errors import Unavailable
from deployments.models.messages import StoredFile
from deployments.queue.request import LogLine, RequestStatus
from tests.gateway.conftest import FAST, INPUT, OUTPUT, OWNER, PATIENCE, SVD, TEXT_TO_VIDEO, URL, Gateway, sse

STREAM = f"/{SVD}/stream"
PICTURE = "image_url=https%3A%2F%2Fexample.com%2Fa.png"


def events_of(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line.startswith("data: ")]


async def test_progress_comes_first_and_the_output_last(gateway: Gateway) -> None:
    asked = asyncio.create_task(gateway.client.post(STREAM, json=INPUT))
    attempt = await gateway.claim()
    for step in (1, 2):
        await gateway.store.log([LogLine(attempt.request_id, f"Step {step}/2", time.time(), progress=step / 2)])
        await asyncio.sleep(0.15)
    await gateway.finish(attempt)
    reply = await asked

    *progress, last = events_of(reply)
    assert last == OUTPUT
    assert {"status": "IN_PROGRESS", "message": "Step 1/2", "progress": 0.5} in progress
    assert {"status": "IN_PROGRESS", "message": "Step 2/2", "progress": 1.0} in progress
    assert reply.headers["x-fal-request-id"] == attempt.request_id
    assert reply.status_code == 200


async def test_a_waiting_caller_sees_the_place_in_the_queue(gateway: Gateway) -> None:
    await gateway.submit()
    async with aclosing(sse(gateway.app, STREAM, PICTURE)) as events:
        assert await anext(events) == {"status": "IN_QUEUE", "queue_position": 1}


async def test_previews_are_shown_where_they_are_asked_for(gateway: Gateway) -> None:
    asked = asyncio.create_task(gateway.client.post(f"{STREAM}?previews=5", json=INPUT))
    attempt = await gateway.claim()
    assert attempt.previews == 5
    preview = StoredFile("b/123/preview.jpg", "image/jpeg", 900)
    line = LogLine(attempt.request_id, "Preview of step 5/20", time.time(), progress=0.25, preview=preview.key)
    await gateway.store.log([line], [(attempt.request_id, preview)])
    await asyncio.sleep(0.15)
    await gateway.finish(attempt)

    shown = [event["preview"] for event in events_of(await asked) if "preview" in event]
    assert shown == [{"url": f"{URL}/files/b/123/preview.jpg", "content_type": "image/jpeg"}]


@pytest.mark.parametrize("endpoint", [FAST, TEXT_TO_VIDEO])
async def test_the_path_is_the_whole_endpoint(gateway: Gateway, endpoint: str) -> None:
    asked = asyncio.create_task(gateway.client.post(f"/{endpoint}/stream", json={"prompt": "a cat", **INPUT}))
    attempt = await gateway.claim("fal-ai--fast-svd-lcm")
    assert attempt.endpoint == endpoint
    await gateway.finish(attempt)
    assert events_of(await asked)[-1] == OUTPUT


async def test_a_bad_input_is_json_for_who_reads_json_and_an_event_for_who_does_not(gateway: Gateway) -> None:
    as_json = await gateway.client.post(STREAM, json={}, headers={"accept": "application/json, text/event-stream"})
    assert (as_json.status_code, as_json.json()["detail"][0]["type"]) == (422, "missing")

    as_event = await gateway.client.post(STREAM, json={}, headers={"accept": "text/event-stream"})
    (event,) = events_of(as_event)
    assert event["detail"][0]["loc"] == ["body", "image_url"]
    assert "image_url" in event["error"]


async def test_a_failure_on_the_way_is_the_last_event(gateway: Gateway) -> None:
    asked = asyncio.create_task(gateway.client.post(STREAM, json=INPUT))
    attempt = await gateway.claim()
    await gateway.store.lose(attempt, OWNER, "the replica died")

    last = events_of(await asked)[-1]
    assert last["error_type"] == "runner_disconnected"
    assert "the replica died" in last["error"]


async def test_a_caller_who_goes_away_cancels_the_request(gateway: Gateway) -> None:
    async with aclosing(sse(gateway.app, STREAM, PICTURE)) as events:
        assert (await anext(events))["status"] == "IN_QUEUE"
    async with asyncio.timeout(PATIENCE):
        while await gateway.waiting():
            await asyncio.sleep(0.01)


async def test_a_token_in_the_url_is_enough_for_its_app_alone(gateway: Gateway) -> None:
    reply = await gateway.client.post("/tokens/", json={"allowed_apps": ["svd"], "token_expiration": 60})
    token = reply.json()
    async with httpx.AsyncClient(transport=gateway.client._transport, base_url=URL) as keyless:
        assert (await keyless.post(f"/{FAST}/stream?fal_jwt_token={token}", json=INPUT)).status_code == 401
        assert (await keyless.post(f"{STREAM}?fal_jwt_token={token}x", json=INPUT)).status_code == 401
        assert (await keyless.post(STREAM, json=INPUT)).status_code == 401
        asked = asyncio.create_task(keyless.post(f"{STREAM}?fal_jwt_token={token}", json=INPUT))
        await gateway.finish(await gateway.claim())
        assert events_of(await asked)[-1] == OUTPUT


@pytest.mark.parametrize("path", [STREAM, f"/{SVD}"])
async def test_what_says_how_a_get_is_served_is_no_input(gateway: Gateway, path: str) -> None:
    said = {"fal_jwt_token": "swordfish", "previews": "1", "fal_webhook": "x", "fal_max_queue_length": "1"}
    if path == STREAM:
        said["fal_jwt_token"] = (await gateway.client.post("/tokens/", json={"allowed_apps": [SVD]})).json()
    reply = await gateway.client.get(path, params=said | {"steps": "3"}, headers={"accept": "application/json"})
    assert (reply.status_code, reply.json()["detail"][0]["input"]) == (422, {"steps": "3"})

    kept = await gateway.client.get("/v1/models/requests/search?expand=payloads")
    (item,) = kept.json()["items"]
    assert item["json_input"] == {"steps": "3"}


async def test_a_stream_is_the_same_with_another_token(gateway: Gateway) -> None:
    ids = []
    for seconds in (60, 90):
        token = (
            await gateway.client.post("/tokens/", json={"allowed_apps": [SVD], "token_expiration": seconds})
        ).json()
        headers = {"idempotency-key": "one", "accept": "application/json"}
        reply = await gateway.client.get(STREAM, params={"fal_jwt_token": token}, headers=headers)
        ids.append(reply.headers["x-fal-request-id"])
        assert reply.json()["detail"][0]["type"] == "missing"
    assert ids[0] == ids[1]


async def test_a_stream_of_an_unknown_endpoint_is_not_found(gateway: Gateway) -> None:
    assert (await gateway.client.post("/fal-ai/flux/stream", json=INPUT)).status_code == 404


async def test_a_streaming_run_is_not_retried(gateway: Gateway) -> None:
    asked = asyncio.create_task(gateway.client.post(STREAM, json=INPUT))
    attempt = await gateway.claim()
    await gateway.store.lose(attempt, OWNER, "the replica died")
    await asked
    request = await gateway.store.get(attempt.request_id)
    assert request and request.status == RequestStatus.COMPLETED


async def test_a_store_that_is_away_for_a_moment_ends_no_stream(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.create_task(gateway.client.post(STREAM, json=INPUT))
    attempt = await gateway.claim()
    logs, failures = gateway.store.logs, [Unavailable("away"), Unavailable("away")]

    async def sometimes(request_id: str, skip: int = 0) -> list[LogLine]:
        if failures:
            raise failures.pop()
        return await logs(request_id, skip)

    monkeypatch.setattr(gateway.store, "logs", sometimes)
    await gateway.store.log([LogLine(attempt.request_id, "Step 1/2", time.time(), progress=0.5)])
    await asyncio.sleep(0.3)
    await gateway.finish(attempt)
    events = events_of(await asked)
    assert failures == []
    assert {"status": "IN_PROGRESS", "message": "Step 1/2", "progress": 0.5} in events
    assert events[-1] == OUTPUT


async def test_a_caller_who_goes_away_before_the_first_event_cancels_too(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def never(request_id: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(gateway.store, "get", never)
    asked = asyncio.create_task(gateway.client.post(STREAM, json=INPUT))
    await asyncio.wait_for(reached.wait(), PATIENCE)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert await gateway.waiting() == 0


async def test_a_refused_stream_tells_its_requests_id(gateway: Gateway) -> None:
    reply = await gateway.client.post(STREAM, json={}, headers={"accept": "application/json"})
    monitored = await gateway.status(reply.headers["x-fal-request-id"])
    assert monitored["status"] == "COMPLETED"
