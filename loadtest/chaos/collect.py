"""From what everybody wrote down to a ``History``: journals, tables, files, the platform API."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import httpx

from loadtest.chaos.history import (
    BILLING,
    DATABASE,
    Answer,
    History,
    Limits,
    Peek,
    Post,
    Row,
    Run,
    Seen,
    Stored,
    Strike,
    Submit,
    Transition,
    Try,
    WebhookRow,
)
from loadtest.chaos.journal import lines
from loadtest.chaos.payload import Payload, decode
from loadtest.chaos.service import Service

OUTCOMES = ("ok", "fail", "unknown")
READ_SECONDS = 60.0
"""For the database, and for the service: either may be dead for good."""

AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, httpx.HTTPError, TimeoutError)
PAGE = 1000


async def collect(service: Service, journals: Path) -> History:
    """Everything, once nothing moves any more. What cannot be read is named in ``missing``."""
    missing: dict[str, str] = {}
    tables: dict[str, Any] = {}
    billed: list[str] = []
    with _telling(missing, DATABASE):
        async with asyncio.timeout(READ_SECONDS):
            tables = await _tables(service)
    with _telling(missing, BILLING):
        async with asyncio.timeout(READ_SECONDS):
            billed = await _billed(service)
    clients = {path.stem: list(lines(path)) for path in sorted(journals.glob("client-*.jsonl"))}
    everything = [line for journal in clients.values() for line in journal]
    return History(
        submits=[submit for name, journal in clients.items() for submit in submits_of(name, journal)],
        seen=[
            Seen(line["request_id"], line["sent"], line["at"], line["status"], line["position"])
            for line in _of(everything, "seen")
        ],
        peeks=[Peek(line["key_id"], line["request_id"], line["status_code"]) for line in _of(everything, "peek")],
        answers=[
            Answer(line["request_id"], line["status_code"], line["seed"], line["url"])
            for line in _of(everything, "result")
        ],
        cancelled=frozenset(line["request_id"] for line in _of(everything, "cancel")),
        posts=[
            Post(line["at"], line["request_id"], line["status"], line["verified"], line["answered"])
            for line in lines(journals / "receiver.jsonl")
        ],
        runs=runs_of(lines(service.engine_journal)),
        billed=billed,
        missing=missing,
        limits=service.limits,
        **tables,
    )


@contextlib.contextmanager
def _telling(missing: dict[str, str], what: str) -> Iterator[None]:
    try:
        yield
    except AWAY as error:
        missing[what] = f"{type(error).__name__} {error}".strip()


async def _tables(service: Service) -> dict[str, Any]:
    """What the database has, and the files that belong to its rows."""
    changes = await service.query("SELECT * FROM seen_changes ORDER BY n")
    outputs = await service.query("SELECT request_id FROM seen_outputs")
    webhooks = await service.query("SELECT request_id, state, attempts FROM webhooks")
    return {
        "rows": await _rows(service),
        "transitions": [Transition(**row) for row in changes],
        "outputs": Counter(row["request_id"] for row in outputs),
        "webhooks": {row["request_id"]: WebhookRow(**row) for row in webhooks},
        "files": await _files(service),
    }


def strikes_of(journals: Path) -> list[Strike]:
    """What the nemesis did."""
    return [
        Strike(line["fault"], line["what"], line["began"], line["at"])
        for line in _of(lines(journals / "nemesis.jsonl"), "strike")
    ]


def submits_of(client: str, journal: Iterable[Mapping[str, Any]]) -> list[Submit]:
    """A client's requests, each with all its tries; one that was never answered counts as unknown."""
    meant: dict[int, Mapping[str, Any]] = {}
    tries: dict[int, list[Try]] = {}
    invoked: dict[int, float] = {}
    for line in journal:
        if line["op"] == "submit":
            meant.setdefault(line["n"], line)
            invoked[line["n"]] = line["at"]
        elif line["op"] in OUTCOMES:
            began = invoked.pop(line["n"])
            tries.setdefault(line["n"], []).append(Try(began, line["op"], line["at"], line["request_id"], line["why"]))
    for n, began in invoked.items():
        tries.setdefault(n, []).append(Try(began, "unknown", began, why="never answered"))
    return [
        Submit(
            client,
            line["key_id"],
            Payload.load(line["payload"]),
            line["low"],
            line["webhook"],
            line["idempotency"],
            line["no_retry"],
            tuple(tries[n]),
        )
        for n, line in meant.items()
    ]


def runs_of(journal: Iterable[Mapping[str, Any]]) -> list[Run]:
    """What ran in the engine, one for each member of a batch."""
    batches = list(journal)
    ends = {line["batch"]: line["at"] for line in batches if line["op"] == "end"}
    return [
        Run(digest, line["pid"], line["at"], ends.get(line["batch"]))
        for line in batches
        if line["op"] == "start"
        for digest in line["digests"]
    ]


async def _rows(service: Service) -> dict[str, Row]:
    rows = await service.query(
        "SELECT id, seq, model, key_id, priority, batch_key, status, attempt, status_code, error_type, "
        "request_id IS NOT NULL AS has_io, input, output FROM requests LEFT JOIN request_io ON request_id = id"
    )
    return {row["id"]: _row(row) for row in rows}


def _row(record: asyncpg.Record) -> Row:
    values = dict(record)
    input, output = values.pop("input"), json.loads(values.pop("output") or "{}")
    url = (output.get("video") or {}).get("url")
    return Row(**values, payload=Payload.of_input(input) if input else None, seed=output.get("seed"), url=url)


async def _files(service: Service) -> list[Stored]:
    """Every file that is in the storage or in the database, but for what the service put there when it started."""
    records = {row["key"]: row for row in await service.query("SELECT key, request_id, size, sha256 FROM files")}
    root = service.storage / "files"
    found = {str(path.relative_to(root)): path for path in root.glob("b/*/*") if "#" not in path.name}
    digests = dict(zip(found, decode(list(found.values())), strict=True))
    return [_stored(key, records.get(key), found.get(key), digests.get(key)) for key in sorted({*records, *found})]


def _stored(key: str, record: asyncpg.Record | None, path: Path | None, digest: int | None) -> Stored:
    content = path.read_bytes() if path and path.exists() else None
    return Stored(
        key,
        record["request_id"] if record else None,
        record["size"] if record else None,
        record["sha256"] if record else None,
        None if content is None else len(content),
        None if content is None else hashlib.sha256(content).hexdigest(),
        digest,
    )


async def _billed(service: Service) -> list[str]:
    """The requests of all billing events, as the platform API tells an administrator."""
    billed: list[str] = []
    headers = {"authorization": f"Key {service.key}"}
    async with httpx.AsyncClient(base_url=service.url, headers=headers, trust_env=False, timeout=30) as http:
        query = {"limit": str(PAGE)}
        while True:
            answer = (await http.get("/v1/models/billing-events", params=query)).raise_for_status().json()
            billed += [event["request_id"] for event in answer["billing_events"]]
            if not answer["has_more"]:
                return billed
            query["cursor"] = answer["next_cursor"]


def _of(journal: Iterable[Mapping[str, Any]], op: str) -> list[Mapping[str, Any]]:
    return [line for line in journal if line["op"] == op]


__all__ = ["Limits", "collect", "runs_of", "strikes_of", "submits_of"]
