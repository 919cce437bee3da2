"""A private PostgreSQL on a loopback port, for tests and campaigns: Debian's programs, a data directory of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
}
_CARELESS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_START_SECONDS = 60


def programs() -> Path | None:
    """The directory of PostgreSQL's programs, the newest where there are several; None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("postgres")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@contextlib.contextmanager
def open_folder(prefix: str) -> Iterator[Path]:
    """A temporary directory through which other users may pass, unlike what ``tempfile`` and pytest make."""
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


class Postgres:
    """One server. It refuses to run as root, so root runs it as Debian's user ``postgres``."""

    def __init__(self, folder: Path, durable: bool = True) -> None:
        """Make a database cluster in a folder that is not there yet; it is not started.

        Args:
            folder: Where it keeps its data.
            durable: Whether a commit reaches the disk. Without, tests that kill nothing are quicker.

        Raises:
            FileNotFoundError: PostgreSQL is not installed.
            PermissionError: The user that runs it may not enter a directory on the way to its folder.
        """
        bin = programs()
        if bin is None:
            raise FileNotFoundError("PostgreSQL is not installed")
        self._bin = bin
        self._folder = folder
        self._settings = _SETTINGS if durable else _SETTINGS | _CARELESS
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._make_folder()
        self._run("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "svd", "--encoding=UTF8", "--locale=C")

    def url(self, database: str = "postgres") -> str:
        """Where a database is, as ``SVD_DATABASE_URL`` wants it."""
        return f"postgresql+asyncpg://svd@127.0.0.1:{self.port}/{database}"

    def create(self, database: str, template: str = "template1") -> str:
        """Make a database; answer its URL."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "svd", "-T", template, database)
        return self.url(database)

    def start(self) -> None:
        """Return when it answers."""
        settings = [f"--{name}={value}" for name, value in {**self._settings, "port": self.port}.items()]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.data, *settings],
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **self._user,
            )
        self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-t", "5", until=_START_SECONDS)

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it: SIGINT waits for nobody, SIGQUIT is an immediate stop without a checkpoint."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(60)
        self._process = None

    def kill(self) -> None:
        """Kill it and every one of its backends, as a power cut would."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._signal(signal.SIGKILL)
        if self._process:
            self._process.wait(60)
        self._process = None

    def pause(self) -> None:
        """Let it hang: connections stay, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    @property
    def data(self) -> Path:
        """Its data directory; a copy of it while the server is stopped is a base backup."""
        return self._folder / "data"

    def restore(self, copy: Path) -> None:
        """Go back to a copy of the data directory. The server is stopped."""
        shutil.rmtree(self.data)
        shutil.copytree(copy, self.data)
        for path in [self.data, *self.data.rglob("*")] if self._user else []:
            shutil.chown(path, "postgres", "postgres")

    def _make_folder(self) -> None:
        """Make the folder and the way there, open to the user that runs the server. What was there stays as it was."""
        made = [each for each in (self._folder, *self._folder.parents) if not each.exists()]
        self._folder.mkdir(parents=True)
        if not self._user:
            return
        for each in made:
            each.chmod(each.stat().st_mode | 0o011)
        shutil.chown(self._folder, "postgres")
        if subprocess.run(["test", "-x", self._folder], cwd="/", check=False, **self._user).returncode:
            raise PermissionError(
                f"the user postgres may not enter a directory above {self._folder}: choose another place"
            )

    def _signal(self, number: int) -> None:
        """Signal the server and all of its backends. It forks none meanwhile, as it stands still."""
        assert self._process
        parent = psutil.Process(self._process.pid)
        if number != signal.SIGCONT:
            _stop(parent)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                _stop(process) if number == signal.SIGSTOP else process.send_signal(number)

    def _run(self, program: str, *arguments: str, until: float = 0) -> None:
        """Run one of its programs, again and again for ``until`` seconds where it fails at first."""
        give_up = time.monotonic() + until
        while True:
            done = subprocess.run(
                [self._bin / program, *arguments], cwd="/", capture_output=True, text=True, **self._user
            )
            if done.returncode == 0:
                return
            if time.monotonic() > give_up:
                raise RuntimeError(f"{program}: {done.stderr or done.stdout}")
            time.sleep(0.1)

    @property
    def _user(self) -> dict[str, Any]:
        return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}


def _stop(process: psutil.Process) -> None:
    """Return when it stands still, or has ended."""
    process.suspend()
    while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
        time.sleep(0.001)
