from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from deployments.errors import FileDownloadError
from deployments.gateway.auth import Authenticator
from deployments.gateway.submission import MAX_KEPT_BYTES
from deployments.gateway.tokens import Tokens
from deployments.inference.fetch import FileSource
from deployments.models.messages import StoredFile
from deployments.queue.files import Files, Lifecycle
from deployments.queue.keys import Keys
from deployments.queue.secrets import Secrets
from deployments.queue.store import Outcome
from deployments.queue.tables import request_io, requests
from tests.conftest import add_file
from tests.gateway.conftest import FAST, INPUT, KEY, OUTPUT, OWNER, SVD, URL, Gateway


@pytest.mark.parametrize(("length", "kept"), [(10, True), (MAX_KEPT_BYTES, False)])
async def test_of_a_refused_input_no_more_than_a_little_is_kept(gateway: Gateway, length: int, kept: bool) -> None:
    request_id = await gateway.submit(json={"ignored": "x" * length})

    async with gateway.store.database.read() as connection:
        query = select(request_io.c.input).where(request_io.c.request_id == request_id)
        assert ("ignored" in (await connection.execute(query)).scalar_one()) is kept


# ---------------------------------------------------------------- what headers and query say of a request


async def row_of(gateway: Gateway, request_id: str) -> Any:
    async with gateway.store.database.read() as connection:
        return (await connection.execute(select(requests).where(requests.c.id == request_id))).one()


async def submit(gateway: Gateway, query: str = "", **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.client.post(f"/queue/{SVD}{query}", json=INPUT, headers=sent)


async def test_a_second_submit_with_an_idempotency_key_is_the_first_request(gateway: Gateway) -> None:
    first, second = [(await submit(gateway, idempotency_key="abc")).json() for _ in range(2)]
    other = (await submit(gateway, idempotency_key="abd")).json()

    assert first["request_id"] == second["request_id"] != other["request_id"]
    assert await gateway.waiting() == 2


async def test_an_idempotency_key_belongs_to_one_endpoint(gateway: Gateway) -> None:
    await submit(gateway, idempotency_key="abc")
    reply = await gateway.client.post(f"/queue/{FAST}", json=INPUT, headers={"idempotency-key": "abc"})
    assert (reply.status_code, reply.json()["error_type"]) == (422, "bad_request")
    assert SVD in reply.json()["detail"]


async def test_an_idempotency_key_belongs_to_one_input(gateway: Gateway) -> None:
    first = (await submit(gateway, idempotency_key="abc")).json()["request_id"]
    written_otherwise = json.dumps(INPUT, indent=2).encode()
    other = {**INPUT, "steps": 3}
    path, headers = f"/queue/{SVD}", {"idempotency-key": "abc"}
    again = await gateway.client.post(path, content=written_otherwise, headers=headers)
    refused = [await gateway.client.post(where, json=other, headers=headers) for where in (path, f"/{SVD}")]

    assert again.json()["request_id"] == first
    assert [(reply.status_code, reply.json()["error_type"]) for reply in refused] == [(422, "bad_request")] * 2
    assert await gateway.waiting() == 1


async def test_many_submits_at_once_with_one_key_are_one_request(gateway: Gateway) -> None:
    replies = await asyncio.gather(*(submit(gateway, idempotency_key="abc") for _ in range(8)))
    assert len({reply.json()["request_id"] for reply in replies}) == 1
    assert await gateway.waiting() == 1


async def test_a_synchronous_run_with_a_key_that_was_used_gives_the_same_result(gateway: Gateway) -> None:
    request_id = (await submit(gateway, idempotency_key="abc")).json()["request_id"]
    await gateway.finish(await gateway.claim())
    reply = await gateway.client.post(f"/{SVD}", json=INPUT, headers={"idempotency-key": "abc"})
    assert (reply.json(), reply.headers["x-fal-request-id"]) == (OUTPUT, request_id)


async def test_hint_store_io_lifecycle_and_previews_are_kept_with_the_request(gateway: Gateway) -> None:
    lifecycle = '{"expiration_duration_seconds": 60, "initial_acl": {"default": "forbid"}}'
    reply = await submit(
        gateway,
        "?previews=5",
        x_fal_runner_hint="lora1",
        x_fal_store_io="0",
        x_fal_object_lifecycle_preference=lifecycle,
    )
    row = await row_of(gateway, reply.json()["request_id"])

    assert (row.runner_hint, row.store_io, row.previews) == ("lora1", False, 5)
    assert json.loads(row.lifecycle)["expiration_duration_seconds"] == 60


async def test_by_default_nothing_is_asked_of_a_request(gateway: Gateway) -> None:
    row = await row_of(gateway, (await submit(gateway)).json()["request_id"])
    assert (row.runner_hint, row.store_io, row.previews, row.lifecycle, row.idempotency_key) == (
        None,
        True,
        0,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ("?previews=often", {}),
        ("?previews=-1", {}),
        ("", {"idempotency_key": "x" * 256}),
        ("", {"x_fal_runner_hint": "x" * 256}),
        ("", {"x_fal_object_lifecycle_preference": "soon"}),
        ("", {"x_fal_object_lifecycle_preference": '{"expiration_duration_seconds": "soon"}'}),
    ],
)
async def test_what_cannot_be_understood_is_refused_before_anything_is_accepted(
    gateway: Gateway, query: str, headers: dict[str, str]
) -> None:
    reply = await submit(gateway, query, **headers)
    assert (reply.status_code, reply.json()["error_type"]) == (400, "bad_request")
    assert await gateway.waiting() == 0


async def test_without_store_io_the_input_goes_with_the_end_and_the_result_can_be_had(gateway: Gateway) -> None:
    request_id = (await submit(gateway, x_fal_store_io="0")).json()["request_id"]
    await gateway.finish(await gateway.claim())

    async with gateway.store.database.read() as connection:
        query = select(request_io.c.input).where(request_io.c.request_id == request_id)
        assert (await connection.execute(query)).scalar_one() == "null"
    assert (await gateway.client.get(f"/queue/{SVD}/requests/{request_id}")).json() == OUTPUT


async def test_the_files_of_a_request_live_as_it_asked(gateway: Gateway) -> None:
    lifecycle = '{"expiration_duration_seconds": 3600, "initial_acl": {"default": "hide"}}'
    request_id = (await submit(gateway, x_fal_object_lifecycle_preference=lifecycle)).json()["request_id"]
    attempt = await gateway.claim()
    made = StoredFile("b/0123/clip.mp4", "video/mp4", 1234)
    assert await gateway.store.complete(attempt, OWNER, Outcome(200, OUTPUT, files=(made,)))

    (record,) = await Files(gateway.store.database).of_request(request_id)
    assert (record.key, record.content_type, record.size) == ("b/0123/clip.mp4", "video/mp4", 1234)
    assert record.expires_at and 3590 < record.expires_at - record.created_at <= 3600
    assert record.decide(None) == "hide"
    assert record.decide(record.key_id) == "allow"


@pytest.mark.parametrize("decision", ["forbid", "hide"])
async def test_a_file_that_its_owner_keeps_is_no_input_for_another_key(gateway: Gateway, decision: str) -> None:
    lifecycle = Lifecycle.parse(json.dumps({"initial_acl": {"default": decision}}))
    await add_file(gateway.store.database, "b/0123/secret.png", "somebody-else", "image/png", 10, lifecycle)
    await add_file(gateway.store.database, "b/0123/mine.png", KEY.partition(":")[0], "image/png", 10, lifecycle)

    refused = await gateway.client.post(f"/{SVD}", json={"image_url": f"{URL}/files/b/0123/secret.png"})
    (detail,) = refused.json()["detail"]
    assert (refused.status_code, detail["type"], detail["loc"]) == (422, "file_download_error", ["body", "image_url"])

    await submit(gateway)  # an input that names no file of ours
    mine = {"image_url": INPUT["image_url"], "mask_image_url": f"{URL}/files/b/0123/mine.png"}
    assert (await gateway.client.post(f"/queue/{SVD}", json=mine)).status_code == 200
    assert await gateway.waiting() == 2


HIDDEN = "b/0123456789abcdef0123456789abcdef/secret.png"


@pytest.mark.parametrize(
    "url",
    [
        f"{URL}/files/{HIDDEN}",
        f"HTTP://127.0.0.1:8000/files/{HIDDEN}",
        f"{URL}/%66iles/{HIDDEN}",
        f"{URL}/files/{HIDDEN.replace('/', '%2F')}",
        f"{URL}/files/{HIDDEN.replace('secret', '%73ecret')}",
        f"{URL}/files/{HIDDEN.replace('0123', '%30123')}#",
        f"{URL}/files/{HIDDEN}?",
        f"{URL}/files/{HIDDEN}?token=",
        f"{URL}/files/{HIDDEN}?token=1&token=2",
        f"{URL}/files/./{HIDDEN}",
        f"{URL}/files/x/../{HIDDEN}",
        f"{URL}/x/../files/{HIDDEN}",
        f"{URL}//files/{HIDDEN}",
        f"{URL}/files//{HIDDEN}",
        f"{URL}/files/%2e/{HIDDEN}",
        f"{URL}/files/x%2f..%2f{HIDDEN}",
        f"{URL}/files/{HIDDEN}/",
        f"{URL}/files/{HIDDEN}%00",
        f"{URL}\\files\\{HIDDEN}",
        f" {URL}/files/{HIDDEN}",
        f"{URL}/files/{HIDDEN} ",
        f"{URL}/files/{HIDDEN}\n",
        f"{URL}/fi\tles/{HIDDEN}",
        f"http://user@127.0.0.1:8000/files/{HIDDEN}",
        f"https://v3.fal.media/files/{HIDDEN}",
        f"HTTPS://V3B.FAL.MEDIA:443/files/{HIDDEN}",
        f"http://fal.media./files/{HIDDEN}",
    ],
)
async def test_no_spelling_leads_to_a_file_that_its_owner_keeps(gateway: Gateway, tmp_path: Path, url: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    await gateway.storage.put(tmp_path / "secret.png", HIDDEN)
    hidden = Lifecycle.parse('{"initial_acl": {"default": "hide"}}')
    await add_file(gateway.store.database, HIDDEN, "somebody-else", "image/png", 6, hidden)

    await gateway.client.post(f"/queue/{SVD}", json={"image_url": url})
    if await gateway.waiting():  # the gateway takes it for no file of ours, and so must a replica
        given = json.loads((await gateway.claim()).input)["image_url"]
        with pytest.raises(FileDownloadError):
            await FileSource(gateway.storage).get(given, ("body", "image_url"), 100)


async def test_a_signed_url_is_an_input_for_any_key(gateway: Gateway) -> None:
    hidden = Lifecycle.parse('{"initial_acl": {"default": "hide"}}')
    keys = Keys(gateway.store.database)
    owner, _ = await keys.create("somebody else")
    await add_file(gateway.store.database, "b/0123/secret.png", owner.id, "image/png", 10, hidden)
    tokens = Tokens(Secrets(gateway.store.database), Authenticator(KEY, keys).is_valid)
    token = await tokens.reading(owner.id, "b/0123/secret.png", 60)

    url = f"{URL}/files/b/0123/secret.png?token={token}"
    await gateway.client.post(f"/queue/{SVD}", json={"image_url": url})
    assert await gateway.waiting() == 1


async def test_who_joins_a_request_by_its_key_and_goes_away_does_not_cancel_it(gateway: Gateway) -> None:
    await submit(gateway, idempotency_key="abc")
    for path in (f"/{SVD}", f"/{SVD}/stream"):
        joined = asyncio.create_task(gateway.client.post(path, json=INPUT, headers={"idempotency-key": "abc"}))
        await asyncio.sleep(0.2)
        joined.cancel()
        await asyncio.gather(joined, return_exceptions=True)
    assert await gateway.waiting() == 1


async def test_what_is_no_json_for_others_is_not_kept(gateway: Gateway) -> None:
    body = b'{"image_url": 5, "x": 1e400}'
    reply = await gateway.client.post(f"/queue/{SVD}", content=body, headers={"content-type": "application/json"})
    request_id = reply.json()["request_id"]
    async with gateway.store.database.read() as connection:
        query = select(request_io.c.input).where(request_io.c.request_id == request_id)
        assert (await connection.execute(query)).scalar_one() == "null"
    history = await gateway.client.get("/v1/models/requests/by-endpoint?endpoint_id=fal-ai/svd&expand=payloads")
    assert history.status_code == 200
