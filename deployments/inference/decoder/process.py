"""A decoder's child as the replica holds it: one process, three pipes, and one input at a time.

    ask ──▶ stdin:  header, bytes ──▶ fork
        ◀── stdout: header, pixels ──┘
        ◀── ended:  one byte ── child, once that fork has ended

All of this blocks, so it belongs in a thread; ``kill`` may be called from anywhere, and ends what blocks.

How a conversation ends tells whose fault it is. A fork that was ended for what it did hands its end on through its
child (``FAULTS``), and an answer that makes no sense is its input's doing, too: ``ChildFailed``. Every other end may
have come from outside, and so has the child's own, for it reads no input: ``ChildLost``.
"""

from __future__ import annotations

import fcntl
import io
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy
import PIL
import psutil
from pydantic import BaseModel, ConfigDict, Field

import deployments
from deployments.inference.decoder import messages

logger = logging.getLogger(__name__)

T = TypeVar("T")
Check = Callable[[bytes], tuple[T, int]]
"""Reads the header of an answer: what it says, and how many bytes follow. A ValueError says that it makes no sense."""

ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""All that a child may know of its surroundings. There are keys and passwords in the rest."""

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A process with threads cannot fork; they would need address space, too."""

START = (
    "import sys; sys.path[:0] = [sys.argv[5]] * (sys.argv[5] not in sys.path); "
    "sys.path += [path for path in sys.argv[6:] if path not in sys.path]; "
    "from deployments.inference.decoder.child import main; main(*map(int, sys.argv[1:5]))"
)
"""Isolated as ``-I`` makes it, Python has to be told where this package is that runs, and what it needs."""

ENDING_SECONDS = 10.0
"""How long a killed process may take to be gone."""

TOO_MUCH_TIME, TOO_MUCH_MEMORY = "it took too much time", "it took too much memory"
FAILED = "its decoder failed"
CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS)
FAULTS: dict[int, str] = {
    messages.OUT_OF_MEMORY: TOO_MUCH_MEMORY,
    messages.RAISED: FAILED,
    messages.BY_SIGNAL + signal.SIGXCPU: TOO_MUCH_TIME,
    **{messages.BY_SIGNAL + number: FAILED for number in CRASHES},
}
"""What an input has done, by the status that its child took over from its fork. SIGKILL is not among them: Linux sends
it where memory runs out for everybody."""

PIPE_BYTES = 1024 * 1024
MAX_STDERR_BYTES = 64 * 1024
_LONGEST_LAST_WORDS = 2000


@dataclass(frozen=True)
class Limits:
    """What an input may take.

    Attributes:
        memory_bytes: Address space. The largest legal picture, WEBP of 64 million pixels, takes 1.7 GB, and in an
            archive of 80 MB 2.1 GB. ``python -m loadtest.decoder`` measures it. Half
            as much again is for other versions of the libraries.
        picture_seconds: For a picture or a mask. 64 million pixels take up to 5 s of a core, and a core may be shared.
        archive_seconds: For an archive. Depth maps as large as a telephone's pictures take up to a second each.
    """

    memory_bytes: int = 3 * 2**30
    picture_seconds: float = 60.0
    archive_seconds: float = 180.0


class ChildFailed(Exception):
    """An input could not be opened, for what it made of its child. The reason is for a person."""


class ChildLost(Exception):
    """A child ended, and nothing shows that its input made it end."""


class _Ready(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    missing: list[str] = Field(max_length=20)


class Child:
    """One process that opens inputs. It is started at once, and ready some tenths of a second later."""

    def __init__(self, limits: Limits) -> None:
        """Start it.

        Raises:
            OSError: There is no process to be had.
        """
        ended, told = os.pipe()
        try:
            self._process = _start(limits, told)
        except OSError:
            os.close(ended)
            raise
        finally:
            os.close(told)
        self._ended = io.FileIO(ended)
        self._requests, self._answers, self._errors = (
            cast(io.FileIO, stream) for stream in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        os.set_blocking(self._errors.fileno(), False)
        _widen(self._requests, self._answers)
        self._killing, self._pipes = threading.Lock(), threading.Lock()
        self._is_ready = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait_until_ready(self) -> list[str]:
        """Wait until it can take an input. Says which walls it could not put up; nothing when asked again.

        Raises:
            ChildFailed: It makes no sense.
            ChildLost: It ended before that.
        """
        if self._is_ready:
            return []
        with self._conversation():
            missing = _Ready.model_validate_json(messages.read_header(self._answers)).missing
        self._is_ready = True
        return missing

    def ask(self, request: dict[str, Any], data: bytes, check: Check[T]) -> tuple[T, bytearray]:
        """Have an input opened.

        Args:
            request: What is to be made of it.
            data: Its bytes.
            check: Reads the header of the answer.

        Returns:
            What ``check`` made of the header, and the bytes behind it.

        Raises:
            ChildFailed: The input ended the child's fork, or its answer makes no sense and it was killed.
            ChildLost: The child ended for another reason.
        """
        with self._conversation():
            messages.write(self._requests, request | {"bytes": len(data)}, data)
            answer, length = check(messages.read_header(self._answers))
            payload = messages.read_all(self._answers, length)
            if bytes(messages.read_all(self._ended, 1)) != messages.ENDED or _has_more(self._answers):
                raise ValueError("it says more than it was asked")
            self._log_errors(logging.DEBUG)
        return answer, payload

    def computed(self) -> float:
        """How many seconds its fork has computed; 0 if it has ended."""
        with suppress(psutil.Error):
            return float(sum(sum(fork.cpu_times()[:2]) for fork in psutil.Process(self.pid).children()))
        return 0.0

    def kill(self) -> None:
        """End it and its fork, whatever they do. What waits for them fails at once."""
        with self._killing:
            if self.is_alive:
                os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, and give back what it holds."""
        self.kill()
        with self._pipes:
            self._process.wait(ENDING_SECONDS)
            for stream in (self._requests, self._answers, self._errors, self._ended):
                stream.close()

    @contextmanager
    def _conversation(self) -> Iterator[None]:
        """Whatever goes wrong inside is a ``ChildFailed`` or a ``ChildLost``, and the end of the child."""
        with self._pipes:
            try:
                yield
            except Exception as error:
                self.kill()  # it may be about to end by itself, and keeps its own status then
                status = self._process.wait(ENDING_SECONDS)
                self._log_errors(logging.WARNING)
                logger.warning("decoder %s ended with status %s: %a", self.pid, status, error)
                raise _blame(error, status) from error

    def _log_errors(self, level: int) -> None:
        """Log what was said on the error stream, which holds so much and no more; control characters are escaped."""
        said = self._errors.read(MAX_STDERR_BYTES)
        if said:
            logger.log(level, "decoder %s says: %a", self.pid, said.decode(errors="replace")[-_LONGEST_LAST_WORDS:])


def _start(limits: Limits, told: int) -> subprocess.Popen[bytes]:
    seconds = int(max(limits.picture_seconds, limits.archive_seconds)) + 1
    roots = [str(Path(str(module.__file__)).parents[1]) for module in (deployments, PIL, numpy)]
    numbers = map(str, (os.getpid(), limits.memory_bytes, seconds, told))
    return subprocess.Popen(  # noqa: S603  # every part of it is ours
        [sys.executable, "-I", "-c", START, *numbers, *roots],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pass_fds=(told,),
        cwd="/",
        env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | ONE_THREAD,
        start_new_session=True,
    )


def _widen(*pipes: io.FileIO) -> None:
    """Let more go through at once, where the system allows it: 25 frames are 44 MB."""
    with suppress(OSError, AttributeError):
        for pipe in pipes:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _has_more(stream: io.FileIO) -> bool:
    poll = select.poll()  # ``select`` takes no descriptor beyond 1023, and a replica may hold more
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(0))


def _blame(error: Exception, status: int) -> ChildFailed | ChildLost:
    """Whose fault it is that a conversation ended like this."""
    if not isinstance(error, EOFError | OSError):  # it did not end, but talked nonsense
        return ChildFailed(FAILED)
    return ChildFailed(FAULTS[status]) if status in FAULTS else ChildLost("The decoder was lost")
