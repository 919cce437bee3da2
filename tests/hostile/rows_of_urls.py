"""Rows 23 to 37, 40 and 79: where a URL leads, and what is found there."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from tests.hostile.names import OWN_NAME, PUBLIC
from tests.hostile.rows_of_bodies import good
from tests.hostile.table import (
    FAST,
    GOOD,
    NO_DOWNLOAD,
    PATIENCE,
    STABLE,
    SVD,
    Call,
    Caller,
    Case,
    Expected,
    Input,
    Reply,
    Script,
    data_uri,
    made,
    model_error,
    refused,
)
from tests.hostile.web import picture
from tests.hostile.world import PORT

LARGEST_PICTURE = 20 * 1024 * 1024
BROKEN = model_error("image_load_error", "image_url")
TOO_LARGE = model_error("file_too_large", "image_url")
PASSWORD = "hunter2-of-a-caller"

LOOPBACKS = (
    "127.0.0.1", "localhost", "localhost.", "LOCALHOST", "127.1", "127.0.1", "2130706433", "017700000001",
    "0177.0.0.1", "0x7f000001", "0x7f.1", "0.0.0.0", "0", "127.255.255.254", "loopback.example", "127.0.0.1.",
)  # fmt: skip
SIXES = (
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]", "[fe80::1%25lo]", "[fe80::1%lo]", "[fe80::1]", "[fd00:ec2::254]", "[::127.0.0.1]",
    "[2001::1]", "[ff02::1]", "[100::1]", "[0:0:0:0:0:0:0:1]", "private-six.example",
)  # fmt: skip
PRIVATES = (
    "169.254.169.254", "metadata.google.internal", "100.100.100.200", "10.0.0.1", "172.16.0.1", "192.168.1.1",
    "100.64.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.1", "192.0.2.1",
    "0251.0376.0251.0376", "2852039166", "private.example", "alias.example",
)  # fmt: skip
DISGUISES = (
    "①②⑦.⓪.⓪.①", "127。0。0。1", "127\uff0e0\uff0e0\uff0e1", "\uff11\uff12\uff17.0.0.1", "ⓛocalhost",
    "loc\u00adalhost", "xn--localhost-.example", "127.0.0.1\u200b", "private。example",
)  # fmt: skip
SCHEMES = (
    "file:///etc/passwd", "file://localhost/etc/passwd", "gopher://127.0.0.1:6379/_x", "ftp://127.0.0.1/x",
    "dict://127.0.0.1:11211/stat", "unix:/var/run/docker.sock", "jar:http://127.0.0.1!/x", "blob:http://127.0.0.1/x",
    "javascript:alert(1)", "s3://bucket/key", "//127.0.0.1/x", "/etc/passwd", "http:", "http://", "ws://127.0.0.1/",
    "ldap://127.0.0.1", "view-source:http://127.0.0.1", "http:127.0.0.1", "nope",
)  # fmt: skip
SPLIT = (
    "http://public.example/\r\nHost: private.example", "http://public.example/\tx", "http://public.example/a b\r\n\r\n",
    "http://public.example\\@private.example/", "http://private.example\\@public.example/",
    "http://private.example#@public.example/", "http://private.example?@public.example/",
    "http://public.example@private.example/", "http://private.example%2f@public.example/",
    "http://public.example:80@private.example/", "http://[::1]@public.example/", "http://public.example:80:80/",
    "http://private.example%00.public.example/", "http://\nprivate.example/", "http://private.example:80\\x/",
)  # fmt: skip


def at(row: int, url: str, expected: Expected = NO_DOWNLOAD, name: str = "", **more: Any) -> Input:
    """A line that is a URL."""
    return Input(row=row, name=name or url, body=good(image_url=url), expected=expected, **more)


def _places() -> Iterator[Case]:
    for row, hosts in ((23, LOOPBACKS), (24, SIXES), (25, PRIVATES), (26, DISGUISES)):
        for host in hosts:
            yield at(row, f"http://{host}/row-{row}")
    yield at(23, f"http://127.0.0.1:{PORT}/health/live")
    yield at(25, "https://10.0.0.1/row-25")
    for target in ("http://127.0.0.1/", "http://private.example/", "http://[::1]/", "file:///etc/passwd", "//10.0.0.1/",
                   "gopher://127.0.0.1/", "http://u:p@public.example/picture", "http://public.example:22/",
                   f"http://127.0.0.1:{PORT}/health/live", "http://169.254.169.254/latest"):  # fmt: skip
        yield at(27, f"http://public.example/to/{quote(target, safe='')}", name=f"to {target}")
    yield at(27, "http://public.example/hops/5", made(), modes=("run",))
    yield at(27, "http://public.example/hops/6")
    yield at(27, "http://public.example/around/")
    for mode in ("run", "queue"):
        yield Script(row=28, name=mode, steps=_rebinding(mode))
    yield Script(row=28, name="behind a redirect", steps=_rebinding("run", "http://public.example/to/"))
    yield at(29, "http://mixed.example/row-29")
    yield at(29, "http://mixed-six.example/row-29")
    for url in SCHEMES:
        yield at(30, url)
    yield Script(row=31, name="user and password", steps=_password)
    for port in (22, 25, 2375, 5432, 6379, 8000, 8265, 9200, 10001, 11211, 0, 65536, 99999, -1):
        yield at(32, f"http://public.example:{port}/row-32")
    for url in ("http://public.example:8080/picture", "https://trusted.example/picture",
                "https://trusted.example:8443/picture", "http://public.example:/picture"):  # fmt: skip
        yield at(32, url, made(), modes=("run",))
    for url in SPLIT:
        yield at(33, url)


def _rebinding(mode: str, before: str = "") -> Any:
    """The name is public when it is asked for, and the loopback's ever after: it is asked for once."""

    async def steps(caller: Caller) -> None:
        name = f"rebind-{mode}{len(before)}.example"
        url = f"http://{name}/picture"
        body = good(image_url=before + quote(url, safe="") if before else url)
        reply = await (caller.post if mode == "run" else caller.queued)(FAST, body)
        made().compare(reply)
        assert caller.world.state()["asked"][name] == 1

    return steps


async def _password(caller: Caller) -> None:
    """Refused; the password is in no answer, and ``test_table`` looks for it in every log."""
    for url in (f"http://user:{PASSWORD}@public.example/picture", f"http://{PASSWORD}@public.example/picture"):
        for reply in (await caller.post(FAST, good(image_url=url)), await caller.queued(FAST, good(image_url=url))):
            NO_DOWNLOAD.compare(reply)
            assert PASSWORD.encode() not in reply.body, reply.short


# ---------------------------------------------------------------- our own files


async def upload(caller: Caller, content: bytes, name: str = "x.png", kind: str = "image/png", **options: Any) -> str:
    """A file of ours; answers its URL."""
    headers = {"content-type": kind, "x-fal-file-name": name} | options.pop("headers", {})
    reply = await caller.call("POST", "/files/upload", content=content, headers=headers, **options)
    assert reply.status == 200, reply.short
    return str(reply.json["access_url"])


async def new_key(caller: Caller, **body: Any) -> str:
    """Another caller's ``id:secret``."""
    reply = await caller.call("POST", "/v1/keys", json={"alias": "another", **body})
    assert reply.status == 201, reply.short
    return str(reply.json["key"])


async def _own_files(caller: Caller) -> None:
    """Our name leads to a honeypot: a file that is read over HTTP is seen there."""
    url = await upload(caller, picture())
    path = url.removeprefix(f"http://{OWN_NAME}")
    for each in (
        url,
        f"HTTP://{OWN_NAME.upper()}{path}",
        f"http://{OWN_NAME}:80{path}",
        url.replace("/files/", "/%66iles/"),
        url + "?x=1#y",
    ):
        reply = await caller.post(FAST, good(image_url=each))
        assert reply.status == 200, f"{each}: {reply.short}"


async def _others_files(caller: Caller) -> None:
    """A file that its owner keeps to himself is read for nobody else."""
    hidden = json.dumps({"initial_acl": {"default": "hide"}})
    url = await upload(caller, picture(), headers={"x-fal-object-lifecycle": hidden})
    stranger = await new_key(caller)
    for path in (f"/{FAST}", f"/queue/{FAST}"):
        reply = await caller.call("POST", path, json=good(image_url=url), key=stranger)
        if reply.status == 200:
            address = f"/queue/{FAST}/requests/{reply.json['request_id']}"
            reply = await caller.call("GET", address, key=stranger)
        NO_DOWNLOAD.compare(reply)
    made().compare(await caller.post(FAST, good(image_url=url)))


def _own() -> Iterator[Case]:
    yield Script(row=34, name="our own files, however they are written", steps=_own_files)
    yield Script(row=34, name="a file of another's", steps=_others_files)
    for path in ("/health/ready", "/files/no/such/file.png", "/files/../health/live", "/files/%2e%2e/x", "/row-34"):
        yield at(34, f"http://{OWN_NAME}{path}")
    yield at(34, f"http://127.0.0.1:{PORT}/files/samples/landscape.jpg")


# ---------------------------------------------------------------- what is found


def _answers() -> Iterator[Case]:
    for code in (400, 401, 403, 404, 407, 410, 418, 429, 500, 503):
        yield at(35, f"http://public.example/status/{code}")
    for host in ("selfsigned", "expired", "wrongname"):
        yield at(35, f"https://{host}.example/picture")
    yield at(35, f"https://{PUBLIC}/picture")
    yield at(35, "http://nx.example/picture")
    yield at(35, "http://silent.example/picture")
    yield at(35, "https://public.example:8080/picture", name="TLS where there is none")
    yield at(35, "http://public.example:443/picture", name="no TLS where there is some")
    yield at(35, "http://public.example/short", name="shorter than it says")
    for path in ("announces", "endless", "chunks"):
        yield at(36, f"http://public.example/{path}", TOO_LARGE)
    yield at(36, "http://public.example/headers", name="headers without an end")
    # Of other models than the rest: a batch waits for the slowest of its pictures, and two batches for nothing else.
    both = ("run", "queue")
    for path, endpoint, modes in (("drip", STABLE, both), ("drip-headers", SVD, both), ("silence", SVD, ("run",))):
        yield at(36, f"http://public.example/{path}", slow=True, endpoint=endpoint, modes=modes)
    # Pinned: we ask for the bytes as they are; what is packed all the same is unpacked, and counted as it is.
    for kind in ("gzip", "deflate", "gzip, gzip"):
        yield at(37, f"http://public.example/gzip-bomb/{quote(kind)}", Expected((422,), check=_not_read), name=kind)
    yield Script(row=38, name="what is sent when we fetch", steps=_what_is_sent)
    yield at(38, "http://public.example/login", BROKEN)
    yield Script(row=39, name="a JPEG that is called PNG", steps=_called_otherwise)


def _not_read(reply: Reply) -> None:
    (detail,) = reply.json["detail"]
    assert detail["loc"] == ["body", "image_url"] and detail["type"] in ("file_too_large", "file_download_error")


async def _what_is_sent(caller: Caller) -> None:
    """No key, no cookie of another's, no name of a library; and nothing packed is asked for."""
    for _ in range(2):
        made().compare(await caller.post(FAST, good(image_url="http://public.example/cookies")))
    visits = [visit for visit in caller.world.state()["visits"] if visit["path"] == "/cookies"]
    assert len(visits) == 2
    for visit in visits:
        assert visit["method"] == "GET" and visit["accept-encoding"] == "identity"
        assert not {"cookie", "authorization", "referer"} & set(visit)
        assert "svd-serve" in visit["user-agent"] and "python" not in visit["user-agent"].lower()


async def _called_otherwise(caller: Caller) -> None:
    from tests.inference.hostile import image_bytes, scene

    caller.world.serve_file("photo.png", image_bytes(scene(), "JPEG"))
    for kind in ("image/png", "text/html", "application/json"):
        made().compare(await caller.post(FAST, good(image_url=f"http://public.example/typed/{kind}/photo.png")))


def _data_uris() -> Iterator[Case]:
    text = GOOD.partition(",")[2]
    for name, uri, expected in (
        ("good", GOOD, made()),
        ("in upper case", GOOD.replace("data:image/png;base64", "DATA:IMAGE/PNG;BASE64"), made()),
        ("with a parameter", GOOD.replace(";base64", ";charset=x;base64"), made()),
        ("without base64", f"data:image/png,{quote(picture())}", made()),
        ("without base64, as text", "data:,hello", BROKEN),
        ("without a comma", "data:image/png;base64", BROKEN),
        ("truncated", GOOD[: len(GOOD) // 2 - 1], BROKEN),
        ("a wrong alphabet", "data:image/png;base64,!!!!" + text, BROKEN),
        ("nothing", "data:image/png;base64,", BROKEN),
        ("nothing at all", "data:", BROKEN),
    ):
        yield at(40, uri, expected, name=name)
    # Pinned: only the usual alphabet, as browsers have it.
    yield at(40, data_uri(b"\xfb\xff\xfe" * 100).replace("+", "-").replace("/", "_"), BROKEN, name="URL-safe alphabet")
    yield Input(row=40, name="more than is read", body=_large_uri, expected=TOO_LARGE)
    huge = b'{"image_url": "data:image/png;base64,' + b"A" * 200_000_000
    sync = {"content": huge, "headers": {"content-type": "application/json"}}
    yield Script(row=40, name="200 MB", steps=_huge(sync))
    yield at(41, GOOD.replace("image/png", "text/html"), made(), name="a picture that is called a page")
    yield at(41, data_uri(b"<!doctype html><p>x"), BROKEN, name="a page that is called a picture")


def _large_uri() -> Any:
    return good(image_url=data_uri(bytes(LARGEST_PICTURE + 1)))


def _huge(options: Any) -> Any:
    async def steps(caller: Caller) -> None:
        head = caller.head("POST", f"/{FAST}", "Content-Type: application/json", f"Content-Length: {200_000_000}")
        refused(413, "bad_request").compare(await caller.raw([head, options["content"][:1_000_000]], 20))

    return steps


# ---------------------------------------------------------------- webhooks


def _webhooks() -> Iterator[Case]:
    for name, url, bad in (
        ("credentials", "https://user:pw@public.example/hook", True),
        ("8 KB", "https://public.example/" + "x" * 8192, True),
        ("a scheme", "ftp://public.example/hook", True),
        ("file", "file:///etc/passwd", True),
        ("javascript", "javascript:alert(1)", True),
        ("no host", "http:///hook", True),
        ("no URL", "hook", True),
        ("empty", "", True),
        ("lines", "http://public.example/\r\nx: y", True),
        ("NUL", "http://public.example/\0", True),
        ("127.0.0.1", "http://127.0.0.1/hook", None),
        ("IPv6", "http://[fd00:ec2::254]/hook", None),
        ("localhost", "http://localhost/hook", None),
        ("a port", "http://public.example:6379/hook", None),
        ("private.example", "http://private.example/hook", False),
        ("mixed.example", "http://mixed.example/hook", False),
    ):
        path = f"/queue/{FAST}?fal_webhook={quote(url, safe='')}"
        if bad:
            call = {"json": good() | {"steps": 0}}
            yield Call(row=79, name=name, method="POST", path=path, options=call, expected=Expected((400, 422)))
        else:
            yield Script(row=79, name=name, steps=_undelivered(path, bad is None))
    yield Script(row=79, name="a public one", steps=_delivered)


def _undelivered(path: str, at_once: bool) -> Any:
    """A literal address may be refused at once; a name is found out when it is called. Neither is ever reached."""

    async def steps(caller: Caller) -> None:
        reply = await caller.call("POST", path, json=good() | {"steps": 0})
        if at_once and reply.status in (400, 422):
            return
        assert reply.status == 200, reply.short
        state = await _state_of_webhook(caller, reply.json["request_id"], "DUE")
        assert state == "UNDELIVERED", state

    return steps


async def _delivered(caller: Caller) -> None:
    """What shows that the others could have been: a public one arrives."""
    url = quote("http://public.example/hook/of-the-table", safe="")
    reply = await caller.call("POST", f"/queue/{FAST}?fal_webhook={url}", json=good() | {"steps": 0})
    assert await _state_of_webhook(caller, reply.json["request_id"], "DUE") == "DELIVERED"
    (visit,) = [visit for visit in caller.world.state()["visits"] if visit["path"] == "/hook/of-the-table"]
    assert json.loads(visit["body"])["status"] == "ERROR"


async def _state_of_webhook(caller: Caller, request_id: str, *unfinished: str) -> str:
    """How a delivery ended, from the outbox."""
    database = f"file:{caller.world.folder}/data/svd-serve.db?mode=ro"
    async with asyncio.timeout(PATIENCE):
        while True:
            with sqlite3.connect(database, uri=True) as connection:
                row = connection.execute("SELECT state FROM webhooks WHERE request_id = ?", [request_id]).fetchone()
            connection.close()
            if row and row[0] not in ("WAITING", *unfinished):
                return str(row[0])
            await asyncio.sleep(0.1)


CASES = [*_places(), *_own(), *_answers(), *_data_uris(), *_webhooks()]
