"""The campaign that the tests of the table share: one world, started once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from tests.conftest import missing
from tests.hostile.campaign import Campaign
from tests.hostile.reach import open_world, problem

FIGURES = pytest.StashKey[str]()


class Runner:
    """A campaign whose slow lines go on between tests: its loop has a thread of its own."""

    def __init__(self, campaign: Campaign) -> None:
        """Run this campaign."""
        self.campaign = campaign
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._done: set[int] = set()

    def __enter__(self) -> Runner:
        self._thread.start()
        self._wait(self.campaign.open())
        return self

    def __exit__(self, *error: object) -> None:
        self._wait(self.campaign.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def row(self, row: int) -> None:
        """Have a row's lines tried, once."""
        if row not in self._done:
            self._done.add(row)
            self._wait(self.campaign.run_row(row))

    def _wait(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """The campaign of those lines that this session asks for. Its service ends before the next tests begin."""
    if what := problem():
        missing(what)
    lines = [item for item in request.session.items if {"runner", "line"} <= set(getattr(item, "fixturenames", ()))]
    with open_world() as world, Runner(Campaign(world, [item.callspec.params["line"] for item in lines])) as runner:
        yield runner
        request.config.stash[FIGURES] = runner.campaign.figures()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the figures."""
    if FIGURES in config.stash:
        terminalreporter.section("bad input")
        terminalreporter.write_line(config.stash[FIGURES])
