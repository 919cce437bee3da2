from __future__ import annotations

import hashlib

from sqlalchemy import select

from deployments.queue.keys import Keys, Scope
from deployments.queue.store import RequestStore
from deployments.queue.tables import keys as table


async def test_a_key_is_told_once_and_kept_as_a_hash(store: RequestStore) -> None:
    key, secret = await Keys(store.database).create("production", Scope.ADMIN)

    async with store.database.read() as connection:
        row = (await connection.execute(select(table))).one()
    assert len(secret) == 64
    assert secret not in str(row)
    assert row.hash == hashlib.sha256(secret.encode()).hexdigest()
    assert (row.id, row.alias, row.scope, row.revoked_at) == (key.id, "production", "ADMIN", None)


async def test_only_its_own_secret_belongs_to_a_key(store: RequestStore) -> None:
    keys = Keys(store.database)
    (one, secret), (_, other) = await keys.create("one"), await keys.create("two")

    assert one.has_secret(secret)
    assert not any(one.has_secret(wrong) for wrong in (other, "", secret[:-1], secret + "0", one.hash, "é"))


async def test_a_revoked_key_is_no_longer_valid(store: RequestStore) -> None:
    keys = Keys(store.database)
    one, two = (await keys.create("one"))[0], (await keys.create("two"))[0]
    await keys.revoke(one.id)
    await keys.revoke(one.id)
    await keys.revoke("nobody's")

    assert await keys.valid() == [two]
