"""Targets that break their promises, to see that the runner tells: it is these that its own test runs."""

from __future__ import annotations

from tests.fuzz.target import target

kept: list[bytes] = []


@target(words=("\nmagic\n",))
def raises(data: bytes) -> None:
    """Fails on what only a dictionary finds so soon."""
    assert b"\nmagic\n" not in data, "found"


@target(megabytes=32)
def grows(data: bytes) -> None:
    """Takes more memory than it may."""
    if len(data) > 3:
        kept.append(bytes(100 * 1024 * 1024).replace(b"\0", b"x"))


@target()
def holds(data: bytes) -> None:
    """Promises nothing."""
