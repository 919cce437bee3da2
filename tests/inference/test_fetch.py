from __future__ import annotations

import base64
import contextlib
import gzip
import re
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import pytest

from deployments.errors import (
    FileDownloadError,
    FileTooLarge,
    ImageLoadError,
    InvalidArchive,
    ModelError,
    StorageUnavailable,
)
from deployments.inference import fetch
from deployments.inference.fetch import FileSource
from deployments.storage import FileStorage, Stat
from deployments.web import Reach
from tests.conftest import free_port
from tests.inference.conftest import URL, WebServer, image_bytes, run_web_server

LOC = ("body", "mask_image_url")
MAX_BYTES = 20 * 2**20
PNG = image_bytes()


@pytest.fixture
def files(storage: FileStorage) -> FileSource:
    """Fetches from anywhere, so that a test may serve on the loopback."""
    return FileSource(storage, Reach(allow_private=True))


@pytest.fixture
def public_files(storage: FileStorage) -> FileSource:
    """Fetches as the service does by default."""
    return FileSource(storage)


@pytest.fixture
def honeypot() -> Iterator[WebServer]:
    """A server that nobody should reach, on a port that would be allowed."""
    with run_web_server(8443, 8080, 443, 80) as server:
        server.serve("/", PNG)
        yield server


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


async def refuse(source: FileSource, url: str, error: type[ModelError]) -> ModelError:
    """The error with which a URL is refused; each names the field that it is about."""
    with pytest.raises(error) as caught:
        await source.get(url, LOC, MAX_BYTES)
    assert caught.value.body()["detail"][0]["loc"] == ["body", "mask_image_url"]
    return caught.value


async def test_a_name_that_no_file_can_have_is_no_fault_of_the_storage(files: FileSource) -> None:
    await refuse(files, f"{URL}/files/b/0/{quote('clip#1')}", FileDownloadError)


# ---------------------------------------------------------------- data URIs


@pytest.mark.parametrize(
    "uri",
    [
        data_uri(PNG),
        data_uri(PNG, "image/jpeg"),
        data_uri(PNG, "text/html"),
        data_uri(PNG, ""),
        data_uri(PNG, "image/png;charset=utf-8"),
        "DATA:" + data_uri(PNG)[5:].replace("base64", "BASE64"),
        "data:image/png;base64," + quote(base64.b64encode(PNG).decode(), safe=""),
        "data:image/png," + quote(PNG),
    ],
)
async def test_a_data_uri_is_its_bytes(public_files: FileSource, uri: str) -> None:
    assert await public_files.get(uri, LOC, MAX_BYTES) == PNG


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("data:", id="nothing"),
        pytest.param("data:image/png;base64", id="no comma"),
        pytest.param(data_uri(PNG)[:-1], id="cut base64"),
        pytest.param("data:image/png;base64,!!!!", id="another alphabet"),
        pytest.param("data:image/png;base64," + "é" * 8, id="not ASCII"),
        pytest.param(
            "data:image/png;base64," + base64.urlsafe_b64encode(b"\xfb\xff" + PNG).decode(), id="URL-safe alphabet"
        ),
    ],
)
async def test_a_broken_data_uri_is_the_error_of_its_field(public_files: FileSource, uri: str) -> None:
    await refuse(public_files, uri, ImageLoadError)
    with pytest.raises(InvalidArchive, match="data URI"):
        await public_files.get(uri, LOC, MAX_BYTES, InvalidArchive)


async def test_base64_may_be_broken_into_lines(public_files: FileSource) -> None:
    uri = "data:image/png;base64," + base64.encodebytes(bytes(range(256))).decode()

    assert await public_files.get(uri, LOC, MAX_BYTES) == bytes(range(256))


async def test_a_data_uri_has_the_limit_of_any_file(public_files: FileSource) -> None:
    assert len(await public_files.get(data_uri(bytes(MAX_BYTES)), LOC, MAX_BYTES)) == MAX_BYTES

    error = await refuse(public_files, data_uri(bytes(MAX_BYTES + 1)), FileTooLarge)
    assert error.body()["detail"][0]["ctx"] == {"max_size": MAX_BYTES}
    assert "input" not in error.body()["detail"][0]


@pytest.mark.parametrize("head", ["data:,", "data:;base64,"])
@pytest.mark.parametrize("part", ["%41", "%", "%4", "%%4", "é%20", "A ", "A", "%41A"])
async def test_to_decode_takes_a_small_multiple_of_the_text(public_files: FileSource, head: str, part: str) -> None:
    """Split at each sign of per cent, it would take a hundred times as much."""
    uri = head + part * (2**20 // len(part))
    tracemalloc.start()
    try:
        with contextlib.suppress(ModelError):
            await public_files.get(uri, LOC, MAX_BYTES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6 * len(uri.encode())


async def test_what_is_too_long_is_refused_before_all_of_it_is_decoded(
    public_files: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_ESCAPES", escapes := CountedEscapes())
    with pytest.raises(FileTooLarge):
        await public_files.get("data:," + "%41" * 10 * fetch.PIECE, LOC, fetch.PIECE)
    assert escapes.count <= 5


class CountedEscapes:
    """Counts the pieces of a text in which escapes are looked for."""

    def __init__(self) -> None:
        self.count = 0
        self._escapes = fetch._ESCAPES

    def sub(self, replace: Callable[[re.Match[bytes]], bytes], piece: bytes) -> bytes:
        self.count += 1
        return self._escapes.sub(replace, piece)


@pytest.mark.parametrize("piece", [3, 4, 5, 6, 7])
async def test_wherever_a_piece_ends_a_text_means_the_same(
    public_files: FileSource, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(fetch, "PIECE", piece)
    for text in ("%41%42%4", "a%41b%%41%", "%4%411%zz%e9é%C3%A9 x", "%25%34%31%2541", "%%%41", "ab%c"):
        for before in range(8):
            uri = "data:," + "x" * before + text
            assert await public_files.get(uri, LOC, MAX_BYTES) == unquote_to_bytes(uri[6:])
    assert await public_files.get("data:;base64,QU%4A%0a D", LOC, MAX_BYTES) == b"ABC"


# ---------------------------------------------------------------- our own files


async def test_a_file_of_this_server_is_read_from_its_storage(
    public_files: FileSource, storage: FileStorage, tmp_path: Path
) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    file = await storage.put(tmp_path / "cat.png", "b/1/a cat.png")

    assert file.url.startswith(URL)
    assert await public_files.get(file.url, LOC, MAX_BYTES) == PNG


@pytest.mark.parametrize("key", ["b/1/none.png", "../secret.png", "%2e%2e/secret.png", "", "%00"])
async def test_a_file_that_this_server_has_not_cannot_be_had(
    public_files: FileSource, tmp_path: Path, key: str
) -> None:
    (tmp_path / "secret.png").write_bytes(PNG)

    await refuse(public_files, f"{URL}/files/{key}", FileDownloadError)


async def test_a_file_of_this_server_has_the_limit_of_any_file(
    public_files: FileSource, storage: FileStorage, tmp_path: Path
) -> None:
    (tmp_path / "big.png").write_bytes(PNG + bytes(MAX_BYTES))
    file = await storage.put(tmp_path / "big.png", "b/1/big.png")

    await refuse(public_files, file.url, FileTooLarge)


async def test_a_file_of_this_server_that_changes_meanwhile_is_not_mixed(
    public_files: FileSource, storage: FileStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    file = await storage.put(tmp_path / "cat.png", "b/1/cat.png")
    look = FileStorage.stat

    async def changed(storage: FileStorage, key: str) -> Stat:
        stat = await look(storage, key)
        (tmp_path / "files" / key).write_bytes(PNG[::-1])
        return stat

    monkeypatch.setattr(FileStorage, "stat", changed)
    await refuse(public_files, file.url, FileDownloadError)


async def test_a_storage_that_is_away_is_no_fault_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    away = FileSource(FileStorage.open("s3://bucket/files", URL))

    with pytest.raises(StorageUnavailable) as caught:
        await away.get(f"{URL}/files/b/1/cat.png", LOC, MAX_BYTES)
    assert caught.value.retryable


# ---------------------------------------------------------------- downloads


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "text/html", "application/octet-stream"])
async def test_a_download_is_what_its_bytes_say(files: FileSource, web: WebServer, content_type: str) -> None:
    assert await files.get(web.serve("/cat", PNG, content_type=content_type), LOC, MAX_BYTES) == PNG
    assert web.asked == ["/cat"]


async def test_a_redirect_is_followed(files: FileSource, web: WebServer) -> None:
    web.serve("/cat", PNG)

    assert await files.get(web.serve("/moved", status=302, location="/cat"), LOC, MAX_BYTES) == PNG


async def test_spaces_of_a_redirect_are_quoted_as_browsers_do(files: FileSource, web: WebServer) -> None:
    web.serve("/a%20cat%20%20b.png?c=d%20e", PNG)

    moved = web.serve("/moved", status=302, location="/a cat%20 b.png?c=d e ")
    assert await files.get(moved, LOC, MAX_BYTES) == PNG


@pytest.mark.parametrize("location", ["file:///etc/passwd", "/loop", "ftp://127.0.0.1/x", "http://["])
async def test_a_redirect_leads_nowhere_else(files: FileSource, web: WebServer, location: str) -> None:
    await refuse(files, web.serve("/loop", status=302, location=location), FileDownloadError)
    assert len(web.asked) < 10


@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
async def test_the_status_of_a_failed_download_is_told(files: FileSource, web: WebServer, status: int) -> None:
    error = await refuse(files, web.serve("/cat", PNG, status=status), FileDownloadError)

    assert str(status) in error.message


async def test_an_empty_answer_is_an_empty_file(files: FileSource, web: WebServer) -> None:
    assert await files.get(web.serve("/empty", b"", content_length="0"), LOC, MAX_BYTES) == b""


async def test_a_promise_of_more_bytes_than_come_is_a_failed_download(files: FileSource, web: WebServer) -> None:
    await refuse(files, web.serve("/lie", PNG, content_length=str(len(PNG) + 1)), FileDownloadError)


async def test_what_is_announced_as_too_large_is_not_read(files: FileSource, web: WebServer) -> None:
    await refuse(files, web.serve("/lie", PNG, content_length=str(10 * 2**30)), FileTooLarge)


async def test_a_promise_of_fewer_bytes_than_come_cuts_the_file(files: FileSource, web: WebServer) -> None:
    half = len(PNG) // 2

    assert await files.get(web.serve("/lie", PNG, content_length=str(half)), LOC, MAX_BYTES) == PNG[:half]


async def test_a_download_stops_at_its_limit(files: FileSource, web: WebServer) -> None:
    sent = []

    def pour(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not web.closing.is_set():
            sent.append(handler.wfile.write(bytes(2**20)))

    error = await refuse(files, web.answer("/endless", pour), FileTooLarge)
    assert error.body()["detail"][0]["ctx"] == {"max_size": MAX_BYTES}
    assert sum(sent) < 3 * MAX_BYTES


async def test_a_compressed_answer_is_measured_unpacked(files: FileSource, web: WebServer) -> None:
    packed = gzip.compress(bytes(2 * MAX_BYTES))

    assert len(packed) < MAX_BYTES
    await refuse(files, web.serve("/bomb", packed, content_encoding="gzip"), FileTooLarge)


async def test_a_bomb_in_a_bomb_is_not_unpacked(files: FileSource, web: WebServer) -> None:
    packed = gzip.compress(gzip.compress(bytes(2 * MAX_BYTES)))

    await refuse(files, web.serve("/bomb", packed, content_encoding="gzip, gzip"), FileDownloadError)


async def test_a_download_has_a_deadline(files: FileSource, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FETCH_SECONDS", 0.2)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not web.closing.wait(0.02):
            handler.wfile.write(b"x")

    error = await refuse(files, web.answer("/drip", drip), FileDownloadError)
    assert "too long" in error.message


async def test_a_server_that_is_not_there_cannot_be_reached(files: FileSource) -> None:
    with run_web_server(0) as gone:
        pass

    error = await refuse(files, gone.url, FileDownloadError)
    assert "could not be reached" in error.message


async def test_a_download_carries_nothing_of_ours(files: FileSource, web: WebServer) -> None:
    headers: dict[str, str] = {}

    def record(handler: BaseHTTPRequestHandler) -> None:
        headers.update({name.lower(): value for name, value in handler.headers.items()})
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(PNG)

    await files.get(web.answer("/cat", record), LOC, MAX_BYTES)
    assert headers["accept-encoding"] == "identity"
    assert headers["user-agent"] == "svd-serve"
    assert not {"authorization", "cookie"} & headers.keys()


async def test_a_cookie_of_one_download_is_not_sent_with_the_next(files: FileSource, web: WebServer) -> None:
    sent: list[str | None] = []

    def record(handler: BaseHTTPRequestHandler) -> None:
        sent.append(handler.headers.get("cookie"))
        handler.send_response(200)
        handler.send_header("set-cookie", "caller=1; Path=/")
        handler.end_headers()
        handler.wfile.write(PNG)

    url = web.answer("/cat", record)
    await files.get(url, LOC, MAX_BYTES)
    await files.get(url, LOC, MAX_BYTES)
    assert sent == [None, None]


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0177.0.0.1",
        "0x7f000001",
        "0x7f.1",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
    ],
)
async def test_the_loopback_is_refused_however_it_is_written(
    public_files: FileSource, honeypot: WebServer, host: str
) -> None:
    await refuse(public_files, f"http://{host}:{honeypot.port}/", FileDownloadError)

    assert honeypot.asked == []


async def test_a_refused_address_is_told_without_its_reason(public_files: FileSource, web: WebServer) -> None:
    error = await refuse(public_files, web.url, FileDownloadError)

    assert error.message == "The file could not be downloaded: this address is not allowed"
    assert web.asked == []


@pytest.mark.parametrize("port", [0, 22, 25, 6379, 10001, 65536])
async def test_other_ports_are_refused(public_files: FileSource, port: int) -> None:
    await refuse(public_files, f"http://127.0.0.1:{port}/", FileDownloadError)


async def test_the_honeypot_would_be_reached_if_it_were_allowed(files: FileSource, honeypot: WebServer) -> None:
    await files.get(f"{honeypot.url}/", LOC, MAX_BYTES)

    assert honeypot.asked == ["/"]


NOWHERE = [
    "file:///etc/passwd",
    "gopher://127.0.0.1/",
    "ftp://127.0.0.1/cat.png",
    "dict://127.0.0.1/",
    "unix:/var/run/docker.sock",
    "jar:http://127.0.0.1!/",
    "blob:http://127.0.0.1/1",
    "javascript:alert(1)",
    "s3://bucket/cat.png",
    "//127.0.0.1/cat.png",
    "/etc/passwd",
    "cat.png",
    " ",
    "http://",
    "http://[",
    "http://127.0.0.1:port/",
    "http://127.0.0.1\r\nX: y/",
    pytest.param("x" * 3_000_000, id="3 MB without a scheme"),
]
ODD = [
    "http://127.0.0.1/\0",
    "http://a\\@127.0.0.1/",
    "http://a#@127.0.0.1/",
    pytest.param("http://127.0.0.1/" + "x" * 3_000_000, id="3 MB"),
]


@pytest.mark.parametrize("url", [*NOWHERE, *ODD])
async def test_what_is_no_web_address_cannot_be_had(public_files: FileSource, url: str) -> None:
    await refuse(public_files, url, FileDownloadError)


@pytest.mark.parametrize("url", NOWHERE)
async def test_what_is_no_web_address_cannot_be_had_in_house_either(files: FileSource, url: str) -> None:
    await refuse(files, url, FileDownloadError)


@pytest.mark.parametrize("allow_private", [False, True])
async def test_a_url_with_a_password_is_refused_and_not_repeated(
    storage: FileStorage, honeypot: WebServer, allow_private: bool
) -> None:
    url = f"http://user:swordfish@127.0.0.1:{honeypot.port}/"
    error = await refuse(FileSource(storage, Reach(allow_private)), url, FileDownloadError)

    assert "swordfish" not in str(error.body())
    assert honeypot.asked == []
