"""The nemesis: a plan of faults that a seed decides, and what each of them does.

    seed ─▶ plan() ─▶ (second, fault) … ─▶ strike ─▶ heal ─▶ the next one

One fault at a time, so that a recovery can be told to its cause; what one leaves behind meets the next all the same.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from loadtest.chaos.clients import Shared, Special
from loadtest.chaos.journal import Journal
from loadtest.chaos.payload import FAILS, HANGS, POISON
from loadtest.chaos.receiver import Receiver
from loadtest.chaos.service import Service

QUIET_SECONDS = 5.0
"""Before the first fault."""

SLOT_SECONDS = 25.0
"""For a fault of the long run, on average."""

OUTAGE_SECONDS = 10.0
SCRAPES, SCRAPERS = 100.0, 16
"""So many a second, if so many connections get as many answers."""

ISOLATED = "CHAOS_ISOLATED"
"""Set in the environment of a campaign that has a network and mounts of its own."""

BANDWIDTH = "4mbit"
SLOW = (
    "ip link set lo mtu 1500",
    f"tc qdisc add dev lo root tbf rate {BANDWIDTH} burst 32kb latency 400ms",
)
FAST = "tc qdisc del dev lo root"
FULL_SECONDS = 6.0
READY_SECONDS = 120.0

VICTIM_SECONDS = 30.0
"""What is to be killed may just be coming back from the fault before."""

ASKED_SECONDS = 30.0
"""Until a client has submitted what the nemesis asks for."""

STRIKE_SECONDS = 300.0
"""Longer than any fault takes that can be brought about."""

EARLY = ("F10", "F4", "F1")
LATE = ("F3", "F5", "F8", "F22")
"""Webhooks that were interrupted come again after a minute: the faults that do so come first."""


@dataclass(frozen=True)
class Planned:
    """A fault, and when it is due, in seconds from the start of the load."""

    second: float
    fault: str


def plan(seed: int, seconds: float, faults: Sequence[str] = ()) -> list[Planned]:
    """The faults of a run. Equal seeds plan equal faults at equal times.

    Args:
        seed: Of the dice.
        seconds: How long there is load.
        faults: Which ones, each at least once and again while there is time; the short run's without them.
    """
    dice = random.Random(seed)
    order = _shuffled(dice, faults) if faults else [*_shuffled(dice, EARLY), *_shuffled(dice, LATE)]
    while faults and (len(order) + len(faults)) * SLOT_SECONDS <= seconds:
        order += _shuffled(dice, faults)
    slot = (seconds - QUIET_SECONDS) / len(order)
    return [Planned(QUIET_SECONDS + (n + dice.uniform(0, 0.3)) * slot, fault) for n, fault in enumerate(order)]


def _shuffled(dice: random.Random, faults: Sequence[str]) -> list[str]:
    return dice.sample(list(faults), len(faults))


class LeftOut(Exception):
    """A fault that cannot be brought about here; the message says why."""


class Nemesis:
    """Brings about the faults of a plan."""

    def __init__(
        self, service: Service, receiver: Receiver, shared: Shared, journal: Journal, dice: random.Random
    ) -> None:
        """Do nothing yet."""
        self._service = service
        self._receiver = receiver
        self._shared = shared
        self._journal = journal
        self._dice = dice
        self.left_out: dict[str, str] = {}
        self.failed: dict[str, str] = {}

    async def run(self, planned: Sequence[Planned]) -> None:
        """Strike by plan. A fault that is late, because the one before took its time, comes at once."""
        began = time.monotonic()
        for each in planned:
            await asyncio.sleep(max(0.0, began + each.second - time.monotonic()))
            await self._strike(each.fault)

    async def _strike(self, fault: str) -> None:
        """Bring a fault about. One that was not, though it can be here, is as bad as one that was not survived."""
        at = time.time()
        try:
            async with asyncio.timeout(STRIKE_SECONDS):
                what = await FAULTS[fault](self)
        except LeftOut as reason:
            self.left_out[fault] = str(reason)
        except Exception as error:
            self.failed[fault] = f"{type(error).__name__} {error}".strip()
            self._journal.write("could not be brought about", fault=fault, why=self.failed[fault], began=at)
        else:
            self._journal.write("strike", fault=fault, what=what, began=at)

    # ---------------------------------------------------------------- processes

    async def _one_of(self, find: Callable[[], Sequence[psutil.Process]], what: str) -> psutil.Process:
        give_up = time.monotonic() + VICTIM_SECONDS
        while not (processes := find()):
            if time.monotonic() > give_up:
                raise RuntimeError(f"there was no {what} for {VICTIM_SECONDS:.0f} s")
            await asyncio.sleep(0.25)
        return self._dice.choice(processes)

    async def kill_replica(self) -> str:
        """F1: SIGKILL to a replica while a batch runs."""
        victim = await self._one_of(self._service.replicas, "replica")
        victim.kill()
        return f"kill -9 of replica {victim.pid}"

    async def kill_proxy(self) -> str:
        """F3: SIGKILL to the HTTP proxy."""
        victim = await self._one_of(lambda: self._service.find("ray::ProxyActor"), "proxy")
        victim.kill()
        return f"kill -9 of the proxy {victim.pid}"

    async def kill_dispatcher(self) -> str:
        """F4: SIGKILL to a dispatcher."""
        victim = await self._one_of(self._service.dispatchers, "dispatcher")
        victim.kill()
        return f"kill -9 of dispatcher {victim.pid}"

    async def drain_replica(self) -> str:
        """F22: SIGTERM to a replica."""
        victim = await self._one_of(self._service.replicas, "replica")
        victim.terminate()
        return f"SIGTERM to replica {victim.pid}"

    async def restart_service(self) -> str:
        """F22: SIGTERM to the whole service, and a new start."""
        await asyncio.to_thread(self._service.stop)
        return await self._start_again("SIGTERM to the service")

    async def kill_while_draining(self) -> str:
        """F23: SIGTERM to the service, SIGKILL to all of it two seconds later, and a new start."""
        process = self._service.process
        assert process
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(2)
        await asyncio.to_thread(self._service.kill)
        return await self._start_again("SIGTERM and SIGKILL to the service")

    async def _start_again(self, what: str) -> str:
        self._service.start()
        ready = await self._service.until_ready(READY_SECONDS)
        return f"{what}, started again{'' if ready else ', which did not become ready'}"

    # ---------------------------------------------------------------- Ray

    async def kill_gcs(self) -> str:
        """F26: SIGKILL to Ray's head. What is on this machine dies with it, and is started again."""
        (await self._one_of(lambda: self._service.find("gcs_server"), "GCS")).kill()
        await asyncio.sleep(5)
        await asyncio.to_thread(self._service.kill)
        return await self._start_again("kill -9 of Ray's GCS")

    async def roll(self) -> str:
        """F21: a rolling upgrade: everything is replaced while it works."""
        if not await self._service.deploy():
            raise RuntimeError("Serve did not take the new configuration")
        await asyncio.sleep(OUTAGE_SECONDS)
        ready = await self._service.until_ready(READY_SECONDS)
        return f"a new version was rolled out{'' if ready else ', and did not become ready'}"

    async def lose_node(self) -> str:
        """F18: a node joins, a roll-out puts replicas on it, and its raylet is killed."""
        node = self._service.add_node()

        def raylets() -> list[psutil.Process]:
            return [each for each in psutil.Process(node.pid).children(recursive=True) if each.name() == "raylet"]

        try:
            await asyncio.sleep(OUTAGE_SECONDS)
            await self.roll()
            victim = await self._one_of(raylets, "second node")
            lost = len(victim.children())
            victim.kill()
        finally:
            await asyncio.to_thread(self._service.end_node, node)
        return f"kill -9 of a node's raylet, with {lost} workers"

    async def scrape(self) -> str:
        """F27: health and metrics are asked for a hundred times a second."""
        headers = {"authorization": f"Key {self._service.key}"}
        began, numbers, answers = time.monotonic(), iter(range(int(SCRAPES * OUTAGE_SECONDS))), Counter[str]()

        async def scraper() -> None:
            for number in numbers:
                await asyncio.sleep(max(0.0, began + number / SCRAPES - time.monotonic()))
                answers[await self._scrape(http, "/v1/serverless/metrics" if number % 2 else "/health/live")] += 1

        async with httpx.AsyncClient(base_url=self._service.url, headers=headers, trust_env=False) as http:
            await asyncio.gather(*(scraper() for _ in range(SCRAPERS)))
        told = ", ".join(f"{count} with {answer}" for answer, count in answers.most_common())
        return f"{answers.total()} scrapes in {time.monotonic() - began:.0f} s: {told}"

    async def _scrape(self, http: httpx.AsyncClient, path: str) -> str:
        try:
            return str((await http.get(path, timeout=5)).status_code)
        except httpx.HTTPError as error:
            return type(error).__name__

    async def freeze_dispatcher(self) -> str:
        """F19: a dispatcher that is cut off for longer than its lease, and then goes on as if nothing had happened."""
        victim = await self._one_of(self._service.dispatchers, "dispatcher")
        since = time.time()
        try:
            victim.suspend()
            await asyncio.sleep(OUTAGE_SECONDS + 4)
        finally:
            victim.resume()
        lost = await self._lost(since)
        if not lost:
            raise LeftOut("the dispatcher that stood still had nothing that another one could take")
        return f"dispatcher {victim.pid} stood still for {OUTAGE_SECONDS + 4:.0f} s, {lost} attempts were taken from it"

    async def _lost(self, since: float) -> int:
        """How many attempts were lost since then, on the clock of this machine."""
        lost = "SELECT count(*) AS lost FROM seen_changes WHERE old = 'IN_PROGRESS' AND new = 'IN_QUEUE' AND at > "
        return int((await self._service.query(lost + repr(since)))[0]["lost"])

    async def poison(self) -> str:
        """F2: a request that kills whatever runs it."""
        return await self._ask_for(POISON, "poison")

    async def hang(self) -> str:
        """F17: a request whose model never comes back."""
        return await self._ask_for(HANGS, "a hang")

    async def fail(self) -> str:
        """F16: requests whose model raises."""
        return await self._ask_for(FAILS, "a failure")

    async def _ask_for(self, motion: int, what: str) -> str:
        special = Special(motion)
        self._shared.special.append(special)
        try:
            async with asyncio.timeout(ASKED_SECONDS):
                await special.acknowledged.wait()
        except TimeoutError:
            raise RuntimeError(f"nobody could submit {what} within {ASKED_SECONDS:.0f} s") from None
        return f"{what} was submitted"

    # ---------------------------------------------------------------- database

    async def stop_database(self) -> str:
        """F5: the database stops at once and comes back."""
        database = self._service.postgres
        assert database
        try:
            await asyncio.to_thread(database.stop, signal.SIGQUIT)
            await asyncio.sleep(OUTAGE_SECONDS)
        finally:
            await asyncio.to_thread(database.start)
        return f"PostgreSQL away for {OUTAGE_SECONDS:.0f} s"

    async def freeze_database(self) -> str:
        """F6: the database hangs."""
        database = self._service.postgres
        assert database
        try:
            database.pause()
            await asyncio.sleep(OUTAGE_SECONDS)
        finally:
            database.resume()
        return f"PostgreSQL stood still for {OUTAGE_SECONDS:.0f} s"

    async def fill_database(self) -> str:
        """F9: no room for the database. It may have stopped itself by then, and is started again."""
        await self._fill(self._service.database)
        await self._restart_database()
        return f"the database's disk was full for {FULL_SECONDS:.0f} s"

    async def _restart_database(self) -> None:
        database = self._service.postgres
        assert database
        await asyncio.to_thread(database.stop, signal.SIGQUIT)
        await asyncio.to_thread(database.start)

    async def _fill(self, disk: Path) -> None:
        if disk not in self._service.mounted:
            raise LeftOut("a file system of its own could not be mounted")
        with self._service.full(disk):
            await asyncio.sleep(FULL_SECONDS)

    # ---------------------------------------------------------------- storage, receiver

    async def fill_storage(self) -> str:
        """F8: no room for files."""
        await self._fill(self._service.storage)
        return f"the file storage was full for {FULL_SECONDS:.0f} s"

    async def receiver_fails(self) -> str:
        """F10: the receiver answers 500, 500, 200."""
        self._receiver.fail(2)
        try:
            await asyncio.sleep(OUTAGE_SECONDS)
        finally:
            self._receiver.fail(0)
        return f"the receiver answered 500, 500, 200 for {OUTAGE_SECONDS:.0f} s"

    async def receiver_hangs(self) -> str:
        """F11: the receiver takes what comes and does not answer."""
        self._receiver.hold(True)
        try:
            await asyncio.sleep(OUTAGE_SECONDS)
        finally:
            self._receiver.hold(False)
        return f"the receiver answered nothing for {OUTAGE_SECONDS:.0f} s"

    async def receiver_is_down(self) -> str:
        """F13: nobody listens where the webhooks go, for a while."""
        self._receiver.listen(False)
        try:
            await asyncio.sleep(OUTAGE_SECONDS)
        finally:
            self._receiver.listen(True)
        return f"the receiver was down for {OUTAGE_SECONDS:.0f} s"

    # ---------------------------------------------------------------- network

    async def slow_network(self) -> str:
        """F20: little bandwidth between all processes. Packets cannot be lost on purpose without a packet filter."""
        if not os.environ.get(ISOLATED):
            raise LeftOut("it has no network of its own")
        if shutil.which("tc") is None:
            raise LeftOut("tc (of iproute2) is not installed")
        try:
            for command in SLOW:
                await self._command(command)
            await asyncio.sleep(OUTAGE_SECONDS)
        finally:
            await asyncio.to_thread(subprocess.run, FAST.split(), capture_output=True, check=False)
        return f"{BANDWIDTH} between all processes for {OUTAGE_SECONDS:.0f} s"

    async def _command(self, line: str) -> None:
        done = await asyncio.to_thread(subprocess.run, line.split(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise LeftOut(f"{line}: {done.stderr.strip()}")


FAULTS: dict[str, Callable[[Nemesis], Awaitable[str]]] = {
    "F1": Nemesis.kill_replica,
    "F2": Nemesis.poison,
    "F3": Nemesis.kill_proxy,
    "F4": Nemesis.kill_dispatcher,
    "F5": Nemesis.stop_database,
    "F6": Nemesis.freeze_database,
    "F8": Nemesis.fill_storage,
    "F9": Nemesis.fill_database,
    "F10": Nemesis.receiver_fails,
    "F11": Nemesis.receiver_hangs,
    "F13": Nemesis.receiver_is_down,
    "F16": Nemesis.fail,
    "F17": Nemesis.hang,
    "F18": Nemesis.lose_node,
    "F19": Nemesis.freeze_dispatcher,
    "F20": Nemesis.slow_network,
    "F21": Nemesis.roll,
    "F22": Nemesis.drain_replica,
    "F22s": Nemesis.restart_service,
    "F23": Nemesis.kill_while_draining,
    "F26": Nemesis.kill_gcs,
    "F27": Nemesis.scrape,
}
"""What each name of reliability.md's list of faults stands for."""
