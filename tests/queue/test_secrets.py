from __future__ import annotations

import asyncio

from deployments.queue.secrets import SECRET_BYTES, Secrets
from deployments.queue.store import RequestStore


async def test_a_secret_is_made_once_and_shared(store: RequestStore) -> None:
    found = await asyncio.gather(*(Secrets(store.database).of("tokens") for _ in range(5)))
    assert all(secrets == found[0] for secrets in found)
    ((secret,),) = {tuple(secrets) for secrets in found}
    assert (secret.id, len(secret.value)) == ("tokens-0", SECRET_BYTES)


async def test_purposes_have_secrets_of_their_own(store: RequestStore) -> None:
    secrets = Secrets(store.database)
    (one,), (other,) = await secrets.of("tokens"), await secrets.of("webhooks")
    assert one.value != other.value


async def test_a_new_secret_stands_in_front_of_the_old_one(store: RequestStore) -> None:
    secrets = Secrets(store.database)
    (old,) = await secrets.of("tokens")
    new = await secrets.rotate("tokens")
    assert await secrets.of("tokens") == [new, old]
    assert new.value != old.value


async def test_of_several_who_rotate_at_once_one_wins(store: RequestStore) -> None:
    secrets = Secrets(store.database)
    await secrets.of("tokens")
    rotated = await asyncio.gather(*(secrets.rotate("tokens") for _ in range(4)))
    kept = await secrets.of("tokens")
    assert set(rotated) <= set(kept)
    assert [secret.number for secret in kept] == list(range(len(kept)))[::-1]
