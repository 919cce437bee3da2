from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select, text, update

from deployments.errors import InvalidInput, Unavailable
from deployments.queue import outbox as outbox_module
from deployments.queue.outbox import WEBHOOK_KEYS, Delivery, Outbox, Verdict, Webhook, WebhookState
from deployments.queue.request import MAX_ATTEMPTS, InferenceRequest
from deployments.queue.secrets import Secrets
from deployments.queue.store import Outcome, RequestStore
from deployments.queue.tables import now, request_io, webhooks
from deployments.queue.webhooks import ATTEMPT_SECONDS, RETRY_SECONDS, Sender
from deployments.web import Reach
from tests.conftest import ROOT
from tests.queue.conftest import new_request
from tests.queue.test_store import claim_one
from tests.receiver import Post, Receiver, run_receiver, status, verifies

OUTPUT = {"image": {"url": "http://127.0.0.1:8000/files/b/0/clip.mp4"}, "seed": 7}
ONE_BY_ONE = {"busy": {}, "per_host": 4, "limit": 1}

SEND = """
import asyncio, sys
from deployments.queue.database import Database
from deployments.queue.webhooks import Sender
from deployments.web import Reach

async def send():
    sender = Sender(await Database.open(sys.argv[1]), Reach(True), lease_seconds=1.0, poll_seconds=0.01)
    sender.start()
    await asyncio.sleep(60)

asyncio.run(send())
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as receiver:
        yield receiver


@asynccontextmanager
async def sending(store: RequestStore, **options: Any) -> AsyncIterator[Sender]:
    """A sender for the time of a test; it may call the loopback, and looks often."""
    sender = Sender(store.database, **({"reach": Reach(allow_private=True), "poll_seconds": 0.01} | options))
    sender.start()
    try:
        yield sender
    finally:
        await sender.stop()


async def ended(store: RequestStore, url: str, **changes: Any) -> InferenceRequest:
    """A request with a webhook that has ended well."""
    request = await store.submit(new_request(webhook=url, **changes))
    assert await store.complete(await claim_one(store), "a", Outcome(200, OUTPUT))
    return request


async def row_of(store: RequestStore, request: InferenceRequest) -> Webhook:
    (row,) = [row for row in await Outbox(store.database).rows(None, 100) if row.request_id == request.id]
    return row


async def until(store: RequestStore, request: InferenceRequest, met: Callable[[Webhook], bool]) -> Webhook:
    async with asyncio.timeout(20):
        while not met(row := await row_of(store, request)):
            await asyncio.sleep(0.01)
    return row


async def settled(store: RequestStore, request: InferenceRequest) -> Webhook:
    """The row once nothing more will be tried."""
    return await until(store, request, lambda row: row.state in (WebhookState.DELIVERED, WebhookState.UNDELIVERED))


async def failed(store: RequestStore, request: InferenceRequest) -> Webhook:
    """The row once an attempt has failed."""
    return await until(store, request, lambda row: row.error is not None)


async def posts(receiver: Receiver, count: int = 1) -> list[Post]:
    return await asyncio.to_thread(receiver.wait, count)


async def set_row(store: RequestStore, request: InferenceRequest, **values: Any) -> None:
    async with store.database.transaction() as connection:
        await connection.execute(update(webhooks).where(webhooks.c.request_id == request.id).values(values))


async def seconds_until_due(store: RequestStore, request: InferenceRequest) -> float:
    async with store.database.read() as connection:
        query = select(webhooks.c.due_at - now()).where(webhooks.c.request_id == request.id)
        return float((await connection.execute(query)).scalar_one())


async def jwks_of(store: RequestStore) -> dict[str, Any]:
    """The keys that receivers are shown (what the gateway makes of them has its own tests)."""
    secrets = await Secrets(store.database).of(WEBHOOK_KEYS)
    keys = [Ed25519PrivateKey.from_private_bytes(secret.value).public_key().public_bytes_raw() for secret in secrets]
    return {"keys": [{"x": base64.urlsafe_b64encode(key).decode()} for key in keys]}


# ---------------------------------------------------------------- what is sent


async def test_a_result_is_posted_signed_in_fals_form(store: RequestStore, receiver: Receiver) -> None:
    request = await ended(store, receiver.url + "?token=a%20b&n=1")
    async with sending(store):
        row = await settled(store, request)

    (post,) = receiver.posts
    assert post.path == "/hook?token=a%20b&n=1"
    assert post.json == {
        "request_id": request.id,
        "gateway_request_id": request.id,
        "status": "OK",
        "payload": OUTPUT,
    }
    assert post.headers["content-type"] == "application/json"
    assert post.headers["x-fal-webhook-request-id"] == request.id
    assert post.headers["x-fal-webhook-user-id"] == "alice"
    assert len(post.headers["x-fal-webhook-signature"]) == 128
    assert verifies(post, await jwks_of(store))
    assert (row.state, row.attempts, row.status_code, row.error) == (WebhookState.DELIVERED, 1, 200, None)
    assert await store.output(request.id) == OUTPUT


@pytest.mark.parametrize(
    "part", ["body", "x-fal-webhook-request-id", "x-fal-webhook-user-id", "x-fal-webhook-timestamp"]
)
async def test_what_was_tampered_with_does_not_verify(store: RequestStore, receiver: Receiver, part: str) -> None:
    request = await ended(store, receiver.url)
    async with sending(store):
        await settled(store, request)

    (post,) = receiver.posts
    forged = (
        replace(post, body=post.body.replace(b"OK", b"KO"))
        if part == "body"
        else replace(post, headers={**post.headers, part: post.headers[part][::-1]})
    )
    assert not verifies(forged, await jwks_of(store))


async def refused(store: RequestStore, url: str) -> InferenceRequest:
    failure = InvalidInput([{"loc": ("image_url",), "msg": "Field required", "type": "missing"}]).failure()
    return await store.submit(new_request(webhook=url), failure)


async def cancelled(store: RequestStore, url: str) -> InferenceRequest:
    request = await store.submit(new_request(webhook=url))
    await store.cancel(request.id)
    return request


async def timed_out(store: RequestStore, url: str) -> InferenceRequest:
    request = await store.submit(new_request(webhook=url, start_timeout=0.0))
    await store.sweep("a", [], 10)
    return request


async def lost(store: RequestStore, url: str) -> InferenceRequest:
    request = await store.submit(new_request(webhook=url, no_retry=True))
    await store.lose(await claim_one(store), "a", "gone")
    return request


@pytest.mark.parametrize(("end", "code"), [(refused, 422), (cancelled, 499), (timed_out, 504), (lost, 503)])
async def test_every_other_end_is_posted_as_an_error_with_its_body(
    store: RequestStore, receiver: Receiver, end: Callable[..., Any], code: int
) -> None:
    request = await end(store, receiver.url)
    async with sending(store):
        await settled(store, request)

    (post,) = receiver.posts
    assert post.json == {
        "request_id": request.id,
        "gateway_request_id": request.id,
        "status": "ERROR",
        "error": f"Invalid status code: {code}",
        "payload": await store.output(request.id),
    }
    assert post.json["payload"]["detail"]
    assert verifies(post, await jwks_of(store))


async def test_the_gateways_id_is_that_of_the_last_attempt(store: RequestStore, receiver: Receiver) -> None:
    request = await store.submit(new_request(webhook=receiver.url))
    await store.lose(await claim_one(store), "a", "gone")
    await store.complete(await claim_one(store), "a", Outcome(200, OUTPUT))
    async with sending(store):
        await settled(store, request)

    final = await store.get(request.id)
    assert final
    assert receiver.posts[0].json["gateway_request_id"] == final.gateway_request_id != request.id
    assert receiver.posts[0].json["request_id"] == request.id


async def test_a_payload_that_was_deleted_meanwhile_is_told_as_such(store: RequestStore, receiver: Receiver) -> None:
    request = await ended(store, receiver.url)
    async with store.database.transaction() as connection:
        await connection.execute(update(request_io).values(output=None))
    async with sending(store):
        await settled(store, request)

    body = receiver.posts[0].json
    assert (body["status"], body["payload"]) == ("OK", None)
    assert "deleted" in body["payload_error"]


# ---------------------------------------------------------------- when


async def test_nothing_is_due_before_the_end_is_committed(store: RequestStore, receiver: Receiver) -> None:
    request = await store.submit(new_request(webhook=receiver.url))
    attempt = await claim_one(store)
    assert (await row_of(store, request)).state == WebhookState.WAITING
    assert not await store.complete(attempt, "somebody else", Outcome(200, {}))  # the fence
    assert await Outbox(store.database).claim(**ONE_BY_ONE, lease_seconds=60) == []

    assert await store.complete(attempt, "a", Outcome(200, OUTPUT))
    (delivery,) = await Outbox(store.database).claim(**ONE_BY_ONE, lease_seconds=60)
    assert (delivery.request.id, delivery.number) == (request.id, 1)


async def test_a_request_without_a_webhook_has_no_row(store: RequestStore) -> None:
    await store.submit(new_request())
    await store.complete(await claim_one(store), "a", Outcome(200, OUTPUT))
    assert await Outbox(store.database).rows(None, 100) == []


async def test_a_second_submit_with_the_same_key_is_told_once(store: RequestStore, receiver: Receiver) -> None:
    first, second = [await store.submit(new_request(webhook=receiver.url, idempotency_key="k")) for _ in range(2)]
    assert first.id == second.id
    assert len(await Outbox(store.database).rows(None, 100)) == 1


async def test_each_attempt_until_the_receiver_takes_it_is_signed_anew(store: RequestStore, receiver: Receiver) -> None:
    receiver.answers += [status(500), status(500)]
    request = await ended(store, receiver.url)
    async with sending(store, retry_seconds=(1.2, 1.2)):
        row = await settled(store, request)

    assert (row.state, row.attempts, row.error) == (WebhookState.DELIVERED, 3, None)
    assert {post.request_id for post in receiver.posts} == {request.id}
    assert len({post.headers["x-fal-webhook-timestamp"] for post in receiver.posts}) == 3
    assert len({post.body for post in receiver.posts}) == 1
    assert all([verifies(post, await jwks_of(store)) for post in receiver.posts])


async def test_the_pauses_are_those_of_the_schedule_and_fit_into_two_hours(
    store: RequestStore, receiver: Receiver
) -> None:
    request = await ended(store, receiver.url)
    receiver.answers += [status(500)] * (len(RETRY_SECONDS) + 1)
    async with sending(store):
        for number, pause in enumerate(RETRY_SECONDS, 1):
            await failed(store, request)
            assert 0.9 * pause - 2 < await seconds_until_due(store, request) <= pause
            assert (await row_of(store, request)).attempts == number
            await set_row(store, request, due_at=now(), error=None)
        row = await settled(store, request)

    assert (row.state, row.attempts) == (WebhookState.UNDELIVERED, 11)
    assert (row.status_code, row.error) == (500, "the receiver answered 500")
    assert len(receiver.posts) == 11
    assert RETRY_SECONDS == (5, 15, 30, 60, 120, 300, 600, 1200, 1800, 2700)
    assert sum(RETRY_SECONDS) + 10 * ATTEMPT_SECONDS <= 2 * 3600


async def test_after_the_last_attempt_nothing_more_is_sent(store: RequestStore, receiver: Receiver) -> None:
    receiver.answers += [status(503)] * 3
    request = await ended(store, receiver.url)
    async with sending(store, retry_seconds=(0.02, 0.02)):
        assert (await settled(store, request)).state == WebhookState.UNDELIVERED
        await asyncio.sleep(0.2)
    assert len(receiver.posts) == 3


# ---------------------------------------------------------------- receivers of all kinds


@pytest.mark.parametrize("code", [301, 302, 307, 400, 404, 429, 500, 503])
async def test_whatever_is_not_2xx_is_tried_again(store: RequestStore, receiver: Receiver, code: int) -> None:
    receiver.answers.append(status(code, location="/elsewhere"))
    request = await ended(store, receiver.url)
    async with sending(store):
        row = await failed(store, request)

    assert (row.state, row.status_code, row.error) == (WebhookState.DUE, code, f"the receiver answered {code}")
    assert [post.path for post in receiver.posts] == ["/hook"]  # a redirect is not followed


@pytest.mark.parametrize("code", [201, 202, 204])
async def test_any_2xx_takes_it(store: RequestStore, receiver: Receiver, code: int) -> None:
    receiver.answers.append(status(code))
    request = await ended(store, receiver.url)
    async with sending(store):
        row = await settled(store, request)
    assert (row.state, row.status_code) == (WebhookState.DELIVERED, code)


async def test_410_ends_it(store: RequestStore, receiver: Receiver) -> None:
    receiver.answers.append(status(410))
    request = await ended(store, receiver.url)
    async with sending(store):
        row = await settled(store, request)
    assert (row.state, row.attempts, row.status_code) == (WebhookState.UNDELIVERED, 1, 410)


async def test_a_receiver_that_is_down_is_tried_again(store: RequestStore, receiver: Receiver) -> None:
    with run_receiver() as gone:
        url = gone.url
    request = await ended(store, url)
    async with sending(store):
        row = await failed(store, request)
    assert (row.state, row.status_code, row.error) == (WebhookState.DUE, None, "the server could not be reached")


async def test_a_slow_receiver_is_given_up_and_holds_up_nobody(store: RequestStore, receiver: Receiver) -> None:
    receiver.answers.append(receiver.held)
    slow = await ended(store, receiver.url)
    async with sending(store, attempt_seconds=1.0):
        await posts(receiver)
        quick = await ended(store, receiver.url)
        assert (await settled(store, quick)).state == WebhookState.DELIVERED
        assert (await row_of(store, slow)).error is None
        row = await failed(store, slow)
    assert (row.state, row.status_code, row.error) == (WebhookState.DUE, None, "it took too long")


async def test_of_a_huge_answer_little_is_read(store: RequestStore, receiver: Receiver) -> None:
    written = 0

    def answer(handler: BaseHTTPRequestHandler) -> None:
        nonlocal written
        status(200, **{"content-length": str(2**30)})(handler)
        while written < 2**28:
            written += handler.wfile.write(bytes(2**16))

    receiver.answers.append(answer)
    request = await ended(store, receiver.url)
    async with sending(store):
        assert (await settled(store, request)).state == WebhookState.DELIVERED
    with receiver.arrived:
        assert receiver.arrived.wait_for(lambda: receiver.open == 0, 20)
    assert written < 2**25  # what the sockets' buffers take


async def test_an_answer_that_does_not_end_counts_by_its_status(store: RequestStore, receiver: Receiver) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        status(200, **{"content-length": "1000"})(handler)
        while not receiver.released.wait(0.1):
            handler.wfile.write(b"x")

    receiver.answers.append(answer)
    request = await ended(store, receiver.url)
    async with sending(store, attempt_seconds=0.5), asyncio.timeout(5):
        row = await settled(store, request)
    assert (row.state, row.attempts) == (WebhookState.DELIVERED, 1)


# ---------------------------------------------------------------- where it may go


async def test_a_private_address_is_refused_for_good(store: RequestStore) -> None:
    with run_receiver(8443, 8080, 443, 80) as receiver:  # the ports are allowed
        requests = [await ended(store, f"http://{host}:{receiver.port}/") for host in ("127.0.0.1", "localhost")]
        async with sending(store, reach=Reach()):
            rows = [await settled(store, request) for request in requests]
    for row in rows:
        assert (row.state, row.attempts) == (WebhookState.UNDELIVERED, 1)
        assert (row.status_code, row.error) == (None, "this address is not allowed")
    assert receiver.posts == []


@pytest.mark.parametrize(
    "url", ["http://93.184.216.34:22/", "http://10.0.0.1/", "http://[::1]/", "http://169.254.169.254/latest"]
)
async def test_other_ports_and_networks_are_refused_too(store: RequestStore, url: str) -> None:
    request = await ended(store, url)
    async with sending(store, reach=Reach()):
        row = await settled(store, request)
    assert (row.state, row.error) == (WebhookState.UNDELIVERED, "this address is not allowed")


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/", "http://exa mple.test/", "http://a..b/"])
async def test_a_url_that_nobody_can_call_does_no_harm(store: RequestStore, receiver: Receiver, url: str) -> None:
    wrong, right = await ended(store, url), await ended(store, receiver.url)
    async with sending(store):
        assert (await failed(store, wrong)).status_code is None
        assert (await settled(store, right)).state == WebhookState.DELIVERED


# ---------------------------------------------------------------- several senders, and their deaths


async def test_two_senders_at_once_deliver_each_webhook_once(store: RequestStore, receiver: Receiver) -> None:
    requests = [await ended(store, receiver.url) for _ in range(12)]
    async with sending(store), sending(store):
        rows = [await settled(store, request) for request in requests]
        await asyncio.sleep(0.1)
    assert {row.state for row in rows} == {WebhookState.DELIVERED}
    assert sorted(post.request_id for post in receiver.posts) == sorted(request.id for request in requests)


async def test_a_receiver_gets_a_few_at_a_time_and_the_others_do_not_wait_for_it(
    store: RequestStore, receiver: Receiver
) -> None:
    receiver.answers += [receiver.held] * 10
    requests = [await ended(store, receiver.url) for _ in range(10)]
    with run_receiver() as elsewhere:
        other = await ended(store, elsewhere.url.replace("127.0.0.1", "localhost"))
        async with sending(store):
            assert (await settled(store, other)).state == WebhookState.DELIVERED
            await posts(receiver, 4)
            await asyncio.sleep(0.2)
            assert receiver.open == 4
            receiver.released.set()
            rows = [await settled(store, request) for request in requests]
    assert {row.state for row in rows} == {WebhookState.DELIVERED}
    assert receiver.most_open == 4


async def test_a_long_backlog_of_one_receiver_hides_no_other(store: RequestStore) -> None:
    outbox = Outbox(store.database)
    for _ in range(5):
        await ended(store, "http://busy.test/")
    other = await ended(store, "http://idle.test/")
    assert [each.host for each in await outbox.claim({"busy.test": 1}, 2, 3, 60)] == ["busy.test"]
    assert [each.request.id for each in await outbox.claim({"busy.test": 2}, 2, 3, 60)] == [other.id]


async def test_a_sender_that_is_killed_on_the_way_loses_nothing(
    store: RequestStore, receiver: Receiver, database_url: str
) -> None:
    receiver.answers.append(receiver.held)
    request = await ended(store, receiver.url)
    command = [sys.executable, "-c", SEND, database_url]
    with subprocess.Popen(command, cwd=ROOT) as process:
        await posts(receiver)
        os.kill(process.pid, signal.SIGKILL)
    async with sending(store):
        row = await settled(store, request)

    assert (row.state, row.attempts) == (WebhookState.DELIVERED, 2)
    assert [post.request_id for post in receiver.posts] == [request.id] * 2


async def test_a_late_verdict_of_an_attempt_that_was_replaced_does_not_count(store: RequestStore) -> None:
    outbox, request = Outbox(store.database), await ended(store, "http://example.com/")
    (first,) = await outbox.claim(**ONE_BY_ONE, lease_seconds=0)
    assert await outbox.claim({"example.com": 4}, 4, 1, 0) == []
    (second,) = await outbox.claim(**ONE_BY_ONE, lease_seconds=60)
    assert (first.number, second.number) == (1, 2)
    assert not await outbox.record(first, Verdict(500, "late"))
    assert await outbox.record(second, Verdict(200))
    assert not await outbox.record(second, Verdict(500, "again"))
    assert (await row_of(store, request)).state == WebhookState.DELIVERED


async def test_a_delivery_is_not_repeated_because_the_store_was_away(
    store: RequestStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, away = Outbox.record, [True, True]

    async def flaky(outbox: Outbox, delivery: Delivery, verdict: Verdict) -> bool:
        if away:
            raise Unavailable(f"away, {away.pop()}")
        return await record(outbox, delivery, verdict)

    monkeypatch.setattr(Outbox, "record", flaky)
    request = await ended(store, receiver.url)
    async with sending(store):
        row = await settled(store, request)
    assert (row.state, row.attempts, len(receiver.posts)) == (WebhookState.DELIVERED, 1, 1)


async def test_a_store_that_is_away_for_a_while_stops_no_sender(
    store: RequestStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, away = Outbox.claim, [True, True]

    async def flaky(outbox: Outbox, *arguments: Any) -> list[Delivery]:
        if away:
            raise Unavailable(f"away, {away.pop()}")
        return await claim(outbox, *arguments)

    monkeypatch.setattr(Outbox, "claim", flaky)
    request = await ended(store, receiver.url)
    async with sending(store) as sender:
        assert (await settled(store, request)).state == WebhookState.DELIVERED
        sender.check_health()


async def test_a_sender_whose_loop_has_died_is_unhealthy(store: RequestStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(outbox: Outbox, *arguments: Any) -> list[Delivery]:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Outbox, "claim", broken)
    async with sending(store) as sender:
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="a fault of ours"):
            sender.check_health()


async def test_stopping_lets_what_is_on_its_way_arrive(store: RequestStore, receiver: Receiver) -> None:
    receiver.answers.append(receiver.held)
    request = await ended(store, receiver.url)
    async with sending(store):
        await posts(receiver)
        asyncio.get_running_loop().call_later(0.2, receiver.released.set)
    assert (await row_of(store, request)).state == WebhookState.DELIVERED


# ---------------------------------------------------------------- keys, and deliveries by hand


async def test_a_new_key_signs_at_once_and_the_old_signatures_stay_good(
    store: RequestStore, receiver: Receiver
) -> None:
    async with sending(store):
        await settled(store, await ended(store, receiver.url))
        before = await jwks_of(store)
        await Secrets(store.database).rotate(WEBHOOK_KEYS)
        await settled(store, await ended(store, receiver.url))

    old, new = receiver.posts
    after = await jwks_of(store)
    assert verifies(old, before) and verifies(old, after) and verifies(new, after)
    assert not verifies(new, before)


async def test_what_could_not_be_delivered_is_delivered_by_hand(store: RequestStore, receiver: Receiver) -> None:
    outbox = Outbox(store.database)
    receiver.answers += [status(410)] * 3
    requests = [await ended(store, receiver.url) for _ in range(3)]
    waiting = await store.submit(new_request(webhook=receiver.url))
    async with sending(store):
        for request in requests:
            assert (await settled(store, request)).state == WebhookState.UNDELIVERED
        assert await outbox.redeliver(requests[0].id)
        assert (await until(store, requests[0], lambda row: row.delivered_at is not None)).attempts == 1
        assert not await outbox.redeliver(waiting.id)
        assert not await outbox.redeliver("unknown")
        assert await outbox.redeliver_undelivered() == 2
        for request in requests[1:]:
            await until(store, request, lambda row: row.state == WebhookState.DELIVERED)
    assert len(receiver.posts) == 6
    assert (await row_of(store, waiting)).state == WebhookState.WAITING


async def test_an_attempt_from_before_a_delivery_by_hand_does_not_count(store: RequestStore) -> None:
    outbox, request = Outbox(store.database), await ended(store, "http://example.com/")
    (before,) = await outbox.claim(**ONE_BY_ONE, lease_seconds=60)
    assert await outbox.redeliver(request.id)
    (by_hand,) = await outbox.claim(**ONE_BY_ONE, lease_seconds=60)
    assert (before.number, by_hand.number) == (1, 1)
    assert not await outbox.record(before, Verdict(410, "late"))
    assert await outbox.record(by_hand, Verdict(200))
    assert (await row_of(store, request)).state == WebhookState.DELIVERED


async def test_rows_are_listed_by_state_the_newest_first_without_their_urls(store: RequestStore) -> None:
    old, new = [await ended(store, f"http://example.com/?token={secret}") for secret in ("s1", "s2")]
    waiting = await store.submit(new_request(webhook="http://example.org/"))
    outbox = Outbox(store.database)
    assert [row.request_id for row in await outbox.rows(None, 100)] == [waiting.id, new.id, old.id]
    assert [row.request_id for row in await outbox.rows(WebhookState.DUE, 1)] == [new.id]
    assert [row.request_id for row in await outbox.rows(WebhookState.WAITING, 9)] == [waiting.id]
    assert "s1" not in str(await outbox.rows(None, 100))


async def test_retries_of_a_request_are_no_retries_of_its_webhook(store: RequestStore, receiver: Receiver) -> None:
    request = await store.submit(new_request(webhook=receiver.url))
    for _ in range(MAX_ATTEMPTS):
        assert (await row_of(store, request)).state == WebhookState.WAITING
        await store.lose(await claim_one(store), "a", "gone")
    async with sending(store):
        assert (await settled(store, request)).attempts == 1
    assert receiver.posts[0].json["error"] == "Invalid status code: 503"


async def test_looking_for_what_is_due_uses_the_partial_index(store: RequestStore) -> None:
    query = (
        select(webhooks.c.request_id).where(outbox_module._due, webhooks.c.due_at <= now()).order_by(webhooks.c.due_at)
    )
    async with store.database.read() as connection:
        statement = query.compile(connection.engine, compile_kwargs={"render_postcompile": True})
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        plan = (await connection.execute(text(f"{explain} {statement}"))).all()
    assert "webhooks_due" in str(plan)
