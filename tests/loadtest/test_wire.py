"""What users of a load test check of answers, and when they try again as the official Python client does."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import fal_client.client as official
import httpx
import numpy as np
import pytest

from deployments.inference.encode import encode_mp4
from loadtest.wire import (
    ATTEMPTS,
    HEAD_BYTES,
    TRIED_AGAIN,
    WAYS,
    Book,
    Order,
    WrongAnswer,
    check_ways,
    clip_problem,
    complaint,
    is_loopback,
    last_event,
    parsed,
    pause,
    status_of,
    tried_again,
    video_of,
    weights,
)

ORDER = Order("queue", "fal-ai/svd", 7)
WAY = {"queue": 1}
VIDEO = {"url": "http://127.0.0.1:1/a.mp4", "content_type": "video/mp4", "file_name": "a.mp4", "file_size": 9}


def box(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def test_a_clip_of_the_encoder_plays(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    encode_mp4(np.random.default_rng(1).integers(0, 255, (9, 64, 112, 3), dtype=np.uint8), 10, clip)
    assert clip_problem(clip.read_bytes()[:HEAD_BYTES]) is None


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (b"", "ftyp"),
        (b"<html>not found</html>", "ftyp"),
        (box(b"moov") + box(b"ftyp"), "ftyp"),
        (box(b"ftyp", b"isom") + box(b"mdat", b"x" * 99) + box(b"moov"), "moov"),
        (box(b"ftyp", b"isom"), "moov"),
        (box(b"ftyp", b"isom") + struct.pack(">I4s", 0, b"free"), "moov"),
    ],
)
def test_what_is_no_clip_is_told(head: bytes, problem: str) -> None:
    assert problem in (clip_problem(head) or "")


def test_the_result_of_an_endpoint_is_taken() -> None:
    assert video_of({"image": VIDEO, "seed": 7}, ORDER) == VIDEO["url"]
    assert video_of({"video": VIDEO, "seed": 7}, Order("run", "fal-ai/stable-video", 7)) == VIDEO["url"]


@pytest.mark.parametrize(
    "result",
    [
        {"video": VIDEO, "seed": 7},
        {"image": VIDEO},
        {"image": VIDEO, "seed": 8},
        {"image": {**VIDEO, "url": "file:///a.mp4"}, "seed": 7},
        {"image": {**VIDEO, "content_type": "text/html"}, "seed": 7},
        {"image": {**VIDEO, "file_size": 0}, "seed": 7},
        {"image": "a.mp4", "seed": 7},
        [],
        None,
    ],
)
def test_a_result_of_another_shape_is_wrong(result: Any) -> None:
    with pytest.raises(WrongAnswer):
        video_of(result, ORDER)


def test_a_status_that_tells_an_error_is_wrong() -> None:
    assert status_of({"status": "IN_QUEUE"}) == "IN_QUEUE"
    with pytest.raises(WrongAnswer, match="runner_server_error"):
        status_of({"status": "COMPLETED", "error": "it fell over", "error_type": "runner_server_error"})
    with pytest.raises(WrongAnswer):
        status_of({"status": "FAILED"})


def test_the_last_event_is_the_result() -> None:
    stream = b': keepalive\n\ndata: {"status": "IN_QUEUE"}\n\ndata: {"seed": 7}\n\n'
    assert last_event(stream) == {"seed": 7}
    with pytest.raises(WrongAnswer, match="generation_timeout"):
        last_event(b'data: {"detail": "x", "error": "x", "error_type": "generation_timeout"}\n\n')
    with pytest.raises(WrongAnswer, match="no events"):
        last_event(b": keepalive\n\n")
    with pytest.raises(WrongAnswer, match="not JSON"):
        last_event(b"data: [DONE\n\n")


@pytest.mark.parametrize("status", [200, 400, 408, 409, 422, 429, 499, 500, 502, 503, 504])
@pytest.mark.parametrize("headers", [{}, {"x-fal-request-id": "1"}])
@pytest.mark.parametrize("body", [b"", b"<h1>502</h1> nginx"])
def test_what_is_tried_again_is_what_the_official_client_tries_again(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    response = httpx.Response(status, headers=headers, content=body, request=httpx.Request("GET", "http://a"))
    assert tried_again(status, headers, body) == official._should_retry_response(response)


def test_tries_and_pauses_are_those_of_the_official_client() -> None:
    assert (ATTEMPTS, set(TRIED_AGAIN)) == (official.MAX_ATTEMPTS, set(official.RETRY_CODES))
    assert tried_again(0, (), b"")
    dice = random.Random(1)
    for attempt in (1, 4, 20):
        middle = min(official.BASE_DELAY * 2 ** (attempt - 1), official.MAX_DELAY)
        assert all(0.5 * middle <= pause(attempt, dice) <= 1.5 * middle for _ in range(50))


def test_a_complaint_is_the_same_for_the_same_reason_and_short() -> None:
    assert complaint(429, b'{"detail": "of 7b1e", "error_type": "queue_full"}') == "429: queue_full"
    detail = b'{"detail": [{"loc": ["body"], "msg": "x", "type": "missing"}, {"type": "greater_than"}]}'
    assert complaint(422, detail) == "422: greater_than, missing"
    for body in (b"", b"\xff", b"[]", b"3", b'{"detail": 3}', b'{"detail": [1]}'):
        assert complaint(502, body) == f"502: {len(body)} bytes that are no error of fal's"
    assert len(complaint(500, b'{"detail": "' + b"x" * 999 + b'"}')) <= 120


def test_an_answer_must_be_json() -> None:
    assert parsed(b'{"a": 1}') == {"a": 1}
    for body in (None, b"", b"<html>"):
        with pytest.raises(WrongAnswer, match="not JSON"):
            parsed(body)


def test_orders_go_by_weight_and_differ_in_their_seed() -> None:
    book = Book(WAY, {"a/a": 3, "b/b": 1, "c/c": 0}, 400, seed=1)
    orders = [book.next() for _ in range(400)]
    assert book.is_empty and book.next() is None
    found = [order.endpoint for order in orders if order]
    assert 240 < found.count("a/a") < 360 and "c/c" not in found
    assert len({order.seed for order in orders if order}) == 400


def test_ways_are_dealt_by_weight() -> None:
    book = Book({"queue": 3, "run": 1, "stream": 0}, {"a/a": 1}, 400, seed=1)
    found = [order.way for order in (book.next() for _ in range(400)) if order]
    assert 240 < found.count("queue") < 360 and set(found) == {"queue", "run"}
    check_ways(WAYS)
    with pytest.raises(ValueError, match="walk"):
        check_ways(["run", "walk"])


def test_a_favourite_gets_nine_orders_of_ten() -> None:
    book = Book(WAY, {"a/a": 1, "b/b": 1}, 200, seed=1)
    found = [order.endpoint for order in (book.next(favourite=1) for _ in range(200)) if order]
    assert found.count("b/b") > 170 and "a/a" in found


def test_the_same_seed_gives_the_same_orders() -> None:
    first, again, other = (Book(WAY, {"a/a": 1, "b/b": 1}, 20, seed) for seed in (1, 1, 2))
    orders = [[book.next() for _ in range(20)] for book in (first, again, other)]
    assert orders[0] == orders[1] != orders[2]


def test_an_endpoint_of_words_gets_words() -> None:
    assert "prompt" in Order("run", "fal-ai/fast-svd-lcm/text-to-video", 1).arguments("data:,")
    assert Order("run", "fal-ai/svd", 1).arguments("data:,") == {"image_url": "data:,", "seed": 1}


def test_weights_are_read() -> None:
    assert weights("a=2, b ,c=0") == {"a": 2, "b": 1, "c": 0}
    for wrong in ("", "a=0", "a=-1,b=2", "a=x"):
        with pytest.raises(ValueError):
            weights(wrong)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.8.9.1", True),
        ("http://[::1]:8000/files/a", True),
        ("http://localhost:1", True),
        ("http://LOCALHOST:1", True),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://127.0.0.1@example.com/", False),
        ("http://10.0.0.1", False),
        ("http://0.0.0.0", False),
        ("https://fal.run", False),
        ("", False),
    ],
)
def test_only_this_machine_is_loopback(url: str, here: bool) -> None:
    assert is_loopback(url) == here
