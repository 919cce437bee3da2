"""Bodies that are JSON: how large and how slow one may be, and what is none.

    pieces ──▶ bytes ──▶ not too many values ──▶ JSON ──▶ no NUL in it ──▶ model
       │ 413, 408   │ 422 json_invalid         │ 422 json_invalid   │ 422   │ 422

What says nothing of its kind, or that it is text, is read as JSON, as fal does; so is what says that it is a form, as
``curl -d`` says of everything. A form itself is no JSON.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from deployments.errors import ClientCancelled, InvalidInput, Loc, PayloadTooLarge, RequestTimeout

MOST_BYTES = 28 * 1024 * 1024
"""Room for the largest picture that is read, as a data URI."""

MOST_BYTES_OF_A_FORM = 256 * 1024
"""Of everything that holds no picture."""

MOST_MARKS = 100_000
"""Of commas and opening brackets. Three bytes can be a value that takes eighty; an input has few, and some in texts."""

BODY_SECONDS, LEAST_BYTES_PER_SECOND = 60.0, 64 * 1024
"""The slowest callers who are heard out. ``patience`` closes the connections of those who send next to nothing."""

READ_AS_JSON = ("", "text/plain", "application/x-www-form-urlencoded")
"""Kinds that are not JSON's own, and are said of JSON all the same."""

_NUL = b"\\u0000"

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request, most: int = MOST_BYTES) -> Any:
    """The body as JSON.

    Args:
        request: Whose body.
        most: How many bytes it may have.

    Raises:
        ClientCancelled: The caller went away meanwhile.
        InvalidInput: It is empty, or no JSON, or says that it is something else; or a text in it holds a NUL.
        PayloadTooLarge: It has more bytes; the rest was not read.
        RequestTimeout: It has not come in time.
    """
    _check_kind(request.headers.get("content-type", ""))
    body = await _read(request, most)
    if not body.strip():
        raise _invalid((), "Field required", "missing")
    try:
        value = parse_json(body)
    except ValueError as error:
        raise _invalid((), f"JSON decode error: {error}", "json_invalid") from error
    for place in _nuls(value, ()) if _NUL in body else ():
        raise _invalid(place, "Input should be a text without NUL characters", "string_type")
    return value


def parse_json(text: bytes) -> Any:
    """What a caller has written as JSON, if that is of a size that its length shows.

    Raises:
        ValueError: It is no JSON, or has too many values.
    """
    if _is_crowded(text):
        raise ValueError(f"more than {MOST_MARKS} commas and opening brackets")
    return from_json(text, allow_inf_nan=False)


async def read_model(request: Request, model: type[Model], most: int = MOST_BYTES_OF_A_FORM) -> Model:
    """The body as a model.

    Args:
        request: Whose body.
        model: What it should be.
        most: How many bytes it may have.

    Raises:
        ClientCancelled: As ``read_json``.
        InvalidInput: As ``read_json``, or it is not what the model wants.
        PayloadTooLarge: As ``read_json``.
        RequestTimeout: As ``read_json``.
    """
    try:
        return model.model_validate(await read_json(request, most))
    except ValidationError as error:
        raise InvalidInput(error.errors()) from None


def _check_kind(content_type: str) -> None:
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in READ_AS_JSON and kind.rpartition("/")[2].rpartition("+")[2] != "json":
        message = "Input should be JSON, with the content type application/json"
        raise _invalid((), message, "model_attributes_type")


async def _read(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise _too_large(most)
    body = bytearray()
    seconds = BODY_SECONDS + most / LEAST_BYTES_PER_SECOND
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise RequestTimeout(f"The body must come within {seconds:.0f} seconds") from None
    except ClientDisconnect:
        raise ClientCancelled("The caller went away") from None
    return bytes(body)


def _is_crowded(text: bytes) -> bool:
    seen = 0
    for mark in (b",", b"[", b"{"):
        at = -1
        while (at := text.find(mark, at + 1)) >= 0:
            seen += 1
            if seen > MOST_MARKS:
                return True
    return False


def _too_large(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body has more than {most} bytes")


def _invalid(place: Loc, message: str, kind: str) -> InvalidInput:
    return InvalidInput([{"loc": place, "msg": message, "type": kind}])


def _nuls(value: Any, place: tuple[str | int, ...]) -> Iterator[Loc]:
    """Where in a value a NUL stands; a database can keep none. The parser has seen to it that it is not deep."""
    if isinstance(value, str) and "\0" in value:
        yield place
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _nuls(each, (*place, number))
    elif isinstance(value, dict):
        for name, each in value.items():
            if "\0" in name:
                yield place
            yield from _nuls(each, (*place, name))
