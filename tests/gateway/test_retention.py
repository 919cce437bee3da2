"""What callers are told of a request whose payloads have been kept long enough."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import update

from deployments.errors import NotFound
from deployments.queue.store import RequestStore
from deployments.queue.tables import requests
from deployments.storage import FileStorage
from tests.gateway.conftest import PATIENCE, SVD, Gateway, open_gateway, served_endpoints


async def erased(gateway: Gateway, request_id: str) -> None:
    """Return once the gateway has swept a request's payloads."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await gateway.store.output(request_id)
            except NotFound:
                return
            await asyncio.sleep(0.01)


async def test_a_result_that_is_no_longer_kept_is_404_and_its_status_stays(
    store: RequestStore, storage: FileStorage, database_url: str
) -> None:
    async with open_gateway(store, storage, served_endpoints()) as gateway:
        old, new = [await gateway.submit() for _ in range(2)]
        for _ in range(2):
            await gateway.finish(await gateway.claim())
        async with store.database.transaction() as connection:
            past = update(requests).where(requests.c.id == old).values(finished_at=time.time() - 31 * 24 * 3600)
            await connection.execute(past)

    again = await RequestStore.open(database_url)
    async with open_gateway(again, storage, served_endpoints(), keep_payloads_days=30) as gateway:
        await erased(gateway, old)
        reply = await gateway.client.get(f"/queue/{SVD}/requests/{old}")
        assert reply.status_code == 404
        assert reply.json() == {"detail": "The output of this request was deleted", "error_type": "not_found"}
        assert (await gateway.status(old, logs="1"))["status"] == "COMPLETED"
        assert (await gateway.client.get(f"/queue/{SVD}/requests/{new}")).status_code == 200
