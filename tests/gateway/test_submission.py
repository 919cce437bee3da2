from __future__ import annotations

import pytest
from sqlalchemy import select

from deployments.gateway.submission import MAX_KEPT_BYTES
from deployments.queue.tables import request_io
from tests.gateway.conftest import Gateway


@pytest.mark.parametrize(("length", "kept"), [(10, True), (MAX_KEPT_BYTES, False)])
async def test_of_a_refused_input_no_more_than_a_little_is_kept(gateway: Gateway, length: int, kept: bool) -> None:
    request_id = await gateway.submit(json={"ignored": "x" * length})

    async with gateway.store.database.read() as connection:
        query = select(request_io.c.input).where(request_io.c.request_id == request_id)
        assert ("ignored" in (await connection.execute(query)).scalar_one()) is kept
