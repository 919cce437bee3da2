from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from deployments.gateway.submission import MAX_BODY_BYTES, MAX_KEPT_BYTES
from deployments.queue.tables import request_io
from tests.gateway.conftest import SVD, Gateway

PIECE = 1024 * 1024


@pytest.mark.parametrize("path", [f"/queue/{SVD}", f"/{SVD}"])
async def test_a_body_that_is_too_large_is_refused_before_it_is_read(gateway: Gateway, path: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 4 * MAX_BODY_BYTES:
            sent += PIECE
            yield b" " * PIECE

    reply = await gateway.client.post(path, content=endless())

    assert (reply.status_code, reply.json()["error_type"]) == (413, "bad_request")
    assert sent <= MAX_BODY_BYTES + 2 * PIECE


@pytest.mark.parametrize(("length", "kept"), [(10, True), (MAX_KEPT_BYTES, False)])
async def test_of_a_refused_input_no_more_than_a_little_is_kept(gateway: Gateway, length: int, kept: bool) -> None:
    reply = await gateway.client.post(f"/queue/{SVD}", json={"ignored": "x" * length})

    async with gateway.store._read() as connection:
        query = select(request_io.c.input).where(request_io.c.request_id == reply.json()["request_id"])
        assert ("ignored" in (await connection.execute(query)).scalar_one()) is kept
