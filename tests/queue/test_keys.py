from __future__ import annotations

import asyncio
import hashlib
import hmac
from dataclasses import fields, replace

import pytest
from pydantic import ValidationError
from sqlalchemy import select, update

from deployments.errors import NotFound
from deployments.queue.keys import (
    MOST_NOTED,
    NO_LIMITS,
    NOBODY,
    NOTE_SECONDS,
    Key,
    Keys,
    KeyState,
    LimitChanges,
    Limits,
    Scope,
)
from deployments.queue.store import RequestStore
from deployments.queue.tables import keys as table

LIMITS = Limits(
    requests_per_second=0.5, max_waiting=2, max_running=1, usd_per_day=0.25, upload_bytes_per_day=5 * 1024**3
)


@pytest.fixture
def keys(store: RequestStore) -> Keys:
    return Keys(store.database)


async def set_columns(store: RequestStore, key_id: str, **values: object) -> None:
    async with store.database.transaction() as connection:
        await connection.execute(update(table).where(table.c.id == key_id).values(values))


async def only(keys: Keys) -> Key:
    (key,) = await keys.all()
    return key


async def test_a_key_is_told_once_and_kept_as_a_hash(store: RequestStore, keys: Keys) -> None:
    key, secret = await keys.create("production", Scope.ADMIN)

    async with store.database.read() as connection:
        row = (await connection.execute(select(table))).one()
    assert len(secret) == 64
    assert secret not in str(row)
    assert row.hash == hashlib.sha256(secret.encode()).hexdigest()
    assert (row.id, row.alias, row.scope, row.revoked_at) == (key.id, "production", "ADMIN", None)


async def test_only_its_own_secret_belongs_to_a_key(keys: Keys) -> None:
    (one, secret), (_, other) = await keys.create("one"), await keys.create("two")

    assert one.has_secret(secret, 0.0)
    wrong = (other, "", secret[:-1], secret + "0", one.hash, "é", "\udcff", "\x00")
    assert not any(one.has_secret(each, 0.0) for each in wrong)
    assert not any(NOBODY.has_secret(each, 0.0) for each in (*wrong, secret))


async def test_a_secret_is_compared_as_often_whatever_comes_of_it(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    compare, compared = hmac.compare_digest, []

    def watched(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    key, secret = await keys.create("one")
    rotated = replace(key, former_hash=key.hash, former_until=1.0)
    monkeypatch.setattr(hmac, "compare_digest", watched)
    for each in (key, rotated, NOBODY):
        for given in (secret, "wrong"):
            compared.clear()
            each.has_secret(given, 0.0)
            assert compared == [(64, 64)] * 2


async def test_a_revoked_key_is_no_longer_valid(keys: Keys) -> None:
    one, two = (await keys.create("one"))[0], (await keys.create("two"))[0]

    assert [await keys.revoke(id) for id in (one.id, one.id, "nobody's")] == [True, False, False]
    assert await keys.valid() == [two]
    assert [each.state(each.as_of) for each in await keys.all()] == [KeyState.REVOKED, KeyState.VALID]


async def test_a_key_comes_back_with_all_that_it_was_made_with(keys: Keys) -> None:
    at = await keys.now()
    made, _ = await keys.create("a", Scope.ADMIN, LIMITS, at + 100)

    assert made.limits == LIMITS and made.expires_at == pytest.approx(at + 100)
    assert (made.last_used_at, made.revoked_at, made.former_hash, made.former_until) == (None,) * 4
    assert at <= made.created_at <= made.as_of <= await keys.now()
    assert await keys.valid() == [made]


async def test_a_key_that_has_expired_is_no_longer_valid(keys: Keys) -> None:
    at = await keys.now()
    late, _ = await keys.create("late", expires_at=at + 3600)
    await keys.create("early", expires_at=at - 0.001)

    assert await keys.valid() == [late]
    assert [each.state(each.as_of) for each in await keys.all()] == [KeyState.VALID, KeyState.EXPIRED]
    assert [late.state(at + seconds) for seconds in (3599, 3600)] == [KeyState.VALID, KeyState.EXPIRED]


async def test_both_secrets_are_a_keys_until_the_former_ones_time_is_up(keys: Keys) -> None:
    key, first = await keys.create("a", limits=LIMITS)
    at = await keys.now()
    rotated, second = await keys.rotate(key.id, 100)

    assert first != second and rotated.limits == LIMITS
    assert rotated.former_until == pytest.approx(at + 100, abs=5)
    until = rotated.former_until or 0.0
    for moment, works in ((at, True), (until - 0.001, True), (until, False)):
        assert [rotated.has_secret(secret, moment) for secret in (first, second)] == [works, True]


async def test_a_rotation_ends_the_secret_before_the_last(keys: Keys) -> None:
    key, first = await keys.create("a")
    (_, second), (now, third) = await keys.rotate(key.id), await keys.rotate(key.id)

    assert [now.has_secret(secret, now.as_of) for secret in (first, second, third)] == [False, True, True]


async def test_nothing_is_kept_of_a_former_secret_that_is_to_end_at_once(keys: Keys) -> None:
    key, first = await keys.create("a")
    _, second = await keys.rotate(key.id)
    now, third = await keys.rotate(key.id, 0)

    assert (now.former_hash, now.former_until) == (None, None)
    assert [now.has_secret(secret, 0.0) for secret in (first, second, third)] == [False, False, True]


async def test_limits_and_name_are_changed_where_they_are_named(keys: Keys) -> None:
    key, secret = await keys.create("a", limits=LIMITS)
    other, _ = await keys.create("b", limits=LIMITS)

    changed = await keys.change(key.id, {"max_waiting": None, "usd_per_day": 9.5})
    assert changed.limits == replace(LIMITS, max_waiting=None, usd_per_day=9.5)
    assert (changed.alias, changed.has_secret(secret, 0.0)) == ("a", True)
    assert (await keys.change(key.id, {}, "c")).limits == changed.limits
    assert [(each.alias, each.limits) for each in await keys.valid()] == [("c", changed.limits), ("b", other.limits)]
    assert (await keys.change(key.id, {})).alias == "c"


async def test_a_key_that_has_ended_is_neither_rotated_nor_changed(keys: Keys) -> None:
    revoked, expired = (await keys.create("a"))[0], (await keys.create("b", expires_at=1.0))[0]
    await keys.revoke(revoked.id)
    before = await keys.all()

    for key_id in (revoked.id, expired.id, "nobody's", ""):
        with pytest.raises(NotFound):
            await keys.rotate(key_id)
        with pytest.raises(NotFound):
            await keys.change(key_id, {"max_waiting": 1}, "c")
    assert await keys.all() == before


async def test_the_last_use_is_noted_to_the_minute(store: RequestStore, keys: Keys) -> None:
    used, unused = (await keys.create("used"))[0], (await keys.create("unused"))[0]
    before = await keys.now()
    await keys.note_use([used.id, "nobody's"])

    one, other = await keys.all()
    assert one.last_used_at is not None and one.last_used_at % NOTE_SECONDS == 0
    assert before - NOTE_SECONDS < one.last_used_at <= one.as_of
    assert (other.id, other.last_used_at) == (unused.id, None)

    await set_columns(store, used.id, last_used_at=one.last_used_at - NOTE_SECONDS)
    await keys.note_use([used.id])
    assert (await keys.all())[0].last_used_at in (one.last_used_at, one.last_used_at + NOTE_SECONDS)


async def test_a_use_that_is_noted_already_is_left_alone(store: RequestStore, keys: Keys) -> None:
    key, _ = await keys.create("a")
    later = await keys.now() + 3600  # a gateway ahead of us
    await set_columns(store, key.id, last_used_at=later)
    await keys.note_use([key.id])

    assert (await only(keys)).last_used_at == pytest.approx(later)


async def test_many_gateways_note_many_uses_at_once(keys: Keys) -> None:
    ids = [(await keys.create("a"))[0].id for _ in range(20)]
    many = [*ids, *(f"nobody's {number}" for number in range(MOST_NOTED - len(ids)))]

    await asyncio.gather(*(keys.note_use(each) for each in (many, many[::-1], ids, ids[::-1])))
    assert None not in [key.last_used_at for key in await keys.all()]


def test_every_limit_can_be_changed() -> None:
    assert list(LimitChanges.model_fields) == [each.name for each in fields(Limits)]
    assert LimitChanges().limits() == NO_LIMITS
    assert LimitChanges().named() == {}
    assert LimitChanges(max_waiting=None, usd_per_day=1).named() == {"max_waiting": None, "usd_per_day": 1}


@pytest.mark.parametrize("name", [each.name for each in fields(Limits)])
@pytest.mark.parametrize("value", [-1, "many", float("nan"), float("inf"), 1e300, [], {}])
def test_what_is_no_limit_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        LimitChanges.model_validate({name: value})
