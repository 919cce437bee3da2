"""How things read on an operator's terminal: spans and moments, aligned columns, and payloads without their secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

LONGEST_TEXT = 200
MOST_ITEMS = 20
_DATA_URI = re.compile(r"data:([\w/+.-]*)((?:;[\w=-]+)*),[^\s\"'<>]*")
_USER_OF_URL = re.compile(r"(?<=://)(?:[^\s/:\"'<>]{0,200}:[^\s\"'<>]{0,500}|[^\s/\"'<>]{1,200})@")
"""A password may hold anything; sooner a host is left out than a part of one is shown."""

_REST_OF_URL = re.compile(r"(\b\w{1,20}://[^\s?#\"'<>]+)[?#][^\s\"'<>]+")
_SECRETS = "authorization|password|secret|token|api_?key|credential|cookie|signature"
_SECRET_NAME = re.compile(_SECRETS, re.IGNORECASE)
_SECRET_HEADER = re.compile(r"((?:authorization|cookie)\s{0,9}[:=]\s{0,9})\S[^\r\n]*", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    rf"((?:{_SECRETS})[\w-]{{0,40}}[\"']?\s{{0,9}}[=:]\s{{0,9}})(?:\"[^\"]*\"?|'[^']*'?|[^\s\"'&;,<>]+)", re.IGNORECASE
)
_SECRET_SCHEME = re.compile(r"\b(bearer\s{1,9}|key\s{1,9}(?=[^\s:]{1,99}:\S))[^\s\"'&;,<>]+", re.IGNORECASE)


def presentable(value: Any, longest: int = LONGEST_TEXT) -> Any:
    """What may be shown: long things are cut; pictures in data URIs and whatever is secret are left out."""
    if isinstance(value, str):
        return _presentable_text(value, longest)
    if isinstance(value, Mapping):
        return {
            presentable(name): "…" if _SECRET_NAME.search(name) else presentable(each, longest)
            for name, each in value.items()
        }
    if isinstance(value, list):
        rest = [f"… {len(value)} in all"] if len(value) > MOST_ITEMS else []
        return [presentable(each, longest) for each in value[:MOST_ITEMS]] + rest
    return value


def _presentable_text(text: str, longest: int) -> str:
    text = _DATA_URI.sub(lambda found: f"data:{found[1]}{found[2]},… ({len(found[0])} characters)", text)
    text = _REST_OF_URL.sub(r"\1?…", _USER_OF_URL.sub("…@", text))
    for secret in (_SECRET_HEADER, _SECRET_VALUE, _SECRET_SCHEME):
        text = secret.sub(r"\1…", text)
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def moment(seconds: float) -> str:
    """In ISO's form, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def duration(seconds: float | None) -> str:
    """In the two largest units that say something."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{max(0.0, seconds):.1f}s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes}m {int(seconds % 60)}s"
    hours = minutes // 60
    return f"{hours}h {minutes % 60}m" if hours < 48 else f"{hours // 24}d {hours % 24}h"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns. What a caller sent may hold control characters; a terminal must not obey them."""
    lines = [[printable(cell) for cell in row] for row in ([head] if head else []) + list(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """The text with everything escaped that would move a cursor, ring, or hide what follows."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def many(count: int, noun: str) -> str:
    """``1 request``, ``2 requests``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_bytes(count: float) -> str:
    """In the unit that says it shortest."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count, units = count / 1024, units[1:]
    return f"{count:.1f} {units[0]}" if units[0] != "B" else f"{count:.0f} B"
