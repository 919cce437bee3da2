"""Rows 37 to 50 of the conformance table: keys, retries, proxies, documents, the platform API, the other clients."""

from __future__ import annotations

import functools
import html
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conformance.conftest import JS, Programs
from tests.conftest import need

Python = Callable[[str], Any]
JavaScript = Callable[..., Any]
Curl = Callable[..., httpx.Response]

ENDPOINTS = ["fal-ai/stable-video", "fal-ai/svd", "fal-ai/fast-svd-lcm", "fal-ai/fast-svd-lcm/text-to-video"]


@contextmanager
def refusing_twice(upstream: str) -> Iterator[tuple[str, list[int]]]:
    """A server in front of ours that answers 429 twice to each path, then passes requests on; what it answered."""
    answered: list[int] = []
    refused: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            refused[self.path] = refused.get(self.path, 0) + 1
            if refused[self.path] <= 2:
                status, content = 429, b'{"detail": "busy"}'
            else:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                reply = httpx.request(self.command, upstream + self.path, content=body, headers=headers, timeout=60)
                status, content = reply.status_code, reply.content
            answered.append(status)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        yield f"http://127.0.0.1:{port}", answered


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    """A server that runs for a while; its port."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class QuietFiles(SimpleHTTPRequestHandler):
    """A directory's files."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_row_37_keys(python: Python, programs: Programs) -> None:
    url = f"{programs.server.url}/fal-ai/svd"
    body = {"image_url": programs.picture, "steps": 1}
    wrong = httpx.post(url, json=body, headers={"authorization": "Key a:b"})
    none = httpx.post(url, json=body)
    bearer = httpx.post(url, json=body, headers={"authorization": f"Bearer {programs.server.key}"}, timeout=60)
    assert (wrong.status_code, none.status_code, bearer.status_code) == (401, 401, 200)
    assert all(isinstance(reply.json()["detail"], str) for reply in (wrong, none))
    result = python("""
        import os
        os.environ['FAL_KEY_ID'], os.environ['FAL_KEY_SECRET'] = os.environ.pop('FAL_KEY').split(':')
        tell(fal_client.run('fal-ai/svd', arguments={'image_url': picture, 'steps': 1}))""")
    assert "image" in result


def test_row_38_both_clients_try_again_after_429(programs: Programs) -> None:
    with refusing_twice(programs.server.url) as (url, answered):
        in_front = f"""
            import fal_client.client as c
            c.RUN_URL_FORMAT = '{url}/'
            tell(fal_client.run('fal-ai/svd', arguments={{'image_url': picture, 'steps': 1}}))"""
        assert "image" in programs.python(in_front)
        assert answered == [429, 429, 200]
    with refusing_twice(programs.server.url) as (url, answered):
        result = programs.javascript(f"""
            fal.config({{ credentials: process.env.FAL_KEY,
                          proxyUrl: {{ url: '{url}/api/fal/proxy', when: 'always' }} }});
            tell((await fal.run('fal-ai/svd', {{ input: {{ image_url: picture, steps: 1 }} }})).data)""")
        assert "image" in result
        assert answered == [429, 429, 200]


def test_row_39_store_io_0(python: Python, curl: Curl) -> None:
    request_id, result = python("""
        handle = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 1},
                                   headers={'X-Fal-Store-IO': '0'})
        tell([handle.request_id, handle.get()])""")
    assert "image" in result
    query = f"endpoint_id=fal-ai/svd&request_id={request_id}&expand=payloads"
    (item,) = curl("GET", f"/v1/models/requests/by-endpoint?{query}").json()["items"]
    assert not item.get("json_input")
    assert not item.get("json_output")


def test_row_40_the_proxy_role(programs: Programs, curl: Curl) -> None:
    seen = programs.javascript(f"""
        fal.config({{ credentials: process.env.FAL_KEY,
                      proxyUrl: {{ url: '{programs.server.url}/api/fal/proxy', when: 'always' }} }});
        const input = {{ image_url: picture, steps: 2 }};
        const {{ data, requestId }} = await fal.subscribe('fal-ai/svd', {{ input, logs: true }});
        const stream = await fal.stream('fal-ai/svd', {{ input }});
        for await (const event of stream);
        const invalid = await failure(() => fal.run('fal-ai/svd', {{ input: {{}} }}));
        const url = await fal.storage.upload(new Blob(['x'], {{ type: 'text/plain' }}));
        tell({{ data, requestId, last: await stream.done(), invalid, url }})""")
    assert "image" in seen["data"] and "image" in seen["last"]
    assert seen["requestId"]
    assert seen["invalid"]["status"] == 422
    assert httpx.get(seen["url"]).content == b"x"
    missing = curl("POST", "/api/fal/proxy", json={})
    assert (missing.status_code, missing.json()) == (400, "Invalid request")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_row_44_openapi(curl: Curl, endpoint: str) -> None:
    document = curl("GET", f"/api/openapi/queue/openapi.json?endpoint_id={endpoint}").json()
    assert document["openapi"] == "3.0.4"
    assert document["info"]["x-fal-metadata"]["endpointId"] == endpoint
    follow = f"/{endpoint}/requests/{{request_id}}"
    assert set(document["paths"]) == {f"/{endpoint}", follow, f"{follow}/status", f"{follow}/cancel"}
    schemas = document["components"]["schemas"]
    assert any(name.endswith("Input") for name in schemas) and any(name.endswith("Output") for name in schemas)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_row_45_llms_txt_and_pages(curl: Curl, endpoint: str) -> None:
    text = curl("GET", f"/models/{endpoint}/llms.txt").text
    for section in ("Overview", "Pricing", "Input", "Output", "Python", "JavaScript", "cURL"):
        assert section.lower() in text.lower()
    assert curl("GET", f"/models/{endpoint}").status_code == 200


def test_row_46_the_platform_api(curl: Curl) -> None:
    prices = curl("GET", "/v1/models/pricing?endpoint_id=fal-ai/stable-video").json()["prices"]
    assert [(price["unit_price"], price["currency"]) for price in prices] == [(0.075, "USD")]
    estimate = {"estimate_type": "unit_price", "endpoints": {"fal-ai/stable-video": {"unit_quantity": 4}}}
    assert curl("POST", "/v1/models/pricing/estimate", json=estimate).json()["total_cost"] == pytest.approx(0.3)
    assert {model["endpoint_id"] for model in curl("GET", "/v1/models").json()["models"]} == set(ENDPOINTS)
    for path in ("usage", "analytics", "billing-events", "requests/by-endpoint"):
        reply = curl("GET", f"/v1/models/{path}?endpoint_id=fal-ai/svd")
        assert reply.status_code == 200, reply.text


def test_row_47_headers(curl: Curl, programs: Programs) -> None:
    made = curl("POST", "/fal-ai/stable-video", json={"image_url": programs.picture})
    assert made.headers["x-fal-billable-units"] == "1"
    for path in ("/", "/health/live", "/fal-ai/nothing", "/v1/models", "/files/nothing"):
        assert curl("GET", path).headers["x-fal-request-id"]


@pytest.mark.parametrize("path", ["workflows/owner/name", "comfy/owner/name", "fal-ai/flux", "someone/app/path"])
def test_row_48_other_names_are_not_found(curl: Curl, path: str) -> None:
    for method, url in (("POST", f"/{path}"), ("POST", f"/queue/{path}"), ("POST", f"/{path}/stream")):
        reply = curl(method, url, json={})
        assert reply.status_code == 404
        assert isinstance(reply.json()["detail"], str)


def test_row_49_the_async_client(python: Python) -> None:
    seen = python("""
        import asyncio
        async def main():
            arguments = {'image_url': picture, 'steps': 1}
            ran = await fal_client.run_async('fal-ai/svd', arguments=arguments)
            handle = await fal_client.submit_async('fal-ai/svd', arguments=arguments)
            subscribed = await fal_client.subscribe_async('fal-ai/svd', arguments=arguments)
            events = [event async for event in fal_client.stream_async('fal-ai/svd', arguments=arguments)]
            async with fal_client.realtime_async('fal-ai/svd') as connection:
                await connection.send(arguments)
                answered = await connection.recv()
            url = await fal_client.upload_async(b'async', 'text/plain')
            return [ran, await handle.get(), subscribed, events[-1], answered], url
        tell(asyncio.run(main()))""")
    results, url = seen
    assert all(set(result) == {"image", "seed"} for result in results)
    assert httpx.get(url).content == b"async"


def test_row_50_the_deprecated_client(deprecated: Python) -> None:
    seen = deprecated("""
        const input = { image_url: picture, steps: 2 };
        const ran = await fal.run('fal-ai/svd', { input });
        const subscribed = await fal.subscribe('fal-ai/svd', { input });
        const stream = await fal.stream('fal-ai/svd', { input });
        for await (const event of stream);
        const { request_id: requestId } = await fal.queue.submit('fal-ai/svd', { input: { ...input, steps: 90 } });
        const { status } = await fal.queue.status('fal-ai/svd', { requestId });
        await fal.queue.cancel('fal-ai/svd', { requestId });
        const url = await fal.storage.upload(new Blob(['old'], { type: 'text/plain' }));
        tell({ results: [ran, subscribed, await stream.done()], status, url })""")
    assert all(set(result) == {"image", "seed"} for result in seen["results"])
    assert seen["status"] in ("IN_QUEUE", "IN_PROGRESS")
    assert httpx.get(seen["url"]).content == b"old"
    assert json.dumps(seen)


def test_row_41_the_official_server_proxy(programs: Programs) -> None:
    result = programs.javascript(
        """
        const app = express();
        app.use(express.json());
        app.all(route, handler);
        const server = app.listen(0, "127.0.0.1");
        await new Promise((resolve) => server.once("listening", resolve));
        const url = `http://127.0.0.1:${server.address().port}${route}`;
        fal.config({ proxyUrl: { url, when: "always" } });
        const { data } = await fal.subscribe("fal-ai/svd", { input: { image_url: picture, steps: 1 } });
        tell(data);
        server.close(); server.closeAllConnections();""",
        imports="""
import { fal } from "@fal-ai/client"; import express from "express";
import { handler, route } from "@fal-ai/server-proxy/express";""",
    )
    assert set(result) == {"image", "seed"}


PAGE = """<!doctype html><title>waiting</title><script src="client.js"></script><script>
const [server, key, picture] = ["{server}", "{key}", "{picture}"];
client.fal.config({{ credentials: key, proxyUrl: {{ url: server + "/api/fal/proxy", when: "always" }} }});
(async () => {{
  const upload = await client.fal.storage.upload(new Blob(["from a page"], {{ type: "text/plain" }}));
  const seen = await client.fal.subscribe("fal-ai/svd", {{ input: {{ image_url: picture, steps: 1 }}, logs: true }});
  const file = await (await fetch(upload)).text();
  document.body.textContent = "TOLD " + JSON.stringify({{ requestId: seen.requestId, data: seen.data, file }});
}})().catch((error) => {{ document.body.textContent = "TOLD " + JSON.stringify({{ error: String(error) }}); }});
</script><body></body>"""


def test_row_42_a_page_of_another_origin(programs: Programs, tmp_path: Path) -> None:
    bundle = [str(JS / "node_modules" / ".bin" / "esbuild"), "@fal-ai/client", "--bundle", "--format=iife"]
    script = [*bundle, "--global-name=client", f"--outfile={tmp_path / 'client.js'}"]
    subprocess.run(script, cwd=JS, check=True, capture_output=True)
    server = programs.server
    (tmp_path / "page.html").write_text(PAGE.format(server=server.url, key=server.key, picture=programs.picture))
    handler = functools.partial(QuietFiles, directory=str(tmp_path))
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        browser = [need("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000"]
        folder = f"--user-data-dir={tmp_path / 'profile'}"
        page = [*browser, folder, "--dump-dom", f"http://127.0.0.1:{port}/page.html"]
        shown = subprocess.run(page, capture_output=True, text=True, timeout=120).stdout
    told = re.search(r"TOLD (\{.*\})", shown)
    assert told, shown[-2000:]
    seen = json.loads(html.unescape(told[1]))
    assert seen.get("file") == "from a page", seen
    assert len(seen["requestId"]) == 36
    assert "image" in seen["data"]
