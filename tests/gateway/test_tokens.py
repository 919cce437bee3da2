from __future__ import annotations

import time

import jwt
import pytest

from deployments.errors import Unauthenticated
from deployments.gateway.tokens import PURPOSE, Tokens, alias_of
from deployments.queue.secrets import Secrets
from deployments.queue.store import RequestStore
from tests.gateway.conftest import Gateway

APP = "fast-svd-lcm"


@pytest.fixture
def tokens(store: RequestStore) -> Tokens:
    return Tokens(Secrets(store.database))


async def test_a_token_is_believed_by_every_process(store: RequestStore, tokens: Tokens) -> None:
    token, _ = await tokens.cdn("alice")
    assert await Tokens(Secrets(store.database)).verify_cdn(token) == "alice"


async def test_a_token_is_good_only_for_what_it_was_made_for(tokens: Tokens) -> None:
    cdn, _ = await tokens.cdn("alice")
    app = await tokens.app("alice", [APP], 60)
    upload, reading = await tokens.upload("alice", "b/1/a"), await tokens.reading("alice", "b/1/a", 60)

    assert await tokens.verify_app(app, APP) == "alice"
    assert await tokens.verify_upload(upload, "b/1/a") == await tokens.verify_reading(reading, "b/1/a") == "alice"
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
    upload, reading = await tokens.upload("alice", "b/1/a"), await tokens.reading("alice", "b/1/a", 60)
    with pytest.raises(Unauthenticated, match="another file"):
        await tokens.verify_upload(upload, "b/2/a")
    with pytest.raises(Unauthenticated, match="another file"):
        await tokens.verify_reading(reading, "b/1/b")


async def test_a_token_for_an_app_is_for_all_its_endpoints_and_no_other_app(tokens: Tokens) -> None:
    token = await tokens.app("alice", [f"fal-ai/{APP}", "svd"], 60)
    for name in (APP, f"fal-ai/{APP}", f"fal-ai/{APP}/text-to-video", "svd", "fal-ai/svd"):
        assert await tokens.verify_app(token, name) == "alice"
    for name in ("stable-video", "fal-ai/stable-video", "fal-ai", ""):
        with pytest.raises(Unauthenticated, match="another app"):
            await tokens.verify_app(token, name)


@pytest.mark.parametrize("name", ["svd", "fal-ai/svd", "/fal-ai/svd/", "fal-ai/svd/image", "fal-ai/svd/a/b"])
def test_the_alias_is_the_second_part_of_an_id(name: str) -> None:
    assert alias_of(name) == "svd"


async def test_a_token_expires(tokens: Tokens) -> None:
    token = await tokens.app("alice", [APP], -1)
    with pytest.raises(Unauthenticated, match="expired"):
        await tokens.verify_app(token, APP)


async def test_what_an_older_secret_signed_is_believed(store: RequestStore, tokens: Tokens) -> None:
    old = await tokens.upload("alice", "b/1/a")
    await Secrets(store.database).rotate(PURPOSE)
    later = Tokens(Secrets(store.database))
    new = await later.upload("alice", "b/1/a")

    assert jwt.get_unverified_header(old)["kid"] != jwt.get_unverified_header(new)["kid"]
    assert await later.verify_upload(old, "b/1/a") == "alice"


async def test_a_secret_that_another_process_has_just_made_is_known_at_once(
    store: RequestStore, tokens: Tokens
) -> None:
    await tokens.cdn("alice")  # it now holds the secrets in memory
    await Secrets(store.database).rotate(PURPOSE)
    token, _ = await Tokens(Secrets(store.database)).cdn("bob")

    assert await tokens.verify_cdn(token) == "bob"


async def test_what_somebody_else_signed_is_not_believed(store: RequestStore, tokens: Tokens) -> None:
    token, _ = await tokens.cdn("alice")
    (secret,) = await Secrets(store.database).of(PURPOSE)
    claims = {"aud": "cdn", "sub": "mallory", "exp": time.time() + 60}
    forged = [
        jwt.encode(claims, b"x" * 32, headers={"kid": secret.id}),
        jwt.encode(claims, b"x" * 32, headers={"kid": "tokens-9"}),
        jwt.encode(claims, secret.value),
        jwt.encode(claims, None, "none", headers={"kid": secret.id}),
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
    assert await tokens.verify_cdn(token) == "alice"


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
    assert await tokens.verify_app(reply.json()["token"], APP) == "id"
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
