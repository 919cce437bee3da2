from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest

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
    assert reply.headers["content-security-policy"] == "sandbox"


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


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_files_cannot_be_written(gateway: Gateway, method: str) -> None:
    reply = await gateway.client.request(method, FILE)

    assert reply.status_code == (401 if method == "PUT" else 405)  # a PUT wants the token of an upload
    assert (await gateway.client.get(FILE)).content == CONTENT
