"""What headers say: who calls, which part of a file is wanted, how long files live, for which of fal's hosts."""

from __future__ import annotations

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from deployments.errors import BadRequest, Unauthenticated
from deployments.gateway.auth import Authenticator
from deployments.gateway.file_routes import _asked_range, _lists, _resolve
from deployments.gateway.hosts import PREFIXES, PROXY_PATH, FalHosts
from deployments.gateway.tokens import Tokens
from deployments.queue.database import Database
from deployments.queue.files import Lifecycle
from deployments.queue.keys import Keys
from deployments.queue.secrets import Secrets
from deployments.storage import Stat
from tests.fuzz.target import check_error, finish, header, parts, target

KEY = "id:secret"
FILE = "b/0/clip.mp4"
ETAG = '"1-2"'
_NO_QUERY = bytes({*range(33), *range(127, 256)})
"""What an HTTP server lets nobody write into a request line."""


@target(words=("Key ", "Bearer ", "Key id:secret", "id:secret", ":"))
def authorization(data: bytes) -> None:
    """Authorization headers ──▶ the caller whose key they are, or 401."""
    lines = [header(line) for line in data.split(b"\n")]
    try:
        caller = finish(_authenticator()(_request([("authorization", line) for line in lines])))
    except Unauthenticated as error:
        check_error(error)
        assert error.status == 401
        assert not any(len(line) > 60 and line in error.message for line in lines)
        return
    assert caller.key_id == "id"
    assert re.fullmatch(r"(key|bearer) id:secret", "".join(lines), re.IGNORECASE) and KEY in "".join(lines)


@target(words=("Key id:secret", ".", "eyJhbGciOiJIUzI1NiJ9.e30.", "=", "e30"))
def token(data: bytes) -> None:
    """A token with something put in ──▶ what it said before, or 401."""
    place, what = parts(data, 2)
    tokens, good = _tokens()
    at = int.from_bytes(place[-2:]) % (len(good) + 1) if place else 0
    asked = good[:at] + header(what) + good[at + len(place) :]
    for verify in (tokens.verify_cdn(asked), tokens.verify_upload(asked, FILE), tokens.verify_app(asked, "fal-ai/svd")):
        try:
            whose = finish(verify)
        except Unauthenticated as error:
            check_error(error)
        else:  # the last letter of a signature has bits that mean nothing
            assert whose == "id" and asked.rsplit(".", 1)[0] == good.rsplit(".", 1)[0]


@target(words=("bytes=", "-", "0", ",", "99999999999999999999", ETAG, "W/", "*", "bytes=0-0", "bytes=-1", "bytes=5-"))
def byte_range(data: bytes) -> None:
    """Range, If-Range and If-None-Match ──▶ a part that lies within the file, none of it, or all of it."""
    asked, condition, tags, length = parts(data, 4)
    size = int.from_bytes(length[:5])
    stat = Stat(size, ETAG, 0.0, "video/mp4")
    headers = [("range", header(asked))] + ([("if-range", header(condition))] if condition else [])
    _lists(header(tags), ETAG)
    found = _asked_range(_request(headers), stat)
    written = re.fullmatch(r"bytes=(\d*)-(\d*)", header(asked), re.ASCII)
    if found is None:
        long = written and max(map(len, written.groups())) > 18
        assert condition or long or not written or not any(written.groups())
        return
    start, end = _resolve(*found, size)
    assert written and header(condition) in ("", ETAG)
    first, last = written.groups()
    wanted = range(int(first), int(last or size) + 1) if first else range(max(0, size - int(last)), size)
    assert range(max(0, start), max(start, end)) == range(wanted.start, max(wanted.start, min(wanted.stop, size)))
    assert start >= end or 0 <= start < end <= size


@target(
    words=(
        '{"expiration_duration_seconds":',
        '"initial_acl":',
        '{"default":"forbid","rules":[]}',
        '{"user":"id","decision":"hide"}',
        "null",
        "1e5",
    )
)
def lifecycle(data: bytes) -> None:
    """X-Fal-Object-Lifecycle-Preference ──▶ what can be kept and read again, or 400."""
    try:
        found = Lifecycle.parse(header(data))
    except BadRequest as error:
        check_error(error)
        return
    assert Lifecycle.parse(found.dump()).over(Lifecycle()) == found
    assert found.seconds is None or 0 < found.seconds < 2**33


@target(words=(*PREFIXES, "https://", "https://queue.fal.run/", "/", "?", "#", "%2e%2e", "%00", "[", "@", ":443"))
def fal_host(data: bytes) -> None:
    """Host, X-Fal-Target-Url and a path ──▶ a path of ours, or 400."""
    host, url, path, query = parts(data, 4)
    for asked in (PROXY_PATH, "/" + path.decode(errors="replace")):
        scope = _scope([("host", header(host)), ("x-fal-target-url", header(url))]) | {
            "path": asked,
            "raw_path": asked.encode(),
            "query_string": query.translate(None, _NO_QUERY),
        }
        reached, status = finish(_through_hosts(scope))
        assert (reached is None) == (status == 400)
        if reached:
            assert isinstance(reached["path"], str) and isinstance(reached["raw_path"], bytes)
            assert reached["path"].startswith("/") or reached["path"] == ""
            assert reached["path"] != PROXY_PATH or asked == PROXY_PATH or path
            Request(reached).url, Request(reached).query_params


async def _through_hosts(scope: Scope) -> tuple[Scope | None, int | None]:
    """What stands behind the middleware was asked, or the status that the middleware answered."""
    reached: list[Scope] = []
    statuses: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await FalHosts(app)(scope, _nothing, send)
    return next(iter(reached), None), next(iter(statuses), None)


async def _nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def _scope(headers: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }


def _request(headers: list[tuple[str, str]]) -> Request:
    return Request(_scope(headers))


@cache
def _database() -> Database:
    folder = Path(tempfile.mkdtemp(prefix="svd-serve-fuzz-database-"))
    database: Database = finish(Database.open(f"sqlite+aiosqlite:///{folder}/queue.db"))
    return database


@cache
def _authenticator() -> Authenticator:
    return Authenticator(KEY, Keys(_database()))


@cache
def _tokens() -> tuple[Tokens, str]:
    tokens = Tokens(Secrets(_database()), _authenticator().is_valid)
    good: str = finish(tokens.upload("id", FILE))
    return tokens, good
