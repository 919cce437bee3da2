"""What a key may use, on every road that makes work or takes files; and that a refused call stores nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.errors import ConcurrentRequestsLimit, QueueFull, RateLimited, SpendLimit, Unavailable, UploadLimit
from deployments.gateway import limits
from deployments.gateway.auth import Caller
from deployments.gateway.limits import Bucket, Limiter, Newest, burst_of
from deployments.models.svd import SVD as SVDEndpoint
from deployments.models.svd import SVDConfig
from deployments.queue import uploaded as uploading
from deployments.queue.files import Lifecycle
from deployments.queue.keys import Limits, Scope
from deployments.queue.reports import Reports
from deployments.queue.request import NewRequest, RequestStatus
from deployments.queue.store import BatchLimits, RequestStore
from deployments.queue.tables import requests, uploaded
from deployments.storage import FileStorage
from tests.conftest import add_file
from tests.gateway.conftest import INPUT, OUTPUT, OWNER, STABLE_VIDEO, SVD, Clock, Gateway
from tests.gateway.conftest import served_endpoints as served
from tests.gateway.test_realtime_routes import accepted, connect
from tests.gateway.test_upload_routes import NOBODY, files_in, rows_of
from tests.queue.past import ended

DAY = 24 * 3600
ONE = {"requests_per_second": 0.001}
"""One call, and no other for a quarter of an hour."""

Headers = dict[str, str]


async def limited(gateway: Gateway, scope: Scope = Scope.API, **limits: Any) -> Headers:
    """The headers of a new key with these limits."""
    made = await gateway.client.post("/v1/keys", json={"alias": "limited", "scope": scope, "limits": limits})
    return {"authorization": f"Key {made.json()['key']}"}


def key_of(headers: Headers) -> str:
    return headers["authorization"].removeprefix("Key ").partition(":")[0]


async def submit(gateway: Gateway, headers: Headers, endpoint: str = SVD, **options: Any) -> httpx.Response:
    return await gateway.client.post(f"/queue/{endpoint}", headers=headers, **({"json": INPUT} | options))


async def run(gateway: Gateway, headers: Headers, path: str = SVD) -> httpx.Response:
    return await gateway.client.post(f"/{path}", headers=headers, json=INPUT)


async def rows(gateway: Gateway) -> int:
    """How many requests there are, in whatever state."""
    async with gateway.store.database.read() as connection:
        return len((await connection.execute(requests.select())).all())


def is_refused(reply: httpx.Response, kind: str, seconds: tuple[float, float] = (1, 5)) -> None:
    """In fal's form, and with a time after which it is worth another try."""
    assert (reply.status_code, reply.json()["error_type"]) == (429, kind), reply.text
    assert reply.json()["detail"]
    assert reply.headers["x-fal-error-type"] == kind
    assert seconds[0] <= int(reply.headers["retry-after"]) <= seconds[1]


def until_midnight() -> tuple[float, float]:
    left = DAY - time.time() % DAY
    return left - 1, left + 2


# ---------------------------------------------------------------- calls a second


@given(
    rate=st.floats(0.001, 1e4),
    pauses=st.lists(st.floats(0, 100) | st.floats(0, 0.01) | st.just(0.0), min_size=1, max_size=80),
)
def test_a_bucket_never_lets_more_through_than_a_burst_and_what_comes_after(rate: float, pauses: list[float]) -> None:
    """Over every span of time, not only over all of it."""
    bucket, now, taken = Bucket(), 1000.0, []
    for pause in pauses:
        now += pause
        if not bucket.take(now, rate, burst_of(rate)):
            taken.append(now)
    for first, since in enumerate(taken):
        for last, until in enumerate(taken[first:], first):
            assert last - first + 1 <= burst_of(rate) + rate * (until - since) + 1e-5


@given(rate=st.floats(0.001, 1e4), calls=st.integers(1, 60))
def test_who_comes_again_when_told_to_is_let_through(rate: float, calls: int) -> None:
    bucket, now = Bucket(), 1000.0
    for _ in range(calls):
        if seconds := bucket.take(now, rate, burst_of(rate)):
            assert seconds <= (1 + 1e-5) / rate
            assert bucket.take(now + 0.9 * seconds, rate, burst_of(rate))
            now += seconds
            assert not bucket.take(now, rate, burst_of(rate))


@given(calls=st.lists(st.tuples(st.floats(0, 10), st.floats(0.001, 1e4)), min_size=1, max_size=80))
def test_whatever_the_rate_was_before_nobody_waits_longer_than_for_one_token(calls: list[tuple[float, float]]) -> None:
    bucket, now = Bucket(), 1000.0
    for pause, rate in calls:
        now += pause
        for _ in range(3):
            assert bucket.take(now, rate, burst_of(rate)) <= (1 + 1e-5) / rate


def test_a_rate_that_is_lowered_holds_from_then_on_not_for_what_was_used_before() -> None:
    bucket = Bucket()
    while not bucket.take(1000.0, 100.0, burst_of(100.0)):
        pass
    assert bucket.take(1000.0, 0.01, burst_of(0.01)) == pytest.approx(100)
    assert not bucket.take(1100.1, 0.01, burst_of(0.01))


def test_a_burst_is_two_seconds_of_calls_and_one_call_at_the_least() -> None:
    for rate, burst in ((10.0, 20), (3.0, 6), (0.5, 1), (0.001, 1), (1.2, 2)):
        bucket = Bucket()
        assert [bool(bucket.take(1e6, rate, burst_of(rate))) for _ in range(burst + 1)] == [False] * burst + [True]


def test_what_is_remembered_of_keys_is_bounded_and_the_longest_unused_goes() -> None:
    newest = Newest(list, most=3)
    for key in ("a", "b", "c", "a", "d"):
        newest.of(key).append(key)
    assert len(newest) == 3
    assert (newest.of("a"), newest.of("b")) == (["a", "a"], [])


async def test_a_key_may_call_again_when_it_was_told_to(store: RequestStore) -> None:
    clock = Clock()
    limiter = Limiter(store, Reports(store.database), served(), clock.monotonic)
    caller, endpoint = Caller("fast", limits=Limits(requests_per_second=2)), served()[SVD]
    for _ in range(4):
        await limiter.admit(caller, endpoint)
    with pytest.raises(RateLimited) as refused:
        await limiter.admit(caller, endpoint)
    assert refused.value.retry_after == pytest.approx(0.5)
    clock.now += 0.51
    await limiter.admit(caller, endpoint)
    for other in (Caller("other", limits=caller.limits), Caller("free")):
        await limiter.admit(other, endpoint)


ROADS: dict[str, Callable[[Gateway, Headers], Awaitable[httpx.Response]]] = {
    "queue": submit,
    "run": run,
    "run by GET": lambda gateway, headers: gateway.client.get(f"/{SVD}", params=INPUT, headers=headers),
    "stream": lambda gateway, headers: run(gateway, headers, f"{SVD}/stream"),
    "webhook": lambda gateway, headers: submit(gateway, headers, params={"fal_webhook": "https://example.com/"}),
    "bad input": lambda gateway, headers: submit(gateway, headers, json={}),
}


@pytest.mark.parametrize("road", ROADS)
async def test_every_road_counts_and_what_is_refused_is_not_stored(gateway: Gateway, road: str) -> None:
    mine, another = await limited(gateway, **ONE), await limited(gateway, **ONE)
    first = await submit(gateway, mine)
    assert first.status_code == 200
    for _ in range(2):
        is_refused(await ROADS[road](gateway, mine), "rate_limited", (900, 1001))
    assert await rows(gateway) == 1
    status = f"/queue/{SVD}/requests/{first.json()['request_id']}/status"
    assert (await gateway.client.get(status, headers=mine)).status_code == 200
    assert (await submit(gateway, another)).status_code == 200


@pytest.mark.parametrize("road", ["run", "stream"])
async def test_every_road_takes_its_token(gateway: Gateway, road: str) -> None:
    mine = await limited(gateway, **ONE)
    asked = asyncio.create_task(ROADS[road](gateway, mine))
    await gateway.finish(await gateway.claim())
    assert (await asked).status_code == 200
    is_refused(await submit(gateway, mine), "rate_limited", (900, 1001))


async def test_realtime_inputs_count_as_calls_do(gateway: Gateway) -> None:
    mine = await limited(gateway, **ONE)
    async with connect(gateway, key=mine["authorization"].removeprefix("Key ")) as socket:
        await accepted(socket)
        socket.send(INPUT)
        await gateway.finish(await gateway.claim())
        assert await socket.frame() == OUTPUT
        socket.send(INPUT)
        assert (await socket.frame())["error"] == "RATE_LIMITED"
    assert await rows(gateway) == 1


async def test_a_limit_set_during_a_realtime_connection_counts(gateway: Gateway) -> None:
    made = (await gateway.client.post("/v1/keys", json={"alias": "late"})).json()
    async with connect(gateway, key=made["key"]) as socket:
        await accepted(socket)
        await gateway.client.patch(f"/v1/keys/{made['key_id']}", json={"limits": {"usd_per_day": 0, **ONE}})
        for _ in range(2):
            socket.send({})
        assert [(await socket.frame())["error"] for _ in range(2)] == ["VALUE_ERROR", "RATE_LIMITED"]


async def test_a_body_that_is_refused_is_not_read(gateway: Gateway) -> None:
    mine = await limited(gateway, **ONE)
    await submit(gateway, mine)
    sent = 0

    async def pour() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10_000_000:
            yield bytes(2**16)
            sent += 2**16

    is_refused(await submit(gateway, mine, json=None, content=pour()), "rate_limited", (900, 1001))
    assert sent <= 2**16


async def test_a_token_of_a_key_is_held_to_its_limits(gateway: Gateway) -> None:
    mine = await limited(gateway, **ONE)
    token = (await gateway.client.post("/tokens/", json={"allowed_apps": [SVD]}, headers=mine)).json()
    await submit(gateway, mine)
    stream = f"/{SVD}/stream?fal_jwt_token={token}"
    is_refused(await gateway.client.post(stream, json=INPUT, headers=NOBODY), "rate_limited", (900, 1001))


async def test_the_environments_key_has_no_limits_and_an_administrators_of_the_table_has(gateway: Gateway) -> None:
    for _ in range(30):
        await gateway.submit()
    admin = await limited(gateway, Scope.ADMIN, **ONE)
    assert (await submit(gateway, admin)).status_code == 200
    is_refused(await submit(gateway, admin), "rate_limited", (900, 1001))
    assert (await gateway.client.get("/v1/keys", headers=admin)).status_code == 200


async def test_a_page_may_read_when_to_come_again(gateway: Gateway) -> None:
    mine = await limited(gateway, **ONE) | {"origin": "https://example.com"}
    await submit(gateway, mine)
    reply = await submit(gateway, mine)
    assert "retry-after" in reply.headers["access-control-expose-headers"]


# ---------------------------------------------------------------- what waits


async def test_of_calls_at_once_only_so_many_are_stored_as_may_wait(gateway: Gateway) -> None:
    mine = await limited(gateway, max_waiting=3)
    replies = await asyncio.gather(*(submit(gateway, mine) for _ in range(8)))
    assert Counter(reply.status_code for reply in replies) == {200: 3, 429: 5}
    for reply in replies:
        if reply.status_code == 429:
            is_refused(reply, "queue_full")
    assert await rows(gateway) == 3
    assert (await submit(gateway, await limited(gateway, max_waiting=1))).status_code == 200
    await gateway.claim()
    assert (await submit(gateway, mine)).status_code == 200
    is_refused(await submit(gateway, mine), "queue_full")


async def test_a_synchronous_run_that_would_wait_beside_too_many_is_refused(gateway: Gateway) -> None:
    mine = await limited(gateway, max_waiting=1)
    await submit(gateway, mine)
    for path in (SVD, f"{SVD}/stream"):
        is_refused(await run(gateway, mine, path), "queue_full")
    assert await rows(gateway) == 1


async def test_a_queue_that_is_longer_than_its_caller_accepts_says_when_to_come_again(gateway: Gateway) -> None:
    await gateway.submit()
    is_refused(await submit(gateway, {}, params={"fal_max_queue_length": "0"}), "queue_full")


async def test_a_submit_that_is_repeated_is_not_refused_for_the_queue_that_it_is_in(gateway: Gateway) -> None:
    once, none = {"idempotency-key": "one"}, {"fal_max_queue_length": "0"}
    first = await gateway.submit(headers=once)
    assert await gateway.submit(headers=once, params=none) == first
    is_refused(await submit(gateway, {"idempotency-key": "two"}, params=none), "queue_full")
    assert await rows(gateway) == 1


# ---------------------------------------------------------------- what runs


@pytest.mark.parametrize("path", [SVD, f"{SVD}/stream", STABLE_VIDEO])
async def test_a_synchronous_run_beyond_the_limit_is_refused_at_once(gateway: Gateway, path: str) -> None:
    mine = await limited(gateway, max_running=1)
    await submit(gateway, mine)
    running = await gateway.claim()
    reply = await run(gateway, mine, path)
    is_refused(reply, "concurrent_requests_limit")
    assert reply.headers["x-fal-needs-retry"] == "1"
    assert await rows(gateway) == 1
    await gateway.finish(running)
    asked = asyncio.create_task(run(gateway, mine))
    await gateway.finish(await gateway.claim())
    assert (await asked).status_code == 200


async def test_realtime_inputs_beyond_the_limit_are_refused(gateway: Gateway) -> None:
    mine = await limited(gateway, max_running=1)
    await submit(gateway, mine)
    await gateway.claim()
    async with connect(gateway, key=mine["authorization"].removeprefix("Key ")) as socket:
        await accepted(socket)
        socket.send(INPUT)
        assert (await socket.frame())["error"] == "CONCURRENT_REQUESTS_LIMIT"
    assert await rows(gateway) == 1


async def test_of_synchronous_runs_at_once_only_so_many_are_accepted_as_may_run(gateway: Gateway) -> None:
    mine = await limited(gateway, max_running=2)
    asked = [asyncio.create_task(run(gateway, mine)) for _ in range(5)]
    done, waiting = await asyncio.wait(asked, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 3:
        more, waiting = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert more
        done |= more
    for each in done:
        is_refused(each.result(), "concurrent_requests_limit")
    for _ in range(2):
        await gateway.finish(await gateway.claim())
    assert [(await each).status_code for each in waiting] == [200, 200]


async def test_what_is_queued_beyond_the_limit_waits(gateway: Gateway) -> None:
    mine = await limited(gateway, max_running=1)
    for _ in range(3):
        assert (await submit(gateway, mine)).status_code == 200
    first = await gateway.claim()
    assert await gateway.store.models_with_work(["fal-ai--svd"]) == set()
    assert await gateway.store.claim("fal-ai--svd", OWNER, BatchLimits()) == []
    await gateway.finish(first)
    assert len(await gateway.store.claim("fal-ai--svd", OWNER, BatchLimits(max_batch_size=4))) == 1


# ---------------------------------------------------------------- USD a day

CLIP = 0.075
VIDEO = {"endpoint": STABLE_VIDEO}


async def test_a_day_costs_no_more_than_it_may(gateway: Gateway) -> None:
    """What waits and what runs counts as what has ended, and all of it for one key."""
    mine = await limited(gateway, usd_per_day=4 * CLIP)
    await ended(gateway.store, time.time() + 60, key_id=key_of(mine), **VIDEO)  # today, whenever that is looked at
    assert (await submit(gateway, mine, STABLE_VIDEO)).status_code == 200
    await gateway.claim("fal-ai--stable-video")
    replies = await asyncio.gather(*(submit(gateway, mine, STABLE_VIDEO) for _ in range(5)))
    assert Counter(reply.status_code for reply in replies) == {200: 2, 429: 3}
    for reply in replies:
        if reply.status_code == 429:
            is_refused(reply, "spend_limit", until_midnight())
            assert "0.3 USD" in reply.json()["detail"] and "00:00 UTC" in reply.json()["detail"]
    for path in (STABLE_VIDEO, f"{STABLE_VIDEO}/stream"):
        is_refused(await run(gateway, mine, path), "spend_limit", until_midnight())
    assert await rows(gateway) == 4
    assert (await submit(gateway, mine, SVD)).status_code == 200, "which costs nothing"
    assert (await submit(gateway, await limited(gateway, usd_per_day=CLIP), STABLE_VIDEO)).status_code == 200


async def test_only_successes_of_today_are_billed(gateway: Gateway) -> None:
    mine = await limited(gateway, usd_per_day=CLIP)
    now = time.time()
    common = VIDEO | {"key_id": key_of(mine)}
    await ended(gateway.store, now - now % DAY - 1, **common)
    await ended(gateway.store, now - now % DAY + 0.001, **common, status_code=500)
    await ended(gateway.store, now - now % DAY + 0.001, **common, status_code=422)
    assert (await submit(gateway, mine, STABLE_VIDEO)).status_code == 200
    is_refused(await submit(gateway, mine, STABLE_VIDEO), "spend_limit", until_midnight())


async def test_a_refused_input_spends_nothing(gateway: Gateway) -> None:
    mine = await limited(gateway, usd_per_day=CLIP)
    for _ in range(3):
        assert (await submit(gateway, mine, STABLE_VIDEO, json={})).status_code == 200
    assert (await submit(gateway, mine, STABLE_VIDEO)).status_code == 200
    is_refused(await submit(gateway, mine, STABLE_VIDEO), "spend_limit", until_midnight())


def _request(caller: Caller, endpoint: str = STABLE_VIDEO, **changes: Any) -> NewRequest:
    return NewRequest(endpoint, served()[endpoint].model, caller.key_id, "{}", **changes)


async def test_what_is_cancelled_or_ends_elsewhere_is_seen_within_a_second(store: RequestStore) -> None:
    clock = Clock()
    limiter = Limiter(store, Reports(store.database), served(), clock.monotonic)
    caller = Caller("frugal", limits=Limits(usd_per_day=CLIP))
    first = await limiter.submit(caller, _request(caller), synchronous=False)
    await store.cancel(first.id)
    with pytest.raises(SpendLimit):
        await limiter.submit(caller, _request(caller), synchronous=False)
    clock.now += 1.01
    await limiter.submit(caller, _request(caller), synchronous=False)


async def test_another_gateway_knows_what_is_spent(store: RequestStore) -> None:
    caller = Caller("frugal", limits=Limits(usd_per_day=CLIP))
    for number in range(2):
        limiter = Limiter(store, Reports(store.database), served())
        if number:
            with pytest.raises(SpendLimit):
                await limiter.submit(caller, _request(caller), synchronous=False)
        else:
            await limiter.submit(caller, _request(caller), synchronous=False)


class DearSVD(SVDEndpoint):
    """What is billed by the second of computing, and not for nothing."""

    unit_price = Decimal("0.5")


async def test_where_a_price_shows_at_the_end_a_day_ends_when_it_is_spent(store: RequestStore) -> None:
    dear = {SVD: DearSVD(SVD, SVDConfig(weights="none"))}
    limiter = Limiter(store, Reports(store.database), dear)
    caller = Caller("frugal", limits=Limits(usd_per_day=1.0))
    soon = time.time() + 60  # is today, whenever today is looked at
    await ended(store, soon, key_id="frugal", endpoint=SVD, gpu_seconds=1.9)
    await limiter.submit(caller, _request(caller, SVD), synchronous=False)
    await ended(store, soon, key_id="frugal", endpoint=SVD, gpu_seconds=0.1)
    with pytest.raises(SpendLimit):
        await Limiter(store, Reports(store.database), dear).submit(caller, _request(caller, SVD), synchronous=False)


async def test_nobody_waits_long_for_others_of_the_same_key(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PATIENCE_SECONDS", 0.05)
    limiter = Limiter(store, Reports(store.database), served())
    caller = Caller("frugal", limits=Limits(usd_per_day=1.0))
    async with limiter._turns.of("frugal"):
        with pytest.raises(Unavailable):
            await limiter.submit(caller, _request(caller), synchronous=False)
    await limiter.submit(caller, _request(caller), synchronous=False)


@pytest.mark.parametrize(
    ("limit", "synchronous", "together"),
    [
        (Limits(max_waiting=3), False, 1),
        (Limits(max_running=3), True, 1),
        (Limits(usd_per_day=1.0), False, 1),
        (Limits(max_running=3), False, 8),
        (Limits(), True, 8),
    ],
)
async def test_calls_that_have_to_be_counted_wait_for_each_other_outside_the_database(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch, limit: Limits, synchronous: bool, together: int
) -> None:
    """There each would have a connection of its own, and other keys' calls would find none."""
    limiter, submit = Limiter(store, Reports(store.database), served()), RequestStore.submit
    caller, inside, most = Caller("noisy", limits=limit), 0, 0

    async def watched(*args: Any, **options: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return await submit(*args, **options)
        finally:
            inside -= 1

    monkeypatch.setattr(RequestStore, "submit", watched)
    calls = [limiter.submit(caller, _request(caller, no_retry=synchronous), synchronous=synchronous) for _ in range(8)]
    await asyncio.gather(*calls, return_exceptions=True)
    assert most == together


# ---------------------------------------------------------------- the same call again


@pytest.mark.parametrize(
    "limit", [ONE, {"max_waiting": 1}, {"usd_per_day": CLIP}, {"max_waiting": 1, "usd_per_day": CLIP, **ONE}]
)
async def test_a_call_that_is_repeated_is_answered_whatever_limit_is_reached(
    gateway: Gateway, limit: dict[str, Any]
) -> None:
    mine = await limited(gateway, **limit)
    first = await submit(gateway, mine | {"idempotency-key": "one"}, STABLE_VIDEO)
    again = await submit(gateway, mine | {"idempotency-key": "one"}, STABLE_VIDEO)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json()["request_id"] == first.json()["request_id"]
    for other in ({}, {"idempotency-key": "two"}):
        assert (await submit(gateway, mine | other, STABLE_VIDEO)).status_code == 429
    elsewhere = await submit(gateway, mine | {"idempotency-key": "one"}, SVD)
    assert (elsewhere.status_code, elsewhere.json()["error_type"]) == (422, "bad_request")
    another = await limited(gateway, **limit)
    await submit(gateway, another, STABLE_VIDEO)
    assert (await submit(gateway, another | {"idempotency-key": "one"}, STABLE_VIDEO)).status_code == 429
    assert await rows(gateway) == 2


async def test_repeats_are_let_in_to_be_read_but_not_any_number_of_times(store: RequestStore) -> None:
    clock = Clock()
    limiter = Limiter(store, Reports(store.database), served(), clock.monotonic)
    caller, endpoint = Caller("slow", limits=Limits(requests_per_second=0.001)), served()[SVD]
    await limiter.admit(caller, endpoint, "one")
    await limiter.submit(caller, _request(caller, SVD, idempotency_key="one"), synchronous=False)
    with pytest.raises(RateLimited) as refused:
        await limiter.admit(caller, endpoint, "two")
    assert refused.value.retry_after == pytest.approx(1000)
    for _ in range(10):
        await limiter.admit(caller, endpoint, "one")
    with pytest.raises(RateLimited) as refused:
        await limiter.admit(caller, endpoint, "one")
    assert refused.value.retry_after == pytest.approx(1)
    clock.now += 1
    await limiter.admit(caller, endpoint, "one")


async def test_a_run_that_is_repeated_waits_for_the_first(gateway: Gateway) -> None:
    mine = await limited(gateway, max_running=1) | {"idempotency-key": "one"}
    asked = [asyncio.create_task(run(gateway, mine))]
    attempt = await gateway.claim()
    asked.append(asyncio.create_task(run(gateway, mine)))
    is_refused(await run(gateway, mine | {"idempotency-key": "two"}), "concurrent_requests_limit")
    await gateway.finish(attempt)
    replies = [await each for each in asked]
    assert [reply.headers["x-fal-request-id"] for reply in replies] == [attempt.request_id] * 2


@pytest.mark.parametrize(
    ("limit", "synchronous", "expected"),
    [
        (Limits(max_waiting=1), False, QueueFull),
        (Limits(max_running=1), True, ConcurrentRequestsLimit),
        (Limits(usd_per_day=CLIP), False, SpendLimit),
    ],
)
async def test_repeats_spend_nothing(
    store: RequestStore, limit: Limits, synchronous: bool, expected: type[Exception]
) -> None:
    limiter = Limiter(store, Reports(store.database), served())
    caller = Caller("careful", limits=limit)

    async def again() -> str:
        row = _request(caller, idempotency_key="one", no_retry=synchronous)
        return (await limiter.submit(caller, row, synchronous=synchronous)).id

    assert len({await again() for _ in range(3)}) == 1
    with pytest.raises(expected):
        await limiter.submit(caller, _request(caller), synchronous=synchronous)
    request = await store.earlier("careful", STABLE_VIDEO, "one")
    assert request and request.status == RequestStatus.IN_QUEUE


# ---------------------------------------------------------------- uploads

KB = 1000
LIVES = Lifecycle()


async def upload(gateway: Gateway, headers: Headers, content: Any) -> httpx.Response:
    return await gateway.client.post("/files/upload", content=content, headers=headers)


async def pour(size: int) -> AsyncIterator[bytes]:
    """A body that does not say how long it is."""
    while size > 0:
        yield random.Random(size).randbytes(min(size, 2**16))
        size -= 2**16


async def counted(gateway: Gateway, headers: Headers) -> int:
    async with gateway.store.database.read() as connection:
        query = uploaded.select().where(uploaded.c.key_id == key_of(headers))
        row = (await connection.execute(query)).one_or_none()
    return row.bytes if row else 0


async def test_a_day_takes_so_many_bytes_and_no_more(gateway: Gateway, tmp_path: Path) -> None:
    mine = await limited(gateway, upload_bytes_per_day=10 * KB)
    assert (await upload(gateway, mine, bytes(6 * KB))).status_code == 200
    reply = await upload(gateway, mine, bytes(4 * KB + 1))
    is_refused(reply, "upload_limit", until_midnight())
    assert "10000 bytes" in reply.json()["detail"] and "00:00 UTC" in reply.json()["detail"]
    assert (await upload(gateway, mine, bytes(4 * KB))).status_code == 200
    for path in ("/storage/upload/initiate", "/storage/upload/initiate-multipart", "/files/upload/multipart"):
        is_refused(await gateway.client.post(path, json={}, headers=mine), "upload_limit", until_midnight())
    assert await rows_of(gateway) == 2 and len(await files_in(tmp_path / "files")) == 2
    assert (await upload(gateway, await limited(gateway, upload_bytes_per_day=KB), bytes(KB))).status_code == 200
    assert (await gateway.client.post("/files/upload", content=bytes(100 * KB))).status_code == 200


async def test_uploads_at_once_share_the_day(gateway: Gateway) -> None:
    mine = await limited(gateway, upload_bytes_per_day=10 * KB)
    replies = await asyncio.gather(*(upload(gateway, mine, bytes(3 * KB)) for _ in range(6)))
    assert Counter(reply.status_code for reply in replies) == {200: 3, 429: 3}
    assert await counted(gateway, mine) == 9 * KB


async def test_a_body_of_no_stated_length_is_cut_off_and_discarded(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the limit shows, not at its end; and long ones are counted while they come."""
    monkeypatch.setattr(limits, "UPLOAD_STEP", 100 * KB)
    mine = await limited(gateway, upload_bytes_per_day=1000 * KB)
    seen: list[int] = []

    async def watched() -> AsyncIterator[bytes]:
        async for piece in pour(900 * KB):
            yield piece
            seen.append(await counted(gateway, mine))

    assert (await upload(gateway, mine, watched())).status_code == 200
    assert await counted(gateway, mine) == 900 * KB
    assert 0 < sorted(set(seen))[1] <= 300 * KB
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 10_000 * KB:
            yield bytes(50 * KB)
            sent += 50 * KB

    is_refused(await upload(gateway, mine, endless()), "upload_limit", until_midnight())
    assert sent <= 200 * KB
    assert await counted(gateway, mine) == 900 * KB
    assert await rows_of(gateway) == 1 and len(await files_in(tmp_path / "files")) == 1
    assert (await upload(gateway, mine, pour(100 * KB))).status_code == 200


async def test_an_upload_that_is_given_up_while_it_is_counted_is_counted_no_more(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await limited(gateway, upload_bytes_per_day=10 * KB)
    caller = Caller(key_of(mine), limits=Limits(upload_bytes_per_day=10 * KB))
    limiter = Limiter(gateway.store, Reports(gateway.store.database), served())
    counting, go_on, so_far = asyncio.Event(), asyncio.Event(), uploading._so_far

    async def slow(*args: Any) -> Any:
        counting.set()
        await go_on.wait()
        return await so_far(*args)

    async def upload_more() -> None:
        async with limiter.intake(caller, 5 * KB) as intake:
            monkeypatch.setattr(uploading, "_so_far", slow)
            await intake.hold(3 * KB)

    given_up = asyncio.create_task(upload_more())
    await counting.wait()
    given_up.cancel()
    go_on.set()
    while not given_up.done():  # as frameworks do that cancel until they are obeyed
        given_up.cancel()
        await asyncio.sleep(0)
    assert given_up.cancelled()
    assert await counted(gateway, mine) == 0


async def test_an_upload_by_its_own_url_counts_for_its_key(gateway: Gateway) -> None:
    mine = await limited(gateway, upload_bytes_per_day=10 * KB)
    begun = [
        (await gateway.client.post("/storage/upload/initiate", json={"file_name": "a"}, headers=mine)).json()
        for _ in range(2)
    ]
    first, second = (each["upload_url"] for each in begun)
    assert (await gateway.client.put(first, content=bytes(6 * KB), headers=NOBODY)).status_code == 200
    for content in (bytes(5 * KB), pour(5 * KB)):
        is_refused(await gateway.client.put(second, content=content, headers=NOBODY), "upload_limit", until_midnight())
    assert (await gateway.client.put(second, content=bytes(4 * KB), headers=NOBODY)).status_code == 200
    assert (await gateway.client.get(begun[1]["file_url"])).content == bytes(4 * KB)


async def test_a_cdn_token_of_a_key_is_held_to_its_limits(gateway: Gateway) -> None:
    mine = await limited(gateway, upload_bytes_per_day=KB)
    token = (await gateway.client.post("/storage/auth/token", json={}, headers=mine)).json()["token"]
    is_refused(
        await upload(gateway, {"authorization": f"Bearer {token}"}, bytes(KB + 1)), "upload_limit", until_midnight()
    )


async def test_parts_count_as_they_come_whether_they_are_joined_or_not(gateway: Gateway) -> None:
    mine = await limited(gateway, upload_bytes_per_day=10 * KB)
    made = (await gateway.client.post("/files/upload/multipart", headers=mine)).json()
    parts = f"{urlsplit(made['access_url']).path}/multipart/{made['uploadId']}"

    async def put(number: int, size: int) -> httpx.Response:
        return await gateway.client.put(f"{parts}/{number}", content=bytes(size), headers=mine)

    etags = [(await put(number, 4 * KB)).json() for number in (1, 2)]
    is_refused(await put(3, 3 * KB), "upload_limit", until_midnight())
    is_refused(await upload(gateway, mine, bytes(3 * KB)), "upload_limit", until_midnight())
    assert (await gateway.client.post(f"{parts}/complete", json={"parts": etags}, headers=mine)).status_code == 200
    assert await counted(gateway, mine) == 8 * KB
    assert (await upload(gateway, mine, bytes(2 * KB))).status_code == 200


async def test_what_the_storage_refuses_is_not_counted(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = await limited(gateway, upload_bytes_per_day=10 * KB)

    async def full(self: FileStorage, *args: Any) -> Any:
        raise Unavailable("full")

    with monkeypatch.context() as patch:
        patch.setattr(FileStorage, "write", full)
        reply = await upload(gateway, mine, bytes(9 * KB))
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    assert await counted(gateway, mine) == 0
    assert (await upload(gateway, mine, bytes(9 * KB))).status_code == 200


async def test_what_was_uploaded_before_there_was_a_limit_counts_and_what_requests_made_does_not(
    gateway: Gateway,
) -> None:
    mine = await limited(gateway, upload_bytes_per_day=10 * KB)
    for key, size, request_id in (("b/1/a", 6 * KB, None), ("b/2/b", 90 * KB, "a-request")):
        await add_file(gateway.store.database, key, key_of(mine), "text/plain", size, LIVES, request_id)
    is_refused(await upload(gateway, mine, bytes(4 * KB + 1)), "upload_limit", until_midnight())
    assert (await upload(gateway, mine, bytes(4 * KB))).status_code == 200


async def test_a_day_begins_anew_and_takes_back_nothing_of_the_one_before(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that has gone meanwhile was uploaded all the same; a call over midnight ends in the day it began."""
    mine = await limited(gateway, upload_bytes_per_day=10 * KB)
    caller = Caller(key_of(mine), limits=Limits(upload_bytes_per_day=10 * KB))
    limiter = Limiter(gateway.store, Reports(gateway.store.database), served())
    async with limiter.intake(caller, 8 * KB):
        pass
    with pytest.raises(UploadLimit):
        async with limiter.intake(caller, 8 * KB):
            pass

    async def over_midnight() -> None:
        async with limiter.intake(caller, 2 * KB):
            tomorrow = time.time() + DAY
            monkeypatch.setattr("deployments.queue.uploaded.time.time", lambda: tomorrow)
            async with limiter.intake(caller, 9 * KB):
                pass
            raise Unavailable("away")

    with pytest.raises(Unavailable):
        await over_midnight()
    assert await counted(gateway, mine) == 9 * KB
    monkeypatch.undo()  # a clock that is behind goes on with the day that has begun
    with pytest.raises(UploadLimit):
        async with limiter.intake(caller, 2 * KB):
            pass
