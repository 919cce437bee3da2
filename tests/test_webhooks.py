"""Webhooks of the running service, asked for by the official client; and what an operator does with them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fal_client
import fal_client.client
import httpx
import pytest

from deployments import cli
from deployments.cli import point_fal_client_at
from deployments.gateway.sample import SAMPLE
from deployments.queue.outbox import Outbox, Verdict, WebhookState
from deployments.queue.store import RequestStore
from tests.conftest import Server
from tests.queue.conftest import new_request
from tests.receiver import Receiver, run_receiver, verifies


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as receiver:
        yield receiver


@pytest.fixture
def fal(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[fal_client.SyncClient]:
    for name in ("RUN_URL_FORMAT", "QUEUE_URL_FORMAT"):
        monkeypatch.setattr(fal_client.client, name, getattr(fal_client.client, name))  # restored afterwards
    point_fal_client_at(server.url)
    client = fal_client.SyncClient(key=server.key)
    yield client
    client._client.close()  # it has no public way, and the session's warnings are errors


def jwks(server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/.well-known/jwks.json").raise_for_status().json())


def test_the_result_is_posted_to_the_webhook_of_a_submit_and_stays(
    server: Server, fal: fal_client.SyncClient, receiver: Receiver
) -> None:
    arguments = {"image_url": fal_client.encode_file(str(SAMPLE)), "steps": 1, "seed": 5}
    url = receiver.url + "?for=me&again=%26"
    handle = fal.submit("fal-ai/fast-svd-lcm", arguments=arguments, webhook_url=url)

    (post,) = receiver.wait()
    assert post.path == "/hook?for=me&again=%26"
    assert (post.json["request_id"], post.json["status"]) == (handle.request_id, "OK")
    assert post.json["payload"] == handle.get()
    assert httpx.get(post.json["payload"]["video"]["url"]).status_code == 200
    assert post.headers["x-fal-webhook-user-id"] == server.key.partition(":")[0]
    assert verifies(post, jwks(server))
    assert not verifies(replace(post, body=post.body + b" "), jwks(server))


def test_a_bad_input_is_posted_as_an_error(server: Server, fal: fal_client.SyncClient, receiver: Receiver) -> None:
    handle = fal.submit("fal-ai/stable-video", arguments={"motion_bucket_id": 0}, webhook_url=receiver.url)

    (post,) = receiver.wait()
    assert (post.request_id, post.json["status"]) == (handle.request_id, "ERROR")
    assert post.json["error"] == "Invalid status code: 422"
    assert {tuple(detail["loc"]) for detail in post.json["payload"]["detail"]} == {
        ("body", "image_url"),
        ("body", "motion_bucket_id"),
    }
    assert verifies(post, jwks(server))


# ---------------------------------------------------------------- svd-serve webhooks


@pytest.fixture
def database_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the database that the commands work on."""
    url = f"sqlite+aiosqlite:///{tmp_path}/queue.db"
    monkeypatch.setenv("SVD_DATABASE_URL", url)
    return url


async def undelivered(url: str, count: int) -> list[str]:
    """That many requests whose webhooks could not be delivered, and one that waits; the ids of those that ended."""
    store = await RequestStore.open(url)
    ids = []
    for _ in range(count):
        request = await store.submit(new_request(webhook="http://example.com/hook?token=secret"))
        await store.cancel(request.id)
        (delivery,) = await Outbox(store.database).claim({}, 1, 1, 60)
        await Outbox(store.database).record(delivery, Verdict(410, "the receiver answered 410"))
        ids.append(request.id)
    await store.submit(new_request(webhook="http://example.org/"))
    await store.close()
    return ids


async def states(url: str) -> dict[str, WebhookState]:
    store = await RequestStore.open(url)
    rows = await Outbox(store.database).rows(None, 100)
    await store.close()
    return {row.request_id: row.state for row in rows}


def test_webhooks_are_listed_without_their_secrets(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    (request_id,) = asyncio.run(undelivered(database_url, 1))

    assert cli.main(["webhooks", "list"]) == 0
    waiting, ended = capsys.readouterr().out.splitlines()
    assert ("WAITING" in waiting, "example.org" in waiting, "not tried yet" in waiting) == (True, True, True)
    assert ended.split() == [
        *(request_id, "UNDELIVERED", "attempts:", "1", "example.com"),
        *("the", "receiver", "answered", "410"),
    ]


@pytest.mark.parametrize("state", list(WebhookState))
def test_webhooks_of_one_state_are_listed(
    database_url: str, capsys: pytest.CaptureFixture[str], state: WebhookState
) -> None:
    asyncio.run(undelivered(database_url, 1))

    assert cli.main(["webhooks", "list", "--state", state]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [
        state for known in ("WAITING", "UNDELIVERED") if known == state
    ]


def test_one_webhook_is_made_due_again(database_url: str) -> None:
    first, second = asyncio.run(undelivered(database_url, 2))

    assert cli.main(["webhooks", "redeliver", first]) == 0
    assert [asyncio.run(states(database_url))[id] for id in (first, second)] == ["DUE", "UNDELIVERED"]


def test_all_undelivered_webhooks_are_made_due_again(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    ids = asyncio.run(undelivered(database_url, 2))

    assert cli.main(["webhooks", "redeliver", "--undelivered"]) == 0
    assert capsys.readouterr().out.startswith("2 ")
    assert {asyncio.run(states(database_url))[id] for id in ids} == {WebhookState.DUE}


def test_a_webhook_that_is_not_there_is_an_error(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate"]) == 0
    assert cli.main(["webhooks", "redeliver", "unknown"]) == 1
    assert "unknown" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["an-id", "--undelivered"]])
def test_redelivering_wants_one_webhook_or_all(database_url: str, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["webhooks", "redeliver", *arguments])
    assert caught.value.code == 2


def test_the_key_is_changed(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["migrate"]) == 0
    for number in (1, 2):
        assert cli.main(["webhooks", "rotate-key"]) == 0
        assert f"webhooks-{number}" in capsys.readouterr().out
