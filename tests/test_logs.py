"""What a log line is, whatever was put into it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from deployments import logs
from deployments.queue.store import RequestStore
from deployments.storage import FileStorage
from tests.gateway.conftest import INPUT, SVD, URL, Gateway, open_gateway, served_endpoints

HOSTILE = ["a\nb", "a\r\n{}", "\x1b[31mred", "\x9b31m", "\u2028", "\u202e", "{{7*7}}", "${jndi:ldap://x/a}", "%s%n"]
SECRET = "5up3r53cr3t"
PICTURE = "data:image/png;base64," + "iVBORw0KGgo" * 100


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[StringIO]:
    """What this process logs, as a deployment writes it."""
    text = StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logs.JsonFormatter())
    logger = logging.getLogger("deployments")
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.addHandler(handler)
    yield text
    logger.removeHandler(handler)


def lines(text: StringIO) -> list[dict[str, str]]:
    """Each line by itself; there is nothing else."""
    assert text.getvalue().isascii()
    assert text.getvalue().isprintable() or all(line.isprintable() for line in text.getvalue().split("\n"))
    return [json.loads(line) for line in text.getvalue().split("\n") if line]


@pytest.mark.parametrize("value", HOSTILE)
def test_whatever_is_logged_is_one_line(written: StringIO, value: str) -> None:
    try:
        raise ValueError(value)
    except ValueError:
        logging.getLogger("deployments.test").exception("odd: %s", value)
    [line] = lines(written)
    assert line["message"] == f"odd: {value}"
    assert line["exception"].endswith(value)


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Key id:{SECRET}",
        f"authorization=Bearer {SECRET}",
        f'{{"password": "{SECRET}"}}',
        f"postgresql://user:{SECRET}@host/db",
        f"https://bucket.example/a.mp4?X-Amz-Signature={SECRET}&a=b",
        f"http://x/files/b/1/a.mp4?token={SECRET}",
        f"cookie: a={SECRET}",
        f"https://{SECRET}@example.com/a.png",
    ],
)
def test_no_secret_is_logged(written: StringIO, text: str) -> None:
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logging.getLogger("deployments.test").exception("failed: %s", text)
    assert SECRET not in written.getvalue()
    assert "failed" in lines(written)[0]["message"]


def test_no_picture_is_logged(written: StringIO) -> None:
    logging.getLogger("deployments.test").error("%s", json.dumps({"image_url": PICTURE, "seed": 1}))
    assert "iVBORw0KGgo" not in written.getvalue()
    assert '"seed": 1' in lines(written)[0]["message"]


@pytest.mark.parametrize("piece", ["a", "http://", "data:", "key ", "://", "authorization:", "password=", "data:;a"])
def test_a_long_message_is_cut_and_costs_little(written: StringIO, piece: str) -> None:
    began = time.process_time()
    logging.getLogger("deployments.test").error("%s", piece * 1_000_000)
    assert time.process_time() - began < 5
    assert len(written.getvalue()) < 3 * logs.LONGEST_MESSAGE


async def test_what_callers_send_is_logged_as_text_if_at_all(
    store: RequestStore, tmp_path: Path, written: StringIO
) -> None:
    storage = FileStorage(tmp_path / "files", URL)
    fault = RuntimeError("broken")
    async with open_gateway(store, storage, served_endpoints(), not_ready=fault) as gateway:
        for value in HOSTILE:
            await _say(gateway, value)
        await gateway.client.get("/health/ready")  # at least this is logged
    found = lines(written)
    assert any("broken" in line.get("exception", "") for line in found)
    for forbidden in ("id:secret", SECRET, "iVBORw0KGgo"):
        assert forbidden not in written.getvalue()


async def _say(gateway: Gateway, value: str) -> None:
    """Send a value wherever one can be sent, among secrets."""
    client = gateway.client
    hook = httpx.URL("https://example.com/hook", params={"token": SECRET, "x": value})
    path = f"/fal-ai/{quote(value)}"
    await client.post(path, json=INPUT)
    await client.get(f"/queue/{SVD}/requests/{value.encode().hex()}/status", params={"logs": value, "token": SECRET})
    await client.post(f"/queue/{SVD}", params={"fal_webhook": str(hook)}, json={"image_url": PICTURE, "prompt": value})
    await client.post(f"/{SVD}", json={"image_url": f"http://user:{SECRET}@127.0.0.1/{value}", "steps": value})
    await client.post("/storage/upload/initiate", json={"file_name": value, "content_type": value})
    odd = {b"x-fal-runner-hint": value.encode(), b"authorization": f"Key {SECRET}:{SECRET}".encode()}
    await client.post(f"/queue/{SVD}", json=INPUT, headers=odd)


async def test_what_a_call_leaves_in_the_log_has_the_id_of_its_answer(
    written: StringIO, store: RequestStore, tmp_path: Path
) -> None:
    async def broken() -> dict[str, dict[str, int]]:
        raise RuntimeError("no cluster")

    storage = FileStorage(tmp_path / "files", URL)
    async with open_gateway(store, storage, served_endpoints(), runners=broken) as gateway:
        first = await gateway.client.get("/v1/serverless/metrics")
        second = await gateway.client.get("/v1/serverless/metrics")

    ids = [reply.headers["x-fal-request-id"] for reply in (first, second)]
    assert len(set(ids)) == 2
    failed = [line for line in lines(written) if line["message"].endswith("failed")]
    assert [line["request_id"] for line in failed] == ids
