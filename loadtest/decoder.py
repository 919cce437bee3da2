"""What it costs to open pictures in a process of their own, and what the largest take: ``python -m loadtest.decoder``.

    the same file, in this process and in a child, in turn ──▶ seconds of both ──▶ ratio
    the largest files that are read, in a child            ──▶ its address space (what is limited) and memory, and ours

Every ratio compares runs of this one process, taken in turn, by their medians: machines are noisy.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import tarfile
import threading
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image, ImageCms

from deployments.inference.archives import MAX_ARCHIVE_BYTES, open_maps
from deployments.inference.decoder.pool import Decoder
from deployments.inference.decoder.process import Limits
from deployments.inference.images import MAX_BYTES, fit, open_picture
from deployments.models.base import FRAMES, Size
from loadtest.upload import Memory

SIZE = Size(1024, 576)
LARGEST_SIDE = 8000
ROUNDS = 9
LARGE_ROUNDS = 3
LOOK_SECONDS = 0.002
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def main() -> None:
    """Print all figures."""
    asyncio.run(print_all())


async def print_all() -> None:
    """Print what a child costs, then what it takes."""
    decoder = Decoder(children=1)
    try:
        await print_overhead(decoder)
        await print_peaks(decoder)
    finally:
        decoder.close()


async def print_overhead(decoder: Decoder) -> None:
    """The same file here and there, by the medians of runs in turn."""
    archive = zipped(picture((SIZE.width, SIZE.height), "JPEG") for _ in range(FRAMES))
    compare = [
        ("a JPEG of 1024x576", picture((SIZE.width, SIZE.height), "JPEG"), ROUNDS),
        ("a PNG of 64 million pixels", picture((LARGEST_SIDE, LARGEST_SIDE), "PNG", compress_level=1), LARGE_ROUNDS),
    ]
    for name, data, rounds in compare:
        await print_ratio(
            name, rounds, lambda data=data: open_here(data), lambda data=data: decoder.picture(data, [SIZE])
        )
    await print_ratio(
        f"an archive of {FRAMES} JPEGs of 1024x576",
        ROUNDS,
        lambda: [fit(map, [SIZE]) for map in open_maps(archive, FRAMES)],
        lambda: decoder.maps(archive, SIZE, FRAMES),
    )


async def print_ratio(
    name: str, rounds: int, here: Callable[[], object], there: Callable[[], Awaitable[object]]
) -> None:
    """Time two ways to do the same, in turn."""
    await there()
    seconds: dict[str, list[float]] = {"here": [], "there": []}
    for _ in range(rounds):
        began = time.perf_counter()
        await asyncio.to_thread(here)
        middle = time.perf_counter()
        await there()
        seconds["here"].append(middle - began)
        seconds["there"].append(time.perf_counter() - middle)
    ours, theirs = (statistics.median(values) for values in seconds.values())
    print(f"{name:40} {ours * 1000:7.0f} ms here {theirs * 1000:7.0f} ms in a child   {theirs / ours:5.2f} times")


async def print_peaks(decoder: Decoder) -> None:
    """What the largest files of each kind take, and how much is left to the limit."""
    limit = Limits().memory_bytes
    most = 0
    for name, make in LARGEST.items():
        data = make()
        assert len(data) <= (MAX_ARCHIVE_BYTES if name.startswith("archive") else MAX_BYTES), "no caller can send it"
        us = Memory(psutil.Process())
        us.forget_peak()
        began = time.perf_counter()
        with watch(decoder.pids[0]) as peak:
            if name.startswith("archive"):
                await decoder.maps(data, SIZE, FRAMES)
            else:
                await decoder.picture(data, [SIZE])
        seconds = time.perf_counter() - began
        most = max(most, peak["VmPeak"])
        space, memory = peak["VmPeak"] / 1e6, peak["VmHWM"] / 1e6
        print(
            f"{name:40} {len(data) / 1e6:6.1f} MB {seconds:5.1f} s   child: {space:5.0f} MB of addresses, "
            f"{memory:5.0f} of memory   here: {us.above_idle() / 1e6:5.0f} MB beside the file"
        )
    print(f"limit {limit / 1e6:.0f} MB of addresses: {limit / most:.2f} times the most that was taken")


@contextmanager
def watch(child: int) -> Iterator[dict[str, int]]:
    """Look at a child's fork all the time; its peaks, in bytes, are there at the end."""
    fork = wait_for_fork(child)
    peak = {"VmPeak": 0, "VmHWM": 0}
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            for name in peak:
                peak[name] = max(peak[name], read_status(fork, name))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def wait_for_fork(child: int) -> int:
    """The process that will open the next input."""
    while not (forks := psutil.Process(child).children()):
        time.sleep(LOOK_SECONDS)
    return int(forks[0].pid)


def read_status(pid: int, name: str) -> int:
    """A figure of a process, in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)


def open_here(data: bytes) -> Image.Image:
    """What the replica did before it had children."""
    return fit(open_picture(data), [SIZE])


def picture(size: tuple[int, int], format: str, mode: str = "RGB", **options: Any) -> bytes:
    """A picture of waves, which packs as a photograph of little detail does."""
    across, down = np.arange(size[0], dtype=np.uint32), np.arange(size[1], dtype=np.uint32)
    waves = Image.fromarray((((down[:, None] // 16) * 7 + (across[None, :] // 16) * 3) % 256).astype(np.uint8))
    picture = Image.merge(mode, [waves] * len(Image.new(mode, (1, 1)).getbands())) if mode != "L" else waves
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def large(format: str, mode: str = "RGB", **options: Any) -> Callable[[], bytes]:
    """As many pixels as are read; turned and with a profile, which takes copies of them."""
    exif = Image.Exif()
    exif[0x0112] = 5
    return lambda: picture((LARGEST_SIDE, LARGEST_SIDE), format, mode, exif=exif, icc_profile=PROFILE, **options)


def deep() -> bytes:
    """Fractions, which take four bytes a pixel."""
    buffer = io.BytesIO()
    fractions = np.tile(np.linspace(0, 1, 80, dtype=np.float32).repeat(LARGEST_SIDE // 80), (LARGEST_SIDE, 1))
    Image.fromarray(fractions).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    return buffer.getvalue()


def zipped(files: Iterator[bytes], padding: int = 0) -> bytes:
    """Files in a zip, stored."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number, data in enumerate(files):
            archive.writestr(f"{number:02}.png", data + bytes(padding))
    return buffer.getvalue()


def padded(count: int = 4) -> Iterator[bytes]:
    """The hungriest pictures, each as long as a picture may be."""
    data = LARGEST["WEBP, lossless, with transparency"]()
    yield from [data + bytes(MAX_BYTES - len(data))] * count


def tar_gz() -> bytes:
    """As much as an archive may inflate to, with the hungriest pictures in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for number, data in enumerate(padded()):
            entry = tarfile.TarInfo(f"{number}.png")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


LARGEST: dict[str, Callable[[], bytes]] = {
    "PNG": large("PNG", compress_level=1),
    "PNG with transparency": large("PNG", "RGBA", compress_level=1),
    "JPEG, progressive": large("JPEG", progressive=True, subsampling=0),
    "JPEG of inks, progressive": large("JPEG", "CMYK", progressive=True, quality=30),
    "TIFF of inks": large("TIFF", "CMYK", compression="tiff_adobe_deflate"),
    "TIFF of fractions": deep,
    "WEBP, lossy": large("WEBP", quality=30, method=0),
    "WEBP, lossless, with transparency": large("WEBP", "RGBA", lossless=True, method=0, quality=0),
    "AVIF with transparency": large("AVIF", "RGBA", speed=10, quality=20),
    "GIF": lambda: picture((LARGEST_SIDE, LARGEST_SIDE), "GIF", "L"),
    "archive: zip of 80 MB, of such WEBPs": lambda: zipped(padded()),
    "archive: tar.gz of 80 MB, of such WEBPs": tar_gz,
}
"""Files that are read, and take the most."""

if __name__ == "__main__":
    main()
