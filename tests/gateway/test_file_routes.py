from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.errors import FileDamaged
from deployments.queue.files import Acl, AclRule, Files, Lifecycle
from deployments.queue.keys import Keys
from deployments.storage import FileStorage, Stat
from tests.conftest import add_file
from tests.gateway.conftest import Gateway, messages

CONTENT = bytes(range(256)) * 10
SIZE = len(CONTENT)
KEY = "b/0123456789abcdef/clip.mp4"
FILE = f"/files/{KEY}"


@pytest.fixture(autouse=True)
async def clip(gateway: Gateway, tmp_path: Path) -> None:
    await put(gateway, tmp_path, KEY)
    (tmp_path / "secret.txt").write_text("secret")


async def put(gateway: Gateway, tmp_path: Path, key: str, content: bytes = CONTENT) -> None:
    source = tmp_path / "source"
    source.write_bytes(content)
    await gateway.storage.put(source, key)


async def test_a_file_comes_whole_with_what_players_need_to_know(gateway: Gateway) -> None:
    reply = await gateway.client.get(FILE)

    assert reply.status_code == 200
    assert reply.content == CONTENT
    assert reply.headers["content-type"] == "video/mp4"
    assert reply.headers["content-length"] == str(SIZE)
    assert reply.headers["accept-ranges"] == "bytes"
    assert reply.headers["etag"].startswith('"')
    assert reply.headers["last-modified"].endswith("GMT")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "content-disposition" not in reply.headers
    assert "content-range" not in reply.headers


async def test_a_file_needs_no_key(gateway: Gateway) -> None:
    reply = await gateway.client.get(FILE, headers={"authorization": ""})

    assert reply.status_code == 200


async def test_head_tells_the_same_without_the_bytes(gateway: Gateway) -> None:
    head, get = await gateway.client.head(FILE), await gateway.client.get(FILE)

    assert head.status_code == 200
    assert head.content == b""
    for reply in (head, get):
        del reply.headers["x-fal-request-id"]
    assert head.headers == get.headers


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-", 0, SIZE - 1),
        ("bytes=0-0", 0, 0),
        ("bytes=0-1", 0, 1),
        ("bytes=100-199", 100, 199),
        ("bytes=100-", 100, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
        ("bytes=100-999999999", 100, SIZE - 1),
        (f"bytes=0-{SIZE - 1}", 0, SIZE - 1),
        ("bytes=-1", SIZE - 1, SIZE - 1),
        ("bytes=-100", SIZE - 100, SIZE - 1),
        ("bytes=-999999999", 0, SIZE - 1),
    ],
)
async def test_a_range_comes_alone(gateway: Gateway, asked: str, first: int, last: int) -> None:
    reply = await gateway.client.get(FILE, headers={"range": asked})

    assert reply.status_code == 206
    assert reply.content == CONTENT[first : last + 1]
    assert reply.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
    assert reply.headers["content-length"] == str(last - first + 1)


@pytest.mark.parametrize(
    "asked",
    [
        f"bytes={SIZE}-",
        "bytes=999999999-",
        "bytes=999999999-9999999999",
        "bytes=-0",
        "bytes=5-1",
    ],
)
async def test_a_range_without_a_byte_of_the_file_cannot_be_satisfied(gateway: Gateway, asked: str) -> None:
    reply = await gateway.client.get(FILE, headers={"range": asked})

    assert reply.status_code == 416
    assert reply.content == b""
    assert reply.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "asked",
    [
        "garbage",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=--1",
        "lines=0-1",
        "bytes=0-1,5-6",
        pytest.param(f"bytes={'9' * 5000}-", id="5000 digits"),
        pytest.param(f"bytes={','.join(f'{i}-{i}' for i in range(1000))}", id="1000 ranges"),
    ],
)
async def test_another_range_is_ignored(gateway: Gateway, asked: str) -> None:
    reply = await gateway.client.get(FILE, headers={"range": asked})

    assert reply.status_code == 200
    assert reply.content == CONTENT


async def test_an_empty_file_has_no_ranges(gateway: Gateway, tmp_path: Path) -> None:
    await put(gateway, tmp_path, "b/1/empty.mp4", b"")

    whole = await gateway.client.get("/files/b/1/empty.mp4")
    part = await gateway.client.get("/files/b/1/empty.mp4", headers={"range": "bytes=-1"})
    assert (whole.status_code, whole.content) == (200, b"")
    assert part.status_code == 416


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', '"other",W/{}', "*"])
async def test_a_known_etag_is_not_sent_again(gateway: Gateway, form: str) -> None:
    etag = (await gateway.client.get(FILE)).headers["etag"]

    reply = await gateway.client.get(FILE, headers={"if-none-match": form.format(etag)})
    assert reply.status_code == 304
    assert reply.content == b""
    assert reply.headers["etag"] == etag


async def test_another_etag_gets_the_file(gateway: Gateway) -> None:
    reply = await gateway.client.get(FILE, headers={"if-none-match": '"other"'})

    assert (reply.status_code, reply.content) == (200, CONTENT)


async def test_a_changed_file_has_another_etag(gateway: Gateway, tmp_path: Path) -> None:
    before = (await gateway.client.get(FILE)).headers["etag"]
    await put(gateway, tmp_path, KEY, CONTENT[1:])

    assert (await gateway.client.get(FILE)).headers["etag"] != before


async def test_if_range_gives_the_range_of_the_same_file(gateway: Gateway) -> None:
    etag = (await gateway.client.get(FILE)).headers["etag"]

    reply = await gateway.client.get(FILE, headers={"range": "bytes=1-2", "if-range": etag})
    assert (reply.status_code, reply.content) == (206, CONTENT[1:3])


@pytest.mark.parametrize("validator", ['"other"', 'W/"other"', "Wed, 21 Oct 2015 07:28:00 GMT"])
async def test_if_range_gives_the_whole_of_another_file(gateway: Gateway, validator: str) -> None:
    reply = await gateway.client.get(FILE, headers={"range": "bytes=1-2", "if-range": validator})

    assert (reply.status_code, reply.content) == (200, CONTENT)


@pytest.mark.parametrize(
    ("name", "content_type", "played"),
    [
        ("clip.mp4", "video/mp4", True),
        ("cat.png", "image/png", True),
        ("cat.jpg", "image/jpeg", True),
        ("page.html", "text/html", False),
        ("cat.svg", "image/svg+xml", False),
        ("archive.tar", "application/x-tar", False),
        ("unknown", "application/octet-stream", False),
    ],
)
async def test_only_media_are_shown_by_a_browser(
    gateway: Gateway, tmp_path: Path, name: str, content_type: str, played: bool
) -> None:
    await put(gateway, tmp_path, f"b/2/{name}")

    reply = await gateway.client.get(f"/files/b/2/{name}")
    assert reply.headers["content-type"].split(";")[0] == content_type
    assert reply.headers.get("content-disposition") == (None if played else f"attachment; filename*=UTF-8''{name}")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-security-policy"].endswith("; sandbox")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "b",
        "b/",
        "b/0123456789abcdef",
        "b/0123456789abcdef/other.mp4",
        f"{KEY}/more",
        f"{KEY}%00",
        "%00",
        "é",
        "%FF",
        pytest.param("x" * 5000, id="long name"),
        pytest.param("x/" * 3000, id="deep path"),
    ],
)
async def test_an_unknown_file_is_not_found(gateway: Gateway, key: str) -> None:
    for method in ("GET", "HEAD"):
        reply = await gateway.client.request(method, f"/files/{key}")
        assert reply.status_code == 404
    assert (await gateway.client.get(f"/files/{key}")).json()["error_type"] == "not_found"


@pytest.mark.parametrize(
    "path",
    [
        "/files/../secret.txt",
        "/files/b/../../secret.txt",
        "/files/./../secret.txt",
        "/files//etc/passwd",
        "/files/..\\secret.txt",
        "/files/%2e%2e/secret.txt",
    ],
)
async def test_a_path_leads_out_of_the_directory_for_nobody(gateway: Gateway, path: str) -> None:
    async with aclosing(messages(gateway.app, path)) as sent:
        start, *bodies = [message async for message in sent]

    assert start["status"] == 404
    assert b"secret" not in b"".join(message["body"] for message in bodies)


@pytest.mark.parametrize(
    "path", ["%2e%2e/secret.txt", "b/%2e%2e/%2e%2e/secret.txt", "..%2fsecret.txt", "%2fetc%2fpasswd"]
)
async def test_an_encoded_path_leads_out_of_the_directory_for_nobody(gateway: Gateway, path: str) -> None:
    reply = await gateway.client.get(f"/files/{path}")

    assert reply.status_code == 404
    assert "secret" not in reply.text


@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("PUT", 401), ("DELETE", 405)])
async def test_files_cannot_be_written_without_the_token_of_an_upload(
    gateway: Gateway, method: str, status: int
) -> None:
    reply = await gateway.client.request(method, FILE)

    assert reply.status_code == status
    assert (await gateway.client.get(FILE)).content == CONTENT


# ---------------------------------------------------------------- who may read, and until when

OWNER = "id"
NOBODY = {"authorization": ""}
ACL = "/v1/storage/files/acl"
SIGN = "/v1/storage/files/sign"
SETTINGS = "/v1/storage/settings"


async def own(gateway: Gateway, content_type: str = "video/mp4", owner: str = OWNER, **lifecycle: Any) -> None:
    """Give the file of this module to a key."""
    await add_file(gateway.store.database, KEY, owner, content_type, SIZE, Lifecycle(**lifecycle))


async def stranger(gateway: Gateway) -> tuple[str, dict[str, str]]:
    """The id of another key, and the header that its owner sends."""
    key, secret = await Keys(gateway.store.database).create("other")
    return key.id, {"authorization": f"Key {key.id}:{secret}"}


async def statuses(gateway: Gateway, *callers: dict[str, str] | None) -> list[int]:
    return [(await gateway.client.get(FILE, headers=headers)).status_code for headers in callers]


async def test_the_type_that_a_file_was_given_comes_back(gateway: Gateway) -> None:
    await own(gateway, "text/html")
    reply = await gateway.client.get(FILE)
    assert reply.headers["content-type"] == "text/html"
    assert reply.headers["content-disposition"] == "attachment; filename*=UTF-8''clip.mp4"


@pytest.mark.parametrize(("decision", "status"), [("allow", 200), ("forbid", 403), ("hide", 404)])
async def test_an_acl_is_for_everybody_but_the_owner(gateway: Gateway, decision: Any, status: int) -> None:
    await own(gateway, acl=Acl(default=decision))
    _, other = await stranger(gateway)

    assert await statuses(gateway, None, other, NOBODY, {"authorization": "Key wrong:key"}) == [200] + [status] * 3
    for method in ("GET", "HEAD"):
        headers = {**NOBODY, "range": "bytes=0-1", "if-none-match": "*"}
        reply = await gateway.client.request(method, FILE, headers=headers)
        assert reply.status_code == (304 if status == 200 else status)


@pytest.mark.parametrize("path", [f"/files//{KEY}", f"/files/%2F{KEY}", f"{FILE}/", f"{FILE}%2F"])
async def test_another_slash_is_no_way_around_an_acl(gateway: Gateway, path: str) -> None:
    await own(gateway, acl=Acl(default="forbid"))
    base = str(gateway.client.base_url).rstrip("/")
    assert await statuses(gateway, NOBODY) == [403]
    assert (await gateway.client.get(base + path, headers=NOBODY)).status_code == 404
    assert (await gateway.client.get(ACL, params={"url": base + path})).status_code == 400


async def test_a_hidden_file_looks_like_none(gateway: Gateway) -> None:
    missing = await gateway.client.get("/files/b/0123456789abcdef/none.mp4", headers=NOBODY)
    await own(gateway, acl=Acl(default="hide"))
    assert (await gateway.client.get(FILE, headers=NOBODY)).json() == missing.json()


async def test_a_rule_is_for_one_user(gateway: Gateway) -> None:
    user, other = await stranger(gateway)
    await own(gateway, acl=Acl(default="hide", rules=(AclRule(user=user, decision="allow"),)))

    assert await statuses(gateway, other, NOBODY) == [200, 404]


async def test_what_not_everybody_may_read_is_not_cached_for_everybody(gateway: Gateway) -> None:
    await own(gateway, acl=Acl(default="forbid"))
    assert (await gateway.client.get(FILE)).headers["cache-control"] == "private, no-cache"


async def test_a_file_is_cached_no_longer_than_it_lives(gateway: Gateway) -> None:
    await own(gateway, seconds=100)
    public, max_age = (await gateway.client.get(FILE)).headers["cache-control"].split(", max-age=")
    assert public == "public" and 90 <= int(max_age) <= 100


async def test_an_expired_file_is_gone(gateway: Gateway) -> None:
    await own(gateway, seconds=1)
    assert (await gateway.client.get(FILE)).status_code == 200
    async with asyncio.timeout(10):
        while (await gateway.client.get(FILE)).status_code == 200:
            await asyncio.sleep(0.05)
    assert await statuses(gateway, None, NOBODY) == [404, 404]
    assert (await gateway.client.get(ACL, params={"url": f"{gateway.client.base_url}{FILE}"})).status_code == 404


@pytest.fixture
def url(gateway: Gateway) -> str:
    return str(gateway.client.base_url).rstrip("/") + FILE


async def test_an_owner_reads_and_changes_an_acl(gateway: Gateway, url: str) -> None:
    await own(gateway)
    assert (await gateway.client.get(ACL, params={"url": url})).json() == {"default": "allow", "rules": []}

    acl = {"default": "forbid", "rules": [{"user": "bob", "decision": "allow"}]}
    reply = await gateway.client.put(ACL, params={"url": url}, json=acl)
    assert (reply.status_code, reply.json()) == (200, acl)
    assert (await gateway.client.get(ACL, params={"url": url})).json() == acl
    assert await statuses(gateway, None, NOBODY) == [200, 403]


async def test_a_signed_url_overrides_the_acl(gateway: Gateway, url: str) -> None:
    await own(gateway, acl=Acl(default="hide"))
    signed = (await gateway.client.post(SIGN, params={"url": url}, json={"expiration_seconds": 60})).json()[
        "signed_url"
    ]

    assert signed.startswith(url + "?")
    reply = await gateway.client.get(signed, headers=NOBODY)
    assert (reply.status_code, reply.content) == (200, CONTENT)
    assert (await gateway.client.get(signed[:-2], headers=NOBODY)).status_code == 401
    token = httpx.URL(signed).params["token"]
    assert (await gateway.client.put(FILE, params={"token": token}, content=b"x")).status_code == 401


async def test_a_signed_url_ends(gateway: Gateway, url: str) -> None:
    await own(gateway, acl=Acl(default="hide"))
    signed = (await gateway.client.post(SIGN, params={"url": url}, json={"expiration_seconds": 1})).json()["signed_url"]
    async with asyncio.timeout(10):
        while (reply := await gateway.client.get(signed, headers=NOBODY)).status_code == 200:
            await asyncio.sleep(0.05)
    assert (reply.status_code, reply.json()["detail"]) == (401, "The token has expired")


async def test_a_signed_url_does_not_outlive_its_file(gateway: Gateway, url: str) -> None:
    await own(gateway, seconds=1)
    signed = (await gateway.client.post(SIGN, params={"url": url}, json={"expiration_seconds": 600})).json()[
        "signed_url"
    ]
    async with asyncio.timeout(10):
        while (reply := await gateway.client.get(signed)).status_code == 200:
            await asyncio.sleep(0.05)
    assert reply.status_code == 404


async def test_access_is_its_owners_business(gateway: Gateway, url: str) -> None:
    calls = [("GET", ACL, None), ("PUT", ACL, {"default": "allow"}), ("POST", SIGN, {"expiration_seconds": 60})]
    _, other = await stranger(gateway)
    for method, path, body in calls:  # nobody owns it yet
        assert (await gateway.client.request(method, path, params={"url": url}, json=body)).status_code == 404
    await own(gateway, acl=Acl(default="forbid"))
    for method, path, body in calls:
        reply = await gateway.client.request(method, path, params={"url": url}, json=body, headers=other)
        assert reply.status_code == 404
        reply = await gateway.client.request(method, path, params={"url": url}, json=body, headers=NOBODY)
        assert reply.status_code == 401
        reply = await gateway.client.request(method, path, params={"url": "https://example.com/a"}, json=body)
        assert reply.status_code == 400
        reply = await gateway.client.request(method, path, json=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "validation_error")
    assert await statuses(gateway, other) == [403]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", ACL, {}),
        ("PUT", ACL, {"default": "deny"}),
        ("PUT", ACL, {"default": "allow", "rules": [{"user": "bob"}]}),
        ("POST", SIGN, {}),
        ("POST", SIGN, {"expiration_seconds": 0}),
        ("POST", SIGN, {"expiration_seconds": 604801}),
        ("PUT", SETTINGS, {"expiration_duration_seconds": -5}),
        ("PUT", SETTINGS, {"initial_acl": {"default": "deny"}}),
    ],
)
async def test_a_malformed_wish_is_told(gateway: Gateway, url: str, method: str, path: str, body: object) -> None:
    await own(gateway)
    reply = await gateway.client.request(method, path, params={"url": url}, json=body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "validation_error"), reply.text
    assert (await gateway.client.get(FILE, headers=NOBODY)).status_code == 200


async def test_settings_are_the_defaults_of_new_files(gateway: Gateway) -> None:
    nothing = {"expiration_duration_seconds": None, "initial_acl": None}
    assert (await gateway.client.get(SETTINGS)).json() == nothing
    settings = {"expiration_duration_seconds": 3600, "initial_acl": {"default": "hide", "rules": []}}
    assert (await gateway.client.put(SETTINGS, json=settings)).json() == settings
    assert (await gateway.client.get(SETTINGS)).json() == settings
    _, other = await stranger(gateway)
    assert (await gateway.client.get(SETTINGS, headers=other)).json() == nothing

    async def upload(**headers: str) -> httpx.Response:
        reply = await gateway.client.post("/files/upload", content=b"x", headers=headers)
        return await gateway.client.get(reply.json()["access_url"], headers=NOBODY)

    assert (await upload()).status_code == 404
    allowed = json.dumps({"initial_acl": {"default": "allow"}})
    assert (await upload(**{"X-Fal-Object-Lifecycle": allowed})).headers["cache-control"] == "private, no-cache"
    assert (await gateway.client.put(SETTINGS, json={})).json() == nothing
    assert (await upload()).status_code == 200


# ---------------------------------------------------------------- what was stored is what is sent


async def keep(gateway: Gateway, content: bytes = CONTENT) -> Path:
    """Upload a file; answer where its bytes lie."""
    reply = await gateway.client.post("/files/upload", content=content, headers={"x-fal-file-name": "kept.mp4"})
    key = gateway.storage.key_of(reply.json()["access_url"])
    assert key is not None
    return Path(key)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[SIZE // 2] ^= 1
    path.write_bytes(content)


ASKED: list[tuple[str, dict[str, str]]] = [
    ("GET", {}),
    ("HEAD", {}),
    ("GET", {"range": "bytes=0-9"}),
    ("GET", {"if-none-match": "*"}),
]


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("read_before", [True, False])
async def test_wrong_bytes_are_never_sent(
    gateway: Gateway,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    read_before: bool,
) -> None:
    key = await keep(gateway)
    if read_before:
        assert (await gateway.client.get(f"/files/{key}")).content == CONTENT
    damage(tmp_path / "files" / key)

    for method, headers in ASKED:
        reply = await gateway.client.request(method, f"/files/{key}", headers=headers)
        assert reply.status_code == 500
        assert reply.headers["x-fal-error-type"] == "internal_error"
        if method == "GET":
            assert set(reply.json()) == {"detail", "error_type"}
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert any("b/…/kept.mp4, of an upload of key id" in error for error in errors)
    assert key.parts[1] not in caplog.text


async def test_a_file_is_read_once_to_be_checked(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await keep(gateway)
    read: list[str] = []
    reader = FileStorage.read

    def counted(storage: FileStorage, key: str, start: int, end: int, etag: str | None = None) -> AsyncIterator[bytes]:
        read.append(key)
        return reader(storage, key, start, end, etag)

    monkeypatch.setattr(FileStorage, "read", counted)
    heads = await asyncio.gather(*(gateway.client.head(f"/files/{key}") for _ in range(5)))
    assert [reply.status_code for reply in heads] == [200] * 5
    assert read == [str(key)]


async def test_a_file_that_changes_while_it_is_sent_is_cut_off(gateway: Gateway, tmp_path: Path) -> None:
    key = await keep(gateway, b"x" * 2 * 1024 * 1024)
    sent = b""
    with pytest.raises(RuntimeError) as caught:
        async with aclosing(messages(gateway.app, f"/files/{key}")) as answer:
            async for message in answer:
                sent += message.get("body", b"")
                flip(tmp_path / "files" / key)
    assert isinstance(caught.value.__cause__, FileDamaged)
    assert len(sent) < 2 * 1024 * 1024


async def test_a_file_of_code_that_told_no_hash_is_checked_by_its_length(gateway: Gateway, tmp_path: Path) -> None:
    await add_file(gateway.store.database, KEY, "id", "video/mp4", SIZE, Lifecycle())
    assert (await gateway.client.get(FILE)).content == CONTENT
    truncate(tmp_path / "files" / KEY)
    assert (await gateway.client.get(FILE)).status_code == 500


async def test_a_file_that_was_deleted_meanwhile_is_not_found(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await keep(gateway)
    verify = FileStorage.verify

    async def deleted(storage: FileStorage, *arguments: Any) -> Stat:
        await storage.delete(str(key))
        await Files(gateway.store.database).forget([str(key)])
        return await verify(storage, *arguments)

    monkeypatch.setattr(FileStorage, "verify", deleted)
    assert (await gateway.client.get(f"/files/{key}")).status_code == 404
