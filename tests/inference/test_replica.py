"""Batches through the real replica: a small model that draws, real pictures, real encoding, real files."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
import itertools
import json
import pickle
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
from PIL import Image
from ray.exceptions import RayActorError

from deployments.errors import ImageTooSmall, RunnerServerError, StorageUnavailable, Unavailable
from deployments.inference import device as device_module
from deployments.inference import metering
from deployments.inference import replica as replica_module
from deployments.inference.decoder import process
from deployments.inference.decoder.pool import Decoder
from deployments.inference.fetch import FileSource
from deployments.inference.replica import Paint, PictureReplica, VideoReplica
from deployments.models.base import Clip, Endpoint, Keep, Size, VideoConfig, VideoInput, VideoModel
from deployments.models.fast_svd_lcm import FastSVDLCM, FastSVDLCMInput
from deployments.models.messages import Attempt, Begun, Dropped, Event, Failed, Finished, Hardware, Progress
from deployments.models.svd import SVD
from deployments.models.text_to_video import TextToVideo, TextToVideoConfig, TextToVideoInput
from deployments.storage import File, FileStorage, Stat
from tests.conftest import need
from tests.inference.conftest import URL, image_bytes
from tests.inference.hostile import countless_scans

FAST, SVD_ID, TEXT = "fal-ai/fast-svd-lcm", "fal-ai/svd", "fal-ai/fast-svd-lcm/text-to-video"
WIDE, TALL = Size(112, 64), Size(64, 112)
CONFIG = VideoConfig(weights="none", sizes=(WIDE, TALL))
FRAMES = 3
PATIENCE = 20.0

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.asyncio(loop_scope="session")]


class DrawnModel(VideoModel):
    """Draws frames in the colour of a clip's seed, and lets a test look at every step."""

    Input: ClassVar[type[VideoInput]] = FastSVDLCMInput
    title = "Drawn"
    guidance = (1.0, 1.0)

    def __init__(self) -> None:
        super().__init__(FAST, CONFIG)
        self.batches: list[list[Clip]] = []
        self.steps_taken = 0
        self.before_step: Callable[[int], None] = lambda step: None
        self.ended = threading.Event()

    @staticmethod
    def schedule(steps: int) -> Any:
        raise NotImplementedError

    def steps(self, input: VideoInput) -> int:
        assert isinstance(input, FastSVDLCMInput)
        return input.steps

    def generate(self, clips: Sequence[Clip], steps: int, keep: Keep) -> list[np.ndarray | None]:
        self.batches.append(list(clips))
        wanted = set(keep(0))
        for step in range(1, steps + 1):
            if not wanted:
                break
            self.before_step(step)
            self.steps_taken += 1
            wanted &= set(keep(step))
        self.ended.set()
        return [draw(clip) if index in wanted else None for index, clip in enumerate(clips)]

    @property
    def sizes(self) -> list[list[Size]]:
        return [[clip.size for clip in batch] for batch in self.batches]


class Gate:
    """Holds the device's thread at a step until a test opens it."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, step: int) -> None:
        if step == self._at:
            self.reached.set()
            assert self._open.wait(PATIENCE)

    def open(self) -> None:
        self._open.set()


class Callers:
    """Those who may lose interest in their attempts."""

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.asked = asyncio.Condition()

    async def find_abandoned(self, attempts: Mapping[str, int]) -> set[str]:
        async with self.asked:
            self.asked.notify_all()
        return self.gone & attempts.keys()

    async def leave(self, request_id: str) -> None:
        """Return when the replica has heard that this caller is gone."""
        self.gone.add(request_id)
        for _ in range(2):  # the question that is on its way may have been answered before
            async with self.asked:
                await asyncio.wait_for(self.asked.wait(), PATIENCE)


def draw(clip: Clip) -> np.ndarray:
    return np.full((FRAMES, clip.size.height, clip.size.width, 3), clip.seed % 256, np.uint8)


def picture_uri(width: int = 112, height: int = 64) -> str:
    return f"data:image/png;base64,{base64.b64encode(image_bytes(Image.new('RGB', (width, height), 'red'))).decode()}"


def attempt(request_id: str, endpoint: str = FAST, **input: Any) -> Attempt:
    source = {} if "prompt" in input else {"image_url": picture_uri()}
    return Attempt(request_id, 1, endpoint, json.dumps(source | {"seed": 1, "steps": 3} | input))


async def paint_wide(input: str) -> Image.Image:
    return Image.new("RGB", (WIDE.width, WIDE.height), "green")


def text_endpoint() -> TextToVideo:
    return TextToVideo(TEXT, TextToVideoConfig(weights="none", video=FAST, scale=0.109375, multiple=16))


@pytest.fixture
def model() -> DrawnModel:
    return DrawnModel()


@pytest.fixture
def callers() -> Callers:
    return Callers()


@pytest.fixture(autouse=True)
def ask_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "ASK_SECONDS", 0.01)


def make_replica(
    model: VideoModel, storage: FileStorage, callers: Callers, decoder: Decoder, paint: Paint = paint_wide
) -> VideoReplica:
    endpoints: dict[str, Endpoint] = {
        FAST: FastSVDLCM(FAST, CONFIG),
        SVD_ID: SVD(SVD_ID, CONFIG),
        TEXT: text_endpoint(),
    }
    return VideoReplica(model, endpoints, {TEXT: paint}, storage, FileSource(storage), decoder, callers.find_abandoned)


async def test_it_is_warmed_up_where_it_will_compute(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    monkeypatch.setattr(model, "warm_up", lambda: threads.append(threading.current_thread().name))
    make_replica(model, storage, callers, decoder)
    assert [name.startswith("device") for name in threads] == [True]


@pytest.fixture
def replica(model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder) -> VideoReplica:
    return make_replica(model, storage, callers, decoder)


async def run(replica: VideoReplica, *attempts: Attempt) -> list[Event]:
    async with asyncio.timeout(PATIENCE):
        return [event async for event in replica.generate(list(attempts))]


def ends(events: Sequence[Event]) -> dict[str, Finished | Failed | Dropped]:
    """How each request ended; a request that ends twice is a failure of the test."""
    found: dict[str, Finished | Failed | Dropped] = {}
    for event in events:
        if not isinstance(event, Progress | Begun):
            assert event.request_id not in found
            found[event.request_id] = event
    return found


def kinds(events: Sequence[Event]) -> dict[str, str]:
    return {request_id: type(event).__name__ for request_id, event in ends(events).items()}


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE)


# ---------------------------------------------------------------- a clip


async def test_an_attempt_becomes_a_stored_clip(replica: VideoReplica, storage: FileStorage) -> None:
    [finished] = ends(await run(replica, attempt("a", seed=7))).values()

    assert isinstance(finished, Finished)
    assert finished.output["seed"] == 7
    file, [stored] = finished.output["video"], finished.files
    assert storage.key_of(file["url"]) == stored.key
    assert (file["content_type"], file["file_name"]) == ("video/mp4", "clip.mp4")
    assert (await storage.verify(stored.key, stored.size, stored.sha256)).size == file["file_size"] > 0
    assert finished.inference_seconds >= finished.gpu_seconds >= 0


async def test_an_output_can_be_sent_as_json(replica: VideoReplica) -> None:
    [finished] = ends(await run(replica, attempt("a"))).values()

    assert isinstance(finished, Finished)
    assert json.loads(json.dumps(finished.output)) == finished.output
    assert set(finished.output) == {"video", "seed"}


async def test_svd_calls_its_video_image(replica: VideoReplica) -> None:
    [finished] = ends(await run(replica, attempt("a", SVD_ID))).values()

    assert isinstance(finished, Finished)
    assert set(finished.output) == {"image", "seed"}
    assert finished.output["image"]["content_type"] == "video/mp4"


@pytest.mark.parametrize(("endpoint", "input", "fps"), [(FAST, {"fps": 7}, 7), (FAST, {}, 10), (SVD_ID, {}, 25)])
async def test_a_clip_plays_at_the_rate_that_was_asked_for(
    replica: VideoReplica, tmp_path: Path, endpoint: str, input: dict[str, int], fps: int
) -> None:
    ffprobe = need("ffprobe")
    await run(replica, attempt("a", endpoint, **input))

    [clip] = (tmp_path / "files").rglob("clip.mp4")
    command = [ffprobe, "-v", "error", "-show_entries", "stream=avg_frame_rate", "-of", "csv=p=0", str(clip)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == f"{fps}/1"


async def test_the_model_gets_what_the_caller_asked_for(replica: VideoReplica, model: DrawnModel) -> None:
    await run(replica, attempt("a", seed=5, motion_bucket_id=99, cond_aug=0.5, image_url=picture_uri(300, 300)))

    [[clip]] = model.batches
    assert (clip.seed, clip.motion_bucket_id, clip.cond_aug) == (5, 99, 0.5)
    assert clip.picture.mode == "RGB"
    assert clip.size in CONFIG.sizes


async def test_progress_is_told_after_each_step(replica: VideoReplica) -> None:
    events = await run(replica, attempt("a"), attempt("b"))

    told = [event for event in events if isinstance(event, Progress)]
    assert told == [Progress(("a", "b"), f"Step {step}/3", step / 3) for step in (1, 2, 3)]
    begun = [Begun(("a", "b")), Begun(("a", "b"), on_device=True, device=("CPU", 1.0))]
    assert events[:5] == [*begun, *told]


async def test_a_text_to_video_clip_starts_from_the_painted_picture(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder
) -> None:
    prompts = []

    async def paint(input: str) -> Image.Image:
        parsed = TextToVideoInput.model_validate_json(input)
        prompts.append((parsed.prompt, parsed.seed))
        return await paint_wide(input)

    replica = make_replica(model, storage, callers, decoder, paint)
    events = await run(replica, attempt("a", TEXT, prompt="a cat", seed=3))

    [[clip]] = model.batches
    assert kinds(events) == {"a": "Finished"}
    assert prompts == [("a cat", 3)]
    assert clip.picture.getpixel((0, 0)) == (0, 128, 0)


# ---------------------------------------------------------------- batches


async def test_every_attempt_ends_in_exactly_one_event(replica: VideoReplica) -> None:
    events = await run(
        replica,
        attempt("good"),
        attempt("tall", image_url=picture_uri(64, 112)),
        attempt("broken", image_url="data:image/png;base64,AAAA"),
        attempt("small", image_url=picture_uri(1, 1)),
        attempt("no input", image_url=None),
        attempt("painted", TEXT, prompt="a cat"),
        attempt("unknown endpoint", "fal-ai/unknown"),
    )

    assert kinds(events) == {
        "good": "Finished",
        "tall": "Finished",
        "broken": "Failed",
        "small": "Failed",
        "no input": "Failed",
        "painted": "Finished",
        "unknown endpoint": "Failed",
    }


async def test_attempts_of_one_size_and_steps_share_a_batch(replica: VideoReplica, model: DrawnModel) -> None:
    events = await run(replica, attempt("a", seed=1), attempt("b", TEXT, prompt="x", seed=2), attempt("c", seed=3))

    assert model.sizes == [[WIDE] * 3]
    finished = [end for end in ends(events).values() if isinstance(end, Finished)]
    micros = [end.gpu_time[0][2] for end in finished]
    assert max(micros) - min(micros) <= 1, "what is computed alike costs alike"
    assert [(end.batch_size, end.gpu_time[0][:2]) for end in finished] == [(3, ("CPU", 1.0))] * 3


async def test_sizes_and_steps_are_never_mixed_in_a_batch(replica: VideoReplica, model: DrawnModel) -> None:
    await run(
        replica,
        attempt("a"),
        attempt("b", image_url=picture_uri(64, 112)),
        attempt("c", steps=5),
        attempt("d"),
        attempt("e", image_url=picture_uri(64, 112)),
    )

    assert sorted(model.sizes) == sorted([[WIDE] * 2, [TALL] * 2, [WIDE]])


async def test_each_member_of_a_batch_gets_its_own_clip(replica: VideoReplica, storage: FileStorage) -> None:
    alone = [await stored(storage, await run(replica, attempt("x", seed=seed))) for seed in (10, 200)]
    together = await run(replica, attempt("a", seed=10), attempt("b", seed=200))

    assert alone[0] != alone[1]
    found = ends(together)
    assert [await stored(storage, [found["a"]]), await stored(storage, [found["b"]])] == alone


async def stored(storage: FileStorage, events: Sequence[Event]) -> bytes:
    """The one clip that these events tell of."""
    [finished] = ends(events).values()
    assert isinstance(finished, Finished)
    key = storage.key_of(finished.output["video"]["url"])
    assert key is not None
    return b"".join([piece async for piece in storage.read(key, 0, (await storage.stat(key)).size)])


async def test_a_bad_picture_fails_alone(replica: VideoReplica, model: DrawnModel) -> None:
    events = await run(replica, attempt("a"), attempt("bad", image_url=picture_uri(1, 1)), attempt("b"))

    bad = ends(events)["bad"]
    assert isinstance(bad, Failed)
    assert (bad.failure.status, bad.failure.type, bad.failure.retryable) == (422, ImageTooSmall.type, False)
    assert bad.failure.body["detail"][0]["loc"] == ["body", "image_url"]
    assert kinds(events) == {"bad": "Failed", "a": "Finished", "b": "Finished"}
    assert model.sizes == [[WIDE, WIDE]]


async def test_a_batch_of_bad_pictures_never_reaches_the_device(replica: VideoReplica, model: DrawnModel) -> None:
    await run(replica, attempt("a", image_url="data:,x"), attempt("b", image_url="file:///etc/passwd"))

    assert model.batches == []


# ---------------------------------------------------------------- failures


def explode(error: Exception) -> Callable[[int], None]:
    def before_step(step: int) -> None:
        raise error

    return before_step


async def test_an_unexpected_error_is_told_without_its_details(replica: VideoReplica, model: DrawnModel) -> None:
    model.before_step = explode(RuntimeError("CUDA error at /srv/secret/path"))
    events = await run(replica, *(attempt(name, TEXT, prompt="x") for name in "ab"))  # no decoder has to be in time

    failure = RunnerServerError("The model failed").failure()
    ended = {each.request_id: each.failure for each in ends(events).values() if isinstance(each, Failed)}
    assert ended == {"a": failure, "b": failure}
    assert (failure.status, failure.type) == (500, "runner_server_error")


async def test_the_device_goes_on_after_an_error(replica: VideoReplica, model: DrawnModel) -> None:
    model.before_step = explode(RuntimeError("once"))
    await run(replica, attempt("a"))
    model.before_step = lambda step: None

    assert kinds(await run(replica, attempt("b"))) == {"b": "Finished"}


async def test_an_error_in_one_size_leaves_the_other_sizes_alone(replica: VideoReplica, model: DrawnModel) -> None:
    def before_step(step: int) -> None:
        if model.batches[-1][0].size == TALL:
            raise MemoryError

    model.before_step = before_step
    events = await run(replica, attempt("a"), attempt("b", image_url=picture_uri(64, 112)))

    assert kinds(events) == {"a": "Finished", "b": "Failed"}


class FullDisk(FileStorage):
    """Has no room for the first file."""

    refused = False

    async def put(self, source: Path, key: str) -> File:
        if not self.refused:
            self.refused = True
            raise OSError(28, "No space left on device", "/srv/secret/path")
        return await super().put(source, key)


async def test_a_clip_that_cannot_be_stored_fails_alone(
    model: DrawnModel, callers: Callers, decoder: Decoder, tmp_path: Path
) -> None:
    replica = make_replica(model, FullDisk(tmp_path / "files", URL), callers, decoder)
    events = await run(replica, attempt("a"), attempt("b"))

    assert sorted(kinds(events).values()) == ["Failed", "Finished"]
    assert "secret" not in str(events)


async def test_a_clip_that_cannot_be_encoded_fails_and_leaves_nothing(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder, tmp_path: Path
) -> None:
    async def paint_odd(input: str) -> Image.Image:
        return Image.new("RGB", (111, 63))

    events = await run(make_replica(model, storage, callers, decoder, paint_odd), attempt("a", TEXT, prompt="x"))

    assert kinds(events) == {"a": "Failed"}
    assert list((tmp_path / "files").rglob("*.mp4")) == []


@pytest.mark.parametrize(
    ("error", "status", "type", "retryable"),
    [
        (RayActorError(), 503, "runner_disconnected", True),
        (Unavailable("Not now"), 503, "internal_error", False),
        (KeyError("x"), 500, "runner_server_error", False),
    ],
)
async def test_a_failed_painter_is_told_apart(
    model: DrawnModel,
    storage: FileStorage,
    callers: Callers,
    decoder: Decoder,
    error: Exception,
    status: int,
    type: str,
    retryable: bool,
) -> None:
    async def paint(input: str) -> Image.Image:
        raise error

    replica = make_replica(model, storage, callers, decoder, paint)
    events = await run(replica, attempt("a", TEXT, prompt="x"), attempt("b"))

    failed = ends(events)["a"]
    assert isinstance(failed, Failed)
    assert (failed.failure.status, failed.failure.type, failed.failure.retryable) == (status, type, retryable)
    assert kinds(events)["b"] == "Finished"


async def test_nobody_to_ask_is_no_reason_to_stop(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder
) -> None:
    asked = threading.Event()

    class Unreachable(Callers):
        async def find_abandoned(self, attempts: Mapping[str, int]) -> set[str]:
            asked.set()
            raise RayActorError

    model.before_step = lambda step: None if asked.wait(PATIENCE) else pytest.fail("nobody was asked")
    events = await run(make_replica(model, storage, Unreachable(), decoder), attempt("a"))

    assert kinds(events) == {"a": "Finished"}


# ---------------------------------------------------------------- stopping


async def test_a_caller_who_leaves_between_steps_is_dropped_alone(
    replica: VideoReplica, model: DrawnModel, callers: Callers
) -> None:
    gate = model.before_step = Gate(at=2)
    running = asyncio.create_task(run(replica, attempt("a"), attempt("b"), attempt("c")))
    await until(gate.reached)
    await callers.leave("b")
    gate.open()

    assert kinds(await running) == {"a": "Finished", "b": "Dropped", "c": "Finished"}
    assert model.steps_taken == 3


async def test_a_batch_that_everybody_leaves_stops_at_its_next_step(
    replica: VideoReplica, model: DrawnModel, callers: Callers
) -> None:
    gate = model.before_step = Gate(at=2)
    running = asyncio.create_task(run(replica, attempt("a", steps=20)))
    await until(gate.reached)
    await callers.leave("a")
    gate.open()

    assert kinds(await running) == {"a": "Dropped"}
    assert model.steps_taken == 2


async def test_a_caller_who_leaves_while_the_picture_is_opened_stops_that(
    replica: VideoReplica, callers: Callers, decoder: Decoder
) -> None:
    """A picture that takes a minute to open; its decoder is killed, and the next clip is made."""
    slow = f"data:image/jpeg;base64,{base64.b64encode(countless_scans(600)).decode()}"
    await run(replica, attempt("warm"))
    waiting = set(decoder.pids)
    work = asyncio.create_task(run(replica, attempt("a", image_url=slow)))
    async with asyncio.timeout(PATIENCE):
        while len(decoder.pids) == len(waiting):
            await asyncio.sleep(0.01)
    [busy] = waiting - set(decoder.pids)
    await callers.leave("a")

    assert kinds(await work) == {"a": "Dropped"}
    async with asyncio.timeout(PATIENCE):
        while psutil.pid_exists(busy):
            await asyncio.sleep(0.01)
    assert kinds(await run(replica, attempt("b"))) == {"b": "Finished"}


async def test_no_process_to_open_a_picture_is_worth_another_attempt(
    model: DrawnModel, storage: FileStorage, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "START", "raise SystemExit")
    decoder = Decoder(children=1)
    try:
        [failed] = ends(await run(make_replica(model, storage, callers, decoder), attempt("a"))).values()
    finally:
        decoder.close()
    assert isinstance(failed, Failed)
    assert (failed.failure.type, failed.failure.retryable) == ("runner_disconnected", True)


async def test_a_caller_who_leaves_before_the_first_step_costs_no_step(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder
) -> None:
    async def paint(input: str) -> Image.Image:
        await callers.leave("a")
        return await paint_wide(input)

    events = await run(make_replica(model, storage, callers, decoder, paint), attempt("a", TEXT, prompt="x"))

    assert kinds(events) == {"a": "Dropped"}
    assert model.steps_taken == 0


async def test_a_caller_who_leaves_while_a_picture_is_painted_is_dropped_at_once(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder
) -> None:
    ended = asyncio.Event()

    async def paint(input: str) -> Image.Image:
        callers.gone.add("a")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    events = await run(
        make_replica(model, storage, callers, decoder, paint), attempt("a", TEXT, prompt="x"), attempt("b")
    )

    assert kinds(events) == {"a": "Dropped", "b": "Finished"}
    assert ended.is_set()


async def test_a_picture_that_does_not_come_fails_its_attempt_alone(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "PREPARE_SECONDS", 0.5)

    async def paint(input: str) -> Image.Image:
        await asyncio.Event().wait()
        raise AssertionError

    events = await run(
        make_replica(model, storage, callers, decoder, paint), attempt("a", TEXT, prompt="x"), attempt("b")
    )

    failed = ends(events)["a"]
    assert isinstance(failed, Failed)
    assert (failed.failure.type, failed.failure.retryable, failed.unstored) == ("runner_disconnected", True, False)
    assert kinds(events)["b"] == "Finished"


async def test_a_picture_that_takes_long_holds_up_no_clip_but_its_own(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "TOGETHER_SECONDS", 0.1)
    others_have_ended = asyncio.Event()

    async def paint(input: str) -> Image.Image:
        await others_have_ended.wait()
        return Image.new("RGB", (WIDE.width, WIDE.height))

    replica = make_replica(model, storage, callers, decoder, paint)
    ended: list[str] = []
    attempts = [attempt("slow", TEXT, prompt="x"), attempt("b"), attempt("c")]
    async with asyncio.timeout(PATIENCE), aclosing(replica.generate(attempts)) as events:
        async for event in events:
            if isinstance(event, Finished):
                ended.append(event.request_id)
                if len(ended) == 2:
                    others_have_ended.set()

    assert (set(ended[:2]), ended[2:]) == ({"b", "c"}, ["slow"])
    assert {len(batch) for batch in model.batches} == {2, 1}


async def test_closing_the_generator_stops_the_work(replica: VideoReplica, model: DrawnModel) -> None:
    gate = Gate(at=2)
    after_gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def before_step(step: int) -> None:
        gate(step)
        if step > 2:  # give the loop its turns
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result(PATIENCE)
            loop.call_soon_threadsafe(after_gate.set)

    model.before_step = before_step
    async with aclosing(replica.generate([attempt("a", steps=20)])) as events:
        assert [type(await anext(events)) for _ in range(3)] == [Begun, Begun, Progress]
        await until(gate.reached)
    gate.open()
    await until(model.ended)

    assert model.steps_taken <= 3


async def test_the_device_is_free_after_a_generator_has_been_closed(replica: VideoReplica) -> None:
    async with aclosing(replica.generate([attempt("a", steps=20)])) as events:
        await anext(events)

    assert kinds(await run(replica, attempt("b"))) == {"b": "Finished"}


async def test_closing_the_generator_ends_the_asking(replica: VideoReplica, callers: Callers) -> None:
    async with aclosing(replica.generate([attempt("a")])) as events:
        await anext(events)
    await asyncio.sleep(0.05)  # whoever asked until now has been told to stop

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), callers.asked:
            await callers.asked.wait()


# ---------------------------------------------------------------- previews


class ShowingModel(DrawnModel):
    """Shows each clip that asks a frame of its colour after the first step."""

    def generate(self, clips: Sequence[Clip], steps: int, keep: Keep) -> list[np.ndarray | None]:
        for clip in clips:
            if clip.previews:
                clip.show(clip.previews, draw(clip)[0])
        return super().generate(clips, steps, keep)


async def test_a_preview_is_stored_and_told_of_to_who_asked_alone(
    storage: FileStorage, callers: Callers, decoder: Decoder
) -> None:
    replica = make_replica(ShowingModel(), storage, callers, decoder)
    asking = dataclasses.replace(attempt("a", steps=20), previews=5)
    events = await run(replica, asking, attempt("b", steps=20))

    (shown,) = [event for event in events if isinstance(event, Progress) and event.preview]
    assert (shown.request_ids, shown.message, shown.fraction) == (("a",), "Preview of step 5/20", 0.25)
    assert shown.preview and shown.preview.content_type == "image/jpeg"
    data = b"".join([piece async for piece in storage.read(shown.preview.key, 0, shown.preview.size)])
    assert Image.open(io.BytesIO(data)).size == (112, 64)


async def test_a_finished_clip_names_its_file(replica: VideoReplica, storage: FileStorage) -> None:
    (finished,) = [event for event in await run(replica, attempt("a")) if isinstance(event, Finished)]
    (file,) = finished.files
    assert (await storage.stat(file.key)).size == file.size == finished.output["video"]["file_size"]
    assert file.content_type == "video/mp4"


# ---------------------------------------------------------------- overlap


async def test_the_next_batch_prepares_while_one_is_on_the_device(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder
) -> None:
    painted = asyncio.Event()

    async def paint(input: str) -> Image.Image:
        painted.set()
        return await paint_wide(input)

    gate = model.before_step = Gate(at=1)
    replica = make_replica(model, storage, callers, decoder, paint)
    first = asyncio.create_task(run(replica, attempt("a")))
    await until(gate.reached)
    second = asyncio.create_task(run(replica, attempt("b", TEXT, prompt="x")))
    await asyncio.wait_for(painted.wait(), PATIENCE)

    assert len(model.batches) == 1
    assert not first.done()
    gate.open()
    assert kinds(await first) == {"a": "Finished"}
    assert kinds(await second) == {"b": "Finished"}
    assert len(model.batches) == 2


class SlowStorage(FileStorage):
    """Keeps the first file waiting until a test lets it in."""

    def __init__(self, directory: Path, public_url: str) -> None:
        super().__init__(directory, public_url)
        self.reached, self.open = asyncio.Event(), asyncio.Event()

    async def put(self, source: Path, key: str) -> File:
        if not self.reached.is_set():
            self.reached.set()
            await asyncio.wait_for(self.open.wait(), PATIENCE)
        return await super().put(source, key)


async def test_the_device_goes_on_while_the_last_clip_is_stored(
    model: DrawnModel, callers: Callers, decoder: Decoder, tmp_path: Path
) -> None:
    storage = SlowStorage(tmp_path / "files", URL)
    replica = make_replica(model, storage, callers, decoder)
    first = asyncio.create_task(run(replica, attempt("a")))
    await asyncio.wait_for(storage.reached.wait(), PATIENCE)

    assert kinds(await run(replica, attempt("b"))) == {"b": "Finished"}
    assert not first.done()
    storage.open.set()
    assert kinds(await first) == {"a": "Finished"}


async def test_batches_take_turns_on_the_device(replica: VideoReplica, model: DrawnModel) -> None:
    inside: set[int] = set()

    def before_step(step: int) -> None:
        inside.add(threading.get_ident())

    model.before_step = before_step
    await asyncio.gather(*(run(replica, attempt(name)) for name in "abc"))

    assert len(model.batches) == 3
    assert len(inside) == 1


async def test_the_event_loop_answers_while_the_device_works(replica: VideoReplica, model: DrawnModel) -> None:
    loop = asyncio.get_running_loop()
    answers = []

    async def answer(step: int) -> int:
        return step

    def before_step(step: int) -> None:
        answers.append(asyncio.run_coroutine_threadsafe(answer(step), loop).result(PATIENCE))

    model.before_step = before_step
    await run(replica, attempt("a"))

    assert answers == [1, 2, 3]


# ---------------------------------------------------------------- the painter's replica


class DrawnText(TextToVideo):
    """Paints its seed."""

    def paint(self, input: TextToVideoInput) -> Image.Image:
        assert threading.current_thread() is not threading.main_thread()
        return Image.new("RGB", (16, 16), (input.seed, 0, 0))


async def test_a_picture_replica_paints_beside_the_event_loop() -> None:
    painter = PictureReplica(DrawnText(TEXT, TextToVideoConfig(weights="none", video=FAST)))

    picture = await painter.paint(json.dumps({"prompt": "a cat", "seed": 9}))
    assert picture.getpixel((0, 0)) == (9, 0, 0)


# ---------------------------------------------------------------- time on the device


def micros_of(events: Sequence[Event]) -> dict[str, int]:
    """What each request has taken of the replica's device, however it ended."""
    return {request_id: end.gpu_time[0][2] for request_id, end in ends(events).items()}


async def test_who_leaves_early_has_taken_the_steps_until_then(
    replica: VideoReplica, model: DrawnModel, callers: Callers
) -> None:
    gate = Gate(at=2)
    model.before_step = gate
    running = asyncio.create_task(run(replica, attempt("stays", steps=4), attempt("leaves", steps=4)))
    await until(gate.reached)
    await callers.leave("leaves")
    gate.open()
    events = await running

    assert kinds(events) == {"stays": "Finished", "leaves": "Dropped"}
    micros = micros_of(events)
    assert micros["stays"] > 0
    assert abs(micros["stays"] - 2 * micros["leaves"]) <= 2  # four steps and two


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has the device has it for 1.5 s."""
    ticks = itertools.count(0.0, 1.5)
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr(metering, "time", clock)


@pytest.mark.usefixtures("ticking")
async def test_what_fails_has_taken_its_time_all_the_same(replica: VideoReplica, model: DrawnModel) -> None:
    model.before_step = explode(RuntimeError("no"))
    events = await run(replica, attempt("a"), attempt("b"))

    assert set(kinds(events).values()) == {"Failed"}
    assert micros_of(events) == {"a": 750_000, "b": 750_000}


async def test_a_clip_that_could_not_be_stored_has_taken_its_time(
    replica: VideoReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(path: Path, key: str) -> File:
        raise StorageUnavailable("full")

    monkeypatch.setattr(replica._storage, "put", full)
    [failed] = ends(await run(replica, attempt("a"))).values()

    assert isinstance(failed, Failed)
    assert (failed.unstored, failed.batch_size, failed.gpu_time[0][:2]) == (True, 1, ("CPU", 1.0))


@pytest.mark.usefixtures("ticking")
async def test_sizes_of_one_batch_take_the_device_one_after_the_other(replica: VideoReplica, model: DrawnModel) -> None:
    """Each is paid by those who had it: two of one size share its time, and the third pays for its own."""
    events = await run(replica, attempt("a"), attempt("b", image_url=picture_uri(64, 112)), attempt("c"))

    assert sorted(model.sizes, key=len) == [[TALL], [WIDE, WIDE]]
    assert micros_of(events) == {"a": 750_000, "c": 750_000, "b": 1_500_000}


async def test_painting_is_paid_beside_the_clip(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder
) -> None:
    painter = PictureReplica(DrawnText(TEXT, TextToVideoConfig(weights="none", video=FAST)), Hardware("T4", 0.5))

    async def paint(input: str) -> Image.Image:
        small: Image.Image = pickle.loads(pickle.dumps(await painter.paint(input)))  # as Ray sends it
        wide = await paint_wide(input)
        wide.info |= small.info
        return wide

    replica = make_replica(model, storage, callers, decoder, paint)
    [finished] = ends(await run(replica, attempt("a", TEXT, prompt="a cat"))).values()

    assert isinstance(finished, Finished)
    [(_, _, own), (name, fraction, painting)] = finished.gpu_time
    assert (name, fraction) == ("T4", 0.5)
    assert painting >= 0
    assert finished.gpu_seconds == (own + painting) / 10**6


# ---------------------------------------------------------------- alone, and stuck


async def test_a_suspect_runs_when_the_replica_is_empty_and_keeps_it_for_itself(
    replica: VideoReplica, model: DrawnModel
) -> None:
    gate = model.before_step = Gate(at=1)
    before = asyncio.create_task(run(replica, attempt("before")))
    await until(gate.reached)
    suspect = dataclasses.replace(attempt("suspect"), alone=True)
    async with aclosing(replica.generate([suspect])) as suspected, aclosing(replica.generate([attempt("c")])) as after:
        first, later = [asyncio.ensure_future(anext(events)) for events in (suspected, after)]
        await asyncio.sleep(0.05)
        assert not first.done(), "it has begun beside another"
        gate.open()
        assert kinds(await before) == {"before": "Finished"}
        assert await first == Begun(("suspect",))
        assert not later.done(), "another has begun beside it"
        assert kinds([event async for event in suspected]) == {"suspect": "Finished"}
        assert await later == Begun(("c",))
        assert kinds([event async for event in after]) == {"c": "Finished"}


async def test_a_suspect_that_is_given_up_while_it_waits_leaves_the_replica_to_others(
    replica: VideoReplica, model: DrawnModel
) -> None:
    gate = model.before_step = Gate(at=1)
    before = asyncio.create_task(run(replica, attempt("before")))
    await until(gate.reached)
    suspect = asyncio.create_task(run(replica, dataclasses.replace(attempt("suspect"), alone=True)))
    await asyncio.sleep(0.02)
    suspect.cancel()
    after = asyncio.create_task(run(replica, attempt("after")))
    gate.open()

    assert kinds(await before) | kinds(await after) == {"before": "Finished", "after": "Finished"}


async def test_a_device_that_does_not_come_back_fails_the_health_check(
    replica: VideoReplica, model: DrawnModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_module, "STUCK_SECONDS", 0.1)
    gate = model.before_step = Gate(at=1)
    running = asyncio.create_task(run(replica, attempt("a")))
    await until(gate.reached)
    await asyncio.sleep(0.2)
    replica.check_health()  # a long step of a batch that is wanted is no fault
    running.cancel()
    await asyncio.wait([running])
    replica.check_health()
    await asyncio.sleep(0.2)
    with pytest.raises(RuntimeError, match="nobody wants"):
        replica.check_health()
    gate.open()
    await until(model.ended)
    assert kinds(await run(replica, attempt("b"))) == {"b": "Finished"}
    replica.check_health()


async def test_a_device_that_does_not_notice_that_all_have_left_fails_the_health_check(
    replica: VideoReplica, model: DrawnModel, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the dispatcher has died nobody stops the batch."""
    monkeypatch.setattr(device_module, "STUCK_SECONDS", 0.1)
    gate = model.before_step = Gate(at=1)
    running = asyncio.create_task(run(replica, attempt("a")))
    await until(gate.reached)
    waiting = asyncio.create_task(run(replica, attempt("b")))
    await callers.leave("b")
    replica.check_health()
    await asyncio.sleep(0.2)
    replica.check_health()  # what waits for the device does not hold it
    await callers.leave("a")
    replica.check_health()
    await asyncio.sleep(0.2)
    with pytest.raises(RuntimeError, match="nobody wants"):
        replica.check_health()
    gate.open()
    assert kinds(await running) | kinds(await waiting) == {"a": "Dropped", "b": "Dropped"}


async def test_a_painter_that_does_not_come_back_fails_the_health_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "STUCK_SECONDS", 0.1)
    endpoint = text_endpoint()
    gate = Gate(at=1)
    monkeypatch.setattr(endpoint, "paint", lambda input: gate(1))
    painter = PictureReplica(endpoint)
    painting = asyncio.create_task(painter.paint('{"prompt": "a cat", "seed": 1}'))
    await until(gate.reached)
    painting.cancel()
    await asyncio.wait([painting])
    painter.check_health()
    await asyncio.sleep(0.2)
    with pytest.raises(RuntimeError, match="nobody wants"):
        painter.check_health()
    gate.open()


async def test_a_storage_that_is_away_fails_the_attempt_and_not_the_request(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(source: Path, key: str) -> File:
        raise StorageUnavailable("The file storage takes nothing at the moment")

    monkeypatch.setattr(storage, "put", refuse)
    events = await run(make_replica(model, storage, callers, decoder), dataclasses.replace(attempt("a"), previews=1))

    [failed] = ends(events).values()
    assert isinstance(failed, Failed)
    assert failed.failure.retryable and failed.unstored


async def test_a_storage_that_is_away_when_an_input_is_fetched_is_told_apart(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(key: str) -> Stat:
        raise StorageUnavailable("The file storage cannot be reached")

    monkeypatch.setattr(storage, "stat", away)
    picture = storage.url_of("b/0/picture.png")
    [failed] = ends(await run(make_replica(model, storage, callers, decoder), attempt("a", image_url=picture))).values()

    assert isinstance(failed, Failed)
    assert failed.failure.retryable and not failed.unstored


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 * 1024))


@pytest.mark.parametrize("room", ["a folder", "nothing"])
async def test_a_full_disk_for_temporary_files_fails_the_attempt_and_not_the_request(
    model: DrawnModel,
    storage: FileStorage,
    callers: Callers,
    decoder: Decoder,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: str,
) -> None:
    def allow(inodes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,nr_inodes={inodes}", small_disk], check=True)

    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    fill(small_disk)
    allow(2 if room == "nothing" else 1000)
    replica = make_replica(model, storage, callers, decoder)

    [failed] = ends(await run(replica, dataclasses.replace(attempt("a"), previews=1))).values()
    assert isinstance(failed, Failed)
    assert failed.failure == StorageUnavailable("The disk for temporary files is full").failure()
    assert failed.failure.retryable and failed.unstored
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]

    (small_disk / "ballast").unlink()
    allow(1000)
    assert isinstance(ends(await run(replica, attempt("b")))["b"], Finished)


async def test_another_fault_of_the_disk_is_no_want_of_room(
    model: DrawnModel, storage: FileStorage, callers: Callers, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module.tempfile, "TemporaryDirectory", lambda prefix: Path("/nowhere").stat())
    [failed] = ends(await run(make_replica(model, storage, callers, decoder), attempt("a"))).values()
    assert isinstance(failed, Failed)
    assert (failed.failure.type, failed.unstored) == ("runner_server_error", False)
