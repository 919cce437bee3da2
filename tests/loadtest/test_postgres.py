"""The PostgreSQL of tests and campaigns: all of it hangs at once, and only its own directories are opened for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator

import asyncpg  # type: ignore[import-untyped]
import psutil
import pytest

from loadtest.postgres import Postgres, open_folder, programs
from tests.conftest import missing, run_postgres


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    with run_postgres(durable=False) as server:
        yield server


async def _come_and_go(server: Postgres) -> None:
    """Connect again and again: backends begin and end all the while."""
    while True:
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError):
            connection = await asyncpg.connect(server.url().replace("+asyncpg", ""), timeout=1)
            await connection.close(timeout=1)


async def test_a_pause_stops_every_backend_while_others_begin_and_end(own_server: Postgres) -> None:
    coming = [asyncio.create_task(_come_and_go(own_server)) for _ in range(4)]
    assert own_server._process
    try:
        for _ in range(10):
            await asyncio.sleep(0.1)
            own_server.pause()
            family = [psutil.Process(own_server._process.pid)]
            family += family[0].children(recursive=True)
            states = {process.status() for process in family}
            own_server.resume()
            assert states <= {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
    finally:
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)


def test_a_kill_leaves_no_backend(own_server: Postgres) -> None:
    assert own_server._process
    family = psutil.Process(own_server._process.pid).children(recursive=True)
    own_server.kill()
    assert family and not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.skipif(os.getuid() != 0, reason="only root runs it as somebody else")
def test_a_directory_of_somebody_elses_is_not_opened() -> None:
    if programs() is None:
        missing("PostgreSQL")
    with open_folder("svd-serve-closed-") as folder:
        folder.chmod(0o700)
        with pytest.raises(PermissionError, match="may not enter a directory above"):
            Postgres(folder / "made" / "server")
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root runs it as somebody else")
def test_a_directory_of_its_own_making_is_opened() -> None:
    if programs() is None:
        missing("PostgreSQL")
    mask = os.umask(0o077)
    try:
        with open_folder("svd-serve-open-") as folder:
            assert Postgres(folder / "made" / "server").data.is_dir()
    finally:
        os.umask(mask)
