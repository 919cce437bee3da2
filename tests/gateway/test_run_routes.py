from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from deployments.errors import RunnerServerError
from deployments.queue.store import Outcome
from tests.gateway.conftest import FAST, INPUT, OUTPUT, OWNER, STABLE_VIDEO, SVD, TEXT_TO_VIDEO, Gateway


def run(gateway: Gateway, endpoint: str = SVD, **options: Any) -> asyncio.Task[httpx.Response]:
    """Start a synchronous run."""
    return asyncio.create_task(gateway.client.post(f"/{endpoint}", **({"json": INPUT} | options)))


@pytest.mark.parametrize(
    ("endpoint", "model", "input"),
    [
        (STABLE_VIDEO, "fal-ai--stable-video", INPUT),
        (SVD, "fal-ai--svd", INPUT),
        (FAST, "fal-ai--fast-svd-lcm", INPUT),
        (TEXT_TO_VIDEO, "fal-ai--fast-svd-lcm", {"prompt": "a cat"}),
    ],
)
async def test_run_answers_with_the_output_of_its_request(
    gateway: Gateway, endpoint: str, model: str, input: dict[str, str]
) -> None:
    running = run(gateway, endpoint, json=input)
    attempt = await gateway.claim(model)
    await gateway.finish(attempt)

    reply = await running
    assert reply.status_code == 200
    assert reply.json() == OUTPUT
    assert reply.headers["x-fal-request-id"] == attempt.request_id
    assert attempt.endpoint == endpoint


async def test_run_waits_until_its_request_has_ended(gateway: Gateway) -> None:
    running = run(gateway)
    attempt = await gateway.claim()
    await asyncio.wait([running], timeout=0.2)
    assert not running.done()

    await gateway.finish(attempt)
    assert (await running).status_code == 200


async def test_a_finished_run_is_found_in_the_queue_api(gateway: Gateway) -> None:
    running = run(gateway)
    await gateway.finish(await gateway.claim())
    request_id = (await running).headers["x-fal-request-id"]

    assert (await gateway.status(request_id))["status"] == "COMPLETED"


async def test_runs_that_end_in_another_order_get_their_own_outputs(gateway: Gateway) -> None:
    first, second = run(gateway), run(gateway)
    attempts = [await gateway.claim(), await gateway.claim()]
    for attempt in reversed(attempts):
        await gateway.finish(attempt, {"request": attempt.request_id})

    replies = await asyncio.gather(first, second)
    assert {reply.json()["request"] for reply in replies} == {attempt.request_id for attempt in attempts}
    assert all(reply.json()["request"] == reply.headers["x-fal-request-id"] for reply in replies)


@pytest.mark.parametrize("input", [{}, {"image_url": None}, {"image_url": 5}, {"image_url": []}])
async def test_an_invalid_input_is_answered_at_once(gateway: Gateway, input: Any) -> None:
    reply = await run(gateway, json=input)

    [detail] = reply.json()["detail"]
    assert reply.status_code == 422
    assert detail["loc"] == ["body", "image_url"]
    assert detail["type"] == ("string_type" if input else "missing")
    assert "x-fal-error-type" not in reply.headers


async def test_every_wrong_field_is_named(gateway: Gateway) -> None:
    reply = await run(gateway, json={"steps": 0, "seed": "abc", "motion_bucket_id": 256})

    named = {detail["loc"][1]: detail["type"] for detail in reply.json()["detail"]}
    assert named == {
        "motion_bucket_id": "less_than_equal",
        "seed": "int_parsing",
        "image_url": "missing",
        "steps": "greater_than_equal",
    }


async def test_malformed_json_is_answered_at_once(gateway: Gateway) -> None:
    reply = await run(gateway, json=None, content=b"{")

    assert reply.status_code == 422
    assert reply.json()["detail"][0]["type"] == "json_invalid"


async def test_a_malformed_start_timeout_is_a_bad_request(gateway: Gateway) -> None:
    reply = await run(gateway, headers={"x-fal-request-timeout": "soon"})

    assert (reply.status_code, reply.json()["error_type"]) == (400, "bad_request")


async def test_an_unknown_endpoint_is_not_found(gateway: Gateway) -> None:
    reply = await run(gateway, "fal-ai/flux")

    assert reply.status_code == 404
    assert reply.json()["detail"] == "Path /fal-ai/flux not found"


async def test_run_reads_its_input_from_the_query_of_a_get(gateway: Gateway) -> None:
    query = {"image_url": "https://example.com/a.png?b=c&d", "steps": "3", "cond_aug": "0.5", "seed": "9"}
    running = asyncio.create_task(gateway.client.get(f"/{SVD}", params=query))
    attempt = await gateway.claim()
    await gateway.finish(attempt)

    assert (await running).json() == OUTPUT
    assert json.loads(attempt.input) == {
        "motion_bucket_id": 127,
        "cond_aug": 0.5,
        "seed": 9,
        "image_url": "https://example.com/a.png?b=c&d",
        "steps": 3,
        "mask_image_url": None,
        "control_maps_data_url": None,
    }


async def test_a_get_without_input_is_invalid(gateway: Gateway) -> None:
    reply = await gateway.client.get(f"/{SVD}")

    assert reply.status_code == 422
    assert reply.json()["detail"][0]["type"] == "missing"


async def test_a_failed_run_answers_with_the_models_error(gateway: Gateway) -> None:
    running = run(gateway)
    failure = RunnerServerError("The model failed").failure()
    assert await gateway.store.complete(await gateway.claim(), OWNER, Outcome.of(failure))

    reply = await running
    assert reply.status_code == 500
    assert reply.json() == {"detail": "The model failed", "error_type": "runner_server_error"}
    assert reply.headers["x-fal-error-type"] == "runner_server_error"


async def test_a_run_is_not_retried(gateway: Gateway) -> None:
    running = run(gateway)
    await gateway.store.lose(await gateway.claim(), OWNER, "the replica died")

    reply = await running
    assert reply.status_code == 503
    assert reply.json()["error_type"] == "runner_disconnected"


async def test_a_run_that_does_not_start_in_time_is_the_callers_timeout(gateway: Gateway) -> None:
    running = run(gateway, headers={"x-fal-request-timeout": "0.11"})
    while not running.done():
        await gateway.sweep()
        await asyncio.sleep(0.02)

    reply = await running
    assert reply.status_code == 504
    assert reply.headers["x-fal-request-timeout-type"] == "user"


async def test_a_caller_who_goes_away_cancels_a_queued_run(gateway: Gateway) -> None:
    running = run(gateway)
    while not await gateway.waiting():
        await asyncio.sleep(0.01)
    await leave(running)

    assert await gateway.waiting() == 0


async def test_a_caller_who_goes_away_stops_a_running_run(gateway: Gateway) -> None:
    running = run(gateway)
    attempt = await gateway.claim()
    await leave(running)

    assert await gateway.store.abandoned({attempt.request_id: attempt.number}) == {attempt.request_id}


async def test_a_caller_who_goes_away_leaves_the_other_runs_alone(gateway: Gateway) -> None:
    leaving = run(gateway)
    await gateway.claim()
    staying = run(gateway)
    attempt = await gateway.claim()
    await leave(leaving)
    await gateway.finish(attempt)

    assert (await staying).json() == OUTPUT


async def leave(running: asyncio.Task[httpx.Response]) -> None:
    """What Serve does to a call whose caller has disconnected."""
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
