"""What bodies and queries say: inputs of every endpoint, frames of a realtime connection, pages, windows of time."""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl

from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Message

from deployments.errors import BadRequest, InvalidInput, ModelError
from deployments.gateway.auth import Caller
from deployments.gateway.bodies import read_json
from deployments.gateway.platform import Paged
from deployments.gateway.realtime_routes import Frame
from deployments.gateway.submission import MAX_KEPT_BYTES, new_request
from deployments.gateway.timeframes import MAX_BUCKETS, Window
from deployments.models.base import Endpoint
from deployments.queue.files import Lifecycle
from deployments.settings import AppArgs
from tests import tiny
from tests.fuzz.target import check_error, finish, target, text

NOW = 1.8e9
FIELDS = (
    "image_url",
    "mask_image_url",
    "control_maps_data_url",
    "prompt",
    "video_size",
    "seed",
    "steps",
    "fps",
    "motion_bucket_id",
    "cond_aug",
)


@target(
    longest=4096,
    words=(
        *(f'"{name}":' for name in FIELDS),
        *("null", "true", "1e400", "-0", "9223372036854775807", "9223372036854775808", "\\u0000", "\\ud800", "NaN"),
        *('{"width":512,"height":512}', '"square_hd"', '{"image_url":"x"}', '{"prompt":"x"}', "[[[[[[[[", "\ufeff"),
    ),
)
def body(data: bytes) -> None:
    """A body ──▶ an endpoint's input, whole in the row and the same when it is read again, or 422 in fal's form."""
    endpoint = list(_endpoints().values())[data[0] % len(_endpoints()) if data else 0]
    request = _request([data[1:][:7], data[1:][7:]])
    try:
        payload = finish(read_json(request))
    except InvalidInput as error:
        check_error(error)
        return
    row, refused = new_request(endpoint, Caller("id"), payload, request, Lifecycle(), retry=True)
    kept = json.loads(row.input)
    row.input.encode()
    assert "\0" not in row.input
    if refused:
        assert isinstance(refused, ModelError) and refused.status == 422
        check_error(refused)
        assert len(row.input.encode()) <= MAX_KEPT_BYTES and kept in (payload, None)
        return
    input = endpoint.Input.model_validate_json(row.input)
    assert input.model_dump_json() == row.input and endpoint.plan(input).batch_key == row.batch_key
    assert 0 < row.pixel_frames < 2**63
    assert "seed" not in payload or kept["seed"] == int(payload["seed"])


@target(words=("{", "}", "\x81\xa1a", "\x83", '{"a":1}', "\xc7", "\xd6\xff", "NaN", "\x91\x91\x91\x91"))
def frame(data: bytes) -> None:
    """A frame ──▶ a map of what JSON has, which comes back as a frame of the same kind, or 400."""
    for asked in (Frame(data), Frame(text(data))):
        try:
            found = asked.decode()
        except BadRequest as error:
            check_error(error)
        else:
            json.dumps(found, allow_nan=False)
            assert asked.encode(found).decode() == json.loads(json.dumps(found)) or not isinstance(asked.data, str)


@target(longest=256, words=("WzEuMCwyXQ==", "MA==", "MTIz", "=", "-", "_"))
def cursor(data: bytes) -> None:
    """A cursor ──▶ a place in a list, or 400."""
    try:
        page = Paged(cursor=text(data))
    except ValidationError:
        return
    for read in (page.number, page.place):
        try:
            found: Any = read()
        except BadRequest as error:
            check_error(error)
            continue
        if read == page.number:
            assert 0 <= found < 2**31
            page.cut(range(100))
        else:
            assert math.isfinite(found.value) and 0 <= found.seq < 2**63


@target(
    longest=512,
    words=(
        *("start=", "end=", "timezone=", "timeframe=", "bound_to_timeframe=", "&", "%2B00:00", "Z"),
        *(
            "minute",
            "hour",
            "day",
            "week",
            "month",
            "false",
            "Europe/Berlin",
            "Australia/Lord_Howe",
            "America/Scoresbysund",
        ),
        *("2026-03-29T01:30:00", "1970-01-01", "2199-12-31T23:59:59", "0001-01-01", "9999-12-31", "1800000000", "inf"),
    ),
)
def window(data: bytes) -> None:
    """A query ──▶ the edges of few buckets, each after the one before, or what is wrong."""
    try:
        asked = Window.model_validate(dict(parse_qsl(text(data), keep_blank_values=True)))
        edges = asked.edges(NOW)
    except ValueError:  # pydantic's error is one
        return
    assert 2 <= len(edges) <= MAX_BUCKETS + 2
    assert all(before < after for before, after in pairwise(edges)), edges
    assert len({asked.label(edge) for edge in edges[:-1]}) > 0


@cache
def _endpoints() -> dict[str, Endpoint]:
    return AppArgs.model_validate(tiny.document()["applications"][0]["args"]).build()


def _request(pieces: list[bytes]) -> Request:
    waiting = list(pieces)

    async def receive() -> Message:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": []}
    return Request(scope, receive)
