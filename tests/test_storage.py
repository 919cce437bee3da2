from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.errors import BadRequest, NotFound, PayloadTooLarge, StorageUnavailable
from deployments.storage import FileStorage, Stored, new_key

URL = "https://svd.example.com"
CONTENT = bytes(range(256)) * 10_000  # more than one piece


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "files", URL)


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


async def test_a_file_outlives_the_storage_that_wrote_it(storage: FileStorage, source: Path, tmp_path: Path) -> None:
    file = await storage.put(source, "b/1/clip.mp4")

    again = FileStorage.open((tmp_path / "files").as_uri(), URL)
    key = again.key_of(file.url)
    assert key is not None
    assert await read(again, key) == CONTENT


@pytest.mark.parametrize(
    "key", ["b/1/other.mp4", "b", "", "../clip.mp4", "b/../../clip.mp4", "/etc/passwd", "b/\0", "x" * 5000]
)
async def test_any_other_key_is_not_found(storage: FileStorage, source: Path, key: str) -> None:
    await storage.put(source, "b/1/clip.mp4")

    with pytest.raises(NotFound):
        await storage.stat(key)


async def test_the_key_of_a_url_is_its_files(storage: FileStorage, source: Path) -> None:
    file = await storage.put(source, "b/1/a clip (2).mp4")

    assert file.url == f"{URL}/files/{quote('b/1/a clip (2).mp4')}"
    assert storage.key_of(file.url) == "b/1/a clip (2).mp4"


@given(name=st.text(min_size=1).filter(lambda name: not {"", ".", ".."}.intersection(name.split("/"))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_key_comes_back_from_its_url(storage: FileStorage, name: str) -> None:
    assert storage.key_of(f"{URL}/files/{quote('b/1/' + name)}") == "b/1/" + name


@pytest.mark.parametrize(
    "key",
    ["/b/1/clip.mp4", "b/1/clip.mp4/", "b//1/clip.mp4", "b/./1/clip.mp4", "b/1/../1/clip.mp4", "/.parts/1/1", "/"],
)
async def test_a_file_has_one_key(storage: FileStorage, source: Path, key: str) -> None:
    await storage.put(source, "b/1/clip.mp4")
    await storage.write_part("1", 1, pieces(b"x"), 10)

    with pytest.raises(NotFound):
        await storage.stat(key)
    with pytest.raises(NotFound):
        await read(storage, key, 0, 1)
    assert storage.key_of(f"{URL}/files/{key}") is None
    assert storage.key_of(f"{URL}/files/{quote(key, safe='')}") is None


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


async def left_in(tmp_path: Path) -> list[str]:
    """The files of the storage, once no draft is left: a draft that was dropped takes a moment to go."""
    folder = tmp_path / "files"
    async with asyncio.timeout(10):
        while any("#" in path.name for path in folder.rglob("*")):
            await asyncio.sleep(0.01)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("size", [0, 1, 1000, 1024 * 1024, len(CONTENT)])
async def test_pieces_become_a_file(storage: FileStorage, size: int) -> None:
    content = CONTENT[:size]
    parts = [content[start : start + 70_000] for start in range(0, size, 70_000)]
    stored = await storage.write("b/1/clip.mp4", pieces(*parts), size)

    assert stored == Stored(size, hashlib.sha256(content).hexdigest())
    assert (await storage.stat("b/1/clip.mp4")).size == size
    assert await read(storage, "b/1/clip.mp4", 0, size) == content


async def test_nothing_is_seen_before_it_is_whole(storage: FileStorage, tmp_path: Path) -> None:
    async def watched() -> AsyncIterator[bytes]:
        for start in range(0, len(CONTENT), 500_000):
            yield CONTENT[start : start + 500_000]
            with pytest.raises(NotFound):
                await storage.stat("b/1/clip.mp4")

    await storage.write("b/1/clip.mp4", watched(), len(CONTENT))
    assert await read(storage, "b/1/clip.mp4") == CONTENT


async def test_too_many_bytes_leave_nothing_and_the_rest_is_not_read(storage: FileStorage, tmp_path: Path) -> None:
    async def too_many() -> AsyncIterator[bytes]:
        yield CONTENT
        yield b"x"
        raise AssertionError("read on")

    with pytest.raises(PayloadTooLarge, match=str(len(CONTENT))):
        await storage.write("b/1/clip.mp4", too_many(), len(CONTENT))
    assert await left_in(tmp_path) == []


async def test_a_write_that_breaks_off_leaves_what_was_there(storage: FileStorage, tmp_path: Path) -> None:
    await storage.write("b/1/clip.mp4", pieces(b"before"), 10)

    async def broken() -> AsyncIterator[bytes]:
        yield CONTENT
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await storage.write("b/1/clip.mp4", broken(), len(CONTENT))
    assert await left_in(tmp_path) == ["b/1/clip.mp4"]
    assert await read(storage, "b/1/clip.mp4", 0, 6) == b"before"


async def test_a_write_that_is_cancelled_leaves_nothing(storage: FileStorage, tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield CONTENT
        begun.set()
        await asyncio.Event().wait()

    writing = asyncio.create_task(storage.write("b/1/clip.mp4", endless(), len(CONTENT)))
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await left_in(tmp_path) == []


async def test_a_disk_that_takes_nothing_is_told_without_a_path(storage: FileStorage, tmp_path: Path) -> None:
    (tmp_path / "files" / "b").mkdir()
    (tmp_path / "files" / "b" / "1").write_bytes(b"")  # no directory can be made where a file is

    with pytest.raises(StorageUnavailable) as caught:
        await storage.write("b/1/clip.mp4", pieces(CONTENT), len(CONTENT))
    assert str(tmp_path) not in caught.value.message


async def test_a_deleted_file_is_gone_with_its_folder(storage: FileStorage, tmp_path: Path) -> None:
    await storage.write("b/1/clip.mp4", pieces(b"x"), 10)
    await storage.write("b/2/clip.mp4", pieces(b"x"), 10)
    for _ in range(2):  # the second time there is nothing to delete
        await storage.delete("b/1/clip.mp4")
        assert await left_in(tmp_path) == ["b/2/clip.mp4"]
    assert not (tmp_path / "files" / "b" / "1").exists()


async def test_deleting_takes_what_a_dead_process_had_begun(storage: FileStorage, tmp_path: Path) -> None:
    folder = tmp_path / "files" / "b" / "1"
    folder.mkdir(parents=True)
    (folder / "clip [1].mp4#1").write_bytes(b"half")
    await storage.delete("b/1/clip [1].mp4")
    assert not folder.exists()

    parts = tmp_path / "files" / ".parts" / "1"
    parts.mkdir(parents=True)
    (parts / "7#1").write_bytes(b"half")
    await storage.discard("1")
    assert not parts.exists()


async def test_parts_are_joined_in_the_order_that_is_asked(storage: FileStorage, tmp_path: Path) -> None:
    content = {number: CONTENT[number * 600_000 :][:600_000] for number in range(1, 4)}
    etags = {number: await storage.write_part("1", number, pieces(content[number]), 10**7) for number in (2, 3, 1)}
    stat = await storage.join("1", [(number, etags[number]) for number in (3, 1, 2)], "b/1/clip.mp4", 10**7)

    assert stat.size == sum(map(len, content.values()))
    assert await read(storage, "b/1/clip.mp4", 0, stat.size) == content[3] + content[1] + content[2]
    await storage.discard("1")
    assert await left_in(tmp_path) == ["b/1/clip.mp4"]


async def test_a_part_that_is_not_there_joins_nothing(storage: FileStorage, tmp_path: Path) -> None:
    etag = await storage.write_part("1", 1, pieces(b"x"), 10)
    for parts in ([(2, etag)], [(1, etag), (2, etag)], [(1, '"other"')], [(1, "")], [(2, "")]):
        with pytest.raises(BadRequest, match="Part"):
            await storage.join("1", parts, "b/1/clip.mp4", 10)
    with pytest.raises(BadRequest, match="Part"):
        await storage.join("2", [(1, etag)], "b/1/clip.mp4", 10)
    assert await left_in(tmp_path) == [".parts/1/1"]


async def test_parts_keep_a_limit_together(storage: FileStorage, tmp_path: Path) -> None:
    await storage.write_part("1", 1, pieces(b"12345"), 8)
    with pytest.raises(PayloadTooLarge):
        await storage.write_part("1", 2, pieces(b"1234"), 8)
    await storage.write_part("1", 1, pieces(b"12345678"), 8)
    await storage.write_part("2", 1, pieces(b"12345678"), 8)
    assert await left_in(tmp_path) == [".parts/1/1", ".parts/2/1"]


@pytest.mark.parametrize("key", [".parts/1/1", ".parts/1", ".parts"])
async def test_parts_are_no_files(storage: FileStorage, key: str) -> None:
    await storage.write_part("1", 1, pieces(b"x"), 10)
    with pytest.raises(NotFound):
        await storage.stat(key)


async def test_a_check_leaves_nothing(storage: FileStorage, tmp_path: Path) -> None:
    await storage.check()
    assert await left_in(tmp_path) == []


async def test_a_check_fails_where_nothing_can_be_put(storage: FileStorage, source: Path, tmp_path: Path) -> None:
    (tmp_path / "files" / ".parts").write_bytes(b"")  # no directory can be made where a file is
    (tmp_path / "files" / "b").write_bytes(b"")

    with pytest.raises(StorageUnavailable) as caught:
        await storage.check()
    assert str(tmp_path) not in caught.value.message
    with pytest.raises(StorageUnavailable):
        await storage.put(source, "b/1/clip.mp4")
