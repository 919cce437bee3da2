"""The hostile world: a network and a process tree of its own, in which the real service runs.

    pytest ── AF_UNIX ──▶ relay ──▶ svd-serve ──▶ DNS that lies, media server, honeypots on every other address
       │                               │
       └── AF_UNIX ──▶ control ◀───────┴── what was touched, visited, asked for; how much memory each process took

``python -m tests.hostile.world FOLDER`` is started by ``tests.hostile.reach`` inside ``unshare``: all addresses are the
loopback's there, and nothing outside can be reached. It ends when its standard input does, when the service does, or
after an hour; its processes end with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests import tiny
from tests.conftest import ROOT, serve_command
from tests.hostile.certificates import contexts
from tests.hostile.names import OWN_NAME, SERVER, Names
from tests.hostile.web import Web

PORT = 18000
LONGEST_SECONDS = 3600.0
LOOK_SECONDS, LOOKS = 0.02, 50
"""How often new processes are looked for, and how often that is done until all are looked at again."""

PIECE = 65536

ROLES = {
    "ServeReplica:svd-serve:Gateway": "gateway",
    "ProxyActor": "proxy",
    "ServeReplica:svd-serve:fal-ai--fast-svd-lcm": "replica",
    "deployments.inference.decod": "decoder",
}
"""What a process's title or command says of what it is. The longer names come first where one holds another."""


def enter() -> None:
    """Make the network, and put files of the system's out of sight. Nothing outside this namespace sees it."""
    for command in (
        "ip link set lo up",
        "ip route add local 0.0.0.0/0 dev lo",
        "ip -6 route add local ::/0 dev lo",
    ):
        subprocess.run(command.split(), check=True)


def cover(file: Path, text: str, folder: Path) -> None:
    """Let a file of the system's have other content here."""
    stand_in = folder / f"{file.name}.here"
    stand_in.write_text(text)
    subprocess.run(["mount", "--bind", stand_in, file], check=True)


def cover_system(folder: Path) -> None:
    """Names come from our DNS server."""
    cover(Path("/etc/resolv.conf"), f"nameserver {SERVER}\noptions timeout:2 attempts:1\n", folder)
    cover(Path("/etc/hosts"), f"127.0.0.1 localhost {socket.gethostname()}\n::1 localhost\n", folder)


def start_service(folder: Path, authority: Path) -> subprocess.Popen[bytes]:
    """``svd-serve serve`` as it is, with the strictest settings, which are the default. It trusts our authority."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SVD_", "RAY_"))}
    environment |= {"SVD_PUBLIC_URL": f"http://{OWN_NAME}", "RAY_TMPDIR": str(folder), "SSL_CERT_FILE": str(authority)}
    config = tiny.config(folder)
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(
            serve_command("--config", str(config), "--port", str(PORT), "--data-dir", str(folder / "data")),
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


class Memory:
    """The peak of each process that there was, while it was there."""

    def __init__(self) -> None:
        """Know none yet."""
        self.peaks: dict[str, dict[int, int]] = {}
        self.now: dict[str, int] = {}
        """What the newest process of each role takes, in kB."""

        self._roles: dict[str, str | None] = {}

    async def watch(self) -> None:
        """Look again and again: what the kernel knows of a process ends with it, and a decoder's ends with its file."""
        while True:
            self._roles.clear()  # a worker of Ray's becomes something after a while
            for _ in range(LOOKS):
                self._look()
                await asyncio.sleep(LOOK_SECONDS)
            for pid, role in self._roles.items():
                self._note(role, pid)

    def _look(self) -> None:
        """Learn of new processes, and look at those that end soon."""
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            if pid not in self._roles:
                self._roles[pid] = _role(pid)
                self._note(self._roles[pid], pid)
            elif self._roles[pid] == "decoder":
                self._note("decoder", pid)

    def _note(self, role: str | None, pid: str) -> None:
        if role is None:
            return
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            said = dict(line.split(":", 1) for line in lines if line.startswith(("VmHWM", "VmRSS")))
            peaks = self.peaks.setdefault(role, {})
            peaks[int(pid)] = max(peaks.get(int(pid), 0), int(said.get("VmHWM", "0 kB").split()[0]))
            self.now[role] = int(said.get("VmRSS", "0 kB").split()[0])


def _role(pid: str) -> str | None:
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return None
    return next((role for text, role in ROLES.items() if text in title), None)


async def relay(door: Path) -> None:
    """Carry connections to the service and back."""
    loop = asyncio.get_running_loop()
    carrying: set[asyncio.Task[None]] = set()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.setblocking(False)
        listener.bind(str(door))
        listener.listen(1024)
        while True:
            caller, _ = await loop.sock_accept(listener)
            carrying.add(task := asyncio.create_task(_carry(caller)))
            task.add_done_callback(carrying.discard)


async def _carry(caller: socket.socket) -> None:
    """One connection. Sockets rather than streams: whoever cannot send any more may still be told something."""
    with caller, socket.socket() as service:
        for each in (caller, service):
            each.setblocking(False)
        with suppress(OSError):
            await asyncio.get_running_loop().sock_connect(service, ("127.0.0.1", PORT))
            await asyncio.gather(_pump(caller, service), _pump(service, caller))


async def _pump(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while piece := await loop.sock_recv(source, PIECE):
            await loop.sock_sendall(sink, piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


async def run(folder: Path) -> None:
    """Live until nobody wants it any more."""
    loop = asyncio.get_running_loop()
    names, memory = Names(), Memory()
    await loop.create_datagram_endpoint(lambda: names, local_addr=(SERVER, 53))
    tls, certificate = contexts()
    (authority := folder / "authority.pem").write_text(certificate)
    (folder / "media").mkdir()
    web = Web(folder / "media", tls)
    await web.listen()
    cover_system(folder)

    async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state: dict[str, Any] = {"touched": web.touched, "visits": web.visits, "asked": names.asked}
        writer.write(
            json.dumps(state | {"peaks": memory.peaks, "now": memory.now, "alive": service.poll() is None}).encode()
        )
        await writer.drain()
        writer.close()

    service = start_service(folder, authority)
    going_on = [asyncio.create_task(memory.watch()), asyncio.create_task(relay(folder / "http"))]
    await asyncio.start_unix_server(control, folder / "control")
    with suppress(TimeoutError):
        async with asyncio.timeout(LONGEST_SECONDS):
            await asyncio.wait(
                [asyncio.ensure_future(asyncio.to_thread(wait)) for wait in (sys.stdin.read, service.wait)],
                return_when=asyncio.FIRST_COMPLETED,
            )
    assert going_on
    os._exit(0)  # threads and connections that wait are of no use any more


if __name__ == "__main__":
    enter()
    asyncio.run(run(Path(sys.argv[1])))
