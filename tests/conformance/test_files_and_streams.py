"""Rows 29 to 36 of the conformance table: streams, realtime, uploads. Rows 26 to 28 are in tests/test_webhooks.py."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.conformance.conftest import Programs

Python = Callable[[str], Any]
JavaScript = Callable[..., Any]

WS = """
import WebSocket from "ws"; globalThis.WebSocket = WebSocket;
const { fal } = await import("@fal-ai/client");
"""


def test_row_29_stream(python: Python, javascript: JavaScript) -> None:
    events = python("""
        tell(list(fal_client.stream('fal-ai/svd', arguments={'image_url': picture, 'steps': 4})))""")
    assert set(events[-1]) == {"image", "seed"}
    assert [event["progress"] for event in events if "progress" in event][-1] == 1.0
    last, count = javascript("""
        const stream = await fal.stream('fal-ai/svd', { input: { image_url: picture, steps: 4 } });
        let count = 0;
        for await (const event of stream) count += 1;
        tell([await stream.done(), count])""")
    assert set(last) == {"image", "seed"}
    assert count > 1


def test_row_29_stream_with_previews(python: Python) -> None:
    events = python("""
        arguments = {'image_url': picture, 'steps': 60}
        tell(list(fal_client.stream('fal-ai/svd', arguments=arguments, path='/stream?previews=20')))""")
    previews = [event["preview"]["url"] for event in events if "preview" in event]
    assert previews
    reply = httpx.get(previews[0])
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/jpeg")


def test_row_30_realtime(python: Python, javascript: JavaScript) -> None:
    seen = python("""
        results = []
        for use_jwt in (True, False):
            with fal_client.realtime('fal-ai/svd', use_jwt=use_jwt) as connection:
                connection.send({'image_url': picture, 'steps': 1, 'seed': 5})
                results.append(connection.recv())
        tell([[sorted(result), result['seed']] for result in results])""")
    assert seen == [[["image", "seed"], 5]] * 2
    result = javascript(
        """
        fal.config({ credentials: process.env.FAL_KEY });
        const result = await new Promise((resolve, reject) => {
          const handlers = { connectionKey: 'a', onResult: resolve, onError: reject };
          const connection = fal.realtime.connect('fal-ai/svd', handlers);
          connection.send({ image_url: picture, steps: 1, seed: 6 });
        });
        tell(result); setTimeout(() => process.exit(0), 50);""",
        imports=WS,
    )
    assert result["seed"] == 6
    refused = python("""
        import websockets.sync.client as ws
        try: ws.connect('wss://fal.run/fal-ai/svd/realtime?fal_jwt_token=wrong'); tell('open')
        except Exception as error: tell(type(error).__name__)""")
    assert refused != "open"


def test_row_31_upload_of_bytes_and_files(python: Python) -> None:
    urls = python("""
        import tempfile, pathlib
        path = pathlib.Path(tempfile.mkdtemp()) / 'a note.txt'
        path.write_bytes(b'from a file')
        tell([fal_client.upload(b'bytes', 'application/x-thing'), fal_client.upload_file(path)])""")
    first, second = (httpx.get(url) for url in urls)
    assert (first.content, first.headers["content-type"]) == (b"bytes", "application/x-thing")
    assert (second.content, second.headers["content-type"].split(";")[0]) == (b"from a file", "text/plain")


def test_row_32_uploads_of_the_older_kind(python: Python, deprecated: Python) -> None:
    url = python("tell(fal_client.upload(b'older', 'image/png', repository='fal'))")
    assert httpx.get(url).content == b"older"
    url = deprecated("tell(await fal.storage.upload(new Blob(['deprecated'], { type: 'text/plain' })))")
    assert httpx.get(url).content == b"deprecated"


def test_row_33_large_uploads(python: Python, javascript: JavaScript) -> None:
    url, digest = python("""
        import hashlib, os, tempfile, pathlib
        path = pathlib.Path(tempfile.mkdtemp()) / 'large.bin'
        digest = hashlib.sha256()
        with path.open('wb') as file:
            for _ in range(105):
                piece = os.urandom(1024 * 1024); file.write(piece); digest.update(piece)
        tell([fal_client.upload_file(path), digest.hexdigest()])""")
    assert hash_of(url) == digest
    url, digest = javascript("""
        const { createHash, randomBytes } = await import("node:crypto");
        const bytes = randomBytes(95 * 1024 * 1024);
        const url = await fal.storage.upload(new Blob([bytes], { type: "application/octet-stream" }));
        tell([url, createHash("sha256").update(bytes).digest("hex")])""")
    assert hash_of(url) == digest


def hash_of(url: str) -> str:
    digest = hashlib.sha256()
    with httpx.stream("GET", url, timeout=60) as reply:
        for piece in reply.raise_for_status().iter_bytes():
            digest.update(piece)
    return digest.hexdigest()


def test_row_34_auto_upload(javascript: JavaScript, programs: Programs) -> None:
    request_id = javascript("""
        const bytes = Buffer.from(await (await fetch(picture)).arrayBuffer());
        const image_url = new Blob([bytes], { type: "image/jpeg" });
        tell((await fal.subscribe('fal-ai/svd', { input: { image_url, steps: 1 } })).requestId)""")
    query = f"endpoint_id=fal-ai/svd&request_id={request_id}&expand=payloads"
    (item,) = programs.curl("GET", f"/v1/models/requests/by-endpoint?{query}").json()["items"]
    stored = item["json_input"] if isinstance(item["json_input"], dict) else json.loads(item["json_input"])
    assert stored["image_url"].startswith(f"{programs.server.url}/files/")


def test_row_35_data_uri_input(python: Python) -> None:
    result = python("""
        import urllib.request, tempfile, pathlib
        path = pathlib.Path(tempfile.mkdtemp()) / 'a.jpg'
        urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))
        path.write_bytes(urllib.request.urlopen(picture).read())
        tell(fal_client.run('fal-ai/svd', arguments={'image_url': fal_client.encode_file(path), 'steps': 1}))""")
    assert "image" in result


def test_row_36_lifecycle(python: Python, programs: Programs) -> None:
    forbidden, hidden, brief = python("""
        from fal_client import StorageACL, StorageSettings
        settings = [StorageSettings(expires_in='1h', initial_acl=StorageACL(default=acl)) for acl in ('forbid', 'hide')]
        settings.append(StorageSettings(expires_in=2))
        tell([fal_client.upload(b'x', 'text/plain', lifecycle=each) for each in settings])""")
    assert httpx.get(forbidden).status_code == 403
    assert httpx.get(hidden).status_code == 404
    assert programs.curl("GET", hidden.removeprefix(programs.server.url)).status_code == 200
    give_up = time.monotonic() + 20
    while httpx.get(brief).status_code != 404:
        assert time.monotonic() < give_up
        time.sleep(0.2)
