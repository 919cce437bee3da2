"""Files in a bucket, behind the same routes; and readers who are sent to the bucket itself, by real clients."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from deployments.gateway.api import create_api
from deployments.queue.store import RequestStore
from deployments.storage import FileStorage
from loadtest.s3 import S3
from tests.conftest import free_port, need
from tests.gateway.conftest import KEY, URL, Gateway, open_gateway, served_endpoints

CONTENT = bytes(range(256)) * 30_000  # more than one piece of a bucket's
PAGE = b"<script>alert(1)</script>"
NOBODY = {"authorization": ""}


@pytest.fixture
def bucket(bucket_url: str) -> FileStorage:
    return FileStorage.open(bucket_url, URL)


@pytest.fixture
async def gateway(store: RequestStore, bucket: FileStorage) -> AsyncIterator[Gateway]:
    async with open_gateway(store, bucket, served_endpoints()) as gateway:
        yield gateway


@pytest.fixture
async def sending(store: RequestStore, bucket: FileStorage) -> AsyncIterator[Gateway]:
    """A gateway that sends readers to the bucket."""
    async with open_gateway(store, bucket, served_endpoints(), signed_seconds=60.0) as gateway:
        yield gateway


async def upload(gateway: Gateway, content: bytes, name: str, content_type: str, **headers: str) -> str:
    told = {"x-fal-file-name": name, "content-type": content_type} | headers
    reply = await gateway.client.post("/files/upload", content=content, headers=told)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["access_url"])


async def signed_put(gateway: Gateway) -> str:
    urls = (await gateway.client.post("/storage/upload/initiate", json={"file_name": "clip.mp4"})).json()
    assert (await gateway.client.put(urls["upload_url"], content=CONTENT, headers=NOBODY)).status_code == 200
    return str(urls["file_url"])


async def in_parts(gateway: Gateway) -> str:
    told = {"x-fal-file-name": "clip.mp4", "content-type": "video/mp4"}
    begun = (await gateway.client.post("/files/upload/multipart", headers=told)).json()
    path = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    parts = []
    for number, start in enumerate(range(0, len(CONTENT), 6_000_000), 1):
        part = CONTENT[start : start + 6_000_000]
        reply = await gateway.client.put(f"{path}/{number}", content=part)
        parts.append({"partNumber": number, "etag": reply.headers["etag"]})
    assert (await gateway.client.post(f"{path}/complete", json={"parts": parts})).status_code == 200
    return str(begun["access_url"])


async def test_every_form_of_upload_comes_back(gateway: Gateway, s3: S3) -> None:
    before = s3.unfinished()  # of tests that let the service hang
    urls = [await upload(gateway, CONTENT, "clip.mp4", "video/mp4"), await signed_put(gateway), await in_parts(gateway)]
    for url in urls:
        reply = await gateway.client.get(url, headers=NOBODY)
        assert (reply.status_code, reply.content) == (200, CONTENT)
        part = await gateway.client.get(url, headers={**NOBODY, "range": "bytes=1-5"})
        assert (part.status_code, part.content) == (206, CONTENT[1:6])
    assert s3.unfinished() == before


async def test_altered_and_lost_files_are_not_sent(gateway: Gateway, sending: Gateway) -> None:
    url = await upload(gateway, CONTENT, "clip.mp4", "video/mp4")
    key = gateway.storage.key_of(url)
    assert key

    async def other() -> AsyncIterator[bytes]:
        yield b"!" + CONTENT[1:]

    await gateway.storage.write(key, other(), len(CONTENT))
    for each in (gateway, sending):
        assert (await each.client.get(url)).status_code == 500
    await gateway.storage.delete(key)
    for each in (gateway, sending):
        assert (await each.client.get(url)).status_code == 500


async def test_readers_are_sent_to_the_bucket(sending: Gateway, s3: S3) -> None:
    video = await upload(sending, CONTENT, "clip.mp4", "video/mp4")
    page = await upload(sending, PAGE, "a page.html", "text/html")
    for url, content, kind, disposition in (
        (video, CONTENT, "video/mp4", None),
        (page, PAGE, "text/html", "attachment; filename*=UTF-8''a%20page.html"),
    ):
        sent = await sending.client.get(url, headers=NOBODY)
        assert (sent.status_code, sent.content) == (307, b"")
        assert sent.headers["location"].startswith(s3.endpoint)
        assert (sent.headers["cache-control"], sent.headers["x-content-type-options"]) == ("no-store", "nosniff")
        async with httpx.AsyncClient() as client:
            reply = await client.get(sent.headers["location"])
        assert (reply.content, reply.headers["content-type"]) == (content, kind)
        assert reply.headers.get("content-disposition") == disposition


async def test_what_needs_no_bytes_is_answered_here(sending: Gateway) -> None:
    url = await upload(sending, CONTENT, "clip.mp4", "video/mp4")
    head = await sending.client.head(url)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(CONTENT)))
    again = await sending.client.get(url, headers={"if-none-match": head.headers["etag"]})
    assert again.status_code == 304


async def test_nobody_is_sent_who_may_not_read(sending: Gateway) -> None:
    forbid = '{"initial_acl": {"default": "forbid"}}'
    url = await upload(sending, CONTENT, "clip.mp4", "video/mp4", **{"x-fal-object-lifecycle": forbid})
    assert (await sending.client.get(url, headers=NOBODY)).status_code == 403
    own = await sending.client.get(url)
    assert (own.status_code, own.content) == (200, CONTENT), "the bucket's address would be good for anybody"
    signed = await sending.client.post("/v1/storage/files/sign", params={"url": url}, json={"expiration_seconds": 2})
    assert (await sending.client.get(signed.json()["signed_url"], headers=NOBODY)).status_code == 200
    assert (await sending.client.get(f"{URL}/files/b/0/clip.mp4", headers=NOBODY)).status_code == 404


async def test_a_buckets_address_ends_with_the_file_and_with_a_signature(sending: Gateway) -> None:
    soon = {"x-fal-object-lifecycle": '{"expiration_duration_seconds": 20}'}
    url = await upload(sending, CONTENT, "clip.mp4", "video/mp4", **soon)
    sent = await sending.client.get(url, headers=NOBODY)
    assert sent.status_code == 307
    assert int(httpx.URL(sent.headers["location"]).params["X-Amz-Expires"]) <= 20

    url = await upload(sending, CONTENT, "clip.mp4", "video/mp4")
    sent = await sending.client.get(url, headers=NOBODY)
    assert int(httpx.URL(sent.headers["location"]).params["X-Amz-Expires"]) == 60
    signed = await sending.client.post("/v1/storage/files/sign", params={"url": url}, json={"expiration_seconds": 2})
    assert (await sending.client.get(signed.json()["signed_url"], headers=NOBODY)).status_code == 200


async def test_clients_follow(store: RequestStore, bucket_url: str, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    storage = FileStorage.open(bucket_url, url)

    async def open_store() -> RequestStore:
        return store

    async def ready() -> None:
        return None

    app = create_api(served_endpoints(), open_store, storage, KEY, url, ready, signed_seconds=60.0)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(read_with_clients, url, tmp_path)
    finally:
        server.should_exit = True
        await serving


PYTHON = """
import sys, fal_client, httpx
from urllib.request import urlopen
from deployments.cli import point_fal_client_at
url, key, path = sys.argv[1:]
point_fal_client_at(url)
file = fal_client.SyncClient(key=key).upload_file(path)
told = httpx.get(file, headers={"authorization": f"Key {key}"}, follow_redirects=True)
content = open(path, "rb").read()
print(file, len(told.history), told.content == content, urlopen(file).read() == content)
"""

NODE = """
const [url, key] = process.argv.slice(1);
const reply = await fetch(url, {headers: {authorization: `Key ${key}`, range: "bytes=0-99"}});
const whole = await (await fetch(url)).arrayBuffer();
console.log(reply.status, reply.redirected, (await reply.arrayBuffer()).byteLength, whole.byteLength);
"""


def read_with_clients(url: str, folder: Path) -> None:
    source = folder / "clip.mp4"
    source.write_bytes(CONTENT)
    file, *told = run([sys.executable, "-c", PYTHON, url, KEY, str(source)])
    assert file.startswith(f"{url}/files/b/")
    assert told == ["1", "True", "True"]
    node = run([need("node"), "--input-type=module", "-e", NODE, file, KEY])
    assert node == ["206", "true", "100", str(len(CONTENT))]


def run(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
