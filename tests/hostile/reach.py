"""The hostile world from outside: started, reached through AF_UNIX sockets, ended."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import READY_SECONDS, ROOT
from tests.hostile.names import OWN_NAME

UNSHARE = ["unshare", "--mount", "--net", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
FIRST = '"$@"; exit $?'
"""The shell stays, as the first of the processes: it buries what has lost its parents."""


STARTS = 3
"""Ray gives a program of its own 15 seconds to begin; on a machine that is busy enough it takes longer."""


class WorldError(Exception):
    """The world is not what it should be."""


@dataclass(frozen=True)
class Line:
    """A connection. Not a stream, for that forgets what it was told when it cannot send any more."""

    socket: socket.socket

    async def send(self, content: bytes) -> None:
        """Send all of it."""
        await asyncio.get_running_loop().sock_sendall(self.socket, content)

    async def receive(self) -> bytes:
        """What has come; nothing at the end."""
        try:
            return await asyncio.get_running_loop().sock_recv(self.socket, 65536)
        except ConnectionError:
            return b""


@dataclass(frozen=True)
class World:
    """A running one. ``folder`` is the one thing that both sides see."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def key(self) -> str:
        """The service's own key."""
        return (self.folder / "data" / "admin.key").read_text().strip()

    @property
    def door(self) -> Path:
        """The socket that leads to the service."""
        return self.folder / "http"

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of the service."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        transport = httpx.AsyncHTTPTransport(uds=str(self.door), limits=limits)
        return httpx.AsyncClient(transport=transport, base_url=f"http://{OWN_NAME}", timeout=120, **options)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Line]:
        """A connection to the service."""
        with socket.socket(socket.AF_UNIX) as line:
            line.setblocking(False)
            await asyncio.get_running_loop().sock_connect(line, str(self.door))
            yield Line(line)

    def state(self) -> dict[str, Any]:
        """What was touched, visited and asked for so far, and the peak of each process."""
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(10)
            control.connect(str(self.folder / "control"))
            return dict(json.loads(b"".join(iter(lambda: control.recv(65536), b""))))

    def serve_file(self, name: str, content: bytes) -> None:
        """Have the media server hold a file, at ``/file/<name>``."""
        (self.folder / "media" / name).write_bytes(content)

    def wait_until_ready(self) -> None:
        """Return once the service is ready.

        Raises:
            WorldError: It has ended, or takes too long.
        """
        give_up = time.monotonic() + READY_SECONDS
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.door))) as client:
            while not (self.door.exists() and _is_ready(client)):
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise WorldError(f"the world did not start:\n{self.log()}")
                time.sleep(0.25)

    def log(self) -> str:
        """What the world and the service have said."""
        logs = (self.folder / "world.log", self.folder / "server.log")
        return "\n".join(log.read_text(errors="replace") for log in logs if log.exists())


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get(f"http://{OWN_NAME}/health/ready", timeout=5).is_success
    except httpx.TransportError:
        return False


def problem() -> str | None:
    """Why there can be no such world here; None, there can."""
    for tool in ("unshare", "ip", "mount"):
        if shutil.which(tool) is None:
            return tool
    tried = subprocess.run([*UNSHARE, "ip", "link", "set", "lo", "up"], capture_output=True, text=True, check=False)
    return f"the right to have a network of one's own ({tried.stderr.strip()})" if tried.returncode else None


@contextmanager
def open_world() -> Iterator[World]:
    """A world for as long as it is needed. Its path is short, for that of a socket has to be.

    Raises:
        WorldError: It does not start, however often it is tried.
    """
    for left in reversed(range(STARTS)):
        with tempfile.TemporaryDirectory(prefix="h-") as name, _running(Path(name)) as world:
            try:
                world.wait_until_ready()
            except WorldError:
                if left:
                    continue
                raise
            yield world
            return


@contextmanager
def _running(folder: Path) -> Iterator[World]:
    command = [*UNSHARE, "sh", "-c", FIRST, "sh", sys.executable, "-m", "tests.hostile.world", str(folder)]
    with (folder / "world.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield World(folder, process)
    finally:
        process.kill()  # and by the parent-death signal of --kill-child, all that it holds
        process.communicate()
