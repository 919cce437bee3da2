"""What a check finds, and how a check is kept from hanging.

Check.look() in a thread of its own ── findings as they come ──▶ whoever prints, who waits so long and no longer
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, Queue

from deployments.errors import ServingError

SECONDS = 5.0
"""How long a check may be silent, unless it says that it needs more."""


class Level(StrEnum):
    """How bad it is. A warning may be as it should be; a fault never is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes:
        check: What was looked at.
        level: How bad it is.
        says: What was found.
        advice: What to do about it; empty where nothing is wrong.
    """

    check: str
    level: Level
    says: str
    advice: str = ""


def ok(check: str, says: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, says)


def warn(check: str, says: str, advice: str) -> Finding:
    """It may be as it should be, or go wrong soon."""
    return Finding(check, Level.WARN, says, advice)


def fail(check: str, says: str, advice: str) -> Finding:
    """A fault."""
    return Finding(check, Level.FAIL, says, advice)


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        name: What it is called where it finds nothing itself.
        look: Yields what it finds. It may block: it has a thread and an event loop of its own.
        advice: Where the fault is if it finds nothing in time.
        seconds: How long it may be silent.
        silence: How bad it is if it is silent for longer.
    """

    name: str
    look: Callable[[], AsyncIterator[Finding]]
    advice: str
    seconds: float = SECONDS
    silence: Level = Level.FAIL

    def findings(self) -> Iterator[Finding]:
        """What it finds, as it comes. A check that falls silent is left behind, and that is a finding of its own."""
        heard: Queue[Finding | None] = Queue()
        threading.Thread(target=lambda: asyncio.run(self._tell(heard)), name=self.name, daemon=True).start()
        while True:
            try:
                finding = heard.get(timeout=self.seconds)
            except Empty:
                yield Silence(self.name, self.silence, f"no answer within {self.seconds:g} s", self.advice)
                return
            if finding is None:
                return
            yield finding

    async def _tell(self, heard: Queue[Finding | None]) -> None:
        try:
            async for finding in self.look():
                heard.put(finding)
        except ServingError as error:
            heard.put(fail(self.name, error.message, self.advice))
        except Exception as error:  # a check that fails is a fault found, and no end of the others
            says = f"{type(error).__name__}: {' '.join(str(error).split())}"
            heard.put(fail(self.name, says, self.advice))
        finally:
            heard.put(None)


class Silence(Finding):
    """A check that was left behind: its thread may still be there, and hang for ever."""
