"""URLs that callers give us, the names of files, and what is made of both."""

from __future__ import annotations

import ipaddress
import json
import socket
import tempfile
import time
import unicodedata
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

import httpx
from starlette.requests import Request
from urllib3.util import parse_url

from deployments.errors import InvalidParameter
from deployments.gateway.submission import webhook_of
from deployments.gateway.upload_routes import LONGEST_NAME_BYTES, _as_utf8, clean_name, media_type
from deployments.gateway.webhook_routes import _public_keys
from deployments.queue.outbox import Delivery
from deployments.queue.request import InferenceRequest, RequestStatus
from deployments.queue.secrets import Secret
from deployments.queue.webhooks import body_of, headers_of
from deployments.storage import FileStorage, disposition_of, new_key
from deployments.storage.keys import check_key, is_key
from deployments.web import LONGEST_URL, PORTS, ForbiddenURL, Reach, check_url
from tests.fuzz.target import check_error, header, parts, target, text
from tests.receiver import Post, verifies

NAT64 = ipaddress.ip_network("64:ff9b::/96")
ORIGIN = "http://127.0.0.1:8000"
SHOWN = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/avif")
"""Pictures that a browser shows and that can hold no program."""

URL_WORDS = (
    *(
        "http://",
        "https://",
        "HTTP://",
        "file:///",
        "//",
        "\\",
        "@",
        "#",
        "?",
        ":",
        "[",
        "]",
        "%",
        "%2f",
        "%40",
        "\t",
        "\n",
    ),
    *(
        "127.0.0.1",
        "localhost",
        "[::1]",
        "0x7f.1",
        "2130706433",
        "①②⑦.⓪.⓪.①",
        "。",
        "xn--",
        "example.com",
        ":443",
        ":65536",
    ),
    *(f"{ORIGIN}/files/", "/files/", "b/", "..", "%2e%2e", ".parts", "#1", "%231", ".database/mark", "%00", "\ud7ff"),
)


@target(
    words=(*URL_WORDS, "CON", "\u202e", '"', "..", "/", "text/html", "image/svg+xml", "video/mp4", "+xml", ";", ",")
)
def file_name(data: bytes) -> None:
    """X-Fal-File-Name and a media type ──▶ a name fit for a path, a key of ours, and a header that adds no other."""
    name, kind = parts(data, 2)
    cleaned = clean_name(_as_utf8(header(name)) or "")
    assert 0 < len(cleaned.encode()) <= LONGEST_NAME_BYTES
    assert (
        cleaned.isprintable() and not set(cleaned) & set("/\\\"'\r\n\0<>:|?*#%") - {"'"} and cleaned not in (".", "..")
    )
    assert clean_name(cleaned) == cleaned, "cleaning twice gives another name"
    key = new_key(cleaned)
    assert is_key(key)
    check_key(key)
    assert _storage().key_of(_storage().url_of(key)) == key
    content_type = media_type(header(kind))
    content_type.encode("ascii")
    assert content_type.isprintable()
    disposition = disposition_of(key, content_type)
    main = content_type.partition(";")[0].strip().lower()
    if disposition is None:
        assert main in SHOWN or (main.startswith(("video/", "audio/")) and not main.endswith("+xml")), content_type
        return
    assert disposition.isascii() and disposition.isprintable() and '"' not in disposition
    prefix = "attachment; filename*=UTF-8''"
    assert disposition.startswith(prefix) and unquote(disposition.removeprefix(prefix)) == cleaned


@target(words=URL_WORDS)
def file_key(data: bytes) -> None:
    """A URL ──▶ the key of a file that lies in the storage's folder and nowhere else, or none."""
    storage, folder = _storage(), Path("/srv/files")
    for url in (text(data), f"{ORIGIN}/files/{text(data)}"):
        key = storage.key_of(url)
        if key is None:
            continue
        assert is_key(key) and storage.key_of(storage.url_of(key)) == key
        segments = key.split("/")
        assert not {"", ".", ".."} & set(segments) and segments[0] not in (".parts", ".database")
        assert folder in (folder / key).parents


@target(longest=8192, words=URL_WORDS)
def url(data: bytes) -> None:
    """A URL ──▶ the very one that is called, which all parsers read alike and which is no address of this network's."""
    asked = text(data)
    try:
        found = check_url(asked)
    except ForbiddenURL as error:
        assert len(str(error)) < 100 and ("://" not in asked or asked not in str(error))
        return
    host = found.raw_host.decode("ascii").lower()
    assert found.scheme in ("http", "https") and host and not found.userinfo and len(asked) <= LONGEST_URL
    assert found == httpx.Request("GET", asked).url
    assert not [letter for letter in asked if letter.isspace() or letter == "\\" or ord(letter) < 32]
    if asked.isascii():
        for other in (urlsplit(asked).hostname, parse_url(asked).host):
            assert other is not None and other.strip("[]").lower() == host, f"{other} or {host}?"
    else:
        authority = urlsplit(asked).netloc
        assert unicodedata.normalize("NFKC", authority) == authority or "xn--" in host, authority
        assert "\u3002" not in authority, "some parsers take it for a full stop"
    _check_reach(asked, host)
    if found.host == "127.0.0.1" and found.port == 8000 and found.path.startswith("/files/"):
        assert _storage().owns(asked)


def _check_reach(asked: str, host: str) -> None:
    """What may be called by its spelling alone: a usual port, and no address that is not public, in any disguise."""
    try:
        found = Reach().check(asked)
    except ForbiddenURL:
        return
    assert (found.port or 443) in PORTS
    assert host.removesuffix(".") != "localhost"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        assert not _is_address_to_c(host), f"the C library reads {host} as an address"
    else:
        assert _inner(address).is_global and not _inner(address).is_multicast, address


def _inner(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address to which another leads that wraps it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (last if address in NAT64 else address)


def _is_address_to_c(host: str) -> bool:
    """Whether a resolver takes a name for an address, as it does 127.1 and 0x7f.1."""
    try:
        return bool(socket.inet_aton(host))
    except OSError:
        return False


@target(longest=8192, words=URL_WORDS)
def webhook_url(data: bytes) -> None:
    """``fal_webhook`` ──▶ a URL that may be called, as it was written, or an error of the query."""
    query = urlencode({"fal_webhook": text(data)}).encode()
    try:
        found = webhook_of(Request({"type": "http", "query_string": query, "headers": []}), Reach())
    except InvalidParameter as error:
        check_error(error, "query")
        return
    assert found == text(data)
    assert check_url(found) == httpx.Request("POST", found).url


@target(words=("\\u0000", "\\n", "é", "\U0001f600"))
def webhook_signature(data: bytes) -> None:
    """What a caller can have put into a delivery ──▶ headers that verify its body, and no other."""
    changed, said = parts(data, 2)
    delivery = Delivery(_request(), "https://example.com", "example.com", 1, 0.0, json.dumps({"detail": text(said)}))
    body = body_of(delivery)
    sent = {
        name.decode().lower(): value.decode()
        for name, value in headers_of(delivery, body, _secret(), int(time.time())).items()
    }
    assert not any("\n" in value or "\r" in value for value in sent.values())
    assert json.loads(body)["payload"] == {"detail": text(said)}
    jwks = {"keys": _public_keys(_secret())}
    assert verifies(Post("/", sent, body), jwks)
    at = int.from_bytes(changed[:2]) % len(body)
    assert not verifies(Post("/", sent, body[:at] + changed + body[at:]), jwks) or not changed
    assert not verifies(Post("/", sent | {"x-fal-webhook-user-id": "id" + header(changed) + "x"}, body), jwks)


def _request() -> InferenceRequest:
    known = {each.name: None for each in fields(InferenceRequest)}
    values: dict[str, Any] = known | {
        "id": "00000000-0000-4000-8000-000000000000",
        "key_id": "id",
        "status": RequestStatus.COMPLETED,
        "status_code": 422,
        "attempt": 1,
    }
    return InferenceRequest(**values)


@cache
def _secret() -> Secret:
    return Secret("webhooks", 1, bytes(range(32)))


@cache
def _storage() -> FileStorage:
    return FileStorage(Path(tempfile.mkdtemp(prefix="svd-serve-fuzz-files-")), ORIGIN)
