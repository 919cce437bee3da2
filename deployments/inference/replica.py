"""The replicas: one deployment holds one model's weights.

    attempts ──▶ prepare (fetch or paint, crop) ──▶ the device's one thread ──▶ encode, store ──▶ events

Only the middle stage needs the device. A second batch prepares while the first denoises, and the device goes on with it
while the first is encoded; the event loop stays free for health checks all the while. A batch of a request under which
a replica has died has the whole replica to itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from deployments import costs, logs
from deployments.errors import Failure, RunnerDisconnected, RunnerServerError, ServingError, StorageUnavailable
from deployments.inference.clips import make_clip, open_clip
from deployments.inference.decoder.pool import Decoder
from deployments.inference.device import Device, Turns
from deployments.inference.encode import DISK_FULL, encode_mp4, save_preview
from deployments.inference.fetch import FileSource
from deployments.inference.measures import Run, begin, note_memory, stage
from deployments.inference.metering import Meter
from deployments.models.base import Clip, Endpoint, ImageToVideoInput, Plan, VideoInput, VideoModel
from deployments.models.messages import (
    Attempt,
    Begun,
    Dropped,
    Event,
    Failed,
    Finished,
    GpuTime,
    Hardware,
    Progress,
    StoredFile,
)
from deployments.models.text_to_video import TextToVideo, TextToVideoInput
from deployments.storage import File, FileStorage, new_key

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

logger = logging.getLogger(__name__)

Emit = Callable[[Event], None]
FindAbandoned = Callable[[Mapping[str, int]], Awaitable[set[str]]]
Paint = Callable[[str], Awaitable["Image.Image"]]

ASK_SECONDS = 0.2
"""How often a replica asks whether its attempts are still wanted."""

PREPARE_SECONDS = 300.0
"""How long the picture of an attempt may take, painted or fetched."""

TOGETHER_SECONDS = 5.0
"""How long a batch waits for its other pictures once one is there."""

PAINTING = "gpu_time"
"""Where a painted picture says what its painting took: in the picture's ``info``, which any version may read past."""


@dataclass(frozen=True)
class Prepared:
    """An attempt whose picture has been fetched, or painted; ``painting`` is what that took of another device."""

    attempt: Attempt
    endpoint: Endpoint
    input: VideoInput
    plan: Plan
    clip: Clip
    painting: tuple[GpuTime, ...] = ()

    @property
    def fps(self) -> int:
        """Frames a second of the finished video."""
        return int(getattr(self.input, "fps", self.endpoint.default_fps))


@dataclass(frozen=True)
class Spent:
    """What an attempt has taken of devices, the model's own first, and how many had that together."""

    gpu_time: tuple[GpuTime, ...] = ()
    batch_size: int | None = None

    @property
    def seconds(self) -> float:
        """On all of them."""
        return sum(micros for _, _, micros in self.gpu_time) / costs.MICRO


class VideoReplica:
    """Holds one video model and runs batches of attempts."""

    def __init__(
        self,
        model: VideoModel,
        endpoints: Mapping[str, Endpoint],
        painters: Mapping[str, Paint],
        storage: FileStorage,
        files: FileSource,
        decoder: Decoder,
        find_abandoned: FindAbandoned,
        hardware: Hardware = Hardware(),  # noqa: B008 - it is frozen
    ) -> None:
        """Hold a model that has been set up, and warm it up.

        Args:
            model: The model.
            endpoints: By id, every endpoint whose clips it makes.
            painters: For those that start from a prompt, what paints the picture.
            storage: Where finished videos go.
            files: Where the files that an input names come from.
            decoder: What opens them.
            find_abandoned: Tells which running attempts nobody wants any more.
            hardware: What the model computes on.
        """
        self._model = model
        self._endpoints = endpoints
        self._painters = painters
        self._storage = storage
        self._files = files
        self._decoder = decoder
        self._find_abandoned = find_abandoned
        self._hardware = hardware
        self._device = Device()
        self._device.begin(model.warm_up)
        self._turns = Turns()
        begin(model.deployment)

    def check_health(self) -> None:
        """Fail when the device does not come back, so that Serve replaces this replica."""
        note_memory(self._model.deployment)
        self._device.check_health()

    async def generate(self, attempts: list[Attempt]) -> AsyncIterator[Event]:
        """Run a batch. It begins with a Begun; every attempt ends in exactly one Finished, Failed or Dropped."""
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        run = asyncio.create_task(self._run(attempts, events.put_nowait))
        run.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            await run
        finally:
            run.cancel()

    async def _run(self, attempts: Sequence[Attempt], emit: Emit) -> None:
        async with self._turns.turn(alone=any(attempt.alone for attempt in attempts)):
            emit(Begun(tuple(attempt.request_id for attempt in attempts)))
            await self._work(attempts, emit)

    async def _work(self, attempts: Sequence[Attempt], emit: Emit) -> None:
        began = time.monotonic()
        abandoned: set[str] = set()
        asking = asyncio.create_task(self._ask(attempts, abandoned))
        preparing = [asyncio.create_task(self._prepare(attempt, abandoned, emit)) for attempt in attempts]
        try:
            while preparing:
                ready, preparing = await _first_ready(preparing)
                for _, group in itertools.groupby(sorted(ready, key=_batch_key), key=_batch_key):
                    await self._animate(list(group), abandoned, emit, began)
        finally:
            for task in [asking, *preparing]:
                task.cancel()

    async def _ask(self, attempts: Sequence[Attempt], abandoned: set[str]) -> None:
        """Keep ``abandoned`` up to date."""
        numbers = {attempt.request_id: attempt.number for attempt in attempts}
        while True:
            await asyncio.sleep(ASK_SECONDS)
            with contextlib.suppress(RayError, RayServeException):  # nobody to ask just now: go on with the work
                abandoned |= await self._find_abandoned(numbers)

    async def _prepare(self, attempt: Attempt, abandoned: set[str], emit: Emit) -> Prepared | None:
        """An attempt that is ready for the device; None for one that has ended."""
        with logs.request_context(attempt.request_id, attempt.traceparent):
            preparing = asyncio.create_task(self._open(attempt, emit))
            try:
                await _wait(preparing, PREPARE_SECONDS, lambda: attempt.request_id not in abandoned)
                if preparing.done():
                    return await preparing
                if attempt.request_id not in abandoned:
                    raise RunnerDisconnected("The picture was not there in time")
                emit(Dropped(attempt.request_id))
            except Exception as error:
                emit(_failed(attempt, error))
            finally:
                preparing.cancel()
            return None

    async def _open(self, attempt: Attempt, emit: Emit) -> Prepared:
        endpoint = self._endpoints[attempt.endpoint]
        input = endpoint.Input.model_validate_json(attempt.input)
        plan = endpoint.plan(input)
        with stage("prepare", self._model.deployment):
            clip, painting = await self._clip(endpoint, input, plan, attempt)
        show = functools.partial(self._show, attempt.request_id, plan.steps, emit, asyncio.get_running_loop())
        return Prepared(attempt, endpoint, input, plan, replace(clip, previews=attempt.previews, show=show), painting)

    async def _clip(
        self, endpoint: Endpoint, input: VideoInput, plan: Plan, attempt: Attempt
    ) -> tuple[Clip, tuple[GpuTime, ...]]:
        """The clip, and what the painting of its picture took."""
        if isinstance(input, ImageToVideoInput):
            return await open_clip(input, self._files, self._decoder, self._model.config.sizes, plan.frames), ()
        picture = await self._painters[endpoint.id](attempt.input)
        painting = picture.info.get(PAINTING)
        return make_clip(input, picture, plan.frames), (painting,) if painting else ()

    async def _animate(self, group: list[Prepared], abandoned: set[str], emit: Emit, began: float) -> None:
        """Denoise clips of one size together, then encode and store each."""
        loop = asyncio.get_running_loop()
        ids = tuple(member.attempt.request_id for member in group)
        steps = group[0].plan.steps
        meter = Meter([member.clip for member in group])
        run = Run("denoise", self._model.deployment, [member.attempt.traceparent for member in group])
        stopped = False

        def keep(done: int) -> list[int]:
            if done:
                loop.call_soon_threadsafe(emit, Progress(ids, f"Step {done}/{steps}", done / steps))
            wanted = [] if stopped else [i for i, request_id in enumerate(ids) if request_id not in abandoned]
            meter.note(done, wanted)
            run.step(done)
            return wanted

        def denoise() -> list[np.ndarray | None]:
            device = (self._hardware.accelerator, self._hardware.fraction)
            loop.call_soon_threadsafe(emit, Begun(ids, on_device=True, device=device))
            with run, meter:
                return self._model.generate([member.clip for member in group], steps, keep)

        try:
            clips = await self._device.run(denoise, lambda: not abandoned.issuperset(ids))
        except Exception as error:
            for member, spent in zip(group, self._spent(group, meter), strict=True):
                emit(_failed(member.attempt, error, spent))
            return
        finally:
            stopped = True  # the thread cannot be cancelled; it ends at its next step
        await asyncio.gather(
            *(
                self._deliver(member, frames, emit, began, spent)
                for member, frames, spent in zip(group, clips, self._spent(group, meter), strict=True)
            )
        )

    def _spent(self, group: Sequence[Prepared], meter: Meter) -> list[Spent]:
        """What each member of a group has taken."""
        device = (self._hardware.accelerator, self._hardware.fraction)
        return [
            Spent(((*device, micros), *member.painting), len(group))
            for member, micros in zip(group, meter.shares(), strict=True)
        ]

    async def _deliver(
        self, member: Prepared, frames: np.ndarray | None, emit: Emit, began: float, spent: Spent
    ) -> None:
        request_id = member.attempt.request_id
        with logs.request_context(request_id, member.attempt.traceparent):
            if frames is None:
                emit(Dropped(request_id, spent.gpu_time, spent.batch_size))
                return
            try:
                write = functools.partial(encode_mp4, frames, member.fps)
                file, stored = await self._store("clip.mp4", write, lambda name: stage(name, self._model.deployment))
                output = {member.endpoint.result_key: file.model_dump(), "seed": member.input.seed}
                took = time.monotonic() - began
                emit(Finished(request_id, output, took, spent.seconds, (stored,), spent.gpu_time, spent.batch_size))
            except StorageUnavailable as error:
                emit(replace(_failed(member.attempt, error, spent), unstored=True))
            except Exception as error:
                emit(_failed(member.attempt, error, spent))

    def _show(
        self,
        request_id: str,
        steps: int,
        emit: Emit,
        loop: asyncio.AbstractEventLoop,
        done: int,
        frame: np.ndarray,
    ) -> None:
        """Called in the device's thread: store a preview beside the work, and tell of it."""

        async def tell() -> None:
            with logs.request_context(request_id), contextlib.suppress(OSError, StorageUnavailable):  # not worth a clip
                write = functools.partial(save_preview, frame)
                _, stored = await self._store("preview.jpg", write, lambda _: contextlib.nullcontext())
                emit(Progress((request_id,), f"Preview of step {done}/{steps}", done / steps, stored))

        asyncio.run_coroutine_threadsafe(tell(), loop)

    async def _store(
        self, name: str, write: Callable[[Path], None], stage: Callable[[str], AbstractContextManager[None]]
    ) -> tuple[File, StoredFile]:
        """Have a file written, and put it into the storage under a key that nobody can guess."""
        key = new_key(name)
        with _room_on_the_disk(), tempfile.TemporaryDirectory(prefix="svd-serve-") as folder:
            path = Path(folder) / name
            with stage("encode"):
                await asyncio.to_thread(write, path)
            with stage("store"):
                file = await self._storage.put(path, key)
        return file, StoredFile(key, file.content_type, file.file_size, file.sha256)


class PictureReplica:
    """Holds one text-to-image pipeline."""

    def __init__(self, endpoint: TextToVideo, hardware: Hardware = Hardware()) -> None:  # noqa: B008 - it is frozen
        """Hold a pipeline that has been set up, and computes on ``hardware``."""
        self._endpoint = endpoint
        self._hardware = hardware
        self._device = Device()
        begin(endpoint.deployment)

    def check_health(self) -> None:
        """Fail when the device does not come back, so that Serve replaces this replica."""
        note_memory(self._endpoint.deployment)
        self._device.check_health()

    async def paint(self, input: str) -> Image.Image:
        """The picture for a checked input (JSON), at the clip's size; its ``info`` tells what it took."""
        parsed = TextToVideoInput.model_validate_json(input)

        def work() -> Image.Image:
            start = time.monotonic()
            with Run("paint", self._endpoint.deployment):
                picture = self._endpoint.paint(parsed)
            micros = round((time.monotonic() - start) * costs.MICRO)
            picture.info[PAINTING] = (self._hardware.accelerator, self._hardware.fraction, micros)
            return picture

        return await self._device.run(work)


async def _wait(work: asyncio.Task[Any], seconds: float, is_wanted: Callable[[], bool]) -> None:
    """Return when the work has ended, nobody wants it any more, or the time is over."""
    give_up = time.monotonic() + seconds
    while not work.done() and is_wanted() and (left := give_up - time.monotonic()) > 0:
        await asyncio.wait([work], timeout=min(ASK_SECONDS, left))


@contextlib.contextmanager
def _room_on_the_disk() -> Iterator[None]:
    """A full temporary disk of this machine, told as a full storage: another attempt may succeed, here or elsewhere."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise StorageUnavailable("The disk for temporary files is full") from error


async def _first_ready(
    preparing: Sequence[asyncio.Task[Prepared | None]],
) -> tuple[list[Prepared], list[asyncio.Task[Prepared | None]]]:
    """What is ready soon after the first of them is, and the others: a slow picture holds up no clip but its own."""
    await asyncio.wait(preparing, return_when=asyncio.FIRST_COMPLETED)
    done, _ = await asyncio.wait(preparing, timeout=TOGETHER_SECONDS)
    ended = (task.result() for task in preparing if task in done)
    return [prepared for prepared in ended if prepared], [task for task in preparing if task not in done]


def _batch_key(prepared: Prepared) -> tuple[Any, ...]:
    return (*prepared.clip.batch_key, prepared.plan.steps)


def _failed(attempt: Attempt, error: Exception, spent: Spent = Spent()) -> Failed:
    return Failed(attempt.request_id, _failure(attempt, error), False, spent.gpu_time, spent.batch_size)


def _failure(attempt: Attempt, error: Exception) -> Failure:
    if isinstance(error, RayTaskError):
        error = error.cause
    if isinstance(error, ServingError):
        return error.failure()
    logger.error("attempt %s failed", attempt.number, exc_info=error)
    if isinstance(error, RayError | RayServeException):  # the painter's replica died
        return RunnerDisconnected("A replica was lost").failure()
    return RunnerServerError("The model failed").failure()
