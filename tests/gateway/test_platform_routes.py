from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.models.base import Endpoint
from deployments.models.charges import charge
from deployments.models.svd import SVD as SVDEndpoint
from deployments.queue.files import Files, Lifecycle
from deployments.queue.keys import Keys, Scope
from deployments.queue.store import RequestStore
from deployments.storage import FileStorage
from tests.conftest import Server, add_file
from tests.gateway.conftest import (
    FAST,
    INPUT,
    STABLE_VIDEO,
    SVD,
    TEXT_TO_VIDEO,
    URL,
    Clock,
    Gateway,
    open_gateway,
    served_endpoints,
)
from tests.queue.past import ended

NOBODY = {"authorization": ""}
DAY = {"start": "2025-06-01", "end": "2025-06-02", "timeframe": "day"}
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC).timestamp()
REPORTS = [
    "/v1/models/usage",
    "/v1/models/analytics",
    "/v1/models/billing-events",
    "/v1/models/requests/search",
    f"/v1/models/requests/by-endpoint?endpoint_id={SVD}",
]


async def get(gateway: Gateway, path: str, /, headers: dict[str, str] | None = None, **query: Any) -> Any:
    """The JSON of a successful GET under /v1."""
    reply = await gateway.client.get(f"/v1/{path}", params=query, headers=headers)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def key_of(gateway: Gateway, scope: Scope = Scope.API) -> tuple[str, dict[str, str]]:
    """A key of the database: its id, and the header to send."""
    key, secret = await Keys(gateway.store.database).create("program", scope)
    return key.id, {"authorization": f"Key {key.id}:{secret}"}


def told(reply: httpx.Response, status: int, kind: str) -> str:
    """The message of an error in the platform API's form."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(reply.json()) == {"error"}
    assert set(error) == {"type", "message", "docs_url", "request_id"}
    assert (error["type"], error["docs_url"]) == (kind, f"{URL}/docs/llms.txt")
    assert error["request_id"] == reply.headers["x-fal-request-id"]
    assert reply.headers["x-fal-billable-units"] == "0"
    return str(error["message"])


# ---------------------------------------------------------------- models and prices


async def test_models_are_what_is_served(gateway: Gateway) -> None:
    answer = await get(gateway, "models", NOBODY)

    assert [model["endpoint_id"] for model in answer["models"]] == list(served_endpoints())
    assert (answer["next_cursor"], answer["has_more"]) == (None, False)
    last = answer["models"][-1]["metadata"]
    assert (last["display_name"], last["category"], last["status"]) == (
        "Fast SVD, text to video",
        "text-to-video",
        "active",
    )
    assert last["group"] == {"key": FAST, "label": "Fast SVD"}
    assert last["model_url"] == f"{URL}/{TEXT_TO_VIDEO}"
    assert (await gateway.client.get(last["thumbnail_url"])).headers["content-type"] == "image/jpeg"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"endpoint_id": [SVD, FAST]}, [SVD, FAST]),
        ({"endpoint_id": f"{FAST},{SVD}"}, [SVD, FAST]),
        ({"endpoint_id": "workflows/me/mine"}, []),
        ({"category": "text-to-video"}, [TEXT_TO_VIDEO]),
        ({"q": "fast"}, [FAST, TEXT_TO_VIDEO]),
        ({"q": "PROMPT fast"}, [TEXT_TO_VIDEO]),
        ({"q": "weather"}, []),
        ({"status": "active", "category": "text-to-video"}, [TEXT_TO_VIDEO]),
        ({"status": "deprecated"}, []),
    ],
)
async def test_models_are_found_by_what_is_said_of_them(gateway: Gateway, query: Any, found: list[str]) -> None:
    assert [model["endpoint_id"] for model in (await get(gateway, "models", **query))["models"]] == found


async def test_models_come_in_pages(gateway: Gateway) -> None:
    first = await get(gateway, "models", limit=3)
    second = await get(gateway, "models", limit=3, cursor=first["next_cursor"])

    assert (len(first["models"]), first["has_more"]) == (3, True)
    assert ([model["endpoint_id"] for model in second["models"]], second["has_more"]) == ([TEXT_TO_VIDEO], False)


async def test_a_model_brings_its_openapi_document_where_that_is_asked_for(gateway: Gateway) -> None:
    (model,) = (await get(gateway, "models", endpoint_id=SVD, expand="openapi-3.0,enterprise_status"))["models"]
    document = await gateway.client.get("/api/openapi/queue/openapi.json", params={"endpoint_id": SVD})

    assert model["openapi"] == document.json()
    assert model["enterprise_status"] == "ready"


async def test_a_wrong_key_is_refused_even_where_none_is_needed(gateway: Gateway) -> None:
    reply = await gateway.client.get("/v1/models", headers={"authorization": "Key id:wrong"})

    told(reply, 401, "authorization_error")
    assert reply.headers["www-authenticate"] == "Key"


async def test_prices_are_those_that_are_published(gateway: Gateway) -> None:
    assert (await get(gateway, "models/pricing"))["prices"] == [
        {"endpoint_id": STABLE_VIDEO, "unit_price": 0.075, "unit": "video", "currency": "USD"},
        {"endpoint_id": SVD, "unit_price": 0.0, "unit": "compute second", "currency": "USD"},
    ]
    assert [price["endpoint_id"] for price in (await get(gateway, "models/pricing", endpoint_id=SVD))["prices"]] == [
        SVD
    ]
    assert (await get(gateway, "models/pricing", endpoint_id=f"{FAST},{TEXT_TO_VIDEO}"))["prices"] == []
    reply = await gateway.client.get("/v1/models/pricing", params={"endpoint_id": "comfy/me/mine"})
    assert "comfy/me/mine" in told(reply, 404, "not_found")


async def estimate(gateway: Gateway, kind: str, endpoints: Any) -> httpx.Response:
    body = {"estimate_type": kind, "endpoints": endpoints}
    return await gateway.client.post("/v1/models/pricing/estimate", json=body)


async def test_an_estimate_by_units_is_exact(gateway: Gateway) -> None:
    endpoints = {STABLE_VIDEO: {"unit_quantity": 3}, SVD: {"unit_quantity": 1000.5}}
    reply = await estimate(gateway, "unit_price", endpoints)

    assert 0.075 * 3 != 0.225
    assert reply.json() == {"estimate_type": "unit_price", "total_cost": 0.225, "currency": "USD"}


class Metered(SVDEndpoint):
    """SVD at a price that is not 0."""

    unit_price = Decimal("0.001")


async def test_an_estimate_by_calls_goes_by_what_the_callers_calls_have_taken(
    store: RequestStore, storage: FileStorage
) -> None:
    endpoints: dict[str, Endpoint] = {SVD: Metered(SVD, served_endpoints()[SVD].config)}
    async with open_gateway(store, storage, endpoints) as gateway:
        _, headers = await key_of(gateway)
        calls = {"estimate_type": "historical_api_price", "endpoints": {SVD: {"call_quantity": 10}}}
        post = {"url": "/v1/models/pricing/estimate", "json": calls}
        assert (await gateway.client.post(**post)).json()["total_cost"] == 0.01  # a second each, as nobody knows
        for gpu_seconds in (1.0, 4.0):
            await ended(store, NOON, endpoint=SVD, key_id="id", gpu_seconds=gpu_seconds)
        await ended(store, NOON, endpoint=SVD, key_id="id", gpu_seconds=1000.0, status_code=500)
        assert (await gateway.client.post(**post)).json()["total_cost"] == 0.025
        assert (await gateway.client.post(**post, headers=headers)).json()["total_cost"] == 0.01


@pytest.mark.parametrize(
    ("kind", "endpoints", "status"),
    [
        ("unit_price", {}, 400),
        ("unit_price", {SVD: {}}, 400),
        ("unit_price", {SVD: {"unit_quantity": 0}}, 400),
        ("unit_price", {SVD: {"unit_quantity": 1e400}}, 400),
        ("unit_price", {SVD: {"call_quantity": 1}}, 400),
        ("historical_api_price", {SVD: {"call_quantity": 0}}, 400),
        ("historical_api_price", {SVD: {"call_quantity": 1.5}}, 400),
        ("guess", {SVD: {"unit_quantity": 1}}, 400),
        ("unit_price", {"workflows/me/mine": {"unit_quantity": 1}}, 404),
        ("unit_price", {FAST: {"unit_quantity": 1}}, 404),
    ],
)
async def test_an_estimate_that_cannot_be_made_is_refused(
    gateway: Gateway, kind: str, endpoints: Any, status: int
) -> None:
    body = json.dumps({"estimate_type": kind, "endpoints": endpoints}).replace("Infinity", "1e400")
    reply = await gateway.client.post("/v1/models/pricing/estimate", content=body)
    told(reply, status, "validation_error" if status == 400 else "not_found")


# ---------------------------------------------------------------- usage


async def test_usage_is_units_times_price(gateway: Gateway) -> None:
    key_id, mine = await key_of(gateway)
    for endpoint, gpu_seconds in ((STABLE_VIDEO, 2.5), (STABLE_VIDEO, 2.5), (STABLE_VIDEO, 9), (SVD, 1.25), (FAST, 1)):
        await ended(gateway.store, NOON, endpoint=endpoint, gpu_seconds=gpu_seconds, key_id=key_id)
    answer = await get(gateway, "models/usage", mine, **DAY, expand="time_series,summary")

    usd = {"currency": "USD"}
    lines = [
        {"endpoint_id": FAST, "unit": "video", "quantity": 1.0, "unit_price": 0.0, "cost": 0.0} | usd,
        {"endpoint_id": STABLE_VIDEO, "unit": "video", "quantity": 3.0, "unit_price": 0.075, "cost": 0.225} | usd,
        {"endpoint_id": SVD, "unit": "compute second", "quantity": 1.25, "unit_price": 0.0, "cost": 0.0} | usd,
    ]
    assert answer == {
        "time_series": [{"bucket": "2025-06-01T00:00:00+00:00", "results": lines}],
        "summary": lines,
        "next_cursor": None,
        "has_more": False,
    }


async def test_usage_falls_into_the_days_of_the_time_zone(gateway: Gateway) -> None:
    for at in ("2025-03-30T00:30+01:00", "2025-03-30T23:30+02:00", "2025-03-31T00:30+02:00"):
        await ended(gateway.store, datetime.fromisoformat(at).timestamp(), endpoint=STABLE_VIDEO)
    asked = {"start": "2025-03-30", "end": "2025-04-01", "timeframe": "day"}

    def days(answer: Any) -> dict[str, list[float]]:
        return {each["bucket"]: [line["quantity"] for line in each["results"]] for each in answer["time_series"]}

    assert days(await get(gateway, "models/usage", **asked, timezone="Europe/Berlin")) == {
        "2025-03-30T00:00:00+01:00": [2.0],
        "2025-03-31T00:00:00+02:00": [1.0],
    }
    assert days(await get(gateway, "models/usage", **asked | {"start": "2025-03-29"})) == {
        "2025-03-29T00:00:00+00:00": [1.0],
        "2025-03-30T00:00:00+00:00": [2.0],
        "2025-03-31T00:00:00+00:00": [],
    }


async def test_usage_falls_into_the_months_of_the_calendar(gateway: Gateway) -> None:
    for at in ("2024-02-29T23:59:59.999+00:00", "2024-03-01T00:00+00:00"):
        await ended(gateway.store, datetime.fromisoformat(at).timestamp(), endpoint=STABLE_VIDEO)
    answer = await get(gateway, "models/usage", start="2023-12-20", end="2024-03-15", timeframe="month")

    assert [(each["bucket"][:10], len(each["results"])) for each in answer["time_series"]] == [
        ("2023-12-01", 0),
        ("2024-01-01", 0),
        ("2024-02-01", 1),
        ("2024-03-01", 1),
    ]


async def test_what_has_just_ended_is_in_the_usage_of_the_last_24_hours(gateway: Gateway) -> None:
    await gateway.submit(STABLE_VIDEO)
    await gateway.finish(await gateway.claim("fal-ai--stable-video"), {"video": {}, "seed": 1})
    series = (await get(gateway, "models/usage"))["time_series"]

    assert len(series) in (24, 25)  # by the hour; 24 on the hour itself
    assert [line["cost"] for bucket in series for line in bucket["results"]] == [0.075]


async def test_what_was_refused_or_failed_is_never_billed(gateway: Gateway) -> None:
    await gateway.submit(json={})
    for status_code in (422, 499, 500, 503):
        await ended(gateway.store, NOON, status_code=status_code, gpu_seconds=5.0)

    assert (await get(gateway, "models/usage", start="2025-01-01", expand="summary"))["summary"] == []
    assert (await get(gateway, "models/billing-events"))["billing_events"] == []


async def test_usage_is_split_by_key_where_that_is_asked_for(gateway: Gateway) -> None:
    key_id, _ = await key_of(gateway)
    for owner in (key_id, "id", "id"):
        await ended(gateway.store, NOON, endpoint=STABLE_VIDEO, key_id=owner)
    expand = ["summary", "auth_method"]
    split = (await get(gateway, "models/usage", **DAY, expand=expand))["summary"]

    assert {line["auth_method"]: line["quantity"] for line in split} == {"program": 1.0, "id": 2.0}
    (whole,) = (await get(gateway, "models/usage", **DAY, expand="summary"))["summary"]
    assert (whole["quantity"], "auth_method" in whole) == (3.0, False)


async def test_buckets_come_in_pages(gateway: Gateway) -> None:
    asked = {"start": "2025-06-01", "end": "2025-06-04", "timeframe": "day", "limit": 2}
    first = await get(gateway, "models/usage", **asked)
    second = await get(gateway, "models/usage", **asked, cursor=first["next_cursor"])

    assert [each["bucket"][:10] for each in first["time_series"] + second["time_series"]] == [
        "2025-06-01",
        "2025-06-02",
        "2025-06-03",
    ]
    assert (first["has_more"], second["has_more"], second["next_cursor"]) == (True, False, None)


async def test_a_clip_of_an_endpoint_that_is_no_longer_served_is_counted_and_costs_nothing(gateway: Gateway) -> None:
    await ended(gateway.store, NOON, endpoint="fal-ai/gone")
    (line,) = (await get(gateway, "models/usage", **DAY, expand="summary"))["summary"]

    assert (line["endpoint_id"], line["unit"], line["quantity"], line["cost"]) == ("fal-ai/gone", "request", 1.0, 0.0)


@pytest.mark.parametrize(
    "query",
    [
        {"timezone": "Mars/Olympus"},
        {"start": "2025-02-01", "end": "2025-01-01"},
        {"start": "2025-01-01", "timeframe": "minute"},
        {"start": "tomorrow"},
        {"timeframe": "year"},
        {"expand": "everything"},
        {"expand": "auth_method"},
        {"limit": 0},
        {"limit": "many"},
        {"cursor": "!"},
        {"cursor": "WzEsMl0="},
        {"endpoint_id": "a b"},
        {"endpoint_id": "\x00"},
        {"endpoint_id": [f"fal-ai/{number}" for number in range(51)]},
    ],
)
async def test_a_query_that_makes_no_sense_is_told_so(gateway: Gateway, query: Any) -> None:
    assert told(await gateway.client.get("/v1/models/usage", params=query), 400, "validation_error")


# ---------------------------------------------------------------- analytics


async def test_analytics_count_and_measure(gateway: Gateway) -> None:
    for seconds in (1.0, 2.0, 3.0, 4.0):
        await ended(gateway.store, NOON, endpoint=SVD, started_at=NOON - seconds, created_at=NOON - 3 * seconds)
    for status_code in (422, 499, 500):
        await ended(gateway.store, NOON, endpoint=SVD, started_at=None, status_code=status_code)
    counts = "request_count,success_count,user_error_count,cancelled_count,error_count"
    metrics = f"{counts},p50_duration,p90_duration,p75_prepare_duration"
    answer = await get(gateway, "models/analytics", **DAY, expand=f"{metrics},summary")

    line = {
        "endpoint_id": SVD,
        "request_count": 7,
        "success_count": 4,
        "user_error_count": 1,
        "cancelled_count": 1,
        "error_count": 1,
        "p50_duration": 2.0,
        "p90_duration": 4.0,
        "p75_prepare_duration": 6.0,
    }
    assert answer["time_series"] == [{"bucket": "2025-06-01T00:00:00+00:00", "results": [line]}]
    assert answer["summary"] == [line]


async def test_analytics_count_requests_where_nothing_else_is_asked_for(gateway: Gateway) -> None:
    await ended(gateway.store, NOON, endpoint=SVD)
    (bucket,) = (await get(gateway, "models/analytics", **DAY))["time_series"]

    assert bucket["results"] == [{"endpoint_id": SVD, "request_count": 1}]
    reply = await gateway.client.get("/v1/models/analytics", params={"expand": "p99_duration"})
    assert "p90_duration" in told(reply, 400, "validation_error")


# ---------------------------------------------------------------- billing and history


async def test_billing_events_are_exact_and_add_up_to_the_usage(gateway: Gateway) -> None:
    key_id, mine = await key_of(gateway)
    ids = [await ended(gateway.store, NOON + at, endpoint=STABLE_VIDEO, key_id=key_id) for at in range(3)]
    await ended(gateway.store, NOON, endpoint=FAST)
    asked = {"start": "2025-06-01", "endpoint_id": STABLE_VIDEO}
    events = (await get(gateway, "models/billing-events", mine, **asked))["billing_events"]

    assert [event["request_id"] for event in events] == ids[::-1]
    assert events[-1] == {
        "request_id": ids[0],
        "endpoint_id": STABLE_VIDEO,
        "timestamp": "2025-06-01T12:00:00.000Z",
        "output_units": 1.0,
        "unit_price": 0.075,
        "percent_discount": None,
        "cost_subtotal": 0.075,
        "cost_discount": 0.0,
        "cost_total": 0.075,
        "cost_estimate_nano_usd": 75_000_000,
    }
    usage = (await get(gateway, "models/usage", **DAY, expand="summary", endpoint_id=STABLE_VIDEO))["summary"]
    assert sum(event["cost_estimate_nano_usd"] for event in events) == round(usage[0]["cost"] * 10**9)
    (unpriced,) = (await get(gateway, "models/billing-events", endpoint_id=FAST))["billing_events"]
    assert (unpriced["unit_price"], unpriced["cost_estimate_nano_usd"]) == (None, 0)


def test_thousands_of_small_costs_are_summed_without_error() -> None:
    metered = Metered(SVD, served_endpoints()[SVD].config)
    one, all = charge(metered, 1, 100_001), charge(metered, 10_000, 10_000 * 100_001)

    assert one.nano_usd == 100_001
    assert all.nano_usd == 10_000 * one.nano_usd
    assert (str(all.quantity), str(all.cost)) == ("1000.010000", "1.000010000")


async def test_history_is_paged_from_the_latest_end_on(gateway: Gateway) -> None:
    ids = [await ended(gateway.store, NOON + at, endpoint=SVD) for at in range(5)]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"endpoint_id": SVD, "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = await get(gateway, "models/requests/by-endpoint", **query)
        seen += [item["request_id"] for item in page["items"]]
        assert page["has_more"] is (page["next_cursor"] is not None)
        cursor = page["next_cursor"]

    assert seen == ids[::-1]


async def test_an_item_tells_when_and_how_and_on_request_with_what(gateway: Gateway) -> None:
    _, mine = await key_of(gateway)
    request_id = await gateway.submit(headers=mine)
    attempt = await gateway.claim()
    await gateway.finish(attempt)
    (item,) = (await get(gateway, "models/requests/by-endpoint", mine, endpoint_id=SVD))["items"]

    assert set(item) == {"request_id", "endpoint_id", "started_at", "sent_at", "ended_at", "status_code", "duration"}
    assert (item["request_id"], item["endpoint_id"], item["status_code"]) == (request_id, SVD, 200)
    assert item["sent_at"] <= item["started_at"] <= item["ended_at"]
    assert 0 <= item["duration"] < 10
    (item,) = (await get(gateway, "models/requests/search", expand="payloads"))["items"]
    assert item["json_input"].items() >= INPUT.items()
    assert item["json_output"]["seed"] == 7


async def test_what_was_sent_with_store_io_0_shows_no_payloads(gateway: Gateway) -> None:
    request_id = await gateway.submit(headers={"x-fal-store-io": "0"})
    await gateway.finish(await gateway.claim())
    (item,) = (await get(gateway, "models/requests/search", expand="payloads"))["items"]

    assert (item["request_id"], item["json_input"], item["json_output"]) == (request_id, None, None)
    assert (await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")).json()["seed"] == 7


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"status": "success"}, ["quick", "slow"]),
        ({"status": "user_error"}, ["refused"]),
        ({"status": "cancelled"}, ["given up"]),
        ({"status": "error"}, ["broken"]),
        ({"endpoint_id": FAST}, ["broken"]),
        ({"start": "2025-06-01T12:00:01Z"}, ["broken", "refused"]),
        ({"end": "2025-06-01T14:00:01", "timezone": "Europe/Berlin"}, ["quick", "slow", "given up"]),
        ({"sort_by": "duration", "limit": 1}, ["slow"]),
    ],
)
async def test_the_history_is_searched(gateway: Gateway, query: Any, found: list[str]) -> None:
    names = {
        await ended(gateway.store, NOON - 1, endpoint=SVD, status_code=499, started_at=None): "given up",
        await ended(gateway.store, NOON, endpoint=SVD, started_at=NOON - 9): "slow",
        await ended(gateway.store, NOON, endpoint=SVD, started_at=NOON - 1): "quick",
        await ended(gateway.store, NOON + 1, endpoint=SVD, status_code=422, started_at=None): "refused",
        await ended(gateway.store, NOON + 2, endpoint=FAST, status_code=500): "broken",
    }
    items = (await get(gateway, "models/requests/search", **query))["items"]
    assert [names[item["request_id"]] for item in items] == found


async def test_the_history_is_searched_for_words_and_ids(gateway: Gateway) -> None:
    boat, lake = [await gateway.submit(TEXT_TO_VIDEO, json={"prompt": prompt}) for prompt in ("a BOAT", "a lake")]
    for _ in (boat, lake):
        await gateway.finish(await gateway.claim("fal-ai--fast-svd-lcm"))

    for query in ({"query": "boat"}, {"request_id": boat}):
        items = (await get(gateway, "models/requests/search", **query))["items"]
        assert [item["request_id"] for item in items] == [boat]


async def test_a_list_may_leave_out_what_is_too_long_for_it(gateway: Gateway) -> None:
    picture = f"data:image/png;base64,{'A' * 20_000}"
    for input in ({"image_url": picture}, INPUT):
        await gateway.submit(json=input)
        await gateway.finish(await gateway.claim())

    short, long = (await get(gateway, "models/requests/search", expand="short_payloads"))["items"]
    assert short["json_input"].items() >= INPUT.items()
    assert long["json_input"] == {} and long["json_output"]["seed"] == 7
    _, long = (await get(gateway, "models/requests/search", expand="payloads"))["items"]
    assert long["json_input"]["image_url"] == picture


async def test_a_history_by_endpoint_wants_the_endpoint(gateway: Gateway) -> None:
    reply = await gateway.client.get("/v1/models/requests/by-endpoint")
    assert "endpoint_id" in told(reply, 400, "validation_error")
    reply = await gateway.client.get("/v1/models/requests/search", params={"limit": 101})
    assert "limit" in told(reply, 400, "validation_error")


# ---------------------------------------------------------------- whose it is


@pytest.mark.parametrize("path", REPORTS)
async def test_a_key_sees_its_own_rows_and_an_administrator_everybodys(gateway: Gateway, path: str) -> None:
    key_id, mine = await key_of(gateway)
    _, other = await key_of(gateway)
    _, admin = await key_of(gateway, Scope.ADMIN)
    await ended(gateway.store, datetime.now().timestamp(), endpoint=SVD, key_id=key_id)

    async def sees(headers: dict[str, str] | None) -> bool:
        reply = await gateway.client.get(path, headers=headers)
        assert reply.status_code == 200, reply.text
        return SVD in reply.text

    assert [await sees(headers) for headers in (mine, other, admin, None)] == [True, False, True, True]


async def test_an_administrator_is_told_whose_a_request_is_and_may_ask_for_its_own_alone(gateway: Gateway) -> None:
    key_id, theirs = await key_of(gateway)
    for each in (key_id, "id"):
        await ended(gateway.store, datetime.now().timestamp(), key_id=each)
    search = "models/requests/search"

    own, others = sorted((await get(gateway, search))["items"], key=lambda item: item["auth_method"] != "id")
    assert (own["auth_method"], own["mine"], others["mine"]) == ("id", True, False)
    assert others["auth_method"] != "id"
    answer = await get(gateway, search, mine=True)
    assert (answer["mine"], answer["items"]) == (True, [own])
    answer = await get(gateway, search, headers=theirs)
    assert not {"auth_method", "mine"} & (answer.keys() | answer["items"][0].keys())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *[("GET", path) for path in REPORTS],
        ("GET", "/v1/models/pricing"),
        ("POST", "/v1/models/pricing/estimate"),
        ("DELETE", "/v1/models/requests/00000000-0000-0000-0000-000000000000/payloads"),
        ("GET", "/v1/keys"),
        ("POST", "/v1/keys"),
        ("DELETE", "/v1/keys/1"),
        ("PATCH", "/v1/keys/1"),
        ("POST", "/v1/keys/1/rotate"),
        ("GET", "/v1/serverless/metrics"),
        ("GET", f"/v1/serverless/apps/{SVD}/queue"),
    ],
)
async def test_every_route_wants_a_key(gateway: Gateway, method: str, path: str) -> None:
    told(await gateway.client.request(method, path, headers=NOBODY), 401, "authorization_error")
    wrong = {"authorization": "Key id:wrong"}
    told(await gateway.client.request(method, path, headers=wrong), 401, "authorization_error")


# ---------------------------------------------------------------- deletion of payloads


async def made(gateway: Gateway, tmp_path: Path) -> tuple[str, str, str]:
    """A request that has made a video from an uploaded picture: its id, and the URLs of both files."""
    source = tmp_path / "file"
    source.write_bytes(b"bytes")
    picture = await gateway.storage.put(source, "b/1/picture.png")
    video = await gateway.storage.put(source, "b/2/clip.mp4")
    request_id = await gateway.submit(json={"image_url": picture.url})
    await gateway.finish(await gateway.claim(), {"image": video.model_dump(), "seed": 7})
    await add_file(gateway.store.database, "b/1/picture.png", "id", "image/png", 5, Lifecycle())
    await add_file(gateway.store.database, "b/2/clip.mp4", "id", "video/mp4", 5, Lifecycle(), request_id)
    return request_id, picture.url, video.url


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("DELETE", "/v1/models/requests/{}/payloads", "cdn_delete_results"),
        ("PUT", "/requests/delete_io/{}", "CDN_DELETE_RESULTS"),
    ],
)
async def test_payloads_are_deleted_with_the_output_files_and_never_the_input_files(
    gateway: Gateway, tmp_path: Path, method: str, path: str, name: str
) -> None:
    request_id, picture, video = await made(gateway, tmp_path)
    reply = await gateway.client.request(method, path.format(request_id), headers={"idempotency-key": "once"})

    assert (reply.status_code, reply.json()) == (200, {name: [{"link": video, "exception": None}]})
    assert [(await gateway.client.get(url)).status_code for url in (picture, video)] == [200, 404]
    (item,) = (await get(gateway, "models/requests/search", expand="payloads"))["items"]
    assert (item["request_id"], item["json_input"], item["json_output"]) == (request_id, None, None)
    result = await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")
    assert (result.status_code, result.json()["detail"]) == (404, "The output of this request was deleted")
    assert (await gateway.status(request_id))["status"] == "COMPLETED"
    again = await gateway.client.request(method, path.format(request_id))
    assert (again.status_code, again.json()) == (200, {name: []})


async def test_a_video_that_is_only_named_in_the_output_is_deleted_too(gateway: Gateway, tmp_path: Path) -> None:
    request_id, picture, video = await made(gateway, tmp_path)
    await Files(gateway.store.database).forget(["b/2/clip.mp4"])  # it was made before files were recorded
    reply = await gateway.client.delete(f"/v1/models/requests/{request_id}/payloads")

    assert [each["link"] for each in reply.json()["cdn_delete_results"]] == [video]
    assert [(await gateway.client.get(url)).status_code for url in (picture, video)] == [200, 404]


async def test_a_file_that_cannot_be_deleted_is_told_and_found_again(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id, _, video = await made(gateway, tmp_path)

    async def fail(self: FileStorage, key: str) -> None:
        raise PermissionError(f"/secret/path/{key}")

    with monkeypatch.context() as patched:
        patched.setattr(FileStorage, "delete", fail)
        reply = await gateway.client.delete(f"/v1/models/requests/{request_id}/payloads")
    assert reply.json()["cdn_delete_results"] == [{"link": video, "exception": "The file could not be deleted"}]
    again = await gateway.client.delete(f"/v1/models/requests/{request_id}/payloads")
    assert again.json()["cdn_delete_results"] == [{"link": video, "exception": None}]


async def test_only_its_owner_and_an_administrator_delete_payloads(gateway: Gateway, tmp_path: Path) -> None:
    key_id, mine = await key_of(gateway)
    _, other = await key_of(gateway)
    path = f"/v1/models/requests/{await ended(gateway.store, NOON, key_id=key_id)}/payloads"

    told(await gateway.client.delete(path, headers=other), 404, "not_found")
    (item,) = (await get(gateway, "models/requests/search", expand="payloads"))["items"]
    assert item["json_output"] == {"seed": 7}
    assert (await gateway.client.delete(path, headers=mine)).status_code == 200
    assert (await gateway.client.delete(path)).status_code == 200


async def test_a_request_that_has_not_ended_keeps_its_input(gateway: Gateway) -> None:
    request_id = await gateway.submit()
    told(await gateway.client.delete(f"/v1/models/requests/{request_id}/payloads"), 400, "validation_error")

    assert json.loads((await gateway.claim()).input).items() >= INPUT.items()


@pytest.mark.parametrize("request_id", ["1", "00000000-0000-0000-0000-000000000000", "%00", "a/b"])
async def test_an_unknown_request_has_no_payloads(gateway: Gateway, request_id: str) -> None:
    told(await gateway.client.delete(f"/v1/models/requests/{request_id}/payloads"), 404, "not_found")


# ---------------------------------------------------------------- keys


async def test_a_key_is_made_used_listed_and_revoked(gateway: Gateway) -> None:
    reply = await gateway.client.post("/v1/keys", json={"alias": "  production "})
    made = reply.json()
    assert (reply.status_code, set(made) >= {"key_id", "key_secret", "key"}) == (201, True)
    assert made["key"] == f"{made['key_id']}:{made['key_secret']}"

    headers = {"authorization": f"Key {made['key']}"}
    await gateway.submit(headers=headers)
    listed = await get(gateway, "keys", expand="creator_info")
    (key,) = listed["keys"]
    assert (key["key_id"], key["alias"], key["scope"]) == (made["key_id"], "production", "API")
    assert {"created_at", "creator_nickname", "creator_email"} <= set(key)
    assert made["key_secret"] not in str(listed)

    for _ in range(2):  # a second time is no error
        reply = await gateway.client.delete(f"/v1/keys/{made['key_id']}")
        assert (reply.status_code, reply.content) == (204, b"")
    assert (await gateway.client.post(f"/queue/{SVD}", json=INPUT, headers=headers)).status_code == 401
    assert (await get(gateway, "keys"))["keys"] == []


async def test_only_an_administrator_deals_with_keys_and_metrics(gateway: Gateway) -> None:
    _, program = await key_of(gateway)
    reply = await gateway.client.post("/v1/keys", json={"alias": "a", "scope": "ADMIN"})
    admin = {"authorization": f"Bearer {reply.json()['key']}"}
    for method, path in (("GET", "keys"), ("POST", "keys"), ("DELETE", "keys/1"), ("GET", "serverless/metrics")):
        reply = await gateway.client.request(method, f"/v1/{path}", json={"alias": "x"}, headers=program)
        told(reply, 403, "authorization_error")
        assert (await gateway.client.request(method, f"/v1/{path}", json={"alias": "x"}, headers=admin)).is_success
    for method, path in (("PATCH", "keys/1"), ("POST", "keys/1/rotate")):
        reply = await gateway.client.request(method, f"/v1/{path}", json={}, headers=program)
        told(reply, 403, "authorization_error")
        told(await gateway.client.request(method, f"/v1/{path}", json={}, headers=admin), 404, "not_found")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"alias": ""}',
        b'{"alias": "  "}',
        b'{"alias": 1}',
        b'{"alias": "\\u0000"}',
        b'{"alias": "a", "scope": "GOD"}',
        b'{"alias": "' + b"a" * 256 + b'"}',
        b'{"alias": "a", "expires_at": "2001-01-01T00:00:00Z"}',
        b'{"alias": "a", "expires_at": "2099-01-01T00:00:00"}',
        b'{"alias": "a", "expires_at": "9999-12-31T23:59:59-12:00"}',
        b'{"alias": "a", "expires_at": 1e300}',
        b'{"alias": "a", "expires_at": "soon"}',
        b'{"alias": "a", "limits": null}',
        b'{"alias": "a", "limits": {"max_waiting": 0}}',
        b'{"alias": "a", "limits": {"max_waiting": 1e300}}',
        b'{"alias": "a", "limits": {"requests_per_second": -1}}',
        b'{"alias": "a", "limits": {"usd_per_day": "much"}}',
        b'{"alias": "a", "limits": {"usd_per_week": 1}}',
        b'{"alias": "a", "limit": {"usd_per_day": 1}}',
        b'{"alias": "a", "expires": "2099-01-01T00:00:00Z"}',
        b"{",
    ],
)
async def test_a_key_without_a_proper_name_end_or_limit_is_refused(gateway: Gateway, body: bytes) -> None:
    told(await gateway.client.post("/v1/keys", content=body), 400, "validation_error")
    assert (await get(gateway, "keys"))["keys"] == []


NO_LIMITS = dict.fromkeys(("requests_per_second", "max_waiting", "max_running", "usd_per_day", "upload_bytes_per_day"))


async def new_key(gateway: Gateway, **more: Any) -> Any:
    """A key as the answer tells it that has made it."""
    reply = await gateway.client.post("/v1/keys", json={"alias": "program"} | more)
    assert reply.status_code == 201, reply.text
    return reply.json()


async def works(gateway: Gateway, key: str) -> bool:
    reply = await gateway.client.get("/v1/models/pricing", headers={"authorization": f"Key {key}"})
    assert reply.status_code in (200, 401)
    return reply.status_code == 200


async def test_a_keys_end_and_limits_are_told_wherever_it_is(gateway: Gateway) -> None:
    plain = await new_key(gateway)
    made = await new_key(
        gateway, expires_at="2099-01-01T01:00:00+01:00", limits={"max_waiting": 3, "usd_per_day": None}
    )
    listed = (await get(gateway, "keys"))["keys"]

    assert [(key["expires_at"], key["limits"], key["last_used_at"]) for key in listed] == [
        (None, NO_LIMITS, None),
        ("2099-01-01T00:00:00.000Z", NO_LIMITS | {"max_waiting": 3}, None),
    ]
    for key, told_of_it in zip((plain, made), listed, strict=True):
        assert {name: key[name] for name in told_of_it} == told_of_it


async def test_a_name_and_limits_are_changed_where_they_are_named(gateway: Gateway) -> None:
    made = await new_key(gateway, limits={"max_waiting": 3, "max_running": 1})
    path = f"/v1/keys/{made['key_id']}"

    reply = await gateway.client.patch(path, json={"limits": {"max_waiting": None, "usd_per_day": 2.5}})
    assert reply.status_code == 200
    assert reply.json()["limits"] == NO_LIMITS | {"max_running": 1, "usd_per_day": 2.5}
    reply = await gateway.client.patch(path, json={"alias": " other "})
    (listed,) = (await get(gateway, "keys"))["keys"]
    assert listed == reply.json()
    assert (listed["alias"], listed["limits"]["usd_per_day"]) == ("other", 2.5)
    assert await works(gateway, made["key"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"alias": ""}',
        b'{"limit": {"max_waiting": 1}}',
        b'{"limits": {"max_wating": 1}}',
        b'{"limits": {"max_waiting": -1}}',
        b'{"scope": "ADMIN"}',
        b'{"expires_at": null}',
    ],
)
async def test_a_change_that_makes_no_sense_changes_nothing(gateway: Gateway, body: bytes) -> None:
    made = await new_key(gateway, limits={"max_waiting": 3})
    before = await get(gateway, "keys")

    told(await gateway.client.patch(f"/v1/keys/{made['key_id']}", content=body), 400, "validation_error")
    assert await get(gateway, "keys") == before


@pytest.mark.parametrize("body", [None, {}, {"keep_seconds": 60}])
async def test_a_key_gets_another_secret_and_keeps_the_former_one_for_a_while(gateway: Gateway, body: Any) -> None:
    made = await new_key(gateway, limits={"max_waiting": 3})
    path = f"/v1/keys/{made['key_id']}/rotate"
    reply = await (gateway.client.post(path) if body is None else gateway.client.post(path, json=body))
    rotated = reply.json()

    assert (reply.status_code, rotated["key_id"], rotated["limits"]) == (200, made["key_id"], made["limits"])
    assert rotated["key"] == f"{made['key_id']}:{rotated['key_secret']}" != made["key"]
    left = datetime.fromisoformat(rotated["former_until"]).timestamp() - time.time()
    assert left == pytest.approx(60 if body else 24 * 3600, abs=30)
    assert [await works(gateway, key) for key in (made["key"], rotated["key"])] == [True, True]
    listed = await get(gateway, "keys")
    assert made["key_secret"] not in str(listed) and rotated["key_secret"] not in str(listed)


async def test_a_former_secret_that_is_to_end_at_once_does(gateway: Gateway) -> None:
    made = await new_key(gateway)
    assert await works(gateway, made["key"])
    reply = await gateway.client.post(f"/v1/keys/{made['key_id']}/rotate", json={"keep_seconds": 0})

    assert reply.json()["former_until"] is None
    assert [await works(gateway, key) for key in (made["key"], reply.json()["key"])] == [False, True]


@pytest.mark.parametrize(
    "body", [b"[]", b"{", b'{"keep_seconds": -1}', b'{"keep_seconds": 1e300}', b'{"keep_secs": 0}', b"null"]
)
async def test_a_rotation_that_makes_no_sense_changes_nothing(gateway: Gateway, body: bytes) -> None:
    made = await new_key(gateway)

    told(await gateway.client.post(f"/v1/keys/{made['key_id']}/rotate", content=body), 400, "validation_error")
    assert await works(gateway, made["key"])


@pytest.mark.parametrize("key_id", ["nobody", "%F0%9F%94%91", "' OR '1'='1", "%25", "a" * 10_000])
async def test_an_unknown_key_is_neither_changed_nor_rotated(gateway: Gateway, key_id: str) -> None:
    made = await new_key(gateway)

    message = "There is no valid key with this id"
    assert told(await gateway.client.patch(f"/v1/keys/{key_id}", json={}), 404, "not_found") == message
    assert told(await gateway.client.post(f"/v1/keys/{key_id}/rotate"), 404, "not_found") == message
    assert (await gateway.client.delete(f"/v1/keys/{key_id}")).status_code == 204
    assert await works(gateway, made["key"])


async def test_the_key_of_the_environment_is_changed_there(gateway: Gateway) -> None:
    for method, path in (("PATCH", "/v1/keys/id"), ("POST", "/v1/keys/id/rotate"), ("DELETE", "/v1/keys/id")):
        options = {} if method == "DELETE" else {"json": {}}
        assert "SVD_ADMIN_KEY" in told(await gateway.client.request(method, path, **options), 400, "validation_error")
    assert await works(gateway, "id:secret")


async def test_what_is_done_to_a_key_is_a_line_of_the_audit_log_without_a_secret(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "svd_serve.audit")
    admin = await new_key(gateway, alias="boss\n", scope="ADMIN")
    by_admin = {"authorization": f"Key {admin['key']}"}
    made = (await gateway.client.post("/v1/keys", json={"alias": "a"}, headers=by_admin)).json()
    path = f"/v1/keys/{made['key_id']}"
    rotated = (await gateway.client.post(f"{path}/rotate", headers=by_admin)).json()
    await gateway.client.patch(path, json={"alias": "b", "limits": {"max_waiting": 3}}, headers=by_admin)
    for _ in range(2):
        await gateway.client.delete(path, headers=by_admin)
    await gateway.client.patch("/v1/keys/nobody", json={}, headers=by_admin)
    await get(gateway, "keys")

    lines = [record.getMessage() for record in caplog.records if record.name == "svd_serve.audit"]
    who, whom = f"key {admin['key_id']}", f"key {made['key_id']}"
    assert lines == [
        f"key id: create key {admin['key_id']}, scope=ADMIN",
        f"{who}: create {whom}, scope=API",
        f"{who}: rotate {whom}, scope=API",
        f"{who}: change {whom}, max_waiting=3, alias=another",
        f"{who}: revoke {whom}",
    ]
    for key in (admin, made, rotated):
        assert key["key_secret"] not in caplog.text


async def test_keys_come_in_pages(gateway: Gateway) -> None:
    for alias in "abc":
        await gateway.client.post("/v1/keys", json={"alias": alias})
    first = await get(gateway, "keys", limit=2)
    second = await get(gateway, "keys", limit=2, cursor=first["next_cursor"])

    assert [key["alias"] for key in first["keys"] + second["keys"]] == ["a", "b", "c"]


# ---------------------------------------------------------------- the rest


async def test_meta_tells_where_webhooks_come_from(store: RequestStore, storage: FileStorage) -> None:
    async with open_gateway(store, storage, served_endpoints(), webhook_ip_ranges=["192.0.2.1/32"]) as gateway:
        assert await get(gateway, "meta", NOBODY) == {"webhook_ip_ranges": ["192.0.2.1/32"]}


async def scrape(gateway: Gateway) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The gauges as Prometheus reads them."""
    reply = await gateway.client.get("/v1/serverless/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(reply.text))
    assert {family.type for family in families} == {"gauge"}
    return {
        (sample.name.removeprefix("fal_app_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_metrics_tell_what_every_application_does(store: RequestStore, storage: FileStorage) -> None:
    async def runners() -> dict[str, dict[str, int]]:
        return {"fal-ai--svd": {"RUNNING": 3, "STARTING": 1, "STOPPING": 5}, "Gateway": {"RUNNING": 1}}

    async with open_gateway(store, storage, served_endpoints(), runners=runners) as gateway:
        for endpoint in (SVD, SVD, SVD, FAST):
            await gateway.submit(endpoint)
        await gateway.submit(TEXT_TO_VIDEO, json={"prompt": "a lake"})
        await gateway.submit(json={})
        await gateway.finish(await gateway.claim())
        await gateway.claim()
        metrics = await scrape(gateway)

    svd, fast = ("application", SVD), ("application", FAST)
    assert metrics["queue_size", (svd,)] == 1
    assert metrics["queue_size", (fast,)] == 2
    assert metrics["queue_size", (("application", STABLE_VIDEO),)] == 0
    assert metrics["concurrent_requests", (svd,)] == 1
    assert metrics["requests_received", (svd, ("method", "POST"))] == 4
    assert metrics["requests_completed", (svd, ("method", "POST"), ("status", "200"))] == 1
    assert metrics["requests_completed", (svd, ("method", "POST"), ("status", "422"))] == 1
    assert metrics["request_latency", (svd, ("le", "+Inf"))] == 2
    states = {state: metrics["runners", (svd, ("state", state))] for state in ("idle", "running", "pending")}
    assert states == {"idle": 2, "running": 1, "pending": 1}


def test_a_running_service_counts_its_replicas(server: Server) -> None:
    headers = {"authorization": f"Key {server.key}"}
    reply = httpx.get(f"{server.url}/v1/serverless/metrics", headers=headers, timeout=30)
    runners = {
        sample.labels["application"]: sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
        if family.name == "fal_app_runners" and sample.labels["state"] in ("idle", "running")
        if sample.value
    }

    assert runners == {STABLE_VIDEO: 1, SVD: 1, FAST: 2}  # the fast one's application has a painter too


async def test_metrics_are_read_once_in_ten_seconds(gateway: Gateway, clock: Clock) -> None:
    first = await scrape(gateway)
    await gateway.submit()
    clock.now += 9.9
    assert await scrape(gateway) == first
    clock.now += 0.1
    assert (await scrape(gateway))["queue_size", (("application", SVD),)] == 1


async def test_the_queue_of_an_application_counts_all_its_endpoints(gateway: Gateway) -> None:
    await gateway.submit(FAST)
    await gateway.submit(TEXT_TO_VIDEO, json={"prompt": "a lake"})
    await gateway.submit(SVD)

    assert await get(gateway, f"serverless/apps/{FAST}/queue") == {"queue_size": 2}
    told(await gateway.client.get("/v1/serverless/apps/comfy/mine/queue"), 404, "not_found")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["", "workflows", "models/none", "storage/none", "comfy/me/mine", "%00"])
async def test_what_is_not_there_is_not_found(gateway: Gateway, method: str, path: str) -> None:
    told(await gateway.client.request(method, f"/v1/{path}"), 404, "not_found")


async def test_a_store_that_is_away_is_told_without_a_word_of_why(gateway: Gateway) -> None:
    async with gateway.store.database.transaction() as connection:
        await connection.exec_driver_sql("ALTER TABLE requests RENAME TO elsewhere")
    message = told(await gateway.client.get("/v1/models/usage"), 503, "server_error")

    assert "elsewhere" not in message and "SELECT" not in message


async def test_an_unexpected_error_has_the_same_form(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("deployments.gateway.platform_routes.price_body", fail)
    assert told(await gateway.client.get("/v1/models/pricing"), 500, "server_error") == "Internal error"
