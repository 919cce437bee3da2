from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from deployments.gateway.bodies import MOST_BYTES
from deployments.models.messages import StoredFile
from deployments.models.svd import SVD as SVDEndpoint
from deployments.models.svd import SVDConfig
from deployments.queue.request import LogLine, Priority
from deployments.queue.store import BatchLimits, RequestStore
from deployments.storage import FileStorage
from tests.gateway.conftest import (
    FAST,
    INPUT,
    OUTPUT,
    OWNER,
    STABLE_VIDEO,
    SVD,
    TEXT_TO_VIDEO,
    URL,
    Gateway,
    messages,
    open_gateway,
    sse,
)

NO_SUCH_ID = "00000000-0000-4000-8000-000000000000"


def line(request_id: str, message: str) -> LogLine:
    return LogLine(request_id, message, time.time())


async def submit_text(gateway: Gateway, body: bytes) -> dict[str, Any]:
    """Submit a body that is to be refused at once; answer its one error."""
    reply = await gateway.client.post(f"/queue/{SVD}", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422, reply.text
    [detail] = reply.json()["detail"]
    assert await gateway.waiting() == 0
    return dict(detail)


# ---------------------------------------------------------------- submit


async def test_submit_answers_what_the_clients_need_to_follow_the_request(gateway: Gateway) -> None:
    reply = await gateway.client.post(f"/queue/{SVD}", json=INPUT)

    body = reply.json()
    follow = f"{URL}/queue/{SVD}/requests/{body['request_id']}"
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-fal-request-id"] == body["request_id"]
    assert str(UUID(body["request_id"])) == body["request_id"]
    assert body == {
        "status": "IN_QUEUE",
        "request_id": body["request_id"],
        "gateway_request_id": body["request_id"],
        "response_url": follow,
        "status_url": f"{follow}/status",
        "cancel_url": f"{follow}/cancel",
        "queue_position": 0,
        "logs": None,
    }


async def test_a_request_to_a_sub_path_is_followed_under_the_app(gateway: Gateway) -> None:
    reply = await gateway.client.post(f"/queue/{TEXT_TO_VIDEO}", json={"prompt": "a cat"})

    body = reply.json()
    assert body["status_url"] == f"{URL}/queue/{FAST}/requests/{body['request_id']}/status"


async def test_submitted_input_reaches_the_replica_checked_and_with_a_seed(gateway: Gateway) -> None:
    await gateway.submit(json={**INPUT, "steps": "7", "unknown": 1})

    attempt = await gateway.claim()
    passed = json.loads(attempt.input)
    assert attempt.endpoint == SVD
    assert passed["steps"] == 7
    assert isinstance(passed["seed"], int)
    assert "unknown" not in passed


async def test_the_last_of_equal_keys_counts(gateway: Gateway) -> None:
    await gateway.submit(content=b'{"image_url": "https://example.com/a.png", "steps": 5, "steps": 6}', json=None)

    assert json.loads((await gateway.claim()).input)["steps"] == 6


async def test_submit_reads_json_whatever_the_content_type_says(gateway: Gateway) -> None:
    body = json.dumps(INPUT).encode()

    request_id = await gateway.submit(json=None, content=body, headers={"content-type": "text/plain"})

    assert (await gateway.status(request_id))["status"] == "IN_QUEUE"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
async def test_submit_takes_no_other_method(gateway: Gateway, method: str) -> None:
    reply = await gateway.client.request(method, f"/queue/{SVD}", json=INPUT)

    assert reply.status_code == 405


@pytest.mark.parametrize("endpoint", ["fal-ai/flux", "svd", f"{SVD}/", f"/{SVD}", "workflows/a/b", f"{SVD}/%2e%2e/svd"])
async def test_submit_to_an_unknown_endpoint_is_not_found(gateway: Gateway, endpoint: str) -> None:
    reply = await gateway.client.post(f"/queue/{endpoint}", json=INPUT)

    assert reply.status_code == 404
    assert reply.json()["error_type"] == "not_found"


# ---------------------------------------------------------------- bad bodies


@pytest.mark.parametrize("body", [b"", b"  \n"])
async def test_an_empty_body_is_missing(gateway: Gateway, body: bytes) -> None:
    detail = await submit_text(gateway, body)

    assert (detail["type"], detail["loc"]) == ("missing", ["body"])


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"image_url":', id="cut off"),
        pytest.param(b"image_url=x", id="a form"),
        pytest.param(json.dumps(INPUT).encode("utf-16"), id="UTF-16"),
        pytest.param(b"\xef\xbb\xbf" + json.dumps(INPUT).encode(), id="byte order mark"),
        pytest.param(b'{"image_url": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"image_url": "\\ud800"}', id="lone surrogate"),
        pytest.param(b"[" * 100_000, id="deep nesting"),
        pytest.param(b'{"image_url": "x", "cond_aug": NaN}', id="NaN"),
        pytest.param(b'{"image_url": "x", "cond_aug": -Infinity}', id="Infinity"),
        pytest.param(b'{"image_url": "x", "steps": ' + b"9" * 5000 + b"}", id="5000 digits"),
        pytest.param(json.dumps({**INPUT, "a": [[]] * 50_001}).encode(), id="100,001 commas and brackets in lists"),
        pytest.param(json.dumps({**INPUT, "a": [{}] * 50_001}).encode(), id="100,001 commas and braces"),
    ],
)
async def test_malformed_json_is_refused_at_once(gateway: Gateway, body: bytes) -> None:
    detail = await submit_text(gateway, body)

    assert (detail["type"], detail["loc"]) == ("json_invalid", ["body"])
    assert detail["url"] == "https://docs.fal.ai/errors#json_invalid"


async def test_a_text_of_commas_is_a_text(gateway: Gateway) -> None:
    await gateway.submit(TEXT_TO_VIDEO, json={"prompt": ",[{" * 300, "a": [0] * 80_000})
    attempt = await gateway.claim("fal-ai--fast-svd-lcm")

    assert json.loads(attempt.input)["prompt"] == ",[{" * 300


@pytest.mark.parametrize(
    "input",
    [
        pytest.param("[]", id="list"),
        pytest.param('"x"', id="string"),
        pytest.param("null", id="null"),
        pytest.param("1", id="number"),
    ],
)
async def test_a_body_that_is_no_object_fails_as_a_request(gateway: Gateway, input: str) -> None:
    request_id = await gateway.submit(json=None, content=input.encode())

    reply = await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body"]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param('"cond_aug": 1e400', id="overflow"),
        pytest.param('"other": 1e400', id="overflow in an unknown field, image_url missing"),
        pytest.param(f'"steps": {"9" * 4000}', id="4000 digits"),
    ],
)
async def test_a_number_beyond_all_bounds_never_breaks_the_answer(gateway: Gateway, fields: str) -> None:
    reply = await gateway.client.post(f"/queue/{SVD}", content=f"{{{fields}}}".encode())
    if reply.status_code == 200:
        reply = await gateway.client.get(f"/queue/{SVD}/requests/{reply.json()['request_id']}")

    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"][0] == "body"


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
async def test_a_seed_is_passed_on_exactly(gateway: Gateway, seed: int) -> None:
    await gateway.submit(json={**INPUT, "seed": seed})

    assert json.loads((await gateway.claim()).input)["seed"] == seed


async def test_an_invalid_input_is_accepted_and_fails_on_its_result(gateway: Gateway) -> None:
    request_id = await gateway.submit(json={**INPUT, "motion_bucket_id": 0})

    status = await gateway.status(request_id)
    reply = await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")
    assert status["status"] == "COMPLETED"
    assert "motion_bucket_id" in status["error"]
    assert status["error_type"] == "value_error"
    assert reply.status_code == 422
    assert reply.headers["x-fal-request-id"] == request_id
    assert reply.json() == {
        "detail": [
            {
                "loc": ["body", "motion_bucket_id"],
                "msg": "Input should be greater than or equal to 1",
                "type": "greater_than_equal",
                "url": "https://docs.fal.ai/errors#greater_than_equal",
                "ctx": {"ge": 1},
                "input": 0,
            }
        ]
    }


async def test_an_unsupported_feature_fails_on_the_result(store: RequestStore, storage: FileStorage) -> None:
    uncontrolled = {SVD: SVDEndpoint(SVD, SVDConfig(weights="none"))}
    async with open_gateway(store, storage, uncontrolled) as gateway:
        request_id = await gateway.submit(json={**INPUT, "control_maps_data_url": "https://example.com/maps.zip"})
        reply = await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")

    assert reply.status_code == 422
    assert reply.json()["detail"][0]["type"] == "feature_not_supported"
    assert reply.json()["detail"][0]["loc"] == ["body", "control_maps_data_url"]


async def test_a_long_invalid_input_fails_as_a_short_one_does(gateway: Gateway) -> None:
    request_id = await gateway.submit(json={"image_url": "data:image/png;base64," + "A" * 1_000_000, "steps": 0})

    [detail] = (await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")).json()["detail"]
    assert (detail["loc"], detail["type"]) == (["body", "steps"], "greater_than_equal")


@pytest.mark.parametrize("path", [f"/queue/{SVD}", f"/{SVD}"])
async def test_a_body_beyond_the_limit_is_refused_before_it_has_all_been_read(gateway: Gateway, path: str) -> None:
    sent = 0

    async def pour() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10 * MOST_BYTES:
            yield bytes(2**20)
            sent += 2**20

    reply = await gateway.client.post(path, content=pour())
    assert (reply.status_code, reply.json()["error_type"]) == (413, "bad_request")
    assert sent < 2 * MOST_BYTES
    assert await gateway.waiting() == 0


async def test_an_invalid_input_is_never_run(gateway: Gateway) -> None:
    await gateway.submit(json={})

    assert await gateway.waiting() == 0


# ---------------------------------------------------------------- status


async def test_a_queued_request_says_its_position_and_has_the_key_logs(gateway: Gateway) -> None:
    request_id = await gateway.submit()

    status = await gateway.status(request_id)
    assert status["status"] == "IN_QUEUE"
    assert status["queue_position"] == 0
    assert status["logs"] is None
    assert "metrics" not in status
    assert "error" not in status


async def test_a_running_request_has_no_position(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    await gateway.claim()

    status = await gateway.status(request_id)
    assert status["status"] == "IN_PROGRESS"
    assert status["logs"] is None
    assert "queue_position" not in status


async def test_a_finished_request_tells_its_inference_time_and_no_error(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    await gateway.finish(await gateway.claim())

    status = await gateway.status(request_id)
    follow = f"{URL}/queue/{SVD}/requests/{request_id}"
    assert status == {
        "status": "COMPLETED",
        "request_id": request_id,
        "gateway_request_id": request_id,
        "response_url": follow,
        "status_url": f"{follow}/status",
        "cancel_url": f"{follow}/cancel",
        "logs": None,
        "metrics": {"inference_time": 3.5},
    }


@pytest.mark.parametrize("asked", ["1", "true", "True"])
async def test_logs_are_the_whole_list_when_asked_for(gateway: Gateway, asked: str) -> None:
    request_id = await gateway.submit()
    await gateway.claim()
    await gateway.store.log([LogLine(request_id, "Step 1/20", 1_700_000_000.25, progress=0.05)])
    await gateway.store.log([LogLine(request_id, "lost", 1_700_000_001.0, "WARN")])

    status = await gateway.status(request_id, logs=asked)
    assert status["logs"] == [
        {
            "message": "Step 1/20",
            "level": "INFO",
            "source": "USER",
            "timestamp": "2023-11-14T22:13:20.250000Z",
            "progress": 0.05,
        },
        {"message": "lost", "level": "WARN", "source": "USER", "timestamp": "2023-11-14T22:13:21.000000Z"},
    ]
    assert (await gateway.status(request_id, logs=asked))["logs"] == status["logs"]


@pytest.mark.parametrize("asked", ["0", "false", "False", "nonsense"])
async def test_logs_are_null_when_not_asked_for(gateway: Gateway, asked: str) -> None:
    request_id = await gateway.submit()
    await gateway.store.log([line(request_id, "Step 1/20")])

    assert (await gateway.status(request_id, logs=asked))["logs"] is None


async def test_a_line_shows_the_preview_that_goes_with_it(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    preview = StoredFile("b/123/preview.jpg", "image/jpeg", 900)
    shown = replace(line(request_id, "Preview of step 5/20"), progress=0.25, preview=preview.key)
    await gateway.store.log([line(request_id, "Step 5/20"), shown], [(request_id, preview)])

    plain, pictured = (await gateway.status(request_id, logs="1"))["logs"]
    assert "preview" not in plain
    assert pictured["progress"] == 0.25
    assert pictured["preview"] == {"url": f"{URL}/files/{preview.key}", "content_type": "image/jpeg"}


async def test_asked_logs_are_an_empty_list_before_the_first_line(gateway: Gateway) -> None:
    assert (await gateway.status(await gateway.submit(), logs="1"))["logs"] == []


async def test_every_normal_request_goes_before_the_low_ones(gateway: Gateway) -> None:
    first = await gateway.enqueue()
    low = await gateway.enqueue(priority=Priority.LOW)
    second = await gateway.enqueue()
    await gateway.enqueue(model="fal-ai--stable-video", endpoint=STABLE_VIDEO)

    positions = [(await gateway.status(request.id))["queue_position"] for request in (first, low, second)]
    assert positions == [0, 2, 1]


async def test_the_priority_header_decides_who_runs_first(gateway: Gateway) -> None:
    low = await gateway.submit(headers={"x-fal-queue-priority": "low"})
    bogus = await gateway.submit(headers={"x-fal-queue-priority": "bogus"})
    normal = await gateway.submit(headers={"x-fal-queue-priority": "normal"})

    assert [(await gateway.claim()).request_id for _ in range(3)] == [bogus, normal, low]


async def test_another_attempt_has_another_gateway_request_id(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    before = await gateway.status(request_id)
    assert await gateway.store.lose(await gateway.claim(), OWNER, "the replica died")
    await gateway.claim()

    status = await gateway.status(request_id, logs="1")
    assert before["gateway_request_id"] == request_id
    assert status["request_id"] == request_id
    assert status["status"] == "IN_PROGRESS"
    assert UUID(status["gateway_request_id"]) != UUID(request_id)
    assert "the replica died" in status["logs"][0]["message"]


async def test_no_retry_ends_a_lost_request(gateway: Gateway) -> None:
    request_id = await gateway.submit(headers={"x-fal-no-retry": "1"})
    assert await gateway.store.lose(await gateway.claim(), OWNER, "the replica died")

    reply = await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")
    assert reply.status_code == 503
    assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "runner_disconnected"


# ---------------------------------------------------------------- result


@pytest.mark.parametrize("form", [f"{FAST}/requests/{{}}", f"{TEXT_TO_VIDEO}/requests/{{}}"])
@pytest.mark.parametrize("suffix", ["", "/response"])
async def test_result_is_the_output_itself_under_every_form_of_its_url(
    gateway: Gateway, form: str, suffix: str
) -> None:
    request_id = await gateway.submit(TEXT_TO_VIDEO, json={"prompt": "a cat"})
    await gateway.finish(await gateway.claim("fal-ai--fast-svd-lcm"))

    for _ in range(2):
        reply = await gateway.client.get(f"/queue/{form.format(request_id)}{suffix}")
        assert reply.status_code == 200
        assert reply.json() == OUTPUT
        assert reply.headers["x-fal-request-id"] == request_id
        assert "x-fal-error-type" not in reply.headers


@pytest.mark.parametrize("form", [FAST, TEXT_TO_VIDEO])
async def test_status_and_cancel_work_under_both_forms(gateway: Gateway, form: str) -> None:
    request_id = await gateway.submit(TEXT_TO_VIDEO, json={"prompt": "a cat"})

    assert (await gateway.status(request_id, form))["status"] == "IN_QUEUE"
    assert (await gateway.client.put(f"/queue/{form}/requests/{request_id}/cancel")).status_code == 202


async def test_an_early_result_is_a_bad_request_that_clients_do_not_retry(gateway: Gateway) -> None:
    request_id = await gateway.submit()

    for _ in ("queued", "running"):
        reply = await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")
        assert reply.status_code == 400
        assert reply.json() == {"detail": "Request is still in progress", "error_type": "bad_request"}
        assert reply.headers["x-fal-error-type"] == "bad_request"
        await gateway.store.claim("fal-ai--svd", OWNER, BatchLimits())


# ---------------------------------------------------------------- whose request


async def test_an_unknown_request_is_not_found_everywhere(gateway: Gateway) -> None:
    await expect_not_found(gateway, SVD, NO_SUCH_ID)


async def test_another_callers_request_looks_unknown(gateway: Gateway) -> None:
    theirs = await gateway.enqueue(key_id="somebody else")

    await expect_not_found(gateway, SVD, theirs.id)
    assert await gateway.store.waiting("fal-ai--svd") == [(0, theirs.seq)]


@pytest.mark.parametrize("path", [STABLE_VIDEO, FAST, "fal-ai", f"{SVD}/other", TEXT_TO_VIDEO])
async def test_a_request_is_unknown_under_another_app(gateway: Gateway, path: str) -> None:
    await expect_not_found(gateway, path, await gateway.submit())


async def test_a_request_is_unknown_under_a_sibling_of_its_endpoint(gateway: Gateway) -> None:
    await expect_not_found(gateway, TEXT_TO_VIDEO, await gateway.submit(FAST))


@pytest.mark.parametrize("id", ["1", "not-a-uuid", "x" * 10_000, "%2e%2e", "'; drop table requests; --", "é"])
async def test_a_malformed_id_is_not_found(gateway: Gateway, id: str) -> None:
    await expect_not_found(gateway, SVD, id)


async def test_an_id_in_upper_case_is_not_found(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    while request_id == request_id.upper():
        request_id = await gateway.submit()

    await expect_not_found(gateway, SVD, request_id.upper())


async def expect_not_found(gateway: Gateway, path: str, request_id: str) -> None:
    follow = f"/queue/{path}/requests/{request_id}"
    for reply in (
        await gateway.client.get(f"{follow}/status"),
        await gateway.client.get(f"{follow}/status/stream"),
        await gateway.client.put(f"{follow}/cancel"),
    ):
        assert (reply.status_code, reply.json()) == (404, {"status": "NOT_FOUND"})
    for reply in (await gateway.client.get(follow), await gateway.client.get(f"{follow}/response")):
        assert (reply.status_code, reply.json()["error_type"]) == (404, "not_found")


# ---------------------------------------------------------------- cancel


async def cancel(gateway: Gateway, request_id: str) -> tuple[int, Any]:
    reply = await gateway.client.put(f"/queue/{SVD}/requests/{request_id}/cancel")
    return reply.status_code, reply.json()


async def expect_cancelled(gateway: Gateway, request_id: str) -> None:
    status = await gateway.status(request_id)
    reply = await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")
    assert (status["status"], status["error_type"]) == ("COMPLETED", "client_cancelled")
    assert reply.status_code == 499
    assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "client_cancelled"


async def test_a_queued_request_is_cancelled_at_once(gateway: Gateway) -> None:
    request_id = await gateway.submit()

    assert await cancel(gateway, request_id) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert await gateway.waiting() == 0
    await expect_cancelled(gateway, request_id)


async def test_cancelling_a_running_request_tells_its_replica(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    attempt = await gateway.claim()

    assert await cancel(gateway, request_id) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert await cancel(gateway, request_id) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert (await gateway.status(request_id))["status"] == "IN_PROGRESS"
    assert await gateway.store.abandoned({request_id: attempt.number}) == {request_id}


async def test_a_running_request_may_still_finish_after_its_cancellation(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    attempt = await gateway.claim()
    await cancel(gateway, request_id)
    await gateway.finish(attempt)

    assert (await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")).json() == OUTPUT


async def test_a_cancelled_request_whose_replica_is_lost_is_not_retried(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    attempt = await gateway.claim()
    await cancel(gateway, request_id)
    await gateway.store.lose(attempt, OWNER, "the replica died")

    await expect_cancelled(gateway, request_id)


async def test_a_finished_request_cannot_be_cancelled(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    await gateway.finish(await gateway.claim())

    assert await cancel(gateway, request_id) == (400, {"status": "ALREADY_COMPLETED"})
    assert (await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")).json() == OUTPUT


async def test_a_cancelled_request_cannot_be_cancelled_again(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    await cancel(gateway, request_id)

    assert await cancel(gateway, request_id) == (400, {"status": "ALREADY_COMPLETED"})


# ---------------------------------------------------------------- limits that the caller sets


async def test_a_queue_longer_than_the_caller_accepts_refuses_the_request(gateway: Gateway) -> None:
    for _ in range(3):
        await gateway.enqueue()

    reply = await gateway.client.post(f"/queue/{SVD}?fal_max_queue_length=2", json=INPUT)
    assert reply.status_code == 429
    assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "queue_full"
    assert await gateway.waiting() == 3


async def test_a_queue_as_long_as_the_caller_accepts_takes_the_request(gateway: Gateway) -> None:
    for _ in range(3):
        await gateway.enqueue()

    reply = await gateway.client.post(f"/queue/{SVD}?fal_max_queue_length=3", json=INPUT)
    assert reply.status_code == 200
    assert reply.json()["queue_position"] == 3


@pytest.mark.parametrize("value", ["", "-1", "1.5", "many", "²", pytest.param("9" * 5000, id="5000 digits")])
async def test_a_malformed_queue_length_is_a_bad_request(gateway: Gateway, value: str) -> None:
    reply = await gateway.client.post(f"/queue/{SVD}", params={"fal_max_queue_length": value}, json=INPUT)

    assert reply.status_code == 400
    assert reply.json()["error_type"] == "bad_request"


@pytest.mark.parametrize("seconds", ["30", "30.0", "0.2", "1e3"])
async def test_a_well_formed_start_timeout_is_accepted(gateway: Gateway, seconds: str) -> None:
    request_id = await gateway.submit(headers={"x-fal-request-timeout": seconds})

    assert (await gateway.status(request_id))["status"] == "IN_QUEUE"


@pytest.mark.parametrize("seconds", ["0", "-1", "abc", "", "NaN", "inf", "1e9", "0.05", "0.1"])
async def test_a_malformed_start_timeout_is_a_bad_request(gateway: Gateway, seconds: str) -> None:
    reply = await gateway.client.post(f"/queue/{SVD}", json=INPUT, headers={"x-fal-request-timeout": seconds})

    assert reply.status_code == 400
    assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "bad_request"
    assert await gateway.waiting() == 0


async def test_a_request_that_did_not_start_in_time_is_the_callers_timeout(gateway: Gateway) -> None:
    request_id = await gateway.submit(headers={"x-fal-request-timeout": "0.11"})
    while (await gateway.status(request_id))["status"] != "COMPLETED":
        await gateway.sweep()

    reply = await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")
    assert reply.status_code == 504
    assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "startup_timeout"
    assert reply.headers["x-fal-request-timeout-type"] == "user"


# ---------------------------------------------------------------- status stream


async def test_the_status_stream_tells_each_change_once_and_ends(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    path = f"/queue/{SVD}/requests/{request_id}/status/stream"

    async with aclosing(sse(gateway.app, path, "logs=1")) as events:
        queued = await anext(events)
        attempt = await gateway.claim()
        running = await anext(events)
        await gateway.store.log([line(request_id, "Step 1/20"), line(request_id, "Step 2/20")])
        first = await anext(events)
        await gateway.store.log([line(request_id, "Step 3/20")])
        second = await anext(events)
        await gateway.finish(attempt)
        rest = [event async for event in events]

    assert (queued["status"], queued["queue_position"], queued["logs"]) == ("IN_QUEUE", 0, [])
    assert (running["status"], running["logs"]) == ("IN_PROGRESS", [])
    assert [entry["message"] for entry in first["logs"]] == ["Step 1/20", "Step 2/20"]
    assert [entry["message"] for entry in second["logs"]] == ["Step 3/20"]
    assert [(event["status"], event["logs"]) for event in rest] == [("COMPLETED", [])]


async def test_the_status_stream_without_logs_tells_only_changes_of_status(gateway: Gateway) -> None:
    request_id = await gateway.submit()

    async with aclosing(sse(gateway.app, f"/queue/{SVD}/requests/{request_id}/status/stream")) as events:
        seen = [await anext(events)]
        await gateway.store.log([line(request_id, "Step 1/20")])
        await gateway.finish(await gateway.claim())
        seen += [event async for event in events]

    assert [event["status"] for event in seen] == ["IN_QUEUE", "COMPLETED"]
    assert [event["logs"] for event in seen] == [None, None]


async def test_the_status_stream_of_a_finished_request_is_one_event_with_the_whole_log(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    await gateway.store.log([line(request_id, "Step 1/20")])
    await gateway.finish(await gateway.claim())

    reply = await gateway.client.get(f"/queue/{SVD}/requests/{request_id}/status/stream?logs=true")
    [event] = reply.text.removesuffix("\n\n").split("\n\n")
    body = json.loads(event.removeprefix("data: "))
    assert body["status"] == "COMPLETED"
    assert [entry["message"] for entry in body["logs"]] == ["Step 1/20"]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-fal-request-id"] == request_id


async def test_the_status_stream_tells_the_error_of_a_failed_request(gateway: Gateway) -> None:
    request_id = await gateway.submit(json={})

    async with aclosing(sse(gateway.app, f"/queue/{SVD}/requests/{request_id}/status/stream")) as events:
        [event] = [event async for event in events]
    assert event["status"] == "COMPLETED"
    assert "image_url" in event["error"]


async def test_a_stream_whose_reader_leaves_ends_without_harm(gateway: Gateway) -> None:
    request_id = await gateway.submit()

    async with aclosing(messages(gateway.app, f"/queue/{SVD}/requests/{request_id}/status/stream")) as sent:
        assert (await anext(sent))["type"] == "http.response.start"
    assert (await gateway.status(request_id))["status"] == "IN_QUEUE"


@pytest.mark.parametrize(("endpoint", "units"), [(SVD, "3"), (STABLE_VIDEO, "1"), (FAST, "1")])
async def test_a_result_says_what_it_bills(gateway: Gateway, endpoint: str, units: str) -> None:
    submitted = (await gateway.client.post(f"/queue/{endpoint}", json=INPUT)).json()
    await gateway.finish(await gateway.claim(endpoint.replace("/", "--")))

    reply = await gateway.client.get(submitted["response_url"])

    assert reply.headers["x-fal-billable-units"] == units


async def test_a_refused_input_bills_nothing_and_is_not_to_be_retried(gateway: Gateway) -> None:
    submitted = (await gateway.client.post(f"/queue/{SVD}", json={})).json()

    reply = await gateway.client.get(submitted["response_url"])

    names = ("x-fal-billable-units", "x-fal-needs-retry", "x-fal-retryable")
    assert [reply.headers[name] for name in names] == ["0", "0", "false"]


async def test_an_early_result_carries_its_own_request_id(gateway: Gateway) -> None:
    submitted = (await gateway.client.post(f"/queue/{SVD}", json=INPUT)).json()

    reply = await gateway.client.get(submitted["response_url"])

    assert (reply.status_code, reply.headers["x-fal-request-id"]) == (400, submitted["request_id"])
