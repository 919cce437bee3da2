"""``Decoder``: opens what callers send, in processes that may break.

picture, mask, maps ──▶ a turn ──▶ a child that is free ──▶ pixels, or an error of the tree
                                        ├─ too slow, dead, or out of its mind: killed, and another started
                                        └─ for no fault of the input: once more, then ``RunnerDisconnected``
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from deployments.errors import (
    ArchiveFileCountBelowMinimum,
    ArchiveFileCountExceedsMaximum,
    ImageLoadError,
    ImageTooLarge,
    ImageTooSmall,
    InvalidArchive,
    ModelError,
    RunnerDisconnected,
    UnsupportedImageFormat,
)
from deployments.inference.archives import ARCHIVES
from deployments.inference.decoder.process import TOO_MUCH_TIME, Check, Child, ChildFailed, ChildLost, Limits
from deployments.inference.images import MAX_PIXELS, MAX_SIDE
from deployments.models.size import Size

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHILDREN = 2
"""All but one of them open archives, which may take minutes: a picture need not wait for one. Each takes 40 MB while it
waits."""

BUSY = 1 / 4
"""The share of its time that an input has to have computed for its lateness to be its own fault. The largest legal
picture takes a twelfth; one that had less of the machine than this has waited for others."""

START_SECONDS = 60.0
"""How long a child may take to load what it needs. It takes less than one on a machine that has nothing else to do."""

ERRORS: dict[str, type[ModelError]] = {
    error.type: error
    for error in (
        ImageLoadError,
        ImageTooSmall,
        ImageTooLarge,
        UnsupportedImageFormat,
        InvalidArchive,
        ArchiveFileCountBelowMinimum,
        ArchiveFileCountExceedsMaximum,
    )
}
"""What may be wrong with an input, by the names that a child uses."""

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Word = Annotated[str, Field(max_length=200)]


class Picture(NamedTuple):
    """A picture at a clip's size, and the size that it came in."""

    pixels: Image.Image
    original: Size


def _known(error: str) -> str:
    if error not in ERRORS:
        raise ValueError("no error of an input")
    return error


class _Header(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Refusal(_Header):
    error: Annotated[Word, AfterValidator(_known)]
    message: str = Field(max_length=2000)
    ctx: dict[Word, int | float | Word | list[Word]] = Field(max_length=10)


class _PictureHeader(_Header):
    size: tuple[Side, Side]
    original: tuple[Side, Side]


class _MaskHeader(_Header):
    pass


class _MapsHeader(_Header):
    maps: int = Field(ge=1)


Header = TypeVar("Header", bound=_Header)


class Decoder:
    """Opens pictures, masks and archives. Each input has a process, memory and time of its own."""

    def __init__(self, limits: Limits | None = None, children: int = CHILDREN) -> None:
        """Start the children; nobody has to wait for them until something is to be opened."""
        self._limits = limits or Limits()
        self._turns = asyncio.Semaphore(children)
        self._turns_of_archives = asyncio.Semaphore(max(1, children - 1))
        self._told: set[str] = set()
        self._idle = [child for child in (self._start() for _ in range(children)) if child]

    @property
    def pids(self) -> list[int]:
        """The processes that wait for an input."""
        return [child.pid for child in self._idle]

    async def picture(self, data: bytes, sizes: Sequence[Size]) -> Picture:
        """A picture, cropped to the nearest of these sizes, as ``images.open_picture`` and ``images.fit`` do it.

        Raises:
            ModelError: The bytes cannot be read as one, or are out of bounds.
            RunnerDisconnected: There is no process to open it, or it was lost for no fault of the bytes.
        """
        request = {"job": "picture", "sizes": [(size.width, size.height) for size in sizes]}
        header, pixels = await self._open_picture(
            request, data, _reader(_PictureHeader, partial(_count_picture, sizes))
        )
        return Picture(_rgb(Size(*header.size), pixels), Size(*header.original))

    async def mask(self, data: bytes, picture: Size, size: Size) -> np.ndarray:
        """Which pixels of a clip stay, as ``images.open_mask`` and ``images.fit_mask`` say.

        Raises:
            ModelError: The bytes cannot be read as a picture, or are out of bounds.
            RunnerDisconnected: There is no process to open it, or it was lost for no fault of the bytes.
        """
        request = {"job": "mask", "picture": (picture.width, picture.height), "size": (size.width, size.height)}
        _, still = await self._open_picture(request, data, _reader(_MaskHeader, lambda _: size.width * size.height))
        stays: np.ndarray = np.frombuffer(still, np.uint8).reshape(size.height, size.width) != 0
        return stays

    async def maps(self, data: bytes, size: Size, most: int) -> tuple[Image.Image, ...]:
        """The depth maps of an archive, each at the clip's size, as ``archives.open_maps`` finds them.

        Raises:
            ModelError: The bytes cannot be read as an archive, or are out of bounds.
            RunnerDisconnected: There is no process to open it, or it was lost for no fault of the bytes.
        """
        request = {"job": "maps", "size": (size.width, size.height), "most": most}
        bytes_of_one = 3 * size.width * size.height
        read = _reader(_MapsHeader, lambda header: _count_maps(most, header) * bytes_of_one)
        try:
            async with self._turns_of_archives:
                _, pixels = await self._ask(request, data, self._limits.archive_seconds, read)
        except ChildFailed as error:
            ctx = {"supported_extensions": ARCHIVES}
            raise InvalidArchive(f"The archive could not be opened: {error}", ctx=ctx) from error
        maps = memoryview(pixels)
        starts = range(0, len(pixels), bytes_of_one)
        return tuple(_rgb(size, maps[start : start + bytes_of_one]) for start in starts)

    def close(self) -> None:
        """End every child."""
        while self._idle:
            self._idle.pop().end()

    async def _open_picture(
        self, request: dict[str, Any], data: bytes, read: Check[Header | _Refusal]
    ) -> tuple[Header, bytearray]:
        try:
            return await self._ask(request, data, self._limits.picture_seconds, read)
        except ChildFailed as error:
            raise ImageLoadError(f"The picture could not be decoded: {error}") from error

    async def _ask(
        self, request: dict[str, Any], data: bytes, seconds: float, read: Check[Header | _Refusal]
    ) -> tuple[Header, bytearray]:
        async with self._turns:
            try:
                answer, payload = await self._try_twice(request, data, seconds, read)
            except ChildLost as error:
                raise RunnerDisconnected(str(error)) from error
        if isinstance(answer, _Refusal):
            raise ERRORS[answer.error](answer.message, ctx=answer.ctx)
        return answer, payload

    async def _try_twice(
        self, request: dict[str, Any], data: bytes, seconds: float, read: Check[Header | _Refusal]
    ) -> tuple[Header | _Refusal, bytearray]:
        try:
            return await self._try(request, data, seconds, read)
        except ChildLost:
            return await self._try(request, data, seconds, read)

    async def _try(
        self, request: dict[str, Any], data: bytes, seconds: float, read: Check[Header | _Refusal]
    ) -> tuple[Header | _Refusal, bytearray]:
        child = await self._take()
        with self._kept(child):
            try:
                async with asyncio.timeout(seconds):
                    answered = await asyncio.to_thread(child.ask, request, data, read)
            except TimeoutError as error:
                raise _late(child, seconds) from error
        self._idle.append(child)
        return answered

    async def _take(self) -> Child:
        """A child that is ready."""
        child = self._pop() or self._start()
        if child is None:
            raise RunnerDisconnected("No decoder could be started")
        with self._kept(child):
            try:
                async with asyncio.timeout(START_SECONDS):
                    self._tell_missing(await asyncio.to_thread(child.wait_until_ready))
            except ChildLost as error:
                raise ChildLost("No decoder could be started") from error
            except (ChildFailed, TimeoutError) as error:
                raise RunnerDisconnected("No decoder could be started") from error
        return child

    def _pop(self) -> Child | None:
        """One that waits. Some may have been ended from outside while they did."""
        while self._idle:
            child = self._idle.pop()
            if child.is_alive:
                return child
            child.end()
        return None

    @contextmanager
    def _kept(self, child: Child) -> Iterator[None]:
        """Whatever ends a conversation early, as the caller's going away does, ends the child, too."""
        try:
            yield
        except BaseException:
            self._replace(child)
            raise

    def _replace(self, child: Child) -> None:
        """End a child, and start another at once, so that nobody waits for it."""
        child.kill()
        asyncio.get_running_loop().run_in_executor(None, child.end)  # once its thread has noticed
        if started := self._start():
            self._idle.append(started)

    def _start(self) -> Child | None:
        try:
            return Child(self._limits)
        except OSError:
            logger.exception("no decoder can be started")
            return None

    def _tell_missing(self, missing: list[str]) -> None:
        new = set(missing) - self._told
        self._told |= new
        if new:
            logger.warning("decoders run without these walls, which this system does not give: %a", sorted(new))


def _late(child: Child, seconds: float) -> Exception:
    """What it means that a child has not answered in time."""
    if child.computed() < BUSY * seconds:
        return RunnerDisconnected("The machine left its decoder too little time")
    return ChildFailed(TOO_MUCH_TIME)


def _reader(kind: type[Header], count: Callable[[Header], int]) -> Check[Header | _Refusal]:
    """Reads a header of a kind, or a refusal. ``count`` tells how many bytes follow, or that it makes no sense."""

    def read(text: bytes) -> tuple[Header | _Refusal, int]:
        try:
            header = kind.model_validate_json(text)
        except ValidationError:
            return _Refusal.model_validate_json(text), 0
        return header, count(header)

    return read


def _count_picture(sizes: Sequence[Size], header: _PictureHeader) -> int:
    width, height = header.size
    if Size(width, height) not in sizes or header.original[0] * header.original[1] > MAX_PIXELS:
        raise ValueError("a picture of a size that was not asked for")
    return 3 * width * height


def _count_maps(most: int, header: _MapsHeader) -> int:
    if header.maps > most:
        raise ValueError("more maps than were asked for")
    return header.maps


def _rgb(size: Size, pixels: bytearray | memoryview) -> Image.Image:
    return Image.frombytes("RGB", (size.width, size.height), bytes(pixels))
