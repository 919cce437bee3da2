"""The whole table against one world: row by row, the lines of a row at once, slow lines beside all others.

row ──▶ its lines, together ──▶ has a honeypot been touched? ──▶ a good request ──▶ what came of each line
"""

from __future__ import annotations

import asyncio
import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.hostile import rows_elsewhere, rows_of_bodies, rows_of_http, rows_of_keys, rows_of_media, rows_of_urls
from tests.hostile.reach import World
from tests.hostile.rows_of_bodies import good
from tests.hostile.table import FAST, PATIENCE, Caller, Case, Script, made

ROWS = range(1, 89)
SLOWEST_SECONDS = 240.0
MAKES_CLIPS = range(23, 63)
"""Rows about fetching and decoding: a good request is one that makes a clip."""

AFTERWARDS, HONEYPOTS = "a good request afterwards", "nothing private was reached"
MODULES = (rows_of_bodies, rows_of_urls, rows_of_media, rows_of_keys, rows_of_http, rows_elsewhere)


async def _good_clip(caller: Caller) -> None:
    made().compare(await caller.post(FAST, good()))


async def _good_submit(caller: Caller) -> None:
    """Accepted, and known; nobody waits for it."""
    submitted = await caller.call("POST", f"/queue/{FAST}", json=good())
    assert submitted.status == 200, submitted.short
    address = f"/queue/{FAST}/requests/{submitted.json['request_id']}"
    status = await caller.call("GET", f"{address}/status")
    assert status.status == 200, status.short
    await caller.call("PUT", f"{address}/cancel")


async def _never(caller: Caller) -> None:
    raise AssertionError("the campaign looks itself")


def cases() -> list[Case]:
    """Every line, row by row; the last two of each row are about what it has left behind."""
    lines: list[Case] = [line for module in MODULES for line in module.CASES]
    for row in ROWS:
        steps = _good_clip if row in MAKES_CLIPS else _good_submit
        lines += [Script(row=row, name=HONEYPOTS, steps=_never), Script(row=row, name=AFTERWARDS, steps=steps)]
    return sorted(lines, key=lambda line: line.row)


@dataclass
class Campaign:
    """One run. ``outcomes`` holds why a line failed, None where it did not."""

    world: World
    lines: Sequence[Case]
    outcomes: dict[Case, str | None] = field(default_factory=dict)
    _begun: dict[Case, asyncio.Task[None]] = field(default_factory=dict)
    _touched: int = 0

    async def open(self) -> None:
        """Begin with the slow lines. What was touched before was not touched for a caller's sake."""
        self.caller = Caller(self.world)
        self._touched = len(self.world.state()["touched"])
        await _good_clip(self.caller)
        self._begun = {line: asyncio.create_task(self._try(line)) for line in self.lines if line.slow}

    async def run_row(self, row: int) -> None:
        """All that was chosen of one row."""
        lines = [line for line in self.lines if line.row == row]
        last = [line for line in lines if line.name in (HONEYPOTS, AFTERWARDS)]
        tasks = [self._begun.get(line) or asyncio.create_task(self._try(line)) for line in lines if line not in last]
        await asyncio.gather(*tasks)
        for line in last:
            await (self._look(line) if line.name == HONEYPOTS else self._try(line))

    async def _try(self, line: Case) -> None:
        try:
            async with asyncio.timeout(SLOWEST_SECONDS if line.slow else PATIENCE):
                await line.run(self.caller)
            self.outcomes[line] = None
        except Exception:
            self.outcomes[line] = traceback.format_exc()

    async def _look(self, line: Case) -> None:
        touched = self.world.state()["touched"]
        new, self._touched = touched[self._touched :], len(touched)
        self.outcomes[line] = f"reached: {new}" if new else None

    async def close(self) -> None:
        """Leave nothing open."""
        for task in self._begun.values():
            task.cancel()
        await asyncio.gather(*self._begun.values(), return_exceptions=True)
        await self.caller.client.aclose()

    def figures(self) -> str:
        """What the issue asks for, in three lines."""
        by_row: dict[int, list[str | None]] = defaultdict(list)
        for line, outcome in self.outcomes.items():
            by_row[line.row].append(outcome)
        kept = sum(not any(outcomes) for outcomes in by_row.values())
        variants = sum(line.name not in (HONEYPOTS, AFTERWARDS) for line in self.outcomes)
        replies = self.caller.statuses
        faults = sum(count for status, count in replies.items() if status and status >= 500)
        peaks: Mapping[str, Any] = self.world.state()["peaks"]
        memory = ", ".join(f"{role} {_megabytes(peaks.get(role, {}).values())}" for role in sorted(peaks))
        return (
            f"bad input: {len(by_row)} rows tried, {kept} answered as expected, {faults} replies of 500 and above\n"
            f"bad input: {variants} variants, {replies.total()} replies\n"
            f"bad input: peak memory of {memory}"
        )


def _megabytes(kilobytes: Iterable[int]) -> str:
    return f"{max(kilobytes, default=0) / 1024:.0f} MB"
