from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import obstore
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import S3Store

from deployments.errors import BadRequest, FileDamaged, NotFound, PayloadTooLarge, StorageUnavailable
from deployments.storage import CHECK_SECONDS, FileStorage, Stored, new_key
from deployments.storage.bucket import ANSWER_SECONDS, open_bucket
from loadtest.s3 import BUCKET, S3

URL = "https://svd.example.com"
CONTENT = bytes(range(256)) * 10_000  # more than one piece of a directory's
LARGE = CONTENT * 5  # more than two of a bucket's
LENGTHS = pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["small", "large"])


@pytest.fixture(params=["directory", "bucket"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Every test that asks for it runs on both kinds."""
    return str(request.getfixturevalue("bucket_url")) if request.param == "bucket" else (tmp_path / "files").as_uri()


@pytest.fixture
def storage(storage_url: str) -> FileStorage:
    return FileStorage.open(storage_url, URL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
def on_disk(folder: Path) -> FileStorage:
    return FileStorage(folder, URL)


Left = Callable[[], Awaitable[list[str]]]


@pytest.fixture
def left(request: pytest.FixtureRequest, storage_url: str, folder: Path) -> Left:
    """What lies in the storage, drafts and unfinished uploads included."""

    async def in_folder() -> list[str]:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    async def in_bucket() -> list[str]:
        prefix = storage_url.rpartition("/")[2]
        listed = await obstore.list(S3Store(BUCKET, client_options={"allow_http": True}), prefix).collect_async()
        return sorted(meta["path"].removeprefix(f"{prefix}/") for meta in listed) + sorted(
            set(s3.unfinished()) - before
        )

    if storage_url.startswith("file:"):
        return in_folder
    s3: S3 = request.getfixturevalue("s3")
    before = set(s3.unfinished())  # of tests that let the service hang
    return in_bucket


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "clip.mp4"
    source.write_bytes(CONTENT)
    return source


async def read(storage: FileStorage, key: str, start: int = 0, end: int = len(CONTENT)) -> bytes:
    return b"".join([piece async for piece in storage.read(key, start, end)])


async def test_what_is_put_is_read(storage: FileStorage, source: Path) -> None:
    await storage.put(source, "b/1/clip.mp4")

    assert await read(storage, "b/1/clip.mp4") == CONTENT
    assert source.read_bytes() == CONTENT


async def test_a_stored_file_is_fals_file_object(storage: FileStorage, source: Path) -> None:
    file = await storage.put(source, "b/1/clip.mp4")

    assert file.model_dump() == {
        "url": f"{URL}/files/b/1/clip.mp4",
        "content_type": "video/mp4",
        "file_name": "clip.mp4",
        "file_size": len(CONTENT),
    }


@pytest.mark.parametrize(
    ("start", "end"), [(0, 1), (5, 5), (1024 * 1024 - 1, 1024 * 1024 + 1), (len(CONTENT) - 1, len(CONTENT))]
)
async def test_a_part_is_read_alone(storage: FileStorage, source: Path, start: int, end: int) -> None:
    await storage.put(source, "b/1/clip.mp4")

    assert await read(storage, "b/1/clip.mp4", start, end) == CONTENT[start:end]


async def test_stat_tells_size_type_and_a_quoted_etag(storage: FileStorage, source: Path) -> None:
    await storage.put(source, "b/1/clip.mp4")

    stat = await storage.stat("b/1/clip.mp4")
    assert (stat.size, stat.content_type) == (len(CONTENT), "video/mp4")
    assert stat.etag[0] == stat.etag[-1] == '"'
    assert '"' not in stat.etag[1:-1]
    assert stat.modified == pytest.approx(source.stat().st_mtime, abs=60)


async def test_an_etag_stays_while_the_file_stays(storage: FileStorage, source: Path) -> None:
    await storage.put(source, "b/1/clip.mp4")
    before = (await storage.stat("b/1/clip.mp4")).etag
    assert (await storage.stat("b/1/clip.mp4")).etag == before

    source.write_bytes(b"another")
    await storage.put(source, "b/1/clip.mp4")
    assert (await storage.stat("b/1/clip.mp4")).etag != before


async def test_a_file_outlives_the_storage_that_wrote_it(storage: FileStorage, source: Path, storage_url: str) -> None:
    file = await storage.put(source, "b/1/clip.mp4")

    again = FileStorage.open(storage_url, URL)
    key = again.key_of(file.url)
    assert key is not None
    assert await read(again, key) == CONTENT


@pytest.mark.parametrize(
    "key",
    ["b/1/other.mp4", "b", "", "../clip.mp4", "b/../../clip.mp4", "/etc/passwd", "b/\0", "b/1/clip#1", "x" * 5000],
)
async def test_any_other_key_is_not_found(storage: FileStorage, source: Path, key: str) -> None:
    await storage.put(source, "b/1/clip.mp4")

    with pytest.raises(NotFound):
        await storage.stat(key)


async def test_the_key_of_a_url_is_its_files(storage: FileStorage, source: Path) -> None:
    file = await storage.put(source, "b/1/a clip (2).mp4")

    assert file.url == f"{URL}/files/{quote('b/1/a clip (2).mp4')}"
    assert storage.key_of(file.url) == "b/1/a clip (2).mp4"


def can_be(name: str) -> bool:
    return not {"", ".", ".."}.intersection(name.split("/")) and not re.search("#[0-9]+$", name)


@given(name=st.text(min_size=1).filter(can_be))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_key_comes_back_from_its_url(storage: FileStorage, name: str) -> None:
    assert storage.key_of(f"{URL}/files/{quote('b/1/' + name)}") == "b/1/" + name


@pytest.mark.parametrize(
    "key",
    [
        "/b/1/clip.mp4",
        "b/1/clip.mp4/",
        "b//1/clip.mp4",
        "b/./1/clip.mp4",
        "b/1/../1/clip.mp4",
        "/.parts/1/1",
        "/",
    ],
)
async def test_a_file_has_one_key(storage: FileStorage, source: Path, key: str) -> None:
    await storage.put(source, "b/1/clip.mp4")
    await storage.write_part("1", 1, pieces(b"x"), 10)

    with pytest.raises(NotFound):
        await storage.stat(key)
    with pytest.raises(NotFound):
        await read(storage, key, 0, 1)
    assert storage.key_of(f"{URL}/files/{key}") in (None, "b/1/clip.mp4")  # as every program resolves dots
    assert storage.key_of(f"{URL}/files/{quote(key, safe='')}") is None


KEY = "b/0123456789abcdef0123456789abcdef/clip.mp4"


@pytest.mark.parametrize(
    "url",
    [
        f"https://svd.example.com/files/{KEY}",
        f"HTTPS://SVD.Example.COM/files/{KEY}",
        f"HTTPS://svd.example.com:443/files/{KEY}",
        f"https://svd.example.com:/files/{KEY}",
        f"https://svd.example.com./files/{KEY}",
        f"https://svd.example.com/%66ile%73/{KEY}",
        f"https://svd.example.com/files/{KEY.replace('/', '%2F')}",
        f"https://svd.example.com/files/{KEY.replace('clip', '%63li%70')}",
        f"https://svd.example.com/files/./{KEY}",
        f"https://svd.example.com/models/../files/x/../{KEY}",
        f"https://svd.example.com/../files/{KEY}",
        f"https://svd.example.com/files/{KEY}?token=1",
        f"https://svd.example.com/files/{KEY}#t=1",
        f"https://v3.fal.media/files/{KEY}",
        f"http://fal.media/files/{KEY}?x=1",
    ],
)
def test_a_file_has_one_key_however_its_url_is_written(url: str, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path, URL)

    assert storage.key_of(url) == KEY
    assert storage.owns(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://svd.example.com",
        "https://svd.example.com/models/fal-ai/svd",
        "https://svd.example.com/fal-ai/svd?image_url=x",
        "https://svd.example.com/file",
        f"https://svd.example.com//files/{KEY}",
        f"https://svd.example.com/files//{KEY}",
        f"https://svd.example.com/files/../{KEY}",
        f"https://svd.example.com/files/%2e%2e/files/{KEY}",
        "https://svd.example.com/files/%2e%2e%2f%2e%2e%2fetc/passwd",
        "https://svd.example.com/files/../../../../etc/passwd",
        "https://svd.example.com/files/.parts/1/1",
        "https://svd.example.com/files/",
        f"http://svd.example.com/files/{KEY}",
        f"http://svd.example.com:443/files/{KEY}",
    ],
)
def test_what_is_ours_and_no_file_has_no_key(url: str, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path, URL)

    assert storage.key_of(url) is None
    assert storage.owns(url)


@pytest.mark.parametrize(
    ("url", "key", "ours"),
    [
        (f"https://example.com/svd/files/{KEY}", KEY, True),
        (f"https://example.com/svd/../svd/files/{KEY}", KEY, True),
        (f"https://example.com/svd/%2e%2e/svd/files/{KEY}", None, True),
        (f"https://example.com//svd/files/{KEY}", None, True),
        ("https://example.com/svd", None, True),
        (f"https://example.com/files/{KEY}", None, False),
        (f"https://example.com/svdx/files/{KEY}", None, False),
        ("https://example.com/cat.png", None, False),
    ],
)
def test_below_a_path_only_that_path_is_ours(url: str, key: str | None, ours: bool, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path, "https://example.com/svd")

    assert (storage.key_of(url), storage.owns(url)) == (key, ours)


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:password@svd.example.com/files/{KEY}",
        f"https://svd.example.com:8443/files/{KEY}",
        f"https://svd.example.com@evil.org/files/{KEY}",
        f"https://evil.org/https://svd.example.com/files/{KEY}",
        f"https://evil.org#@svd.example.com/files/{KEY}",
        f"ftp://svd.example.com/files/{KEY}",
        f"//svd.example.com/files/{KEY}",
        "https://v3.fal.media/files/b/elephant/cat.png",
        "https://v3.fal.media/files/elephant/cat.png",
        f"https://v3.fal.media/{KEY}",
        f"https://v3.fal.media:8443/files/{KEY}",
        f"https://v3.fal.media.evil.org/files/{KEY}",
        "https://svd.example.com/\ud800",
        "data:,x",
        "",
    ],
)
def test_what_only_looks_like_ours_is_not(url: str, tmp_path: Path) -> None:
    storage = FileStorage(tmp_path, URL)

    assert storage.key_of(url) is None
    assert not storage.owns(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://svd.example.com/models/fal-ai/svd",
        "https://svd.example.com.evil.org/files/b/1/clip.mp4",
        "https://other.example.com/files/b/1/clip.mp4",
        "http://svd.example.com/files/b/1/clip.mp4",
        "https://svd.example.com/file",
        "files/b/1/clip.mp4",
        "data:,",
        "",
    ],
)
def test_anybody_elses_url_has_no_key(storage: FileStorage, url: str) -> None:
    assert storage.key_of(url) is None


@pytest.mark.parametrize("url", ["s3:///prefix", "s3:bucket", "http://example.com/", "/data/files", "", "data"])
def test_only_a_file_or_s3_url_names_a_storage(url: str) -> None:
    with pytest.raises(ValueError, match="file:///DIRECTORY or s3://BUCKET"):
        FileStorage.open(url, URL)


@pytest.mark.parametrize("public_url", ["", "svd.example.com", "ftp://svd.example.com", "http://:80", "http://u@h"])
def test_clients_reach_us_under_an_http_url(public_url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SVD_PUBLIC_URL must be an http or https URL"):
        FileStorage(tmp_path, public_url)


async def test_a_file_url_may_hold_any_character(source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "my files, 100%"
    storage = FileStorage.open(directory.as_uri(), URL + "/")

    file = await storage.put(source, "b/1/clip.mp4")
    assert (directory / "b/1/clip.mp4").read_bytes() == CONTENT
    assert file.url == f"{URL}/files/b/1/clip.mp4"


def test_no_key_is_given_twice() -> None:
    keys = {new_key("clip.mp4") for _ in range(100)}

    assert len(keys) == 100
    assert all(key.startswith("b/") and key.endswith("/clip.mp4") and len(key) > 40 for key in keys)


# ---------------------------------------------------------------- pieces and parts


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize("size", [0, 1, 1000, 1024 * 1024, len(CONTENT), 5 * 1024 * 1024, 10 * 1024 * 1024, len(LARGE)])
async def test_pieces_become_a_file(storage: FileStorage, size: int) -> None:
    content = LARGE[:size]
    parts = [content[start : start + 70_000] for start in range(0, size, 70_000)]
    stored = await storage.write("b/1/clip.mp4", pieces(*parts), size)

    assert stored == Stored(size, hashlib.sha256(content).hexdigest())
    assert (await storage.stat("b/1/clip.mp4")).size == size
    assert await read(storage, "b/1/clip.mp4", 0, size) == content


@LENGTHS
async def test_nothing_is_seen_before_it_is_whole(storage: FileStorage, content: bytes) -> None:
    async def watched() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 500_000):
            yield content[start : start + 500_000]
            with pytest.raises(NotFound):
                await storage.stat("b/1/clip.mp4")

    await storage.write("b/1/clip.mp4", watched(), len(content))
    assert await read(storage, "b/1/clip.mp4", 0, len(content)) == content


@LENGTHS
async def test_too_many_bytes_leave_nothing_and_the_rest_is_not_read(
    storage: FileStorage, content: bytes, left: Left
) -> None:
    async def too_many() -> AsyncIterator[bytes]:
        yield content
        yield b"x"
        raise AssertionError("read on")

    with pytest.raises(PayloadTooLarge, match=str(len(content))):
        await storage.write("b/1/clip.mp4", too_many(), len(content))
    assert await left() == []


@LENGTHS
async def test_a_write_that_breaks_off_leaves_what_was_there(storage: FileStorage, content: bytes, left: Left) -> None:
    await storage.write("b/1/clip.mp4", pieces(b"before"), 10)

    async def broken() -> AsyncIterator[bytes]:
        yield content
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await storage.write("b/1/clip.mp4", broken(), len(content))
    assert await left() == ["b/1/clip.mp4"]
    assert await read(storage, "b/1/clip.mp4", 0, 6) == b"before"


@LENGTHS
async def test_a_write_that_is_cancelled_leaves_nothing(storage: FileStorage, content: bytes, left: Left) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield content
        begun.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(storage.write("b/1/clip.mp4", endless(), len(content)))
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await left() == []


async def test_a_disk_that_takes_nothing_is_told_without_a_path(on_disk: FileStorage, folder: Path) -> None:
    (folder / "b").mkdir()
    (folder / "b" / "1").write_bytes(b"")  # no directory can be made where a file is

    with pytest.raises(StorageUnavailable) as caught:
        await on_disk.write("b/1/clip.mp4", pieces(CONTENT), len(CONTENT))
    assert str(folder) not in caught.value.message


async def test_a_deleted_file_is_gone_with_its_folder(storage: FileStorage, left: Left, folder: Path) -> None:
    await storage.write("b/1/clip.mp4", pieces(b"x"), 10)
    await storage.write("b/2/clip.mp4", pieces(b"x"), 10)
    for _ in range(2):  # the second time there is nothing to delete
        await storage.delete("b/1/clip.mp4")
        assert await left() == ["b/2/clip.mp4"]
    assert not (folder / "b" / "1").exists()


async def test_deleting_takes_what_a_dead_process_had_begun(on_disk: FileStorage, folder: Path) -> None:
    files = folder / "b" / "1"
    files.mkdir(parents=True)
    (files / "clip [1].mp4#1").write_bytes(b"half")
    await on_disk.delete("b/1/clip [1].mp4")
    assert not files.exists()

    parts = folder / ".parts" / "1"
    parts.mkdir(parents=True)
    (parts / "7#1").write_bytes(b"half")
    await on_disk.discard("1")
    assert not parts.exists()


async def test_parts_are_joined_in_the_order_that_is_asked(storage: FileStorage, left: Left) -> None:
    content = {number: CONTENT[number * 600_000 :][:600_000] for number in range(1, 4)}
    etags = {number: await storage.write_part("1", number, pieces(content[number]), 10**7) for number in (2, 3, 1)}
    stat = await storage.join("1", [(number, etags[number]) for number in (3, 1, 2)], "b/1/clip.mp4", 10**7)

    assert stat.size == sum(map(len, content.values()))
    assert await read(storage, "b/1/clip.mp4", 0, stat.size) == content[3] + content[1] + content[2]
    await storage.discard("1")
    assert await left() == ["b/1/clip.mp4"]


async def test_a_part_that_is_not_there_joins_nothing(storage: FileStorage, left: Left) -> None:
    etag = await storage.write_part("1", 1, pieces(b"x"), 10)
    for parts in ([(2, etag)], [(1, etag), (2, etag)], [(1, '"other"')], [(1, "")], [(2, "")]):
        with pytest.raises(BadRequest, match="Part"):
            await storage.join("1", parts, "b/1/clip.mp4", 10)
    with pytest.raises(BadRequest, match="Part"):
        await storage.join("2", [(1, etag)], "b/1/clip.mp4", 10)
    assert await left() == [".parts/1/1"]


async def test_parts_keep_a_limit_together(storage: FileStorage, left: Left) -> None:
    await storage.write_part("1", 1, pieces(b"12345"), 8)
    with pytest.raises(PayloadTooLarge):
        await storage.write_part("1", 2, pieces(b"1234"), 8)
    await storage.write_part("1", 1, pieces(b"12345678"), 8)
    await storage.write_part("2", 1, pieces(b"12345678"), 8)
    assert await left() == [".parts/1/1", ".parts/2/1"]


@pytest.mark.parametrize("key", [".parts/1/1", ".parts/1", ".parts"])
async def test_parts_are_no_files(storage: FileStorage, key: str) -> None:
    await storage.write_part("1", 1, pieces(b"x"), 10)
    with pytest.raises(NotFound):
        await storage.stat(key)


async def test_a_check_leaves_nothing(storage: FileStorage, left: Left) -> None:
    await storage.check()
    assert await left() == []


async def test_a_check_of_a_full_disk_leaves_not_even_folders(full: FileStorage, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    with pytest.raises(StorageUnavailable):
        await full.check()
    assert not list((small_disk / "files").glob(".parts/*"))


async def test_a_check_fails_where_nothing_can_be_put(on_disk: FileStorage, source: Path, folder: Path) -> None:
    (folder / ".parts").write_bytes(b"")  # no directory can be made where a file is
    (folder / "b").write_bytes(b"")

    with pytest.raises(StorageUnavailable) as caught:
        await on_disk.check()
    assert str(folder) not in caught.value.message
    with pytest.raises(StorageUnavailable):
        await on_disk.put(source, "b/1/clip.mp4")


# ---------------------------------------------------------------- what was stored is what is there


async def put_bytes(storage: FileStorage, content: bytes, key: str = "b/1/clip.mp4") -> Stored:
    return await storage.write(key, pieces(content), len(content))


async def test_a_file_is_verified_by_length_and_hash(storage: FileStorage) -> None:
    stored = await put_bytes(storage, CONTENT)

    assert await storage.verify("b/1/clip.mp4", *astuple(stored)) == await storage.stat("b/1/clip.mp4")
    assert await storage.verify("b/1/clip.mp4", stored.size, None)
    for size, sha256 in ((stored.size - 1, stored.sha256), (stored.size, "0" * 64)):
        with pytest.raises(FileDamaged):
            await storage.verify("b/1/clip.mp4", size, sha256)
    with pytest.raises(FileDamaged):
        await storage.verify("b/2/clip.mp4", *astuple(stored))


async def test_other_bytes_of_the_same_length_are_no_match(storage: FileStorage) -> None:
    stored = await put_bytes(storage, CONTENT)
    await storage.verify("b/1/clip.mp4", *astuple(stored))
    await put_bytes(storage, b"!" + CONTENT[1:])

    with pytest.raises(FileDamaged):
        await storage.verify("b/1/clip.mp4", *astuple(stored))


async def test_a_hash_that_failed_for_nobody_is_not_told_to_the_next(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await put_bytes(storage, CONTENT)
    real, failed = storage._range, asyncio.Event()

    async def away(*asked: Any) -> bytes:
        await failed.wait()
        raise StorageUnavailable("away")

    monkeypatch.setattr(storage, "_range", away)
    waiting = asyncio.create_task(storage.verify("b/1/clip.mp4", stored.size, stored.sha256))
    async with asyncio.timeout(10):
        while not storage._hashes:
            await asyncio.sleep(0.01)
    (reading,) = storage._hashes.values()
    waiting.cancel()
    failed.set()
    await asyncio.wait([waiting, reading])
    monkeypatch.setattr(storage, "_range", real)
    await storage.verify("b/1/clip.mp4", stored.size, stored.sha256)


async def test_a_check_that_takes_too_long_leaves_nothing(
    storage: FileStorage, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = obstore.get_range_async

    async def slow(*asked: Any, **named: Any) -> Any:
        await asyncio.sleep(60)
        return await real(*asked, **named)

    monkeypatch.setattr("deployments.storage.files.CHECK_SECONDS", 2.0)
    monkeypatch.setattr(obstore, "get_range_async", slow)
    with pytest.raises(StorageUnavailable):
        await storage.check()
    assert await left() == []


async def test_a_storage_keeps_a_mark_that_nobody_can_ask_for(storage: FileStorage) -> None:
    assert await storage.mark() is None
    await storage.set_mark("one")
    await storage.set_mark("two")
    assert await storage.mark() == "two"
    with pytest.raises(NotFound):
        await storage.stat(".database/mark")


async def test_only_so_many_hashes_are_remembered(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.storage.files._MOST_HASHES", 2)
    for number in range(4):
        key = f"b/{number}/clip.mp4"
        await storage.verify(key, *astuple(await put_bytes(storage, b"x" * number, key)))
    assert len(storage._hashes) == 2


async def test_a_file_that_is_replaced_is_not_read_on(storage: FileStorage) -> None:
    await put_bytes(storage, CONTENT)
    stat = await storage.stat("b/1/clip.mp4")
    reading = storage.read("b/1/clip.mp4", 0, stat.size, stat.etag)
    assert await anext(reading) == CONTENT[: 1024 * 1024]
    await put_bytes(storage, b"!" * len(CONTENT))

    with pytest.raises(FileDamaged):
        await anext(reading)


# ---------------------------------------------------------------- what is old


async def listed(storage: FileStorage, seconds: float) -> set[str]:
    return {key async for keys in storage.older_than(seconds) for key in keys}


async def test_old_files_and_parts_are_listed(storage: FileStorage, source: Path) -> None:
    await storage.put(source, "samples/cat.png")
    await put_bytes(storage, b"x")
    await put_bytes(storage, b"x", "b/2/a name, odd.bin")
    await storage.write_part("3", 1, pieces(b"x"), 10)

    assert await listed(storage, 3600) == set()
    assert await listed(storage, -3600) == {"b/1/clip.mp4", "b/2/a name, odd.bin", ".parts/3/1"}


async def test_a_list_comes_in_small_pieces(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.storage.files._LISTED_AT_ONCE", 2)
    for number in range(5):
        await put_bytes(storage, b"x", f"b/{number}/clip.mp4")
    batches = [keys async for keys in storage.older_than(-3600)]
    assert max(map(len, batches)) <= 2
    assert {key for keys in batches for key in keys} == {f"b/{number}/clip.mp4" for number in range(5)}


async def test_listing_clears_a_directory_of_what_dead_processes_had_begun(on_disk: FileStorage, folder: Path) -> None:
    day_ago = time.time() - 24 * 3600
    for name in ("1/clip.mp4#1", "2/clip.mp4", "3/clip.mp4#1"):
        (folder / "b" / name).parent.mkdir(parents=True)
        (folder / "b" / name).write_bytes(b"half")
    (folder / "b" / "4").mkdir()
    for path in ("1/clip.mp4#1", "1", "2/clip.mp4", "4"):
        os.utime(folder / "b" / path, (day_ago, day_ago))

    assert await listed(on_disk, 3600) == {"b/2/clip.mp4"}
    assert await listed(on_disk, 3600) == {"b/2/clip.mp4"}
    assert sorted(path.name for path in (folder / "b").iterdir()) == ["2", "3"]
    assert (folder / "b" / "3" / "clip.mp4#1").exists(), "somebody may still be at work on it"


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def full(small_disk: Path) -> FileStorage:
    """A storage with room for little."""
    storage = FileStorage(small_disk / "files", URL)
    (small_disk / "ballast").write_bytes(b"x" * 3_500_000)
    return storage


async def test_a_full_disk_is_told_and_holds_no_half_file(full: FileStorage, small_disk: Path, source: Path) -> None:
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: full.put(source, "b/1/clip.mp4"),
        lambda: put_bytes(full, LARGE),
        lambda: full.write_part("1", 1, pieces(CONTENT, CONTENT), len(LARGE)),
        full.check,
    ]
    for attempt in attempts:
        with pytest.raises(StorageUnavailable):
            await attempt()
        assert [path.name for path in small_disk.rglob("*") if path.is_file()] == ["ballast"]
    (small_disk / "ballast").unlink()

    await full.check()
    await full.put(source, "b/1/clip.mp4")
    assert await read(full, "b/1/clip.mp4") == CONTENT
    await full.write_part("1", 1, pieces(b"x"), 10)


async def test_a_file_stays_where_its_successor_finds_no_room(full: FileStorage) -> None:
    await put_bytes(full, b"before")
    with pytest.raises(StorageUnavailable):
        await put_bytes(full, CONTENT)
    assert await read(full, "b/1/clip.mp4", 0, 6) == b"before"


async def test_the_log_says_why_but_neither_where_nor_which(
    full: FileStorage, small_disk: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = new_key("clip.mp4")
    with pytest.raises(StorageUnavailable) as caught:
        await full.put(source, key)
    assert "No space left on device" in caplog.text
    for secret in (key.split("/")[1], str(small_disk)):
        assert secret not in caplog.text + str(caught.value)
    assert caught.value.__cause__ is None


# ---------------------------------------------------------------- a bucket


@pytest.fixture
def bucket(bucket_url: str) -> FileStorage:
    return FileStorage.open(bucket_url, URL)


async def test_another_secret_gets_nothing(
    bucket: FileStorage, bucket_url: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bucket.put(source, "b/1/clip.mp4")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    await says_that_it_is_away(FileStorage.open(bucket_url, URL), source, within=2)


async def test_a_bucket_that_is_not_there_is_away(bucket: FileStorage) -> None:
    with pytest.raises(StorageUnavailable):
        await FileStorage.open("s3://nobodys/files", URL).check()


async def test_a_service_that_stops_is_away_until_it_is_back(bucket: FileStorage, s3: S3, source: Path) -> None:
    stored = await put_bytes(bucket, CONTENT)
    s3.stop()
    try:
        await says_that_it_is_away(bucket, source, within=2)
    finally:
        s3.start()
    await bucket.verify("b/1/clip.mp4", *astuple(stored))
    await bucket.put(source, "b/2/clip.mp4")


async def test_a_service_that_hangs_is_away_within_seconds(bucket: FileStorage, s3: S3, source: Path) -> None:
    stored = await put_bytes(bucket, CONTENT)
    s3.pause()
    try:
        await says_that_it_is_away(bucket, source, within=ANSWER_SECONDS + 2)
        began = time.monotonic()
        with pytest.raises(StorageUnavailable):
            await bucket.check()
        assert time.monotonic() - began < CHECK_SECONDS + 1
    finally:
        s3.resume()
    await bucket.verify("b/1/clip.mp4", *astuple(stored))
    await bucket.put(source, "b/2/clip.mp4")


async def says_that_it_is_away(bucket: FileStorage, source: Path, within: float) -> None:
    async def read_all() -> object:
        return await read(bucket, "b/1/clip.mp4")

    attempts = [
        bucket.put(source, "b/2/clip.mp4"),
        put_bytes(bucket, LARGE, "b/3/clip.mp4"),
        bucket.stat("b/1/clip.mp4"),
        bucket.delete("b/2/clip.mp4"),
        bucket.write_part("1", 1, pieces(b"x"), 10),
        read_all(),
        listed(bucket, -3600),
    ]
    began = time.monotonic()
    failures = await asyncio.gather(*attempts, return_exceptions=True)
    assert time.monotonic() - began < within
    assert [type(failure) for failure in failures] == [StorageUnavailable] * len(attempts)


@pytest.mark.parametrize(
    ("endpoint", "plain"), [("http://127.0.0.1:9000", True), ("https://s3.example.com", False), ("", False)]
)
def test_plain_http_is_spoken_only_where_the_endpoint_says_so(
    endpoint: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert (open_bucket("bucket", "prefix").client_options or {})["allow_http"] == str(plain).lower()


async def test_a_signed_url_gives_the_file_as_we_do(bucket: FileStorage) -> None:
    await bucket.write("b/1/clip.mp4", pieces(CONTENT), len(CONTENT))
    await bucket.write("b/2/a page.html", pieces(b"<script>"), 10, "text/html")
    video, page = [await bucket.signed_url(key, 60) for key in ("b/1/clip.mp4", "b/2/a page.html")]
    assert video and page
    async with httpx.AsyncClient() as client:
        reply = await client.get(video)
        assert reply.content == CONTENT
        assert reply.headers["content-type"] == "video/mp4"
        assert "content-disposition" not in reply.headers
        reply = await client.get(page)
        assert reply.headers["content-type"] == "text/html"
        assert reply.headers["content-disposition"] == "attachment; filename*=UTF-8''a%20page.html"
        assert (await client.get(video, headers={"range": "bytes=1-3"})).content == CONTENT[1:4]
        assert (await client.get(video.replace("/1/", "/2/"))).status_code == 403
        assert (await client.get(video.partition("?")[0])).status_code == 403
        assert (await client.delete(video)).status_code == 403


async def test_a_signed_url_ends(bucket: FileStorage) -> None:
    await put_bytes(bucket, CONTENT)
    url = await bucket.signed_url("b/1/clip.mp4", 1)
    assert url
    async with httpx.AsyncClient() as client, asyncio.timeout(10):
        while (await client.get(url)).status_code != 403:
            await asyncio.sleep(0.2)


async def test_a_directory_signs_nothing(on_disk: FileStorage) -> None:
    await put_bytes(on_disk, CONTENT)
    assert await on_disk.signed_url("b/1/clip.mp4", 60) is None
