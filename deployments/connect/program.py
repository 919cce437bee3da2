"""Run a program as if it had been started in our place: its signals, its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

FORWARDED = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
NOT_FOUND, NOT_EXECUTABLE = 127, 126


class CannotRun(Exception):
    """The program cannot be started. Arguments: what a shell would answer as its status, a sentence."""


async def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a program to its end, passing signals on to it.

    Returns:
        Its exit status; 128 and the signal's number if a signal ended it, as shells tell it.

    Raises:
        CannotRun: There is no such program.
    """
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    async with _handled(signals.put_nowait):  # from before the start on: none is lost
        try:
            process = await asyncio.create_subprocess_exec(*command, env=environment)
        except OSError as error:
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            raise CannotRun(status, f"{command[0]}: {error.strerror}") from error
        forwarding = asyncio.create_task(_forward(signals, process))
        status = await process.wait()
        forwarding.cancel()
    return status if status >= 0 else 128 - status


async def stopped() -> None:
    """Wait until this process is told to stop."""
    stop = asyncio.Event()
    async with _handled(lambda number: stop.set()):
        await stop.wait()


async def _forward(signals: asyncio.Queue[signal.Signals], process: asyncio.subprocess.Process) -> None:
    while True:
        number = await signals.get()
        if number in FROM_TERMINAL and _in_foreground():
            continue  # a key was pressed: the terminal has told the program itself, and twice would be once too often
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def _in_foreground() -> bool:
    """Whether we are what runs in the foreground of a terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


@contextlib.asynccontextmanager
async def _handled(handler: Callable[[signal.Signals], None]) -> AsyncIterator[None]:
    """Handle the signals for a while, but for those that are ignored (by ``nohup``, say)."""
    loop = asyncio.get_running_loop()
    numbers = [number for number in FORWARDED if signal.getsignal(number) is not signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, handler, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
