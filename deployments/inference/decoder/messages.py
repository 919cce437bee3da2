"""What goes through the pipes of a decoder: a length, a header of JSON, and bytes whose number both sides know.

    length (4 bytes) │ header (JSON) │ bytes

The replica believes nothing that comes back: a header is short, has a shape that it knows, and as many bytes follow as
the replica can tell from what it asked for.
"""

from __future__ import annotations

import json
from io import FileIO
from typing import Any

MAX_HEADER_BYTES = 64 * 1024
OUT_OF_MEMORY = 3
"""The exit status of a fork that got no more memory."""

RAISED = 5
"""The exit status of a fork that an input has made fail in another way. Python itself ends with 1."""

ENDED = b"."
"""What a child says when a fork has ended well."""

NO_MORE = 4
"""The exit status of a fork that will get no input any more."""

BY_SIGNAL = 128
"""A child ends with this, and the number of the signal that ended its fork."""

_LENGTH_BYTES = 4


def write(stream: FileIO, header: dict[str, Any], *payload: bytes | memoryview) -> None:
    """Write a header, and bytes behind it.

    Raises:
        OSError: Nobody reads any more.
    """
    text = json.dumps(header).encode()
    for piece in (len(text).to_bytes(_LENGTH_BYTES, "big") + text, *payload):
        write_all(stream, piece)


def write_all(stream: FileIO, data: bytes | memoryview) -> None:
    """Write every byte: a pipe takes some at a time.

    Raises:
        OSError: Nobody reads any more.
    """
    left = memoryview(data)
    while left:
        left = left[stream.write(left) :]


def read_header(stream: FileIO) -> bytes:
    """The text of the next header.

    Raises:
        EOFError: There is none.
        ValueError: It is longer than ``MAX_HEADER_BYTES``.
    """
    length = int.from_bytes(read_all(stream, _LENGTH_BYTES), "big")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    return bytes(read_all(stream, length))


def read_all(stream: FileIO, length: int) -> bytearray:
    """So many bytes.

    Raises:
        EOFError: There are fewer.
    """
    data = bytearray(length)
    left = memoryview(data)
    while left:
        count = stream.readinto(left)
        if not count:
            raise EOFError("the other side has ended")
        left = left[count:]
    return data
