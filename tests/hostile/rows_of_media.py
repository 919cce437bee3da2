"""Rows 38 to 62: pictures, masks and archives. The files, and their answers, are those of the decoder's tests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

from tests.hostile.rows_of_bodies import good
from tests.hostile.table import FAST, SVD, Call, Caller, Case, Expected, Script, data_uri, made, model_error
from tests.hostile.web import picture
from tests.inference import hostile

FIELDS = {"picture": "image_url", "mask": "mask_image_url", "archive": "control_maps_data_url"}
LARGEST_URI = 4 * 1024 * 1024
"""A larger file is fetched from the media server."""

_numbers = itertools.count()


def _line(file: hostile.Case) -> Script:
    """One file, asked for in both ways if it is refused. One that is read makes a clip, which is asked for once."""

    async def steps(caller: Caller) -> None:
        content = await asyncio.to_thread(file.make)
        url = data_uri(content, "application/octet-stream")
        if len(content) > LARGEST_URI:
            name = f"{file.kind}-{next(_numbers)}"
            caller.world.serve_file(name, content)
            url = f"http://public.example/file/{name}"
        body: dict[str, Any] = good() | {FIELDS[file.kind]: url}
        endpoint = FAST if file.kind == "picture" else SVD
        expected = model_error(file.error, FIELDS[file.kind]) if file.error else made()
        for ask in (caller.post, caller.queued) if file.error else (caller.post,):
            expected.compare(await ask(endpoint, body))

    return Script(row=file.row, name=f"{file.kind} {file.name}", steps=steps)


async def _served_as_a_clip(caller: Caller) -> None:
    """Whatever a picture carries along is not in what we serve, which has our type."""
    script = b"<script>alert(1)</script>"
    reply = await caller.post(FAST, good(image_url=data_uri(picture() + script)))
    file = await caller.call("GET", reply.json["video"]["url"])
    assert file.headers["content-type"] == "video/mp4" and file.headers["x-content-type-options"] == "nosniff"
    assert script not in file.body and file.body[4:8] == b"ftyp"


async def _tells_the_limits(caller: Caller) -> None:
    """An error says what would have been right."""
    small = await caller.post(FAST, good(image_url=data_uri(hostile.image_bytes(hostile.scene((10, 1))))))
    assert {"min_width", "min_height"} <= set(small.json["detail"][0]["ctx"])
    large = await caller.post(FAST, good(image_url=data_uri(hostile.png(30_000, 30_000, 8, 2))))
    assert {"max_width", "max_height"} <= set(large.json["detail"][0]["ctx"]), large.short
    foreign = await caller.post(FAST, good(image_url=data_uri(b"%PDF-1.4\n")))
    assert ".png" in foreign.json["detail"][0]["ctx"]["supported_formats"]
    archive = await caller.post(SVD, good(control_maps_data_url=data_uri(b"Rar!\x1a\7\1\0" + bytes(600))))
    assert ".zip" in archive.json["detail"][0]["ctx"]["supported_extensions"]


def _all() -> Iterator[Case]:
    for file in hostile.CASES:
        yield _line(file)
    yield Script(row=52, name="what is served", steps=_served_as_a_clip)
    yield Script(row=44, name="the limits are told", steps=_tells_the_limits)
    for path in ("/etc/x", "/etc/x.png"):
        yield Call(row=59, name=f"{path} is not there", method="GET", path=f"/files{path}", expected=Expected((404,)))


CASES = list(_all())
