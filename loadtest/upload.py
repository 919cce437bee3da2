"""What an upload costs the gateway: its peak memory above idle, in every form that fal's clients use.

    python -m loadtest.upload [--megabytes 200] [--storage directory|bucket|both]

Starts a service of its own on a free port of 127.0.0.1 and stops it again. The proxy is Ray Serve's process in front of
the gateway; it is printed beside it because every byte goes through both.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fal_client
import httpx
import psutil

from deployments.cli import point_fal_client_at
from loadtest.s3 import S3
from loadtest.service import run_server

AIM_MB = 64
PIECE = 1024 * 1024
PROCESSES = {"gateway": "ServeReplica:svd-serve:Gateway", "proxy": "ProxyActor"}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--storage", choices=["directory", "bucket", "both"], default="both")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="svd-serve-bench-") as folder:
        source = Path(folder) / "large.bin"
        digest = make_file(source, options.megabytes)
        if options.storage != "bucket":
            print("into a directory")
            measure_all(Path(folder) / "directory", source, digest)
        if options.storage != "directory":
            print("into a bucket (SeaweedFS)")
            s3 = S3(Path(folder) / "s3")
            s3.start()
            try:
                measure_all(Path(folder) / "bucket", source, digest, SVD_STORAGE_URL=s3.url("files"), **s3.environment)
            finally:
                s3.stop()


def measure_all(data_dir: Path, source: Path, digest: str, **settings: str) -> None:
    """Print the figures of a service with such variables: every form up, each file down again."""
    with run_server(data_dir, settings=settings) as server:
        forms = Uploads(server.url, server.key).forms()
        for upload in forms.values():
            upload(small_file(data_dir))  # what is loaded with the first request is idle too
        memories = {role: Memory(find_process(server.pid, title)) for role, title in PROCESSES.items()}
        urls = [measure(memories, f"up: {name}", functools.partial(upload, source)) for name, upload in forms.items()]
        hashes = [measure(memories, "down again", functools.partial(hash_of, url)) for url in urls]
        assert hashes == [digest] * len(urls), "what came back is not what was sent"


def measure(memories: Mapping[str, Memory], name: str, call: Callable[[], str]) -> str:
    """Print how far a call takes the processes' memory above what it was before the first; answer what it answers."""
    for memory in memories.values():
        memory.forget_peak()
    began = time.perf_counter()
    answer = call()
    seconds = time.perf_counter() - began
    peaks = {role: memory.above_idle() / 1e6 for role, memory in memories.items()}
    aim = f"(aim: below {AIM_MB})" if name.startswith("up") else ""
    print(
        f"{name:40} {seconds:5.1f} s   gateway {peaks['gateway']:6.1f} MB above idle {aim:17} "
        f"proxy {peaks['proxy']:6.1f} MB"
    )
    return answer


class Uploads:
    """The forms of upload, by the official client where it has one."""

    def __init__(self, url: str, key: str) -> None:
        point_fal_client_at(url)
        self._client = fal_client.SyncClient(key=key)
        self._http = httpx.Client(base_url=url, headers={"authorization": f"Key {key}"}, timeout=600)

    def forms(self) -> dict[str, Callable[[Path], str]]:
        """Each by its name."""
        return {
            "one body": self._whole,
            "signed URL": self._signed,
            "ten parts at a time (fal_client)": lambda path: str(self._client.upload_file(path)),
        }

    def _whole(self, path: Path) -> str:
        reply = self._http.post("/files/upload", content=pieces(path))
        return str(reply.raise_for_status().json()["access_url"])

    def _signed(self, path: Path) -> str:
        body = {"file_name": path.name, "content_type": "application/octet-stream"}
        urls = self._http.post("/storage/upload/initiate", json=body).raise_for_status().json()
        httpx.put(urls["upload_url"], content=pieces(path), timeout=600).raise_for_status()
        return str(urls["file_url"])


class Memory:
    """How far a process's resident memory goes up."""

    def __init__(self, process: psutil.Process) -> None:
        self._folder = Path("/proc") / str(process.pid)
        self._idle = self._status("VmRSS")

    def forget_peak(self) -> None:
        """Count the peak from here on."""
        (self._folder / "clear_refs").write_text("5")

    def above_idle(self) -> int:
        """Bytes between the peak and what it was at first."""
        return self._status("VmHWM") - self._idle

    def _status(self, name: str) -> int:
        (line,) = [line for line in (self._folder / "status").read_text().splitlines() if line.startswith(name + ":")]
        return int(line.split()[1]) * 1024


def find_process(server: int, title: str) -> psutil.Process:
    """The one process below a server whose title holds these words."""
    below: list[Any] = psutil.Process(server).children(recursive=True)
    (found,) = [process for process in below if any(title in part for part in process.cmdline())]
    return psutil.Process(found.pid)


def make_file(path: Path, megabytes: int) -> str:
    """Write random bytes; answer their hash."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(megabytes):
            piece = os.urandom(PIECE)
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def small_file(folder: Path) -> Path:
    """A file that no memory feels."""
    path = folder / "small.bin"
    path.write_bytes(b"x")
    return path


def pieces(path: Path) -> Iterator[bytes]:
    """A file's bytes, one piece at a time."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def hash_of(url: str) -> str:
    """The hash of what a URL gives."""
    digest = hashlib.sha256()
    with httpx.stream("GET", url, timeout=600) as reply:
        for piece in reply.raise_for_status().iter_bytes():
            digest.update(piece)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
