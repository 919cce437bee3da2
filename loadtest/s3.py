"""A private S3 service on loopback ports, for tests and campaigns: SeaweedFS's one program, a folder of its own."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx

BUCKET = "svd"
START_SECONDS = 60
_PORTS = tuple(f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc"))
_OPTIONS = {
    "ip": "127.0.0.1",
    "ip.bind": "127.0.0.1",
    "master.electionTimeout": "1s",
    "master.heartbeatInterval": "200ms",
    "master.volumeSizeLimitMB": "64",
    "volume.max": "50",
    "volume.minFreeSpace": "1",
    "volume.preStopSeconds": "0",
    "s3.autoCreateBucket": "false",
    "s3.port.iceberg": "0",
    "s3.port.lance": "0",
}


def program() -> Path | None:
    """Where ``weed`` is; None without it."""
    found = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    return Path(found) if found else None


class S3:
    """One server with one bucket."""

    def __init__(self, folder: Path) -> None:
        """Make its folder, which is not there yet; it is not started.

        Raises:
            FileNotFoundError: SeaweedFS is not installed.
        """
        weed = program()
        if weed is None:
            raise FileNotFoundError("SeaweedFS (weed) is not installed")
        self._weed = weed
        self._folder = folder
        self._ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._secret = secrets.token_hex(16)
        (folder / "data").mkdir(parents=True)
        credentials = [{"accessKey": "svd", "secretKey": self._secret}]
        identity = {"name": "svd", "credentials": credentials, "actions": ["Admin", "Read", "List", "Tagging", "Write"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to be told to reach it."""
        return {
            "AWS_ACCESS_KEY_ID": "svd",
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    def url(self, prefix: str) -> str:
        """A place in its bucket, as ``SVD_STORAGE_URL`` wants it."""
        return f"s3://{BUCKET}/{prefix}"

    def start(self) -> None:
        """Return when its bucket can be written."""
        ports = {name: str(port) for name, port in self._ports.items()}
        options = {"dir": str(self._folder / "data"), "s3.config": str(self._folder / "s3.json"), **_OPTIONS, **ports}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._weed, "server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
            )
        give_up = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if time.monotonic() > give_up or self._process.poll() is not None:
                raise RuntimeError(f"weed did not start:\n{(self._folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End it. What it has acknowledged is there when it starts again; asked to end, it would take its time."""
        if self._process:
            self._process.kill()
            self._process.wait(60)
        self._process = None

    def pause(self) -> None:
        """Let it hang: connections stay, nothing is answered."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def unfinished(self) -> list[str]:
        """Multipart uploads that were begun and neither completed nor aborted."""
        reply = httpx.get(f"{self._filer}/buckets/{BUCKET}/.uploads/", headers={"accept": "application/json"})
        return [entry["FullPath"] for entry in reply.json()["Entries"] or []] if reply.status_code == 200 else []

    @property
    def _filer(self) -> str:
        return f"http://127.0.0.1:{self._ports['filer.port']}"

    def _is_ready(self) -> bool:
        """Whether a file can be written into the bucket; a directory of ``/buckets`` is one."""
        try:
            made = httpx.post(f"{self._filer}/buckets/{BUCKET}/", timeout=5)
            kept = httpx.put(f"{self._filer}/buckets/{BUCKET}/ready", content=b"x", timeout=5)
            asked = httpx.get(f"{self.endpoint}/healthz", timeout=5)
        except httpx.HTTPError:
            return False
        return (made.is_success or made.status_code == httpx.codes.CONFLICT) and kept.is_success and asked.is_success


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
