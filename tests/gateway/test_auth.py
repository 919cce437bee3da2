from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from contextlib import aclosing
from dataclasses import replace
from uuid import uuid4

import pytest
from sqlalchemy import update

from deployments.errors import Unauthenticated, Unavailable
from deployments.gateway.auth import Authenticator, Caller
from deployments.gateway.recent import UNKNOWN_SECONDS, VALID_SECONDS
from deployments.queue.database import Database
from deployments.queue.keys import Keys, Limits, Scope
from deployments.queue.store import RequestStore
from deployments.queue.tables import keys as table
from deployments.storage import FileStorage
from tests.gateway.conftest import INPUT, KEY, PATIENCE, SVD, Clock, Gateway, open_gateway, served_endpoints, sse

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


@pytest.mark.parametrize(
    "headers",
    [
        ("Key id:swordfish",),
        ("Key swordfish",),
        ("Key :swordfish",),
        ("swordfish",),
        ("Key id:swordfish", "Key id:swordfish"),
        (b"Key id:\xffswordfish\x00",),
        ("Key id:' OR swordfish",),
        ("Key " + "swordfish" * 10_000,),
    ],
)
async def test_nothing_of_a_wrong_key_is_logged_or_said_again(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, headers: tuple[str | bytes, ...]
) -> None:
    caplog.set_level(0)
    status, detail = await submit(gateway, *headers)

    assert status == 401
    assert "swordfish" not in detail + caplog.text


@pytest.mark.parametrize("path", ["/v1/keys/swordfish", "/v1/keys/swordfish/rotate", "/v1/keys/id:swordfish"])
async def test_a_key_in_a_path_is_not_said_again(gateway: Gateway, caplog: pytest.LogCaptureFixture, path: str) -> None:
    caplog.set_level(0)
    reply = await gateway.client.request("POST" if "rotate" in path else "PATCH", path, json={})

    assert reply.status_code == 404
    assert "swordfish" not in reply.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith(("deployments", "svd_serve"))]
    assert "swordfish" not in "".join(ours)


class CountedKeys(Keys):
    """The keys of a real database, with a count of the queries, and what was noted of their use."""

    queries = 0

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.noted: list[set[str]] = []

    async def valid(self):  # type: ignore[no-untyped-def]
        self.queries += 1
        return await super().valid()

    async def note_use(self, key_ids):  # type: ignore[no-untyped-def]
        self.noted.append(set(key_ids))
        await super().note_use(key_ids)


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


# ---------------------------------------------------------------- another process


async def test_a_key_that_another_gateway_revokes_is_refused_within_five_seconds(
    store: RequestStore, storage: FileStorage, database_url: str, clock: Clock
) -> None:
    other_store = await RequestStore.open(database_url)
    async with (
        open_gateway(store, storage, served_endpoints()) as here,
        open_gateway(other_store, storage, served_endpoints()) as there,
    ):
        made = (await there.client.post("/v1/keys", json={"alias": "a"})).json()
        request_id = await here.submit(headers={"authorization": f"Key {made['key']}"})
        path, mine = f"/queue/{SVD}/requests/{request_id}/status", {"authorization": f"Bearer {made['key']}"}
        assert (await here.client.get(path, headers=mine)).status_code == 200

        await there.client.delete(f"/v1/keys/{made['key_id']}")
        clock.now += 5.0
        assert (await here.client.get(path, headers=mine)).status_code == 401
        assert (await submit(here, f"Key {made['key']}")) == (401, NOBODY)


async def test_a_stream_of_a_status_ends_with_its_key(gateway: Gateway, clock: Clock) -> None:
    keys = Keys(gateway.store.database)
    key, secret = await keys.create("program")
    mine = {"authorization": f"Key {key.id}:{secret}"}
    request_id = await gateway.submit(headers=mine)
    token = (await gateway.client.post("/tokens/", json={"allowed_apps": [SVD]}, headers=mine)).json()
    events = sse(gateway.app, f"/queue/{SVD}/requests/{request_id}/status/stream", f"fal_jwt_token={token}")
    async with aclosing(events):
        assert (await anext(events))["status"] == "IN_QUEUE"
        await keys.revoke(key.id)  # by another process
        clock.now += 5.0
        assert [event async for event in events] == []
    assert await gateway.waiting() == 1


async def test_a_stream_of_a_status_ends_with_the_secret_that_was_sent(gateway: Gateway, clock: Clock) -> None:
    keys = Keys(gateway.store.database)
    key, secret = await keys.create("program")
    request_id = await gateway.submit(headers={"authorization": f"Key {key.id}:{secret}"})
    path = f"/queue/{SVD}/requests/{request_id}/status/stream"
    async with aclosing(sse(gateway.app, path, key=f"{key.id}:{secret}")) as events:
        assert (await anext(events))["status"] == "IN_QUEUE"
        await keys.rotate(key.id, keep_seconds=0)  # by another process
        clock.now += 5.0
        assert [event async for event in events] == []
    assert await gateway.waiting() == 1


async def set_columns(store: RequestStore, key_id: str, **values: object) -> None:
    """Change a row behind everybody's back."""
    async with store.database.transaction() as connection:
        await connection.execute(update(table).where(table.c.id == key_id).values(values))


class EndingKeys(CountedKeys):
    """Keys that end, or whose former secrets do, three seconds after they were read for the first time."""

    def __init__(self, database: Database, column: str) -> None:
        super().__init__(database)
        self._column = column

    async def valid(self):  # type: ignore[no-untyped-def]
        found = await super().valid()
        return [replace(key, **{self._column: key.as_of + 3}) for key in found] if self.queries == 1 else found


async def test_a_key_ends_at_its_time_however_lately_it_was_read(store: RequestStore, clock: Clock) -> None:
    keys = EndingKeys(store.database, "expires_at")
    authenticator = Authenticator(KEY, keys)
    key, secret = await keys.create("program")
    assert await accepts(authenticator, f"{key.id}:{secret}")

    await set_columns(store, key.id, expires_at=1.0)  # time goes on in the database too
    clock.now += 2
    assert await accepts(authenticator, f"{key.id}:{secret}")
    assert await authenticator.is_valid(key.id)
    assert keys.queries == 1

    clock.now += 1
    assert not await authenticator.is_valid(key.id)
    assert keys.queries == 1, "it was not the rows that were too old"
    assert not await accepts(authenticator, f"{key.id}:{secret}")


async def test_a_former_secret_ends_at_its_time_however_lately_it_was_read(store: RequestStore, clock: Clock) -> None:
    keys = EndingKeys(store.database, "former_until")
    authenticator = Authenticator(KEY, keys)
    key, first = await keys.create("program")
    _, second = await keys.rotate(key.id, 3600)
    assert [await accepts(authenticator, f"{key.id}:{secret}") for secret in (first, second)] == [True, True]

    await set_columns(store, key.id, former_until=1.0)  # time goes on in the database too
    clock.now += 2
    assert await accepts(authenticator, f"{key.id}:{first}")
    clock.now += 1
    assert [await accepts(authenticator, f"{key.id}:{secret}") for secret in (first, second)] == [False, True]


async def test_another_secret_is_taken_within_a_second(store: RequestStore, clock: Clock) -> None:
    keys = Keys(store.database)
    authenticator = Authenticator(KEY, keys)
    key, first = await keys.create("program")
    assert await accepts(authenticator, f"{key.id}:{first}")

    _, second = await keys.rotate(key.id)  # by another process
    clock.now += UNKNOWN_SECONDS
    assert [await accepts(authenticator, f"{key.id}:{secret}") for secret in (second, first)] == [True, True]


async def test_limits_are_the_keys_by_whatever_way_it_comes(store: RequestStore, clock: Clock) -> None:
    keys = Keys(store.database)
    authenticator = Authenticator(KEY, keys)
    key, secret = await keys.create("admin", Scope.ADMIN, Limits(max_running=2))

    assert await authenticator.caller(f"{key.id}:{secret}") == Caller(key.id, Scope.ADMIN, Limits(max_running=2))
    assert await authenticator.bearer(key.id) == Caller(key.id, Scope.API, Limits(max_running=2))
    assert await authenticator.bearer("id") == Caller("id", Scope.API)

    await keys.change(key.id, {"max_running": None, "usd_per_day": 1.5})  # by another process
    clock.now += VALID_SECONDS
    assert (await authenticator.bearer(key.id)).limits == Limits(usd_per_day=1.5)
    await keys.revoke(key.id)
    authenticator.forget()
    clock.now += 0.001
    with pytest.raises(Unauthenticated, match="revoked or has expired"):
        await authenticator.bearer(key.id)


# ---------------------------------------------------------------- the same work, whatever is wrong


async def test_the_same_is_done_before_a_key_is_refused_whatever_is_wrong_with_it(
    store: RequestStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = CountedKeys(store.database)
    authenticator = Authenticator(KEY, keys)
    (valid, _), (revoked, old), (expired, late), (rotated, first) = [await keys.create(each) for each in "abcd"]
    await keys.revoke(revoked.id)
    await set_columns(store, expired.id, expires_at=await keys.now() + 0.5)
    await keys.rotate(rotated.id)
    await set_columns(store, rotated.id, former_until=1.0)
    wrong = {
        "an unknown id": f"{uuid4()}:{'0' * 64}",
        "the configured id": f"id:{'0' * 64}",
        "a wrong secret": f"{valid.id}:{'0' * 64}",
        "a revoked key": f"{revoked.id}:{old}",
        "a key that expires while it is in memory": f"{expired.id}:{late}",
        "a former secret": f"{rotated.id}:{first}",
    }
    compare, work = hmac.compare_digest, []

    def watched(a: str, b: str) -> bool:
        work.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    await authenticator.is_valid(valid.id)
    await set_columns(store, expired.id, expires_at=1.0)
    clock.now += 0.5
    done = {}
    for what, credentials in wrong.items():
        work.clear()
        keys.queries = 0
        with pytest.raises(Unauthenticated) as refusal:
            await authenticator.caller(credentials)
        done[what] = list(work), keys.queries, str(refusal.value)

    assert done == dict.fromkeys(wrong, ([(64, 64)] * 5, 0, NOBODY))
    clock.now += UNKNOWN_SECONDS  # and where the rows are too old to refuse by
    for what, credentials in wrong.items():
        clock.now += UNKNOWN_SECONDS
        work.clear()
        keys.queries = 0
        assert not await accepts(authenticator, credentials)
        assert (what, len(work), keys.queries) == (what, 5, 1)


# ---------------------------------------------------------------- without a database


async def test_a_key_that_was_read_lately_outlives_its_database_for_five_seconds(
    store: RequestStore, clock: Clock
) -> None:
    keys = Keys(store.database)
    authenticator = Authenticator(KEY, keys)
    key, secret = await keys.create("program")
    assert await accepts(authenticator, f"{key.id}:{secret}")

    await store.close()
    clock.now += VALID_SECONDS - 0.001
    assert await accepts(authenticator, f"{key.id}:{secret}")
    clock.now += 0.001
    with pytest.raises(Unavailable):
        await authenticator.caller(f"{key.id}:{secret}")
    assert await accepts(authenticator, KEY)


async def test_who_waits_for_a_database_that_hangs_is_not_told_so_one_after_the_other(store: RequestStore) -> None:
    class HangingKeys(CountedKeys):
        async def valid(self):  # type: ignore[no-untyped-def]
            self.queries += 1
            await go_on.wait()
            raise Unavailable("The request store cannot be read at the moment")

    go_on = asyncio.Event()
    keys = HangingKeys(store.database)
    authenticator = Authenticator(KEY, keys)
    waiting = [asyncio.create_task(accepts(authenticator, f"{number}:secret")) for number in range(20)]
    while not keys.queries:
        await asyncio.sleep(0)
    go_on.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)

    assert {type(answer) for answer in answers} == {Unavailable}
    assert keys.queries <= 2, "the one that ran, and one for all who came meanwhile"


# ---------------------------------------------------------------- the last use


async def test_the_use_of_keys_is_written_down_together_and_only_where_there_was_one(store: RequestStore) -> None:
    keys = CountedKeys(store.database)
    authenticator = Authenticator(KEY, keys)
    made = [await keys.create(alias) for alias in "abcd"]
    for key, secret in made[:2] * 50:
        assert await accepts(authenticator, f"{key.id}:{secret}")
    await authenticator.bearer(made[2][0].id)
    assert not await accepts(authenticator, f"{made[3][0].id}:wrong")
    assert await accepts(authenticator, KEY)
    assert keys.noted == []

    await authenticator.note_uses()
    assert keys.noted == [{key.id for key, _ in made[:3]}]
    assert [key.last_used_at is not None for key in await keys.valid()] == [True, True, True, False]
    await authenticator.note_uses()
    assert len(keys.noted) == 1


async def test_a_database_that_is_away_loses_nothing_but_the_note(
    store: RequestStore, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys(store.database)
    authenticator = Authenticator(KEY, keys)
    key, secret = await keys.create("program")
    assert await accepts(authenticator, f"{key.id}:{secret}")

    await store.close()
    await authenticator.note_uses()
    assert await accepts(authenticator, f"{key.id}:{secret}")
    (line,) = [record for record in caplog.records if record.name == "deployments.gateway.auth"]
    assert line.getMessage() == "the last use of 1 key could not be noted: The request store is closed"
    assert key.id not in caplog.text


async def test_a_gateway_notes_uses_as_it_serves_and_when_it_ends(
    store: RequestStore, storage: FileStorage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await RequestStore.open(database_url)
    (first, one), (second, two) = [await Keys(other.database).create(alias) for alias in "ab"]

    async def used() -> list[bool]:
        return [key.last_used_at is not None for key in await Keys(other.database).valid()]

    monkeypatch.setattr("deployments.gateway.api.NOTE_SECONDS", 0.01)
    async with open_gateway(store, storage, served_endpoints()) as gateway, asyncio.timeout(PATIENCE):
        await gateway.submit(headers={"authorization": f"Key {first.id}:{one}"})
        while await used() != [True, False]:
            await asyncio.sleep(0.01)
        (told, _) = (await gateway.client.get("/v1/keys")).json()["keys"]
        assert told["last_used_at"].endswith(":00.000Z")
    monkeypatch.setattr("deployments.gateway.api.NOTE_SECONDS", 3600)
    async with open_gateway(await RequestStore.open(database_url), storage, served_endpoints()) as gateway:
        await gateway.submit(headers={"authorization": f"Key {second.id}:{two}"})
        assert await used() == [True, False]
    assert await used() == [True, True]
    await other.close()
