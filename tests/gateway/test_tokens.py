from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import jwt
import pytest
from sqlalchemy import update

from deployments.errors import Unauthenticated
from deployments.gateway.auth import Authenticator
from deployments.gateway.recent import UNKNOWN_SECONDS
from deployments.gateway.tokens import PURPOSE, Tokens, alias_of
from deployments.queue.keys import Keys
from deployments.queue.secrets import Secrets
from deployments.queue.store import RequestStore
from deployments.queue.tables import keys as table
from tests.gateway.conftest import INPUT, KEY, SVD, Clock, Gateway

APP = "fast-svd-lcm"


def tokens_of(store: RequestStore, secrets: Secrets | None = None) -> Tokens:
    """The tokens of one process."""
    return Tokens(secrets or Secrets(store.database), Authenticator(KEY, Keys(store.database)).is_valid)


@pytest.fixture
def tokens(store: RequestStore) -> Tokens:
    return tokens_of(store)


class CountedSecrets(Secrets):
    """The secrets of a real database, with a count of how often they are read."""

    queries = 0

    async def of(self, purpose):  # type: ignore[no-untyped-def]
        self.queries += 1
        return await super().of(purpose)


async def test_a_token_is_believed_by_every_process(store: RequestStore, tokens: Tokens) -> None:
    token, _ = await tokens.cdn("id")
    assert await tokens_of(store).verify_cdn(token) == "id"


async def test_a_token_is_good_only_for_what_it_was_made_for(tokens: Tokens) -> None:
    cdn, _ = await tokens.cdn("id")
    app = await tokens.app("id", [APP], 60)
    upload, reading = await tokens.upload("id", "b/1/a"), await tokens.reading("id", "b/1/a", 60)

    assert await tokens.verify_app(app, APP) == "id"
    assert await tokens.verify_upload(upload, "b/1/a") == await tokens.verify_reading(reading, "b/1/a") == "id"
    for token in (app, upload, reading):
        with pytest.raises(Unauthenticated):
            await tokens.verify_cdn(token)
    for token in (cdn, upload, reading):
        with pytest.raises(Unauthenticated):
            await tokens.verify_app(token, APP)
    for token in (cdn, app, reading):
        with pytest.raises(Unauthenticated):
            await tokens.verify_upload(token, "b/1/a")
    for token in (cdn, app, upload):
        with pytest.raises(Unauthenticated):
            await tokens.verify_reading(token, "b/1/a")


async def test_a_token_for_a_file_is_for_no_other(tokens: Tokens) -> None:
    upload, reading = await tokens.upload("id", "b/1/a"), await tokens.reading("id", "b/1/a", 60)
    with pytest.raises(Unauthenticated, match="another file"):
        await tokens.verify_upload(upload, "b/2/a")
    with pytest.raises(Unauthenticated, match="another file"):
        await tokens.verify_reading(reading, "b/1/b")


async def test_a_token_for_an_app_is_for_all_its_endpoints_and_no_other_app(tokens: Tokens) -> None:
    token = await tokens.app("id", [f"fal-ai/{APP}", "svd"], 60)
    for name in (f"fal-ai/{APP}", f"fal-ai/{APP}/text-to-video", "fal-ai/svd", "fal-ai/svd/image"):
        assert await tokens.verify_app(token, name) == "id"
    for name in ("stable-video", "fal-ai/stable-video", "fal-ai", ""):
        with pytest.raises(Unauthenticated, match="another app"):
            await tokens.verify_app(token, name)


async def test_a_token_that_names_an_owner_is_for_no_other_owners_app(tokens: Tokens) -> None:
    of_one, of_all = await tokens.app("id", ["fal-ai/svd/image"], 60), await tokens.app("id", ["svd"], 60)
    assert await tokens.verify_app(of_one, "fal-ai/svd") == await tokens.verify_app(of_all, "other-owner/svd") == "id"
    with pytest.raises(Unauthenticated, match="another app"):
        await tokens.verify_app(of_one, "other-owner/svd")


@pytest.mark.parametrize("name", ["svd", "fal-ai/svd", "/fal-ai/svd/", "fal-ai/svd/image", "fal-ai/svd/a/b"])
def test_the_alias_is_the_second_part_of_an_id(name: str) -> None:
    assert alias_of(name) == "svd"


async def test_a_token_expires(tokens: Tokens) -> None:
    token = await tokens.app("id", [APP], -1)
    with pytest.raises(Unauthenticated, match="expired"):
        await tokens.verify_app(token, APP)


async def test_what_an_older_secret_signed_is_believed(store: RequestStore, tokens: Tokens) -> None:
    old = await tokens.upload("id", "b/1/a")
    await Secrets(store.database).rotate(PURPOSE)
    later = tokens_of(store)
    new = await later.upload("id", "b/1/a")

    assert jwt.get_unverified_header(old)["kid"] != jwt.get_unverified_header(new)["kid"]
    assert await later.verify_upload(old, "b/1/a") == "id"


async def test_a_secret_that_another_process_has_just_made_is_known_within_a_second(
    store: RequestStore, tokens: Tokens, clock: Clock
) -> None:
    await tokens.cdn("id")  # it now holds the secrets in memory
    await Secrets(store.database).rotate(PURPOSE)
    token, _ = await tokens_of(store).cdn("id")

    clock.now += UNKNOWN_SECONDS
    assert UNKNOWN_SECONDS <= 1
    assert await tokens.verify_cdn(token) == "id"


async def test_tokens_that_name_secrets_at_random_cost_a_query_a_second(store: RequestStore, clock: Clock) -> None:
    secrets = CountedSecrets(store.database)
    tokens = tokens_of(store, secrets)
    forged = [jwt.encode({}, b"x" * 32, headers={"kid": f"tokens-{number}"}) for number in range(1, 51)]

    for queries in (1, 2):
        answers = await asyncio.gather(*(tokens.verify_cdn(token) for token in forged), return_exceptions=True)
        assert {type(answer) for answer in answers} == {Unauthenticated}
        assert secrets.queries == queries
        clock.now += UNKNOWN_SECONDS


@pytest.mark.parametrize("column", ["revoked_at", "expires_at"])
async def test_no_token_outlives_its_key_by_more_than_five_seconds(
    store: RequestStore, clock: Clock, column: str
) -> None:
    tokens, keys = tokens_of(store), Keys(store.database)
    key, _ = await keys.create("program")
    app, (cdn, _) = await tokens.app(key.id, [APP], 60), await tokens.cdn(key.id)
    upload, reading = await tokens.upload(key.id, "b/1/a"), await tokens.reading(key.id, "b/1/a", 60)

    async def verified() -> Sequence[object]:
        verifying = (
            tokens.verify_app(app, f"fal-ai/{APP}"),
            tokens.verify_cdn(cdn),
            tokens.verify_upload(upload, "b/1/a"),
            tokens.verify_reading(reading, "b/1/a"),
        )
        return await asyncio.gather(*verifying, return_exceptions=True)

    assert list(await verified()) == [key.id] * 4
    async with store.database.transaction() as connection:  # another process revokes it, or its time comes
        await connection.execute(update(table).where(table.c.id == key.id).values({column: 1.0}))
    clock.now += 5.0
    assert [(type(answer), "revoked or has expired" in str(answer)) for answer in await verified()] == [
        (Unauthenticated, True)
    ] * 4


async def test_what_somebody_else_signed_is_not_believed(store: RequestStore, tokens: Tokens) -> None:
    token, _ = await tokens.cdn("id")
    (secret,) = await Secrets(store.database).of(PURPOSE)
    claims = {"aud": "cdn", "sub": "mallory", "exp": time.time() + 60}
    forged = [
        jwt.encode(claims, b"x" * 32, headers={"kid": secret.id}),
        jwt.encode(claims, b"x" * 32, headers={"kid": "tokens-9"}),
        jwt.encode(claims, secret.value),
        jwt.encode(claims, "", "none", headers={"kid": secret.id}),
        jwt.encode({**claims, "exp": time.time() - 1}, secret.value, headers={"kid": secret.id}),
        jwt.encode({"aud": "cdn", "sub": "mallory"}, secret.value, headers={"kid": secret.id}),
        jwt.encode({"aud": "cdn", "exp": time.time() + 60}, secret.value, headers={"kid": secret.id}),
        jwt.encode({"sub": "mallory", "exp": time.time() + 60}, secret.value, headers={"kid": secret.id}),
        token[:-2],
        token.partition(".")[0],
        "",
        "x.y.z",
        "é" * 1000,
    ]
    for other in forged:
        with pytest.raises(Unauthenticated):
            await tokens.verify_cdn(other)
    assert await tokens.verify_cdn(token) == "id"


@pytest.mark.parametrize("path", ["/tokens/", "/tokens"])
async def test_a_key_gets_a_token_for_apps_as_a_json_string(gateway: Gateway, tokens: Tokens, path: str) -> None:
    reply = await gateway.client.post(path, json={"allowed_apps": [APP], "token_expiration": 120})

    assert reply.status_code == 201
    assert reply.headers["content-type"] == "application/json"
    assert await tokens.verify_app(reply.json(), APP) == "id"
    claims = jwt.decode(reply.json(), options={"verify_signature": False})
    assert claims["exp"] == pytest.approx(time.time() + 120, abs=5)


async def test_token_providers_get_it_in_an_object(gateway: Gateway, tokens: Tokens) -> None:
    reply = await gateway.client.post("/tokens/realtime", json={"allowed_apps": [f"fal-ai/{APP}"], "duration": 30})

    assert reply.status_code == 200
    assert await tokens.verify_app(reply.json()["token"], f"fal-ai/{APP}") == "id"
    claims = jwt.decode(reply.json()["token"], options={"verify_signature": False})
    assert claims["exp"] == pytest.approx(time.time() + 30, abs=5)


async def test_tokens_want_a_key(gateway: Gateway, tokens: Tokens) -> None:
    app = await tokens.app("id", [APP], 60)
    for header in ("", "Key wrong:key", f"Bearer {app}"):
        for path in ("/tokens/", "/tokens/realtime", "/storage/auth/token"):
            reply = await gateway.client.post(path, json={"allowed_apps": [APP]}, headers={"authorization": header})
            assert reply.status_code == 401


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({}, "allowed_apps"),
        ({"allowed_apps": []}, "allowed_apps"),
        ({"allowed_apps": "svd"}, "allowed_apps"),
        ({"allowed_apps": [APP] * 101}, "allowed_apps"),
        ({"allowed_apps": [APP], "token_expiration": 0}, "token_expiration"),
        ({"allowed_apps": [APP], "token_expiration": 10**6}, "token_expiration"),
        ({"allowed_apps": [APP], "duration": -1}, "duration"),
    ],
)
async def test_a_bad_wish_for_a_token_is_told(gateway: Gateway, body: object, where: str) -> None:
    reply = await gateway.client.post("/tokens/", json=body)

    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", where]


async def test_once_a_key_is_revoked_here_its_tokens_stream_write_and_read_nothing(gateway: Gateway) -> None:
    made = (await gateway.client.post("/v1/keys", json={"alias": "program"})).json()
    mine, nobody = {"authorization": f"Key {made['key']}"}, {"authorization": ""}

    async def post(path: str, **options: Any) -> Any:
        reply = await gateway.client.post(path, headers=mine, **options)
        assert reply.is_success, reply.text
        return reply.json()

    app = await post("/tokens/", json={"allowed_apps": ["svd"]})
    cdn = (await post("/storage/auth/token?storage_type=fal-cdn-v3", json={}))["token"]
    upload = await post("/storage/upload/initiate", json={"file_name": "a.txt", "content_type": "text/plain"})
    hidden = {"X-Fal-Object-Lifecycle": '{"initial_acl": {"default": "forbid"}}'}
    file = (await gateway.client.post("/files/upload", content=b"x", headers=mine | hidden)).json()["access_url"]
    signed = (await post("/v1/storage/files/sign", params={"url": file}, json={"expiration_seconds": 60}))["signed_url"]
    assert (await gateway.client.get(signed, headers=nobody)).content == b"x"

    await gateway.client.delete(f"/v1/keys/{made['key_id']}")
    by_cdn = {"authorization": f"Bearer {cdn}"}
    replies = [
        await gateway.client.post(f"/{SVD}/stream", params={"fal_jwt_token": app}, json=INPUT, headers=nobody),
        await gateway.client.post("/files/upload", content=b"x", headers=by_cdn),
        await gateway.client.put(upload["upload_url"], content=b"x", headers=nobody),
        await gateway.client.get(signed, headers=nobody),
    ]
    told = "The key of this token has been revoked or has expired"
    assert [(reply.status_code, reply.json()["detail"]) for reply in replies] == [(401, told)] * 4
