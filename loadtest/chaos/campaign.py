"""One run: start, load, faults, heal, drain, check, stop.

Everything ends in bounded time, even when the service never comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import httpx

from loadtest.chaos.checker import check
from loadtest.chaos.clients import Client, Shared, make_keys
from loadtest.chaos.collect import collect, strikes_of
from loadtest.chaos.history import Limits
from loadtest.chaos.journal import Journal
from loadtest.chaos.nemesis import Nemesis, Planned
from loadtest.chaos.receiver import Receiver
from loadtest.chaos.report import report
from loadtest.chaos.service import Service

READY_SECONDS = 120.0
UNUSABLE = (
    OSError,
    RuntimeError,
    httpx.HTTPError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    subprocess.SubprocessError,
)
"""What goes wrong before there is anything to judge."""

STORE_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)


@dataclass(frozen=True)
class Options:
    """How much of everything.

    Attributes:
        seed: Decides the plan of faults and what clients do.
        requests: Submits at the most.
        seconds: Of load, at the most.
        drain_seconds: For what is left after the load.
        clients: How many.
        window: Requests that a client has open at once.
        replicas: Processes that hold the model.
        batch_seconds: How long a batch takes.
        limits: The batches' size, and how many dispatchers claim.
        keep: Whether disks are copied out though nothing was violated.
    """

    seed: int
    requests: int
    seconds: float
    drain_seconds: float
    clients: int = 8
    window: int = 12
    replicas: int = 2
    batch_seconds: float = 0.3
    limits: Limits = field(default_factory=Limits)
    keep: bool = False


async def run(options: Options, planned: Sequence[Planned], folder: Path) -> bool:
    """Run a campaign and print its report; whether nothing was violated."""
    journals = folder / "journals"
    journals.mkdir()
    receiver = Receiver(journals / "receiver.jsonl")
    service = Service(
        folder, receiver.port, replicas=options.replicas, limits=options.limits, seconds=options.batch_seconds
    )
    kept = False
    try:
        kept = await _judge(options, planned, service, receiver, journals)
    except UNUSABLE as error:
        print(f"the campaign could not be run: {type(error).__name__} {error}", flush=True)
    finally:
        await asyncio.to_thread(service.close, options.keep or not kept)
        receiver.close()
    return kept


async def _judge(
    options: Options, planned: Sequence[Planned], service: Service, receiver: Receiver, journals: Path
) -> bool:
    await service.prepare()
    service.start()
    if not await service.until_ready(READY_SECONDS):
        print("the service did not start: see", service.log)
        return False
    nemesis, broken = await _load(options, planned, service, receiver, journals)
    await _drain(service, options.drain_seconds)
    history = await collect(service, journals)
    violations = check(history)
    print(report(history, strikes_of(journals), violations), flush=True)
    for fault, why in nemesis.left_out.items():
        print(f"left out: {fault}, because {why}")
    for fault, why in nemesis.failed.items():
        print(f"could not be brought about: {fault}: {why}")
    for sentence in broken:
        print(sentence)
    kept = not (any(violations.values()) or nemesis.failed or broken)
    print("every invariant holds" if kept else "VIOLATED" if any(violations.values()) else "NOT JUDGED", flush=True)
    return kept


async def _load(
    options: Options, planned: Sequence[Planned], service: Service, receiver: Receiver, journals: Path
) -> tuple[Nemesis, list[str]]:
    """Have clients and nemesis do their work; answer the nemesis, and which clients broke down, in sentences."""
    async with httpx.AsyncClient(trust_env=False) as http:
        receiver.jwks = (await http.get(f"{service.url}/.well-known/jwks.json", timeout=30)).json()
    keys = await make_keys(service.url, service.key, ["alice", "bob"])
    shared = Shared(service.url, service.webhook, options.requests, options.window)
    dice = random.Random(options.seed)
    clients = [
        Client(
            f"client-{n}",
            keys[n % len(keys)],
            shared,
            journals / f"client-{n}.jsonl",
            random.Random(dice.random()),
        )
        for n in range(options.clients)
    ]
    with Journal(journals / "nemesis.jsonl") as journal:
        nemesis = Nemesis(service, receiver, shared, journal, random.Random(dice.random()))
        working = [asyncio.create_task(client.run()) for client in clients]
        began = time.monotonic()
        try:
            await nemesis.run(planned)
            await asyncio.sleep(max(0.0, began + options.seconds - time.monotonic()))
        finally:
            shared.left, shared.stopping = 0, True
            ends = await asyncio.gather(*working, return_exceptions=True)
    errors = {n: end for n, end in enumerate(ends) if end is not None}
    return nemesis, [f"client-{n} broke down: {type(error).__name__} {error}" for n, error in errors.items()]


async def _drain(service: Service, seconds: float) -> None:
    """Wait until every request has ended and every webhook is told, but no longer than that."""
    moving = "SELECT (SELECT count(*) FROM requests WHERE status <> 'COMPLETED')"
    moving += " + (SELECT count(*) FROM webhooks WHERE state = 'DUE') AS moving"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while True:
                with contextlib.suppress(*STORE_AWAY):
                    if not (await service.query(moving))[0]["moving"]:
                        return
                await asyncio.sleep(0.5)
