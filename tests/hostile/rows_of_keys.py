"""Rows 67 to 77: files that are sent to us and asked for again, keys, and what belongs to another."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from tests.hostile.names import OWN_NAME
from tests.hostile.rows_of_bodies import good
from tests.hostile.rows_of_urls import new_key, upload
from tests.hostile.table import FAST, JSON, Call, Caller, Case, Expected, Raw, Reply, Script, refused

BITES_SECONDS = 5.0
"""By then a key that was revoked opens nothing any more."""

SECRET = "a-secret-that-nobody-may-log"


# ---------------------------------------------------------------- uploads


async def _initiated(caller: Caller, **body: Any) -> tuple[str, str]:
    asked = {"file_name": "x.png", "content_type": "image/png", **body}
    reply = await caller.call("POST", "/storage/upload/initiate", json=asked)
    return reply.json["upload_url"], reply.json["file_url"]


async def _parts(caller: Caller) -> tuple[str, dict[str, Any]]:
    headers = {"x-fal-file-name": "x.bin", "content-type": "application/octet-stream"}
    reply = await caller.call("POST", "/files/upload/multipart", headers=headers)
    url, upload_id = reply.json["access_url"], reply.json["uploadId"]
    part = await caller.call("PUT", f"{url}/multipart/{upload_id}/1", content=b"x" * 100)
    return f"{url}/multipart/{upload_id}", part.json


async def _is_not_there(caller: Caller, url: str) -> None:
    reply = await caller.call("GET", url)
    assert reply.status == 404, reply.short


async def _longer(caller: Caller) -> None:
    """More bytes than were announced: the rest is no part of the file, and no request of its own."""
    url, file = await _initiated(caller)
    path = url.removeprefix(f"http://{OWN_NAME}")
    sent = caller.head("PUT", path, "Content-Length: 5", "Connection: close", key=False) + b"12345" + b"x" * 1000
    reply = await caller.raw(sent, 20)
    assert reply.status in (200, 400), reply.short
    stored = await caller.call("GET", file)
    assert stored.body == b"12345" or stored.status == 404, stored.short


async def _shorter(caller: Caller) -> None:
    """Fewer bytes than were announced: there is no file."""
    url, file = await _initiated(caller)
    path = url.removeprefix(f"http://{OWN_NAME}")
    await caller.raw(caller.head("PUT", path, "Content-Length: 1000", key=False) + b"12345", 2)
    await _is_not_there(caller, file)


async def _silent(caller: Caller) -> None:
    """A writer who falls silent is cut off, there is no file, and the next writer is not kept waiting."""
    url, file = await _initiated(caller)
    head = caller.head("PUT", url.removeprefix(f"http://{OWN_NAME}"), "Content-Length: 1000", key=False)
    assert (await caller.raw(head + b"12345", 60)).status == 408
    await _is_not_there(caller, file)
    assert (await caller.call("PUT", url, content=b"again", key=None)).status == 200
    assert (await caller.call("GET", file)).body == b"again"


async def _empty(caller: Caller) -> None:
    """Pinned: an empty file is a file."""
    assert (await caller.call("GET", await upload(caller, b""))).body == b""


async def _finished(caller: Caller) -> None:
    url, file = await _initiated(caller)
    assert (await caller.call("PUT", url, content=b"first")).status == 200
    refused(400, "bad_request").compare(await caller.call("PUT", url, content=b"second"))
    assert (await caller.call("GET", file)).body == b"first"


async def _bad_parts(caller: Caller) -> None:
    url, part = await _parts(caller)
    for number in ("0", "10001", "-1", "x", "1.5", "9" * 50):
        reply = await caller.call("PUT", f"{url}/{number}", content=b"x")
        assert reply.status in (400, 404, 422), reply.short
    for parts in (
        [],
        [part | {"etag": "another"}],
        [part, part],
        [part | {"partNumber": 2}],
        [part | {"partNumber": 0}],
        [part, {"partNumber": 2, "etag": "nobody's"}],
        "x",
        None,
    ):
        reply = await caller.call("POST", f"{url}/complete", json={"parts": parts})
        assert reply.status in (400, 422), reply.short
    await _is_not_there(caller, url.partition("/multipart/")[0])
    reply = await caller.call("POST", f"{url}/complete", json={"parts": [part]})
    assert reply.status == 200, reply.short


async def _empty_part(caller: Caller) -> None:
    """Pinned: a part of no bytes is a part, and the file is there only once it is complete."""
    url, _ = await _parts(caller)
    empty = await caller.call("PUT", f"{url}/2", content=b"")
    assert empty.status in (200, 400), empty.short
    await _is_not_there(caller, url.partition("/multipart/")[0])


async def _tokens(caller: Caller) -> None:
    url, file = await _initiated(caller)
    base, _, token = url.partition("?token=")
    for bad in ("", "x", token[:-4], token + "x", token.replace(".", "-"), "a.b.c", "eyJhbGciOiJub25lIn0.e30."):
        reply = await caller.call("PUT", f"{base}?token={bad}", content=b"x", key=None)
        assert reply.status == 401, reply.short
    other, _ = await _initiated(caller)
    reply = await caller.call("PUT", other.replace(token, "").partition("?")[0] + f"?token={token}", content=b"x")
    assert reply.status == 401, reply.short
    await _is_not_there(caller, file)


async def _expired(caller: Caller) -> None:
    """Of the tokens that say how long they are good for, a reader's."""
    file = await upload(caller, b"x", headers={"x-fal-object-lifecycle": '{"initial_acl": {"default": "forbid"}}'})
    asked = {"expiration_seconds": 5}
    signed = (await caller.call("POST", "/v1/storage/files/sign", params={"url": file}, json=asked)).json["signed_url"]
    assert (await caller.call("GET", signed, key=None)).status == 200
    await asyncio.sleep(6)
    assert (await caller.call("GET", signed, key=None)).status == 401


async def _too_large(caller: Caller) -> None:
    for path in ("/files/upload",):
        head = caller.head("POST", path, f"Content-Length: {2**31}", "Content-Type: image/png")
        refused(413, "bad_request").compare(await caller.raw([head, b"x" * 1000], 20))


def _uploads() -> Iterator[Case]:
    for name, steps in (
        ("more bytes than announced", _longer),
        ("fewer bytes than announced", _shorter),
        ("empty", _empty),
        ("written twice", _finished),
        ("bad parts", _bad_parts),
        ("an empty part", _empty_part),
        ("bad tokens", _tokens),
        ("larger than any may be", _too_large),
    ):
        yield Script(row=67, name=name, steps=steps)
    yield Script(row=67, name="an expired token", steps=_expired, slow=True)
    yield Script(row=67, name="a writer who falls silent", steps=_silent, slow=True)
    for name, file_name in {
        "dots": "../../x", "absolute": "/etc/passwd", "lines": "a%0d%0aSet-Cookie:x", "a quote": 'a"b;c=d',
        "NUL": "a\\0b", "1,000 letters": "x" * 1000, "CON": "CON", "RTL": "gpj\u202eexe", ".htaccess": ".htaccess",
        "dot": ".", "blanks": ". .", "a backslash": "..\\..\\x.png", "percent": "%2e%2e%2f", "a query": "x?y#z",
        "emoji": "🐈.png", "script": "<svg>.html",
    }.items():  # fmt: skip
        yield Script(row=68, name=name, steps=_named(file_name))
    for name, file_name in {
        "NUL in JSON": "a\0b",
        "lines in JSON": "a\r\nSet-Cookie:x",
        "half a pair": "\ud800",
    }.items():
        yield Script(row=68, name=name, steps=_named_in_json(file_name))
    for kind in (
        "text/html",
        "image/svg+xml",
        "text/javascript",
        "application/xhtml+xml",
        "text/html;\tx=y",
        "x",
        "a/b\u00e9",
    ):
        yield Script(row=69, name=kind, steps=_typed(kind))
    yield from _ranges()


def _named(name: str) -> Any:
    """A name in a header: it is cleaned, and what it hides does nothing."""

    async def steps(caller: Caller) -> None:
        url = await upload(caller, b"x", headers={"x-fal-file-name": name.encode()}, kind="application/zip")
        await _is_harmless(caller, url)

    return steps


def _named_in_json(name: str) -> Any:
    async def steps(caller: Caller) -> None:
        body = {"file_name": name, "content_type": "application/zip"}
        options = {"content": json.dumps(body), "headers": JSON}
        reply = await caller.call("POST", "/storage/upload/initiate", **options)
        assert reply.status in (200, 422), reply.short
        if reply.status == 200:
            assert (await caller.call("PUT", reply.json["upload_url"], content=b"x")).status == 200
            await _is_harmless(caller, reply.json["file_url"])

    return steps


async def _is_harmless(caller: Caller, url: str) -> None:
    assert ".." not in url and "\\" not in url and url.startswith(f"http://{OWN_NAME}/files/"), url
    reply = await caller.call("GET", url)
    assert reply.body == b"x" and "set-cookie" not in reply.headers, reply.headers
    disposition = reply.headers["content-disposition"]
    assert disposition.startswith("attachment; filename*=UTF-8''") and disposition.isascii()
    cleaned = disposition.partition("''")[2]
    assert len(cleaned) < 700 and not set(cleaned) & set('"\\/;\r\n') and "%00" not in cleaned and "%0" not in cleaned
    assert "%E2%80%AE" not in cleaned, "an override of the writing direction stays"


def _typed(kind: str) -> Any:
    """Nothing that a page could be made of is shown: it is saved, not sniffed, and has no rights."""

    async def steps(caller: Caller) -> None:
        content = b"<html><script>alert(document.domain)</script>"
        url = await upload(caller, content, "page", headers={"content-type": kind.encode()})
        reply = await caller.call("GET", url, key=None)
        assert reply.status == 200 and reply.body == content
        assert reply.headers["content-disposition"].startswith("attachment"), reply.headers
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in reply.headers["content-security-policy"]

    return steps


def _ranges() -> Iterator[Case]:
    for header, status, body in (
        ("bytes=0-", 206, b"0123456789"), ("bytes=-1", 206, b"9"), ("bytes=0-0", 206, b"0"),
        ("bytes=9-999999999999", 206, b"9"), ("bytes=5-1", 416, b""), ("bytes=999999999-", 416, b""),
        ("bytes=-0", 416, b""), ("bytes=" + ",".join(["0-1"] * 1000), 200, None), ("garbage", 200, None),
        ("bytes=", 200, None), ("bytes=-", 200, None), ("bytes=--1", 200, None), ("items=0-1", 200, None),
        ("bytes=" + "9" * 30 + "-", 200, None), ("bytes=\u0661-\u0662", 200, None),
    ):  # fmt: skip
        whole = b"0123456789" if body is None else body
        yield Script(row=70, name=header[:40], steps=_range(header, status, whole))


def _range(header: str, status: int, body: bytes) -> Any:
    async def steps(caller: Caller) -> None:
        url = await upload(caller, b"0123456789")
        reply = await caller.call("GET", url, headers={"range": header.encode()})
        assert (reply.status, reply.body) == (status, body), reply.short

    return steps


# ---------------------------------------------------------------- keys

PLACES = (
    ("POST", f"/{FAST}"),
    ("POST", f"/queue/{FAST}"),
    ("GET", f"/queue/{FAST}/requests/{uuid4()}/status"),
    ("GET", "/v1/keys"),
    ("POST", "/storage/auth/token"),
    ("POST", "/files/upload"),
    ("POST", "/tokens/"),
)


def _is_unknown(reply: Reply) -> None:
    assert reply.headers["www-authenticate"] == "Key", reply.headers
    assert SECRET.encode() not in reply.body, reply.short


UNKNOWN = Expected((401,), check=_is_unknown)


def _everywhere(headers: list[tuple[bytes, bytes]], query: str = "") -> Any:
    """A caller whom nobody knows, at every door."""

    async def steps(caller: Caller) -> None:
        async with caller.world.client() as client:
            for method, path in PLACES:
                answer = await client.request(method, path + query, headers=headers, json=good())
                reply = caller.look(Reply(answer.status_code, answer.headers, answer.content))
                UNKNOWN.compare(reply)
                told = reply.json
                assert isinstance(told.get("detail", told.get("error", {}).get("message")), str), reply.short

    return steps


def _auth(value: str | bytes) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", value if isinstance(value, bytes) else value.encode())]


def _keys() -> Iterator[Case]:
    for value in (
        "",
        "Bearer",
        "Key",
        "Key a",
        "Key id:",
        "Key :secret",
        "Key :",
        "Basic aWQ6c2VjcmV0",
        "id:secret",
    ):
        yield Script(row=71, name=f"'{value}'", steps=_everywhere(_auth(value)))
    yield Script(row=71, name="none", steps=_everywhere([]))
    yield Script(row=71, name="in the query", steps=_in_the_query)
    yield Script(row=71, name="two headers", steps=_two_headers)
    yield Raw(row=71, name="'Key '", make=_blank_key, expected=Expected((401,), check=_is_unknown))
    for name, secret in {
        "unicode": "Key ïd:sëcret-" + SECRET, "emoji": "Key 🐈:🐈", "100 KB": None,
        "quotes": "Key ' OR '1'='1:' OR '1'='1",
        "a wildcard": "Key %:%", "stars": "Key *:*", "lines": "Key a:b%0d%0a", "template": "Key ${jndi:x}:{{7*7}}",
        "a JWT": "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.", "two colons": f"Key a:b:{SECRET}",
    }.items():  # fmt: skip
        if secret is None:
            yield Raw(row=72, name=name, make=_long_key, expected=Expected((None, 400, 401, 431)), seconds=20)
        else:
            yield Script(row=72, name=name, steps=_everywhere(_auth(secret)))
    nul = "GET", "/v1/keys", "Authorization: Key a\x00b:c"
    make = partial(_nul_key, head=nul)
    yield Raw(row=72, name="NUL", make=make, expected=Expected((None, 400, 401)), seconds=20)
    yield Script(row=72, name="the right id, another secret", steps=_another_secret)
    for name, steps in (("revoked", _revoked), ("expired", _expired_key), ("of the wrong scope", _scope)):
        yield Script(row=73, name=name, steps=steps)


def _blank_key(caller: Caller) -> bytes:
    return caller.head("GET", f"/{FAST}", "Authorization: Key ", "Connection: close", key=False)


def _long_key(caller: Caller) -> bytes:
    return caller.head("GET", "/v1/keys", f"Authorization: Key {'x' * 50_000}:{'y' * 50_000}", key=False)


def _nul_key(caller: Caller, head: tuple[str, str, str]) -> bytes:
    return caller.head(*head, "Connection: close", key=False)


async def _in_the_query(caller: Caller) -> None:
    """Pinned: a key stands in a header and nowhere else, for addresses are written down everywhere."""
    for name in ("key", "fal_key", "authorization", "token"):
        await _everywhere([], f"?{name}={caller.key}")(caller)


async def _two_headers(caller: Caller) -> None:
    for others in (_auth("Key a:b"), _auth(f"Key {caller.key}")):
        await _everywhere([*_auth(f"Key {caller.key}"), *others])(caller)


async def _another_secret(caller: Caller) -> None:
    key_id, _, secret = caller.key.partition(":")
    for other in (secret[:-1], secret + "x", secret.upper(), secret[::-1], "x" * len(secret)):
        await _everywhere(_auth(f"Key {key_id}:{other}"))(caller)


async def _stops(caller: Caller, key: str) -> None:
    began = time.monotonic()
    while (await caller.call("GET", f"/queue/{FAST}/requests/{uuid4()}/status", key=key)).status != 401:
        assert time.monotonic() - began < BITES_SECONDS
        await asyncio.sleep(0.1)


async def _revoked(caller: Caller) -> None:
    key = await new_key(caller)
    assert (await caller.call("GET", f"/queue/{FAST}/requests/{uuid4()}/status", key=key)).status == 404
    assert (await caller.call("DELETE", f"/v1/keys/{key.partition(':')[0]}")).status == 204
    await _stops(caller, key)


async def _expired_key(caller: Caller) -> None:
    key = await new_key(caller, expires_at=(datetime.now(UTC) + timedelta(seconds=3)).isoformat())
    assert (await caller.call("GET", f"/queue/{FAST}/requests/{uuid4()}/status", key=key)).status == 404
    await asyncio.sleep(3)
    await _stops(caller, key)


async def _scope(caller: Caller) -> None:
    key = await new_key(caller)
    for method, path in (("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/x")):
        reply = await caller.call(method, path, key=key, json={"alias": "mine", "scope": "ADMIN"})
        assert reply.status == 403, reply.short


# ---------------------------------------------------------------- what is another's


async def _anothers(caller: Caller) -> None:
    """A stranger is told of a request, a file, a log what is told of one that never was."""
    submitted = await caller.call("POST", f"/queue/{FAST}", json=good())
    request_id = submitted.json["request_id"]
    stranger = await new_key(caller)
    unknown = str(uuid4())
    for method, path in (
        ("GET", "status"), ("GET", "status?logs=1"), ("GET", "status/stream"), ("GET", ""), ("GET", "response"),
        ("PUT", "cancel"),
    ):  # fmt: skip
        replies = [
            await caller.call(method, f"/queue/{FAST}/requests/{id}/{path}".rstrip("/"), key=stranger)
            for id in (request_id, unknown)
        ]
        assert replies[0].status == replies[1].status == 404, replies[0].short
        assert replies[0].body.replace(request_id.encode(), b"") == replies[1].body.replace(unknown.encode(), b"")
    for path in ("/v1/models/requests/by-endpoint", "/v1/models/billing-events", "/v1/models/usage"):
        params = {"endpoint_id": FAST, "expand": "time_series"}
        reply = await caller.call("GET", path, params=params, key=stranger)
        assert request_id.encode() not in reply.body, reply.short
    ended = await caller.result(FAST, request_id)
    assert ended.status == 200, ended.short
    file = await upload(caller, b"x", headers={"x-fal-object-lifecycle": '{"initial_acl": {"default": "hide"}}'})
    for path in ("/v1/storage/files/acl", "/v1/storage/files/sign"):
        method = "GET" if path.endswith("acl") else "POST"
        reply = await caller.call(method, path, params={"url": file}, json={"expiration_seconds": 60}, key=stranger)
        assert reply.status == 404, reply.short
    assert (await caller.call("GET", file, key=stranger)).status == 404


async def _odd_ids(caller: Caller) -> None:
    submitted = await caller.call("POST", f"/queue/{FAST}", json=good() | {"steps": 0})
    request_id = submitted.json["request_id"]
    for odd in (
        "x",
        request_id.upper(),
        "../x",
        "%2e%2e",
        "x" * 10_000,
        "'--",
        "%00",
        "*",
        "%",
        request_id[:-1],
        "🐈",
        "-1",
    ):
        for path in ("status", "", "status/stream"):
            reply = await caller.call("GET", f"/queue/{FAST}/requests/{odd}/{path}".rstrip("/"))
            assert reply.status in (404, 414), f"{odd[:40]}: {reply.short}"
        reply = await caller.call("PUT", f"/queue/{FAST}/requests/{odd}/cancel")
        assert reply.status in (404, 405, 414), f"{odd[:40]}: {reply.short}"
    for app in ("fal-ai/svd", "fal-ai", "fal-ai/fast-svd-lcm/x", "fal-ai/fast-svd-lcm/text-to-video", "%2e%2e/x"):
        reply = await caller.call("GET", f"/queue/{app}/requests/{request_id}/status")
        assert reply.status == 404, f"{app}: {reply.short}"


async def _early(caller: Caller) -> None:
    """The result of what still runs, and the end of what has ended."""
    many = [await caller.call("POST", f"/queue/{FAST}", json=good(steps=20)) for _ in range(3)]
    last = f"/queue/{FAST}/requests/{many[-1].json['request_id']}"
    refused(400, "bad_request").compare(early := await caller.call("GET", last))
    assert early.json["detail"] == "Request is still in progress"
    first, second = [await caller.call("PUT", f"{last}/cancel") for _ in range(2)]
    assert first.status == 202, first.short
    assert second.status == 202 or second.json["status"] == "ALREADY_COMPLETED", second.short
    for each in many[:-1]:
        await caller.call("PUT", f"/queue/{FAST}/requests/{each.json['request_id']}/cancel")
    ended = await caller.call("POST", f"/queue/{FAST}", json=good() | {"steps": 0})
    reply = await caller.call("PUT", f"/queue/{FAST}/requests/{ended.json['request_id']}/cancel")
    assert (reply.status, reply.json["status"]) == (400, "ALREADY_COMPLETED"), reply.short


CASES = [
    *_uploads(),
    *_keys(),
    Script(row=75, name="requests, files and lists", steps=_anothers),
    Script(row=76, name="odd ids", steps=_odd_ids),
    Call(row=76, name="no id", method="GET", path=f"/queue/{FAST}/requests//status", expected=Expected((404,))),
    Script(row=77, name="too early and too late", steps=_early),
]
