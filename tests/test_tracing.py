"""Traces: off unless somebody collects them, and then one for each call, from its caller to its clip."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path

import httpx
import pytest

from deployments import logs, tracing
from deployments.cli import SAMPLE_KEY
from deployments.metrics import DISPATCH_SECONDS
from deployments.models.messages import Attempt
from deployments.queue.runs import LOST, Runs
from deployments.queue.store import RequestStore
from deployments.queue.tables import requests
from deployments.storage import FileStorage
from tests.conftest import Server
from tests.gateway.conftest import KEY, SVD, URL, open_gateway, served_endpoints
from tests.observing import Kept, SeenSpan, spans_of, wait_for_spans
from tests.receiver import Receiver

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
SECRET = "5up3r53cr3t"


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    """Files in an empty directory."""
    return FileStorage(tmp_path / "files", URL)


def sent(collector: Receiver) -> list[SeenSpan]:
    """Every span of this process."""
    tracing.stop()
    return spans_of(collector)


def attempt(name: str, traceparent: str | None) -> Attempt:
    return Attempt(name, 1, SVD, "{}", traceparent=traceparent, created_at=1000.0, claimed_at=1002.5)


# ---------------------------------------------------------------- off


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_unless_it_is_wanted_there_is_no_exporter_and_no_thread(environment: dict[str, str]) -> None:
    code = f"""
import sys, threading
from deployments import tracing
tracing.start("gateway")
with tracing.span("work", size=1), tracing.together("batch", ["{TRACEPARENT}", None]):
    assert tracing.current() is None
loaded = [name for name in sys.modules if "otlp" in name or "opentelemetry.sdk" in name]
print(tracing.provider(), threading.active_count(), loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["None", "1", "[]"]


async def test_a_call_without_a_collector_leaves_no_trace(store: RequestStore, storage: FileStorage) -> None:
    async with open_gateway(store, storage, served_endpoints()) as gateway:
        await gateway.submit(headers={"traceparent": TRACEPARENT})
        async with store.database.read() as connection:
            assert (await connection.execute(requests.select())).one().traceparent is None
        assert (await gateway.claim()).traceparent is None


# ---------------------------------------------------------------- spans


def test_a_span_is_part_of_the_one_around_it(collector: Receiver) -> None:
    with tracing.span("outer", size=2) as _, tracing.span("inner"):
        pass

    inner, outer = sent(collector)
    assert (inner.name, outer.name) == ("inner", "outer")
    assert (inner.trace_id, inner.parent_id) == (outer.trace_id, outer.span_id)
    assert outer.attributes == {"svd.size": 2}
    assert (outer.service, outer.component) == ("svd-serve", "tests")


def test_an_error_is_told_by_its_kind_alone(collector: Receiver) -> None:
    with pytest.raises(ValueError), tracing.span("work"):
        raise ValueError(f"the URL https://example.com/?token={SECRET}")

    [span] = sent(collector)
    assert (span.failed, span.message) == (True, "ValueError")


def test_what_is_done_for_several_is_in_the_trace_of_each_with_links_to_the_others(collector: Receiver) -> None:
    parents = [f"00-{number:032x}-{number:016x}-01" for number in (1, 2, 3)]
    with tracing.together("denoise", [*parents, None], batch_size=4):
        pass

    spans = sent(collector)
    assert [(span.trace_id, span.parent_id) for span in spans[:3]] == [
        (f"{number:032x}", f"{number:016x}") for number in (1, 2, 3)
    ]
    assert spans[0].links == [(f"{number:032x}", f"{number:016x}") for number in (2, 3)]
    assert len(spans[3].links) == 3 and spans[3].parent_id == ""
    assert len({(span.start // 1, span.attributes["svd.batch_size"]) for span in spans}) <= 2


def test_a_caller_who_wants_no_trace_gets_none(collector: Receiver) -> None:
    with tracing.together("denoise", [f"00-{TRACE}-{CALLER}-00"]):
        pass

    assert sent(collector) == []


@pytest.mark.parametrize("text", [None, "", "x", "00-0-0-01", f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01"])
def test_a_traceparent_that_is_none_begins_a_trace(collector: Receiver, text: str | None) -> None:
    tracing.end(tracing.begin("run", text))

    [span] = sent(collector)
    assert span.parent_id == "" and span.trace_id != TRACE


def test_a_log_line_has_the_trace_it_belongs_to(collector: Receiver) -> None:
    handler = logging.StreamHandler(text := StringIO())
    handler.setFormatter(logs.JsonFormatter())
    logger = logging.Logger("deployments.test")
    logger.addHandler(handler)
    with logs.request_context("a", TRACEPARENT):
        logger.info("one")
    with logs.request_context("b"):
        logger.info("two")

    one, two = map(json.loads, text.getvalue().splitlines())
    assert (one["request_id"], one["trace_id"]) == ("a", TRACE)
    assert "trace_id" not in two


# ---------------------------------------------------------------- gateway and dispatcher


async def test_a_call_goes_on_with_its_callers_trace(
    collector: Receiver, store: RequestStore, storage: FileStorage
) -> None:
    async with open_gateway(store, storage, served_endpoints()) as gateway:
        headers = {"traceparent": TRACEPARENT}
        request_id = await gateway.submit(headers=headers, params={"fal_webhook": f"http://127.0.0.1:9/{SECRET}"})
        await gateway.client.get(f"/files/b/{SECRET}/a.mp4", headers=headers)
        for probe in ("/health/live", "/metrics"):
            await gateway.client.get(probe, headers=headers)
        row = await gateway.claim()

    submit, file = sent(collector)
    assert (submit.trace_id, submit.parent_id) == (TRACE, CALLER)
    assert row.traceparent == f"00-{TRACE}-{submit.span_id}-01"
    assert (submit.name, file.name) == ("POST /queue/{path}", "GET /files/{key}")
    assert (submit.attributes["svd.request_id"], submit.attributes["svd.endpoint"]) == (request_id, SVD)
    assert SECRET not in repr([submit, file]) and KEY not in repr([submit, file])


async def test_what_a_process_did_last_is_sent_before_it_ends(
    collector: Receiver, store: RequestStore, storage: FileStorage
) -> None:
    async with open_gateway(store, storage, served_endpoints()) as gateway:
        await gateway.submit()

    assert [span.name for span in spans_of(collector)] == ["POST /queue/{path}"]


async def test_a_collector_that_is_away_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "LAST_SECONDS", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes what it is sent, and never answers
        monkeypatch.setenv(tracing.ENDPOINTS[-1], f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracing.start("tests")
        with tracing.span("work"):
            pass
        await tracing.end_with_process()
        [stopping] = [thread for thread in threading.enumerate() if thread.name == "last spans"]
        assert stopping.daemon and tracing.provider() is None
        await asyncio.to_thread(stopping.join)


async def test_a_request_that_comes_again_later_keeps_its_trace(
    collector: Receiver, store: RequestStore, storage: FileStorage
) -> None:
    await store.heartbeat("dispatcher", 3600)
    async with open_gateway(store, storage, served_endpoints()) as gateway:
        await gateway.submit(headers={"traceparent": TRACEPARENT})
        first = await gateway.claim()
        await store.lose(first, "dispatcher", "by chance")
        second = await gateway.claim()

    assert (second.number, second.traceparent) == (2, first.traceparent)
    assert first.created_at == second.created_at <= first.claimed_at < second.claimed_at


def test_a_dispatcher_shows_the_wait_and_the_run(collector: Receiver, kept: Kept) -> None:
    runs = Runs("fal-ai--svd", [attempt("a", TRACEPARENT), attempt("b", None)])
    assert kept.measures == []
    runs.begin()
    runs.begin()
    runs.end("a")
    runs.close()

    wait, other_wait, run, other_run = sent(collector)
    assert [span.name for span in (wait, other_wait, run, other_run)] == ["queue wait"] * 2 + ["run"] * 2
    assert {(span.trace_id, span.parent_id) for span in (wait, run)} == {(TRACE, CALLER)}
    assert (wait.start, wait.end) == (1000.0, 1002.5)
    assert runs.attempts[0].traceparent == f"00-{TRACE}-{run.span_id}-01"
    assert (run.failed, other_run.failed, other_run.message) == (False, True, LOST)
    assert run.attributes["svd.batch_size"] == 2
    assert kept.labels(DISPATCH_SECONDS) == [{"model": "fal-ai--svd"}]


# ---------------------------------------------------------------- the real service


def test_a_request_is_one_trace_across_all_processes(server: Server, collector_of_server: Receiver) -> None:
    body = {"image_url": f"{server.url}/files/{SAMPLE_KEY}", "steps": 2, "seed": 1}
    headers = {"authorization": f"Key {server.key}", "traceparent": TRACEPARENT}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120) as client:
        client.post("/fal-ai/svd", json=body).raise_for_status()

    names = {"POST /{path}", "queue wait", "run", "prepare", "denoise", "encode", "store"}
    seen = wait_for_spans(collector_of_server, TRACE, names)

    spans = {span.name: span for span in seen}
    assert len(spans) == len(seen) == len(names), "each of them once"
    call, run = spans["POST /{path}"], spans["run"]
    assert call.parent_id == CALLER
    assert {spans[name].parent_id for name in ("queue wait", "run")} == {call.span_id}
    assert {spans[name].parent_id for name in ("prepare", "denoise", "encode", "store")} == {run.span_id}
    assert {name: span.component for name, span in spans.items()} == {
        **dict.fromkeys(("POST /{path}",), "Gateway"),
        **dict.fromkeys(("queue wait", "run"), "Dispatcher"),
        **dict.fromkeys(("prepare", "denoise", "encode", "store"), "fal-ai--svd"),
    }
    order = [spans[name].start for name in ("prepare", "denoise", "encode", "store")]
    assert order == sorted(order)
    assert not any(span.failed for span in seen)
    assert server.key not in repr(seen) and SAMPLE_KEY not in repr(seen)
