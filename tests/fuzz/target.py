"""What is fuzzed: functions that take bytes, and what each of them promises.

A target calls one parser with whatever it is given, and asserts what must hold of the answer. Beside that, each input
may take so much memory and time and no more; the runner (``__main__``) sees to it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from typing import Any

from deployments.errors import ServingError

Check = Callable[[bytes], None]

TARGETS: dict[str, Target] = {}
"""All targets that have been imported, by name."""


@dataclass(frozen=True)
class Target:
    """One parser under fuzz.

    Attributes:
        name: Of the function, and of its folder in ``corpus``.
        check: Calls the parser and asserts what it promises.
        longest: Bytes of an input at the most.
        megabytes: By how much an input may raise the peak of the process's memory.
        words: Byte strings that mean something to the parser; the fuzzer puts them in.
    """

    name: str
    check: Check
    longest: int
    megabytes: int
    words: tuple[str, ...]


def target(longest: int = 2048, megabytes: int = 64, words: tuple[str, ...] = ()) -> Callable[[Check], Check]:
    """Register a function as a target."""

    def register(check: Check) -> Check:
        TARGETS[check.__name__] = Target(check.__name__, check, longest, megabytes, words)
        return check

    return register


def text(data: bytes) -> str:
    """Bytes as the text that JSON and queries give us: any character, but no half of a pair."""
    return data.decode(errors="replace")


def header(data: bytes) -> str:
    """Bytes as the value of a header, as the HTTP server hands it on."""
    return data.translate(None, b"\0\n\v\f\r").strip(b" \t").decode("latin-1")


def parts(data: bytes, count: int) -> list[bytes]:
    """The lines of an input, of which the last takes all that is left."""
    found = data.split(b"\n", count - 1)
    return found + [b""] * (count - len(found))


def check_error(error: ServingError, place: str = "body") -> None:
    """Assert that an error is one that a caller can be shown: JSON in fal's form, saying where."""
    body = error.body()
    assert 400 <= error.status < 500, f"{error.status}: {error.message}"
    json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    if isinstance(body["detail"], list):
        assert body["detail"] and all(each["loc"][0] == place and each["msg"] for each in body["detail"]), body


@cache
def loop() -> asyncio.AbstractEventLoop:
    """The one event loop of this process."""
    return asyncio.new_event_loop()


def finish(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine, on that loop."""
    return loop().run_until_complete(work)
