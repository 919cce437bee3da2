"""The plan of faults is a function of its seed, and a fault counts only when it was brought about."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest.chaos import collect, nemesis
from loadtest.chaos.checker import check
from loadtest.chaos.clients import Shared
from loadtest.chaos.history import BILLING, DATABASE, Limits
from loadtest.chaos.journal import Journal, lines
from loadtest.chaos.nemesis import EARLY, FAULTS, LATE, Nemesis, Planned, plan
from loadtest.chaos.payload import POISON
from loadtest.chaos.receiver import Receiver
from loadtest.chaos.service import Service


def test_seed_decides_the_plan() -> None:
    assert plan(1, 75) == plan(1, 75)
    assert len({tuple(plan(seed, 75)) for seed in range(20)}) == 20


def test_short_plan_has_its_faults_once_and_in_time() -> None:
    for seed in range(50):
        planned = plan(seed, 75)
        assert sorted(each.fault for each in planned) == sorted([*EARLY, *LATE])
        assert all(before.second < after.second < 75 for before, after in pairwise(planned))


def test_long_plan_has_every_fault_and_goes_on_until_the_end() -> None:
    planned = plan(1, 1200, list(FAULTS))
    assert {each.fault for each in planned} == set(FAULTS)
    assert len(planned) >= 2 * len(FAULTS) and planned[-1].second > 1100


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service that was never started: nothing of it is there."""
    service = Service(tmp_path, 9, replicas=1, limits=Limits(), seconds=0.3)
    service.database_url = "postgresql+asyncpg://svd@127.0.0.1:9/campaign"
    yield service
    service.close()


@pytest.fixture
def idle(service: Service, tmp_path: Path) -> Iterator[tuple[Nemesis, Shared, Path]]:
    """A nemesis, what its clients share, and its journal."""
    path = tmp_path / "nemesis.jsonl"
    receiver = Receiver(tmp_path / "receiver.jsonl")
    shared = Shared(service.url, service.webhook, 0, 1)
    with Journal(path) as journal:
        yield Nemesis(service, receiver, shared, journal, random.Random(1)), shared, path
    receiver.close()


@pytest.mark.parametrize("fault", ["F1", "F2", "F5", "F6", "F16", "F17", "F26"])
async def test_a_fault_that_could_not_be_brought_about_is_told_and_does_not_count(
    fault: str, idle: tuple[Nemesis, Shared, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VICTIM_SECONDS", "ASKED_SECONDS"):
        monkeypatch.setattr(nemesis, name, 0.1)
    mischief, _, journal = idle
    await mischief.run([Planned(0, fault)])
    assert list(mischief.failed) == [fault] and not mischief.left_out
    (line,) = lines(journal)
    assert line["op"] == "could not be brought about" and not collect.strikes_of(journal.parent)


async def test_what_is_asked_for_counts_once_it_was_acknowledged(idle: tuple[Nemesis, Shared, Path]) -> None:
    mischief, shared, journal = idle
    running = asyncio.create_task(mischief.run([Planned(0, "F2")]))
    while not shared.special:
        await asyncio.sleep(0.01)
    assert shared.special[0].motion == POISON and not list(lines(journal))
    shared.special.popleft().acknowledged.set()
    await running
    assert [each.fault for each in collect.strikes_of(journal.parent)] == ["F2"] and not mischief.failed


async def test_a_service_that_stays_dead_is_a_violation_and_no_traceback(service: Service, tmp_path: Path) -> None:
    history = await collect.collect(service, tmp_path)
    assert set(history.missing) == {DATABASE, BILLING}
    assert len(check(history)["evidence"]) == 2
