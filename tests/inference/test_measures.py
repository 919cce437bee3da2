"""What a replica measures of its work, and where its spans are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deployments import metrics, tracing
from deployments.inference.decoder.pool import Decoder
from deployments.inference.replica import PictureReplica, VideoReplica
from deployments.metrics import Metric
from deployments.models.messages import Attempt
from deployments.models.text_to_video import TextToVideo, TextToVideoConfig
from deployments.storage import FileStorage
from tests.gateway.conftest import served_endpoints
from tests.inference.test_replica import FAST, TEXT, Callers, DrawnModel, attempt, explode, make_replica, run
from tests.observing import Kept, SeenSpan, spans_of
from tests.receiver import Receiver

MODEL = {"model": "fal-ai--fast-svd-lcm"}
TRACES = {"a": f"{1:032x}", "b": f"{2:032x}"}
PARENT = f"{7:016x}"


@pytest.fixture
def model() -> DrawnModel:
    return DrawnModel()


@pytest.fixture
def replica(kept: Kept, model: DrawnModel, storage: FileStorage, decoder: Decoder) -> VideoReplica:
    return make_replica(model, storage, Callers(), decoder)


def traced(name: str, **input: Any) -> Attempt:
    made = attempt(name, **input)
    return Attempt(made.request_id, 1, made.endpoint, made.input, traceparent=f"00-{TRACES[name]}-{PARENT}-01")


def counts(kept: Kept, *named: Metric) -> dict[str, int]:
    return {metric.name: len(kept.values(metric)) for metric in named}


def sent(collector: Receiver) -> list[SeenSpan]:
    tracing.stop()
    return spans_of(collector)


# ---------------------------------------------------------------- measures


def test_what_a_replica_counts_begins_at_zero(replica: VideoReplica, kept: Kept) -> None:
    assert kept.measures == [("svd_device_busy_seconds", 0.0, MODEL), ("svd_out_of_memory", 0.0, MODEL)]


async def test_a_batch_is_measured_once_and_its_clips_each(replica: VideoReplica, kept: Kept) -> None:
    await run(replica, attempt("a"), attempt("b"))

    assert kept.values(metrics.BATCH_SIZE) == [2]
    assert counts(
        kept, metrics.STEP_SECONDS, metrics.PREPARE_SECONDS, metrics.ENCODE_SECONDS, metrics.STORE_SECONDS
    ) == {
        "svd_step_seconds": 3,
        "svd_prepare_seconds": 2,
        "svd_encode_seconds": 2,
        "svd_store_seconds": 2,
    }
    assert all(labels == MODEL for _, _, labels in kept.measures)
    busy = sum(kept.values(metrics.DEVICE_BUSY))
    assert busy >= sum(kept.values(metrics.STEP_SECONDS)) > 0


async def test_a_device_is_seen_at_work_while_it_is(replica: VideoReplica, model: DrawnModel, kept: Kept) -> None:
    seen: list[float] = []
    model.before_step = lambda step: seen.append(sum(kept.values(metrics.DEVICE_BUSY)))
    await run(replica, attempt("a"))

    assert len(seen) == len(set(seen)) == 3, "a little more before each step"


async def test_a_preview_is_no_clip(replica: VideoReplica, model: DrawnModel, kept: Kept, tmp_path: Path) -> None:
    made = attempt("a")
    with_previews = Attempt(made.request_id, 1, made.endpoint, made.input, previews=1)

    def show(step: int) -> None:
        model.batches[0][0].show(step, np.zeros((64, 112, 3), np.uint8))

    model.before_step = show
    await run(replica, with_previews)

    assert list((tmp_path / "files").rglob("preview.jpg"))
    assert counts(kept, metrics.ENCODE_SECONDS, metrics.STORE_SECONDS) == {
        "svd_encode_seconds": 1,
        "svd_store_seconds": 1,
    }


async def test_a_run_that_fails_kept_the_device_busy(replica: VideoReplica, model: DrawnModel, kept: Kept) -> None:
    model.before_step = explode(RuntimeError("CUDA error"))
    await run(replica, attempt("a"))

    assert sum(kept.values(metrics.DEVICE_BUSY)) > 0
    assert counts(kept, metrics.STEP_SECONDS, metrics.ENCODE_SECONDS) == {
        "svd_step_seconds": 0,
        "svd_encode_seconds": 0,
    }
    assert kept.values(metrics.OUT_OF_MEMORY) == [0.0]


async def test_a_painter_measures_its_own(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = TextToVideo(TEXT, TextToVideoConfig(weights="none", video=FAST))

    def paint(input: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(endpoint, "paint", paint)
    with pytest.raises(torch.OutOfMemoryError):
        await PictureReplica(endpoint).paint(json.dumps({"prompt": "a cat"}))

    assert kept.values(metrics.OUT_OF_MEMORY) == [0.0, 1.0]
    assert kept.labels(metrics.OUT_OF_MEMORY)[0] == {"model": TEXT.replace("/", "--")}
    assert len(kept.values(metrics.DEVICE_BUSY)) == 2
    assert kept.values(metrics.BATCH_SIZE) == []


def test_the_memory_of_the_device_is_told_with_its_health(replica: VideoReplica, kept: Kept) -> None:
    replica.check_health()

    told = {labels["kind"]: value for name, value, labels in kept.measures if name == "svd_gpu_memory_bytes"}
    assert told == {"allocated": 0, "reserved": 0, "allowed": 0}, "on a CPU"


def test_memory_that_a_sampler_lacks_is_counted_for_its_model(kept: Kept) -> None:
    endpoint: Any = served_endpoints()["fal-ai/svd"]
    endpoint.setup("cpu")
    endpoint._sampler.on_out_of_memory()

    assert kept.measures == [("svd_out_of_memory", 1.0, {"model": "fal-ai--svd"})]


# ---------------------------------------------------------------- spans


async def test_a_batch_is_in_the_trace_of_each_of_its_members(collector: Receiver, replica: VideoReplica) -> None:
    await run(replica, traced("a"), traced("b"))

    spans = sent(collector)
    for name, other in (("a", "b"), ("b", "a")):
        mine = {span.name: span for span in spans if span.trace_id == TRACES[name]}
        assert mine.keys() == {"prepare", "denoise", "encode", "store"}
        assert {span.parent_id for span in mine.values()} == {PARENT}
        assert mine["denoise"].links == [(TRACES[other], PARENT)]
        assert mine["denoise"].attributes == {"svd.model": MODEL["model"], "svd.batch_size": 2}
    assert len(spans) == 8


async def test_what_fails_has_a_failed_span(collector: Receiver, replica: VideoReplica, model: DrawnModel) -> None:
    model.before_step = explode(RuntimeError("CUDA error at /srv/secret/path"))
    await run(replica, traced("a"), traced("b", image_url="data:,x"))

    failed = {(span.name, span.trace_id): span.message for span in sent(collector) if span.failed}
    assert failed == {("denoise", TRACES["a"]): "RuntimeError", ("prepare", TRACES["b"]): "ImageLoadError"}
