from __future__ import annotations

import asyncio
from collections import Counter
from uuid import uuid4

import pytest

from deployments.errors import Unauthenticated
from deployments.gateway.auth import Authenticator, Caller
from deployments.gateway.recent import UNKNOWN_SECONDS, VALID_SECONDS
from deployments.queue.keys import Keys, Scope
from deployments.queue.store import RequestStore
from tests.gateway.conftest import INPUT, KEY, SVD, Clock, Gateway

FORMAT = "Invalid Authorization header format. Expected 'Key <key_id>:<key_secret>'."
NOBODY = "No user found for Key ID and Secret"

ROUTES = [
    ("POST", f"/queue/{SVD}"),
    ("POST", "/queue/fal-ai/unknown"),
    ("GET", f"/queue/{SVD}/requests/1"),
    ("GET", f"/queue/{SVD}/requests/1/response"),
    ("GET", f"/queue/{SVD}/requests/1/status"),
    ("GET", f"/queue/{SVD}/requests/1/status/stream"),
    ("PUT", f"/queue/{SVD}/requests/1/cancel"),
    ("POST", f"/{SVD}"),
    ("GET", f"/{SVD}"),
    ("POST", "/fal-ai/unknown"),
]


async def submit(gateway: Gateway, *authorization: str | bytes) -> tuple[int, str]:
    """The status and detail of a submit with these Authorization headers alone."""
    request = gateway.client.build_request("POST", f"/queue/{SVD}", json=INPUT)
    others = [(name, value) for name, value in request.headers.raw if name.lower() != b"authorization"]
    given = [(b"Authorization", value.encode() if isinstance(value, str) else value) for value in authorization]
    request.headers = type(request.headers)([*others, *given])
    reply = await gateway.client.send(request)
    if reply.status_code == 401:
        assert reply.headers["www-authenticate"] == "Key"
        assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "unauthorized"
    return reply.status_code, reply.json().get("detail", "")


@pytest.mark.parametrize("header", ["Key id:secret", "key id:secret", "KEY id:secret", "Bearer id:secret"])
async def test_the_key_is_taken_under_either_scheme(gateway: Gateway, header: str) -> None:
    assert await submit(gateway, header) == (200, "")


async def test_a_caller_without_a_key_is_told_so(gateway: Gateway) -> None:
    assert await submit(gateway) == (401, "Authorization header is required")


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Key",
        "Key ",
        "Key a",
        "Key id:",
        "Key :secret",
        "Key :",
        "id:secret",
        "Basic id:secret",
        "Keyid:secret",
    ],
)
async def test_a_header_of_another_form_is_told_the_form(gateway: Gateway, header: str) -> None:
    assert await submit(gateway, header) == (401, FORMAT)


@pytest.mark.parametrize(
    "header",
    [
        "Key id:wrong",
        "Key other:secret",
        "Key id:secre",
        "Key id:secrets",
        "Key ID:secret",
        "Key id:secret:",
        "Key  id:secret",
        "Key id:%",
        "Key %:%",
        "Key id:' OR '1'='1",
        "Key id:*",
        "Key id:sécret",
        "Key íd:secret",
        b"Key id:\xff\xfe",
        b"Key id:secret\x00",
        b"Key id:\x00secret",
        pytest.param("Key id:" + "s" * 100_000, id="100 KB"),
    ],
)
async def test_another_key_is_nobodys(gateway: Gateway, header: str | bytes) -> None:
    assert await submit(gateway, header) == (401, NOBODY)


@pytest.mark.parametrize(
    "headers",
    [("Key id:secret", "Key id:wrong"), ("Key id:wrong", "Key id:secret"), ("Key id:secret", "Key id:secret")],
)
async def test_two_authorization_headers_are_refused(gateway: Gateway, headers: tuple[str, str]) -> None:
    assert (await submit(gateway, *headers))[0] == 401


@pytest.mark.parametrize("name", ["key", "api_key", "authorization", "fal_key", "fal_jwt_token"])
async def test_a_key_in_the_query_is_no_key(gateway: Gateway, name: str) -> None:
    reply = await gateway.client.post(
        f"/queue/{SVD}", params={name: "id:secret"}, json=INPUT, headers={"authorization": ""}
    )

    assert reply.status_code == 401


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_of_a_request_wants_the_key_before_it_says_anything(
    gateway: Gateway, method: str, path: str
) -> None:
    reply = await gateway.client.request(method, path, json=INPUT, headers={"authorization": "Key id:wrong"})

    assert (reply.status_code, reply.json()["detail"]) == (401, NOBODY)


async def test_a_refused_caller_leaves_nothing_in_the_queue(gateway: Gateway) -> None:
    await submit(gateway, "Key id:wrong")

    assert await gateway.waiting() == 0


async def test_a_wrong_key_is_never_logged(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    await submit(gateway, "Key id:swordfish")

    assert "swordfish" not in caplog.text


class CountedKeys(Keys):
    """The keys of a real database, with a count of the queries."""

    queries = 0

    async def valid(self):  # type: ignore[no-untyped-def]
        self.queries += 1
        return await super().valid()


async def accepts(authenticator: Authenticator, credentials: str) -> bool:
    try:
        await authenticator.caller(credentials)
    except Unauthenticated:
        return False
    return True


@pytest.mark.parametrize("scheme", ["Key", "Bearer"])
async def test_a_key_of_the_database_is_taken_under_either_scheme(gateway: Gateway, scheme: str) -> None:
    key, secret = await Keys(gateway.store.database).create("program")

    assert await submit(gateway, f"{scheme} {key.id}:{secret}") == (200, "")
    for wrong in (f"{key.id}:{secret[:-1]}", f"{key.id}:wrong", f"{uuid4()}:{secret}", f"id:{secret}"):
        assert await submit(gateway, f"{scheme} {wrong}") == (401, NOBODY)


async def test_the_configured_key_is_an_administrators_and_others_are_what_they_were_made(store: RequestStore) -> None:
    keys = Keys(store.database)
    authenticator = Authenticator(KEY, keys)
    program, admin = await keys.create("program"), await keys.create("admin", Scope.ADMIN)

    assert await authenticator.caller(KEY) == Caller("id", Scope.ADMIN)
    for (key, secret), scope, sees in ((program, Scope.API, program[0].id), (admin, Scope.ADMIN, None)):
        caller = await authenticator.caller(f"{key.id}:{secret}")
        assert (caller.key_id, caller.scope, caller.sees) == (key.id, scope, sees)


async def test_a_revoked_key_is_refused_within_five_seconds(store: RequestStore, clock: Clock) -> None:
    keys = Keys(store.database)
    authenticator = Authenticator(KEY, keys)
    key, secret = await keys.create("program")
    assert await accepts(authenticator, f"{key.id}:{secret}")

    await keys.revoke(key.id)  # by another process
    clock.now += VALID_SECONDS
    assert VALID_SECONDS <= 5
    assert not await accepts(authenticator, f"{key.id}:{secret}")


async def test_a_key_is_valid_until_it_is_revoked_and_the_configured_one_always(
    store: RequestStore, clock: Clock
) -> None:
    keys = Keys(store.database)
    authenticator = Authenticator(KEY, keys)
    key, _ = await keys.create("program")
    assert [await authenticator.is_valid(id) for id in ("id", key.id, "nobody", "")] == [True, True, False, False]

    await keys.revoke(key.id)  # by another process
    clock.now += VALID_SECONDS
    assert [await authenticator.is_valid(id) for id in ("id", key.id)] == [True, False]


async def test_a_new_key_is_taken_within_a_second(store: RequestStore, clock: Clock) -> None:
    keys = Keys(store.database)
    authenticator = Authenticator(KEY, keys)
    assert not await accepts(authenticator, "somebody:else")

    key, secret = await keys.create("program")  # by another process
    clock.now += UNKNOWN_SECONDS
    assert await accepts(authenticator, f"{key.id}:{secret}")


async def test_what_this_process_changes_takes_effect_at_once(store: RequestStore, clock: Clock) -> None:
    keys = Keys(store.database)
    authenticator = Authenticator(KEY, keys)
    assert not await accepts(authenticator, "somebody:else")
    key, secret = await keys.create("program")
    authenticator.forget()
    clock.now += 0.001
    assert await accepts(authenticator, f"{key.id}:{secret}")

    await keys.revoke(key.id)
    authenticator.forget()
    clock.now += 0.001
    assert not await accepts(authenticator, f"{key.id}:{secret}")


async def test_a_read_that_began_before_a_change_does_not_hide_it(store: RequestStore, clock: Clock) -> None:
    class SlowKeys(Keys):
        async def valid(self):  # type: ignore[no-untyped-def]
            found = await super().valid()
            started.set()
            await go_on.wait()
            return found

    started, go_on = asyncio.Event(), asyncio.Event()
    keys = SlowKeys(store.database)
    authenticator = Authenticator(KEY, keys)
    key, secret = await keys.create("program")
    reading = asyncio.create_task(accepts(authenticator, f"{key.id}:{secret}"))
    await started.wait()

    await keys.revoke(key.id)
    authenticator.forget()
    go_on.set()
    await reading
    assert not await accepts(authenticator, f"{key.id}:{secret}")


async def test_a_thousand_unknown_keys_and_as_many_polls_cost_one_query(store: RequestStore, clock: Clock) -> None:
    keys = CountedKeys(store.database)
    key, secret = await keys.create("program")
    authenticator = Authenticator(KEY, keys)
    tries = [f"{uuid4()}:{secret}" for _ in range(500)] + [f"{key.id}:{uuid4()}"] * 500 + [f"{key.id}:{secret}"] * 1000

    answers = Counter(await asyncio.gather(*(accepts(authenticator, credentials) for credentials in tries)))
    assert answers == {True: 1000, False: 1000}
    assert keys.queries == 1

    clock.now += UNKNOWN_SECONDS
    await asyncio.gather(*(accepts(authenticator, credentials) for credentials in tries))
    assert keys.queries == 2


async def test_the_configured_key_costs_no_query(store: RequestStore) -> None:
    keys = CountedKeys(store.database)
    authenticator = Authenticator(KEY, keys)

    assert [await accepts(authenticator, KEY) for _ in range(10)] == [True] * 10
    assert keys.queries == 0


async def test_a_caller_sees_the_requests_of_its_own_key_alone(gateway: Gateway) -> None:
    key, secret = await Keys(gateway.store.database).create("program")
    request_id = await gateway.submit()

    reply = await gateway.client.get(
        f"/queue/{SVD}/requests/{request_id}/status", headers={"authorization": f"Key {key.id}:{secret}"}
    )
    assert reply.status_code == 404
