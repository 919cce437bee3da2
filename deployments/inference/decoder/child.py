"""The decoder's child: waits for an input with everything loaded, and has a fork of itself open it.

    start: load, open a picture of each format once ──▶ walls ──▶ ready
    then:  fork ──▶ (the fork reads header and bytes, answers, ends) ──▶ say that it has ended ──▶ fork …

The fork is there before its input is. Its end is told through a pipe that it does not have, so that it can neither tell
its own nor speak for the next. A fork that fails takes its child along; the replica starts another.
"""

from __future__ import annotations

import functools
import gc
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from io import FileIO
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image, ImageCms

from deployments.errors import ModelError
from deployments.inference.archives import open_maps
from deployments.inference.decoder import messages, walls
from deployments.inference.images import FORMATS, fit, fit_mask, open_mask, open_picture
from deployments.models.size import Size

Answer = tuple[dict[str, Any], list[bytes]]


def main(parent: int, memory_bytes: int, seconds: int, ended: int) -> None:
    """Serve the process that has started this one until it ends.

    Args:
        parent: Its process id.
        memory_bytes: How much address space an input may take.
        seconds: How long an input may be computed on.
        ended: The descriptor of the pipe that tells it of the end of each fork.
    """
    _stay()
    requests, answers = _open_pipes()
    walls.sacrifice()
    warm_up()
    missing = walls.around_child(memory_bytes)
    walls.end_with(parent)
    gc.freeze()  # so that collecting in a fork copies no page of what it shares with this process
    greet: Callable[[list[str]], None] = functools.partial(_say_ready, answers, missing)
    while True:
        _wait_for(_fork(requests, answers, seconds, ended, greet))
        os.write(ended, messages.ENDED)
        greet = _say_nothing


def warm_up() -> None:
    """Open a picture of each format, in ways that load all that opening one can: behind the walls are no files."""
    warnings.simplefilter("ignore")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    picture = Image.new("RGB", (32, 32), "red")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for format in FORMATS:
        buffer = io.BytesIO()
        picture.save(buffer, format, icc_profile=profile)
        fit(open_picture(buffer.getvalue()), [Size(16, 16)])
        fit_mask(open_mask(buffer.getvalue()), Size(32, 32), Size(16, 16))
    for codec in ("cp437", "ascii", "latin-1", "utf-16", "utf-8"):  # of names and tags
        b"x".decode(codec, "replace")


def _stay() -> None:
    """Let no signal end this process that all processes of a pod or a terminal get; its replica ends it."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _open_pipes() -> tuple[FileIO, FileIO]:
    """The two pipes; whatever a library prints goes where errors go, and is lost once that is full."""
    requests, answers = FileIO(os.dup(0), "rb"), FileIO(os.dup(1), "wb")
    os.dup2(2, 1)
    os.set_blocking(2, False)
    return requests, answers


def _fork(requests: FileIO, answers: FileIO, seconds: int, ended: int, greet: Callable[[list[str]], None]) -> int:
    """Make the fork for the next input. It greets with what walls it could not put up, and never returns."""
    child = os.getpid()
    if fork := os.fork():
        return fork
    try:
        os.close(ended)
        walls.end_with(child)
        greet(walls.around_fork(seconds))
        _serve(requests, answers)
    except EOFError:
        os._exit(messages.NO_MORE)
    except MemoryError:
        os._exit(messages.OUT_OF_MEMORY)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(messages.RAISED)
    os._exit(0)


def _say_ready(answers: FileIO, missing: list[str], missing_here: list[str]) -> None:
    messages.write(answers, {"missing": missing + missing_here})


def _say_nothing(missing: list[str]) -> None:
    """Only the first fork greets."""


def _wait_for(fork: int) -> None:
    """Wait until a fork has ended; if it failed, end in the same way."""
    _, status = os.waitpid(fork, 0)
    if os.WIFSIGNALED(status):
        os._exit(messages.BY_SIGNAL + os.WTERMSIG(status))
    if code := os.WEXITSTATUS(status):
        os._exit(code)


def _serve(requests: FileIO, answers: FileIO) -> None:
    request = json.loads(messages.read_header(requests))
    data = bytes(messages.read_all(requests, request["bytes"]))
    try:
        header, payload = JOBS[request["job"]](data, request)
    except ModelError as error:
        message, _, ctx = error.args
        header, payload = {"error": error.type, "message": message, "ctx": ctx}, []
    messages.write(answers, header, *payload)


def _picture(data: bytes, request: dict[str, Any]) -> Answer:
    original = open_picture(data)
    fitted = fit(original, [Size(*size) for size in request["sizes"]])
    return {"size": fitted.size, "original": original.size}, [fitted.tobytes()]


def _mask(data: bytes, request: dict[str, Any]) -> Answer:
    still = fit_mask(open_mask(data), Size(*request["picture"]), Size(*request["size"]))
    return {}, [still.astype(np.uint8).tobytes()]


def _maps(data: bytes, request: dict[str, Any]) -> Answer:
    size = Size(*request["size"])
    pixels = [fit(map, [size]).tobytes() for map in open_maps(data, request["most"])]
    return {"maps": len(pixels)}, pixels


JOBS: dict[str, Callable[[bytes, dict[str, Any]], Answer]] = {"picture": _picture, "mask": _mask, "maps": _maps}
