from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from deployments.errors import Unavailable
from deployments.gateway import upload_routes
from deployments.gateway.sample import SAMPLE_KEY
from deployments.gateway.upload_routes import LONGEST_NAME_BYTES, clean_name, media_type
from deployments.queue.files import Files
from deployments.queue.keys import Keys
from deployments.queue.store import RequestStore
from deployments.storage import FileStorage
from tests.gateway.conftest import URL, Gateway, open_gateway, served_endpoints

LIMIT = 100_000
CONTENT = random.Random(0).randbytes(LIMIT)
NOBODY = {"authorization": ""}


@pytest.fixture
async def gateway(store: RequestStore, storage: FileStorage) -> AsyncIterator[Gateway]:
    """A gateway with a limit that is soon reached."""
    async with open_gateway(store, storage, served_endpoints(), max_upload_bytes=LIMIT) as gateway:
        yield gateway


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return tmp_path / "files"


async def files_in(folder: Path) -> list[str]:
    """The files that callers have stored, once no draft is left: a draft that was dropped takes a moment to go."""
    async with asyncio.timeout(10):
        while any("#" in path.name for path in folder.rglob("*")):
            await asyncio.sleep(0.01)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return sorted(files - {SAMPLE_KEY})


async def rows_of(gateway: Gateway) -> int:
    """How many files are recorded, whole or not."""
    async with gateway.store.database.read() as connection:
        return int((await connection.exec_driver_sql("SELECT count(*) FROM files")).scalar_one())


async def bearer(gateway: Gateway) -> dict[str, str]:
    reply = await gateway.client.post("/storage/auth/token?storage_type=fal-cdn-v3", json={})
    assert reply.status_code == 200
    return {"authorization": f"{reply.json()['token_type']} {reply.json()['token']}"}


async def stranger(gateway: Gateway) -> dict[str, str]:
    key, secret = await Keys(gateway.store.database).create("other")
    return {"authorization": f"Key {key.id}:{secret}"}


async def fetch(gateway: Gateway, url: str) -> httpx.Response:
    """What anybody gets from a URL of ours."""
    assert url.startswith(f"{URL}/files/b/")
    return await gateway.client.get(url, headers=NOBODY)


async def test_a_cdn_token_says_what_the_python_client_needs(gateway: Gateway) -> None:
    reply = await gateway.client.post("/storage/auth/token?storage_type=fal-cdn-v3", json={})

    body = reply.json()
    assert (body["token_type"], body["base_url"]) == ("Bearer", URL)
    assert body["expires_at"].endswith("+00:00")
    assert datetime.fromisoformat(body["expires_at"]) - datetime.now(UTC) > timedelta(minutes=5)


# ---------------------------------------------------------------- one request


async def test_a_body_is_uploaded_with_a_cdn_token(gateway: Gateway) -> None:
    headers = {**await bearer(gateway), "Content-Type": "image/png", "X-Fal-File-Name": "cat.png"}
    reply = await gateway.client.post("/files/upload", content=CONTENT, headers=headers)

    assert reply.status_code == 200
    url = reply.json()["access_url"]
    assert url.endswith("/cat.png")
    got = await fetch(gateway, url)
    assert (got.content, got.headers["content-type"]) == (CONTENT, "image/png")
    assert "content-disposition" not in got.headers
    assert (await gateway.client.get(url, headers={**NOBODY, "range": "bytes=5-9"})).content == CONTENT[5:10]


async def test_a_body_is_uploaded_with_a_key_and_no_name(gateway: Gateway) -> None:
    reply = await gateway.client.post("/files/upload", content=b"")
    got = await fetch(gateway, reply.json()["access_url"])

    assert (got.content, got.headers["content-type"]) == (b"", "application/octet-stream")
    assert got.headers["content-disposition"] == "attachment; filename*=UTF-8''upload.bin"


async def test_the_bytes_of_two_uploads_do_not_meet(gateway: Gateway) -> None:
    headers = {"X-Fal-File-Name": "a.bin"}
    replies = [await gateway.client.post("/files/upload", content=each, headers=headers) for each in (b"1", b"2")]
    assert [(await fetch(gateway, reply.json()["access_url"])).content for reply in replies] == [b"1", b"2"]


@pytest.mark.parametrize(
    ("said", "served"),
    [
        ("text/html", "text/html"),
        ("image/svg+xml", "image/svg+xml"),
        ("application/javascript", "application/javascript"),
        ("video/x+xml", "video/x+xml"),  # a page to a browser, with scripts
        ("image/png+xml; charset=utf-8", "image/png+xml; charset=utf-8"),
        ("video", "application/octet-stream"),
        ("video/mp4\x7f", "application/octet-stream"),
    ],
)
async def test_what_is_no_media_is_never_shown(gateway: Gateway, said: str, served: str) -> None:
    headers = {"Content-Type": said, "X-Fal-File-Name": "cat.png"}
    reply = await gateway.client.post("/files/upload", content=b"<script>", headers=headers)
    got = await fetch(gateway, reply.json()["access_url"])

    assert got.headers["content-type"] == served
    assert got.headers["content-disposition"].startswith("attachment")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-security-policy"].endswith("; sandbox")


@pytest.mark.parametrize(
    "header", ["", "Key wrong:key", "Bearer wrong:key", "Bearer x.y.z", "Bearer ", "Key", "Basic x"]
)
@pytest.mark.parametrize("path", ["/files/upload", "/files/upload/multipart"])
async def test_an_upload_wants_a_token_or_key(gateway: Gateway, stored: Path, path: str, header: str) -> None:
    reply = await gateway.client.post(path, content=b"x", headers={"authorization": header})

    assert reply.status_code == 401
    assert (await files_in(stored), await rows_of(gateway)) == ([], 0)


async def test_a_token_for_apps_uploads_nothing(gateway: Gateway) -> None:
    token = (await gateway.client.post("/tokens/", json={"allowed_apps": ["svd"]})).json()
    reply = await gateway.client.post("/files/upload", content=b"x", headers={"authorization": f"Bearer {token}"})
    assert reply.status_code == 401


async def pieces(total: int) -> AsyncIterator[bytes]:
    """A body whose length no header tells."""
    for start in range(0, total, 1000):
        yield CONTENT[:1000][: total - start]


@pytest.mark.parametrize("told", [True, False])
async def test_a_body_above_the_limit_leaves_nothing(gateway: Gateway, stored: Path, told: bool) -> None:
    body: Any = CONTENT + b"x" if told else pieces(LIMIT + 1)
    reply = await gateway.client.post("/files/upload", content=body)

    assert (reply.status_code, reply.json()["error_type"]) == (413, "bad_request")
    assert str(LIMIT) in reply.json()["detail"]
    assert (await files_in(stored), await rows_of(gateway)) == ([], 0)


async def test_a_body_at_the_limit_is_taken(gateway: Gateway) -> None:
    reply = await gateway.client.post("/files/upload", content=pieces(LIMIT))
    assert len((await fetch(gateway, reply.json()["access_url"])).content) == LIMIT


async def test_an_upload_whose_caller_goes_away_leaves_nothing(gateway: Gateway, stored: Path) -> None:
    received = [
        {"type": "http.request", "body": CONTENT[:1000], "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return received.pop(0) if received else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    authorization = gateway.client.headers["authorization"].encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/files/upload",
        "query_string": b"",
        "headers": [(b"authorization", authorization)],
    }
    await gateway.app(scope, receive, send)
    assert sent[0]["status"] == 499
    assert (await files_in(stored), await rows_of(gateway)) == ([], 0)


async def test_an_upload_that_is_cut_off_leaves_nothing(gateway: Gateway, stored: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield CONTENT[:1000]
        begun.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(gateway.client.post("/files/upload", content=endless()))
    await begun.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    assert (await files_in(stored), await rows_of(gateway)) == ([], 0)


@pytest.mark.parametrize("header", ["X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference"])
async def test_an_upload_takes_its_lifecycle_along(gateway: Gateway, header: str) -> None:
    lifecycle = {"expiration_duration_seconds": 1, "initial_acl": {"default": "forbid"}}
    reply = await gateway.client.post("/files/upload", content=b"x", headers={header: json.dumps(lifecycle)})
    url = reply.json()["access_url"]

    assert (await fetch(gateway, url)).status_code == 403
    assert (await gateway.client.get(url)).status_code == 200
    async with asyncio.timeout(10):
        while (await gateway.client.get(url)).status_code == 200:
            await asyncio.sleep(0.05)
    assert (await fetch(gateway, url)).status_code == 404


@pytest.mark.parametrize("path", ["/files/upload", "/files/upload/multipart", "/storage/upload/initiate"])
async def test_a_malformed_lifecycle_is_refused(gateway: Gateway, stored: Path, path: str) -> None:
    reply = await gateway.client.post(path, json={}, headers={"X-Fal-Object-Lifecycle": "1h"})

    assert (reply.status_code, reply.json()["error_type"]) == (400, "bad_request")
    assert (await files_in(stored), await rows_of(gateway)) == ([], 0)


# ---------------------------------------------------------------- a signed URL


async def initiate(gateway: Gateway, path: str = "initiate", **body: Any) -> tuple[str, str]:
    body = {"file_name": "cat.png", "content_type": "image/png"} | body
    reply = await gateway.client.post(f"/storage/upload/{path}?storage_type=fal-cdn-v3", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["upload_url"], reply.json()["file_url"]


@pytest.mark.parametrize("query", ["?storage_type=fal-cdn-v3", "?storage_type=gcs", ""])
async def test_an_initiated_upload_needs_only_its_url(gateway: Gateway, query: str) -> None:
    reply = await gateway.client.post(
        f"/storage/upload/initiate{query}", json={"file_name": "cat.png", "content_type": "image/png"}
    )
    upload_url, file_url = reply.json()["upload_url"], reply.json()["file_url"]
    assert (await fetch(gateway, file_url)).status_code == 404

    put = await gateway.client.put(upload_url, content=CONTENT, headers={**NOBODY, "Content-Type": "image/png"})
    assert put.status_code == 200
    got = await fetch(gateway, file_url)
    assert (got.content, got.headers["content-type"]) == (CONTENT, "image/png")


async def test_an_initiated_upload_may_be_tried_again(gateway: Gateway, stored: Path) -> None:
    upload_url, file_url = await initiate(gateway)
    too_large = await gateway.client.put(upload_url, content=pieces(LIMIT + 1))
    assert too_large.status_code == 413
    assert await files_in(stored) == []
    assert (await gateway.client.put(upload_url, content=b"one")).status_code == 200
    assert (await fetch(gateway, file_url)).content == b"one"


async def test_a_file_that_is_whole_stays_as_it_is(gateway: Gateway, stored: Path) -> None:
    upload_url, file_url = await initiate(gateway)
    await gateway.client.put(upload_url, content=b"one")
    files = await files_in(stored)
    part = urlsplit(upload_url)._replace(path=f"{urlsplit(file_url).path}/multipart/{file_url.split('/')[-2]}/1")
    for url in (upload_url, part.geturl()):
        reply = await gateway.client.put(url, content=b"two", headers=NOBODY)
        assert (reply.status_code, reply.json()["error_type"]) == (400, "bad_request")
    assert (await fetch(gateway, file_url)).content == b"one"
    assert await files_in(stored) == files


class Body:
    """The body of an upload that comes when the test lets it."""

    def __init__(self, content: bytes) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content[:1]
        self.begun.set()
        await self.go_on.wait()
        yield self._content[1:]


async def upload_slowly(gateway: Gateway, url: str) -> tuple[Body, asyncio.Task[httpx.Response]]:
    body = Body(b"AAAA")
    putting = asyncio.create_task(gateway.client.put(url, content=aiter(body), headers=NOBODY))
    await body.begun.wait()
    return body, putting


async def test_of_two_who_write_one_file_the_first_does(gateway: Gateway) -> None:
    upload_url, file_url = await initiate(gateway)
    body, first = await upload_slowly(gateway, upload_url)
    second = asyncio.create_task(gateway.client.put(upload_url, content=b"BBBB", headers=NOBODY))
    await asyncio.wait([second], timeout=0.3)
    assert not second.done()
    body.go_on.set()
    assert ((await first).status_code, (await second).status_code) == (200, 400)
    assert (await fetch(gateway, file_url)).content == b"AAAA"


async def test_who_waits_too_long_for_another_writer_is_told(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_routes, "CLAIM_SECONDS", 0.1)
    upload_url, _ = await initiate(gateway)
    body, first = await upload_slowly(gateway, upload_url)
    reply = await gateway.client.put(upload_url, content=b"BBBB", headers=NOBODY)
    assert (reply.status_code, reply.json()["error_type"]) == (409, "bad_request")
    body.go_on.set()
    assert (await first).status_code == 200


async def test_an_upload_that_broke_off_may_be_tried_again_at_once(gateway: Gateway) -> None:
    upload_url, file_url = await initiate(gateway)
    _, first = await upload_slowly(gateway, upload_url)
    second = asyncio.create_task(gateway.client.put(upload_url, content=b"BBBB", headers=NOBODY))
    await asyncio.wait([second], timeout=0.3)
    first.cancel()
    assert (await second).status_code == 200
    assert (await fetch(gateway, file_url)).content == b"BBBB"


async def test_a_writer_that_was_killed_is_followed_by_another(gateway: Gateway) -> None:
    upload_url, file_url = await initiate(gateway)
    key = gateway.storage.key_of(file_url)
    assert key and await Files(gateway.store.database).claim(key, "killed", 1)
    assert (await gateway.client.put(upload_url, content=b"BBBB", headers=NOBODY)).status_code == 200
    assert (await fetch(gateway, file_url)).content == b"BBBB"


async def test_a_writer_that_takes_long_stays_the_writer(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_routes, "WRITER_SECONDS", 1.0)
    upload_url, file_url = await initiate(gateway)
    body, first = await upload_slowly(gateway, upload_url)
    second = asyncio.create_task(gateway.client.put(upload_url, content=b"BBBB", headers=NOBODY))
    await asyncio.wait([second], timeout=2.5)
    body.go_on.set()
    assert ((await first).status_code, (await second).status_code) == (200, 400)
    assert (await fetch(gateway, file_url)).content == b"AAAA"


async def test_a_writer_that_cannot_say_that_it_goes_on_ends(
    gateway: Gateway, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_routes, "WRITER_SECONDS", 1.0)
    upload_url, _ = await initiate(gateway)
    _, first = await upload_slowly(gateway, upload_url)

    async def away(*asked: Any) -> bool:
        raise Unavailable("away")

    monkeypatch.setattr(Files, "claim", away)
    assert (await first).status_code == 503
    assert await files_in(stored) == []


async def test_an_initiated_upload_keeps_its_lifecycle(gateway: Gateway) -> None:
    reply = await gateway.client.post(
        "/storage/upload/initiate",
        json={"file_name": "cat.png", "content_type": "image/png"},
        headers={"X-Fal-Object-Lifecycle": '{"initial_acl": {"default": "hide"}}'},
    )
    await gateway.client.put(reply.json()["upload_url"], content=b"x", headers=NOBODY)
    assert (await fetch(gateway, reply.json()["file_url"])).status_code == 404
    assert (await gateway.client.get(reply.json()["file_url"])).content == b"x"


async def test_a_signed_url_writes_no_other_file(gateway: Gateway) -> None:
    one, _ = await initiate(gateway)
    _, other_file = await initiate(gateway)
    for url in (other_file, f"{other_file}?token=x", f"{other_file}?{urlsplit(one).query}"):
        assert (await gateway.client.put(url, content=b"x")).status_code == 401
    assert (await fetch(gateway, other_file)).status_code == 404


async def test_initiating_wants_a_key(gateway: Gateway) -> None:
    for path in ("initiate", "initiate-multipart"):
        reply = await gateway.client.post(f"/storage/upload/{path}", json={}, headers=NOBODY)
        assert (reply.status_code, reply.json()["detail"]) == (401, "Authorization header is required")


@pytest.mark.parametrize("body", [{"file_name": 5}, [], "x", {"content_type": {}}])
async def test_a_malformed_initiation_is_told(gateway: Gateway, body: object) -> None:
    assert (await gateway.client.post("/storage/upload/initiate", json=body)).status_code == 422


# ---------------------------------------------------------------- many parts


PARTS = [CONTENT[:40_000], CONTENT[40_000:80_000], CONTENT[80_000:]]


async def create(gateway: Gateway, headers: dict[str, str], **more: str) -> tuple[str, str]:
    headers = {**headers, "Accept": "application/json", "Content-Type": "image/png", "X-Fal-File-Name": "big.png"}
    reply = await gateway.client.post("/files/upload/multipart", headers=headers | more)
    assert reply.status_code == 200, reply.text
    return reply.json()["access_url"], f"{reply.json()['access_url']}/multipart/{reply.json()['uploadId']}"


async def put_part(gateway: Gateway, upload: str, number: int, content: bytes, **headers: str) -> dict[str, Any]:
    reply = await gateway.client.put(f"{upload}/{number}", content=content, headers=headers)
    assert reply.status_code == 200, reply.text
    return {"partNumber": number, "etag": reply.headers["etag"]}


async def complete(gateway: Gateway, upload: str, parts: list[Any], **headers: str) -> httpx.Response:
    return await gateway.client.post(f"{upload}/complete", json={"parts": parts}, headers=headers)


async def test_parts_come_in_any_order(gateway: Gateway, stored: Path) -> None:
    headers = await bearer(gateway)
    url, upload = await create(gateway, headers)
    parts = [await put_part(gateway, upload, number, PARTS[number - 1], **headers) for number in (3, 1, 2)]
    assert (await fetch(gateway, url)).status_code == 404
    reply = await complete(gateway, upload, parts, **headers)

    assert reply.status_code == 200
    got = await fetch(gateway, url)
    assert (got.content, got.headers["content-type"]) == (CONTENT, "image/png")
    assert len(await files_in(stored)) == 1, "the parts are gone"


async def test_parts_may_come_all_at_once(gateway: Gateway) -> None:
    headers = await bearer(gateway)
    url, upload = await create(gateway, headers)
    small = [CONTENT[start : start + 10_000] for start in range(0, LIMIT, 10_000)]
    parts = await asyncio.gather(*(put_part(gateway, upload, n, part, **headers) for n, part in enumerate(small, 1)))
    assert (await complete(gateway, upload, parts[::-1], **headers)).status_code == 200
    assert (await fetch(gateway, url)).content == CONTENT


async def test_more_than_nine_parts_are_joined_by_number(gateway: Gateway) -> None:
    url, upload = await create(gateway, {})
    parts = [await put_part(gateway, upload, number, b"%d," % number) for number in range(1, 13)]
    await complete(gateway, upload, parts)
    assert (await fetch(gateway, url)).content == b"1,2,3,4,5,6,7,8,9,10,11,12,"


async def test_of_a_part_that_comes_twice_the_last_is_taken(gateway: Gateway) -> None:
    url, upload = await create(gateway, {})
    first = await put_part(gateway, upload, 1, b"first")
    last = await put_part(gateway, upload, 1, b"the last")
    assert (await complete(gateway, upload, [first])).status_code == 400
    assert (await complete(gateway, upload, [last])).status_code == 200
    assert (await fetch(gateway, url)).content == b"the last"


async def test_javascript_puts_parts_by_a_signed_url_and_reads_json(gateway: Gateway) -> None:
    upload_url, file_url = await initiate(gateway, "initiate-multipart")
    parts = urlsplit(upload_url)
    replies = []
    for number, content in enumerate(PARTS, 1):
        url = f"{parts.scheme}://{parts.netloc}{parts.path}/{number}?{parts.query}"
        reply = await gateway.client.put(url, content=content, headers=NOBODY)
        assert reply.json() == {"partNumber": number, "etag": reply.headers["etag"]}
        replies.append(reply.json())
    url = f"{parts.scheme}://{parts.netloc}{parts.path}/complete?{parts.query}"
    assert (await gateway.client.post(url, json={"parts": replies}, headers=NOBODY)).status_code == 200
    got = await fetch(gateway, file_url)
    assert (got.content, got.headers["content-type"]) == (CONTENT, "image/png")


async def test_an_etag_is_known_with_and_without_its_quotes(gateway: Gateway) -> None:
    url, upload = await create(gateway, {})
    part = await put_part(gateway, upload, 1, b"x")
    assert part["etag"][0] == part["etag"][-1] == '"'
    bare = {**part, "etag": part["etag"].strip('"')}
    assert (await complete(gateway, upload, [bare])).status_code == 200
    assert (await fetch(gateway, url)).content == b"x"


async def test_completing_twice_is_completing_once(gateway: Gateway) -> None:
    url, upload = await create(gateway, {})
    part = await put_part(gateway, upload, 1, b"x")
    replies = [await complete(gateway, upload, [part]) for _ in range(2)]
    assert [(reply.status_code, reply.json()) for reply in replies] == [(200, {"access_url": url})] * 2
    assert (await fetch(gateway, url)).content == b"x"


async def test_completing_twice_at_once_is_completing_once(gateway: Gateway, stored: Path) -> None:
    url, upload = await create(gateway, {})
    part = await put_part(gateway, upload, 1, b"x")
    replies = await asyncio.gather(*(complete(gateway, upload, [part]) for _ in range(5)))
    assert [reply.status_code for reply in replies] == [200] * 5
    assert (await fetch(gateway, url)).content == b"x"
    assert len(await files_in(stored)) == 1


async def test_completing_that_is_cut_off_can_be_made_again(
    gateway: Gateway, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, upload = await create(gateway, {})
    part = await put_part(gateway, upload, 1, b"x")

    async def away(*asked: Any) -> bool:
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(Files, "finish", away)
        assert (await complete(gateway, upload, [part])).status_code == 503
    assert (await complete(gateway, upload, [part])).status_code == 200
    assert (await fetch(gateway, url)).content == b"x"
    assert len(await files_in(stored)) == 1, "the parts are gone"


async def test_a_part_that_comes_while_its_file_is_finished_does_not_stay(gateway: Gateway, stored: Path) -> None:
    url, upload = await create(gateway, {})
    part = await put_part(gateway, upload, 1, b"x")

    async def slow() -> AsyncIterator[bytes]:
        yield b"late"
        assert (await complete(gateway, upload, [part])).status_code == 200

    assert (await gateway.client.put(f"{upload}/2", content=slow())).status_code == 400
    assert (await fetch(gateway, url)).content == b"x"
    assert len(await files_in(stored)) == 1, "the parts are gone"


@pytest.mark.parametrize(
    ("numbers", "status"), [([], 422), ([2], 400), ([1, 3], 400), ([1, 1], 400), ([1, 2, 3], 400), ([0], 422)]
)
async def test_a_missing_part_is_told_and_nothing_lost(gateway: Gateway, numbers: list[int], status: int) -> None:
    url, upload = await create(gateway, {})
    parts = [await put_part(gateway, upload, number, b"%d" % number) for number in (1, 2)]
    named = [{"partNumber": number, "etag": parts[min(number, 2) - 1]["etag"]} for number in numbers]
    assert (await complete(gateway, upload, named)).status_code == status
    assert (await fetch(gateway, url)).status_code == 404
    assert (await complete(gateway, upload, parts)).status_code == 200
    assert (await fetch(gateway, url)).content == b"12"


@pytest.mark.parametrize("number", ["0", "10001", "-1", "x", "1.5"])
async def test_parts_have_numbers_from_one_to_ten_thousand(gateway: Gateway, number: str) -> None:
    _, upload = await create(gateway, {})
    assert (await gateway.client.put(f"{upload}/{number}", content=b"x")).status_code == 422


async def test_all_parts_together_keep_the_limit(gateway: Gateway, stored: Path) -> None:
    _, upload = await create(gateway, {})
    first = await put_part(gateway, upload, 1, CONTENT[:60_000])
    reply = await gateway.client.put(f"{upload}/2", content=CONTENT[:40_001])
    assert (reply.status_code, reply.json()["error_type"]) == (413, "bad_request")
    again = await put_part(gateway, upload, 1, CONTENT[:60_001])  # in place of the first, not beside it
    assert again != first
    both = await asyncio.gather(
        *(gateway.client.put(f"{upload}/{number}", content=CONTENT[:30_000]) for number in (2, 3))
    )
    assert [reply.status_code for reply in both].count(413) >= 1
    assert sum((stored / name).stat().st_size for name in await files_in(stored)) <= LIMIT


async def test_an_upload_is_its_owners(gateway: Gateway) -> None:
    url, upload = await create(gateway, await bearer(gateway))
    part = await put_part(gateway, upload, 1, b"mine")
    other = await stranger(gateway)
    for headers, status in ((other, 404), (NOBODY, 401), ({"authorization": "Bearer x.y.z"}, 401)):
        assert (await gateway.client.put(f"{upload}/1", content=b"x", headers=headers)).status_code == status
        assert (await complete(gateway, upload, [part], **headers)).status_code == status
    assert (await gateway.client.put(f"{url}/multipart/{'0' * 32}/1", content=b"x")).status_code == 404
    assert (await gateway.client.put(f"{URL}/files/b/0/none/multipart/0/1", content=b"x")).status_code == 404
    assert (await complete(gateway, upload, [part])).status_code == 200
    assert (await fetch(gateway, url)).content == b"mine"


async def test_parts_cannot_be_read(gateway: Gateway, stored: Path) -> None:
    _, upload = await create(gateway, {})
    await put_part(gateway, upload, 1, b"x")
    (part,) = await files_in(stored)
    for path in (part, "/" + part, part + "/", "." + "/" + part, part.replace("/", "//")):
        assert (await gateway.client.get(f"/files/{quote(path, safe='')}")).status_code == 404


async def test_a_multipart_upload_keeps_its_lifecycle(gateway: Gateway) -> None:
    lifecycle = '{"expiration_duration_seconds": 3600, "initial_acl": {"default": "forbid"}}'
    url, upload = await create(gateway, {}, **{"X-Fal-Object-Lifecycle": lifecycle})
    await complete(gateway, upload, [await put_part(gateway, upload, 1, b"x")])
    assert (await fetch(gateway, url)).status_code == 403
    key = gateway.storage.key_of(url)
    assert key
    file = await Files(gateway.store.database).get(key)
    assert file and file.expires_at == pytest.approx(file.created_at + 3600, abs=1)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("cat.png", "cat.png"),
        ("my cat (2).png", "my cat (2).png"),
        ("été 日本 🐈.png", "été 日本 🐈.png"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\Users\\me\\cat.png", "cat.png"),
        ("a\r\nSet-Cookie: x", "aSet-Cookie_ x"),
        ("a\0b.png", "ab.png"),
        ("a\u202egnp.exe", "agnp.exe"),
        ("\x1b[31mred.png", "[31mred.png"),
        ('a"b<c>|?*#%.png', "a_b_c______.png"),
        ("cat.png#1", "cat.png_1"),
        (".htaccess", "htaccess"),
        ("..", "upload.bin"),
        ("...", "upload.bin"),
        ("", "upload.bin"),
        ("   ", "upload.bin"),
        ("folder/", "upload.bin"),
        ("x" * 1000 + ".png", "x" * (LONGEST_NAME_BYTES - 4) + ".png"),
        ("é" * 1000, "é" * (LONGEST_NAME_BYTES // 2)),
    ],
)
def test_a_name_is_made_fit(name: str, clean: str) -> None:
    assert clean_name(name) == clean


@pytest.mark.parametrize("name", ["été 日本.png", "a b+c&d=e;f.png", "../../x.png", "x" * 1000, "100%.png", "a#1.png"])
async def test_any_name_gives_a_url_that_works(gateway: Gateway, name: str) -> None:
    upload_url, file_url = await initiate(gateway, file_name=name)
    assert (await gateway.client.put(upload_url, content=b"x")).status_code == 200
    assert (await fetch(gateway, file_url)).content == b"x"

    headers = {"X-Fal-File-Name": name.encode()}
    reply = await gateway.client.post("/files/upload", content=b"y", headers=headers)  # type: ignore[arg-type]
    got = await fetch(gateway, reply.json()["access_url"])
    assert got.content == b"y"
    assert got.headers["content-disposition"].endswith("''" + quote(clean_name(name), safe=""))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("image/png", "image/png"),
        ("text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        ("application/vnd.ms-excel+x", "application/vnd.ms-excel+x"),
        (None, "application/octet-stream"),
        ("", "application/octet-stream"),
        ("png", "application/octet-stream"),
        ("image/png\r\nX: y", "application/octet-stream"),
        ("ïmage/png", "application/octet-stream"),
        ("a/" + "b" * 500, "application/octet-stream"),
    ],
)
def test_a_type_is_kept_where_it_is_one(said: str | None, kept: str) -> None:
    assert media_type(said) == kept


# ---------------------------------------------------------------- a disk that is full


async def test_a_full_disk_takes_no_upload_and_keeps_no_half(store: RequestStore, small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 3_500_000)
    content = CONTENT * 10
    async with open_gateway(store, FileStorage(small_disk / "files", URL), served_endpoints()) as gateway:
        signed = (await gateway.client.post("/storage/upload/initiate", json={"file_name": "a.bin"})).json()
        _, upload = await create(gateway, {})

        async def attempts() -> list[httpx.Response]:
            return [
                await gateway.client.post("/files/upload", content=content),
                await gateway.client.put(signed["upload_url"], content=content, headers=NOBODY),
                await gateway.client.put(f"{upload}/1", content=content),
            ]

        for reply in await attempts():
            assert reply.status_code == 503
            assert reply.json() == {
                "detail": "The file storage is not available at the moment",
                "error_type": "internal_error",
            }
        assert await files_in(small_disk / "files") == []
        assert (await fetch(gateway, signed["file_url"])).status_code == 404
        ballast.unlink()
        assert [reply.status_code for reply in await attempts()] == [200] * 3
        assert (await fetch(gateway, signed["file_url"])).content == content
