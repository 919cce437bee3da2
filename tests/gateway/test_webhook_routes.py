from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from deployments.queue.outbox import WEBHOOK_KEYS, Outbox, WebhookState
from deployments.queue.secrets import Secrets
from deployments.queue.store import RequestStore
from deployments.queue.webhooks import Sender
from deployments.storage import FileStorage
from deployments.web import Place, Reach
from tests.gateway.conftest import INPUT, OUTPUT, SVD, Gateway, open_gateway, served_endpoints
from tests.receiver import Post, Receiver, run_receiver, verifies

JWKS = "/.well-known/jwks.json"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as receiver:
        yield receiver


@pytest.fixture
async def sender(gateway: Gateway) -> AsyncIterator[Sender]:
    """A sender beside the gateway, as the dispatcher's process has one."""
    sender = Sender(gateway.store.database, Reach(allow_private=True), poll_seconds=0.01)
    sender.start()
    yield sender
    await sender.stop()


async def post_of(receiver: Receiver) -> Post:
    (post,) = await asyncio.to_thread(receiver.wait)
    return post


async def jwks(gateway: Gateway) -> dict[str, Any]:
    reply = await gateway.client.get(JWKS, headers={"authorization": ""})
    assert reply.status_code == 200
    return dict(reply.json())


# ---------------------------------------------------------------- the keys


async def test_keys_are_listed_with_and_without_padding(gateway: Gateway) -> None:
    padded, plain = (await jwks(gateway))["keys"]

    assert padded == plain | {"x": plain["x"] + "="}
    assert len(base64.urlsafe_b64decode(padded["x"])) == 32
    assert {name: plain[name] for name in ("kty", "crv", "alg", "use", "kid")} == {
        "kty": "OKP",
        "crv": "Ed25519",
        "alg": "EdDSA",
        "use": "sig",
        "kid": "webhooks-0",
    }


async def test_only_public_keys_are_shown(gateway: Gateway) -> None:
    text = json.dumps(await jwks(gateway))

    (secret,) = await Secrets(gateway.store.database).of(WEBHOOK_KEYS)
    assert '"d"' not in text
    assert base64.urlsafe_b64encode(secret.value).decode().rstrip("=") not in text


async def test_the_newest_key_comes_first_and_the_old_ones_stay(gateway: Gateway) -> None:
    before = (await jwks(gateway))["keys"]
    await Secrets(gateway.store.database).rotate(WEBHOOK_KEYS)

    after = (await jwks(gateway))["keys"]
    assert [key["kid"] for key in after] == ["webhooks-1", "webhooks-1", "webhooks-0", "webhooks-0"]
    assert after[2:] == before


async def test_keys_may_be_kept_for_a_while(gateway: Gateway) -> None:
    reply = await gateway.client.get(JWKS)

    assert reply.headers["cache-control"] == "public, max-age=300"
    assert reply.headers["content-type"] == "application/json"


async def test_receivers_that_ask_fals_own_host_are_answered(gateway: Gateway) -> None:
    by_host = await gateway.client.get(JWKS, headers={"host": "rest.fal.ai", "authorization": ""})

    assert by_host.json() == await jwks(gateway)


# ---------------------------------------------------------------- asking for a webhook


async def test_a_result_is_told_to_the_webhook_of_its_submit(
    gateway: Gateway, sender: Sender, receiver: Receiver
) -> None:
    url = receiver.url + "?token=a%2Fb&x=y"
    reply = await gateway.client.post(f"/queue/{SVD}", params={"fal_webhook": url}, json=INPUT)
    assert reply.json()["gateway_request_id"] == reply.json()["request_id"]
    await gateway.finish(await gateway.claim())

    post = await post_of(receiver)
    assert post.path == "/hook?token=a%2Fb&x=y"
    assert (post.json["request_id"], post.json["status"]) == (reply.json()["request_id"], "OK")
    assert post.json["payload"] == OUTPUT
    assert post.headers["x-fal-webhook-user-id"] == "id"
    assert verifies(post, await jwks(gateway))
    result = await gateway.client.get(f"/queue/{SVD}/requests/{post.request_id}")
    assert result.json() == OUTPUT


async def test_a_bad_input_is_told_as_an_error(gateway: Gateway, sender: Sender, receiver: Receiver) -> None:
    await gateway.submit(json={"steps": 3}, params={"fal_webhook": receiver.url})

    post = await post_of(receiver)
    assert (post.json["status"], post.json["error"]) == ("ERROR", "Invalid status code: 422")
    assert post.json["payload"]["detail"][0]["loc"] == ["body", "image_url"]
    assert verifies(post, await jwks(gateway))


async def test_a_cancel_is_told_too(gateway: Gateway, sender: Sender, receiver: Receiver) -> None:
    request_id = await gateway.submit(params={"fal_webhook": receiver.url})
    await gateway.client.put(f"/queue/{SVD}/requests/{request_id}/cancel")

    post = await post_of(receiver)
    assert (post.request_id, post.json["error"]) == (request_id, "Invalid status code: 499")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/hook",
        "/hook",
        "ftp://example.com/",
        "file:///etc/passwd",
        "data:,x",
        "http://",
        "http:///hook",
        "http://[::1/",
        "http://256.256.256.256/",
        "http://xn--/",
        "http://example.com/\x01",
        "http://user:password@example.com/",
        "http://example.com/" + "a" * 8192,
        "http://example.com/a b",
        "http://a\\@example.com/",
        "http://example.com:0/",
    ],
)
async def test_what_is_no_url_to_post_to_is_refused_before_anything_is_accepted(gateway: Gateway, url: str) -> None:
    reply = await gateway.client.post(f"/queue/{SVD}", params={"fal_webhook": url}, json=INPUT)

    (detail,) = reply.json()["detail"]
    assert (reply.status_code, detail["loc"], detail["type"]) == (422, ["query", "fal_webhook"], "value_error")
    assert "input" not in detail and "user:password" not in reply.text
    assert await gateway.waiting() == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost:8080/",
        "https://hook.localhost./",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[fd00:ec2::254]/",
        "http://[::ffff:10.0.0.1]/",
        "http://2130706433/",
        "http://example.com:22/",
    ],
)
async def test_an_address_that_nobody_may_call_is_refused_at_submit(
    store: RequestStore, storage: FileStorage, url: str
) -> None:
    async with open_gateway(store, storage, served_endpoints(), webhook_reach=Reach()) as gateway:
        reply = await gateway.client.post(f"/queue/{SVD}", params={"fal_webhook": url}, json=INPUT)
        assert reply.status_code == 422
        assert reply.json()["detail"][0]["loc"] == ["query", "fal_webhook"]
        assert await gateway.waiting() == 0


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://localhost:9000/", "https://example.com/"])
async def test_an_address_that_the_operator_allows_is_taken(
    store: RequestStore, storage: FileStorage, url: str
) -> None:
    reach = Reach(allow=tuple(Place.parse(place) for place in ("10.0.0.0/24", "localhost:9000")))
    async with open_gateway(store, storage, served_endpoints(), webhook_reach=reach) as gateway:
        await gateway.submit(params={"fal_webhook": url})


async def test_a_synchronous_run_takes_no_notice_of_a_webhook(gateway: Gateway) -> None:
    run = asyncio.create_task(gateway.client.post(f"/{SVD}", params={"fal_webhook": "no URL"}, json=INPUT))
    await gateway.finish(await gateway.claim())

    assert (await run).json() == OUTPUT
    assert await Outbox(gateway.store.database).rows(None, 9) == []


async def test_a_webhook_waits_for_its_request(gateway: Gateway) -> None:
    request_id = await gateway.submit(params={"fal_webhook": "https://example.com/hook"})

    (row,) = await Outbox(gateway.store.database).rows(None, 9)
    assert (row.request_id, row.host, row.state) == (request_id, "example.com", WebhookState.WAITING)
