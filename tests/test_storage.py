from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.errors import NotFound
from deployments.storage import FileStorage, new_key

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


@given(name=st.text(min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_key_comes_back_from_its_url(storage: FileStorage, name: str) -> None:
    assert storage.key_of(f"{URL}/files/{quote('b/1/' + name)}") == "b/1/" + name


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


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "http://example.com/", "/data/files", "", "data"])
def test_only_a_file_url_names_a_storage(url: str) -> None:
    with pytest.raises(ValueError, match="file:///"):
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
