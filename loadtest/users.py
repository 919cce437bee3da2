"""The users of a load test: each makes clips over the real wire, in one of the four ways that fal has.

    queue    POST /queue/<id> ──▶ poll status ──▶ GET result ─┐
    run      POST /<id> ──────────────────────────────────────┤
    stream   POST /<id>/stream ──▶ events … the last one ─────┼──▶ head of the clip ──▶ CLIP in the statistics
    upload   initiate ──▶ PUT ──▶ as queue, with the file ────┘

The official clients know nothing of gevent, so their calls are made by hand: the same headers, the pace of the Python
client's polls, its retries where it has any. Every call is a line of locust's statistics; a clip is two, one by its
way and endpoint and one named ``all``, from the first call until its head is there. What is wrong with an answer fails
both. A clip that failed has no time: quick refusals must not make a service look fast.

Importing this replaces the sockets of the process: only locust does so.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import gevent
from locust import FastHttpUser, task
from locust.exception import StopUser

from loadtest.shapes import Stage
from loadtest.wire import (
    AGAIN,
    ALL,
    ATTEMPTS,
    CLIP,
    HEAD_BYTES,
    Book,
    Order,
    WrongAnswer,
    clip_problem,
    complaint,
    field_of,
    is_loopback,
    last_event,
    parsed,
    pause,
    status_of,
    tried_again,
    video_of,
)

POLL_SECONDS = 0.1
"""How often the Python client asks for a status."""

PATIENCE_SECONDS = 600.0
"""How long a call may take: a synchronous run is one call."""


class Fal(FastHttpUser):
    """Somebody who makes one clip after the other."""

    abstract = True
    network_timeout = PATIENCE_SECONDS
    insecure = False  # the key goes to nobody but the service
    concurrency = 2
    book: Book
    key: str
    picture: bytes
    picture_uri: str
    idle_seconds: float
    may_leave: bool
    stage: Callable[[], Stage | None]

    def wait_time(self) -> float:
        """The pause between two clips."""
        return self.idle_seconds

    @task
    def make_clip(self) -> None:
        """Make the next clip that is ordered, and put it into the statistics."""
        stage = type(self).stage()
        order = self.book.next(stage.favourite if stage else None)
        if order is None:
            raise StopUser
        started, began = time.time(), time.perf_counter()
        failure: WrongAnswer | None = WrongAnswer("the load test itself failed")
        try:
            self._look_at(video_of(self._result(order), order))
            failure = None
        except WrongAnswer as error:
            failure = error
        except gevent.GreenletExit:
            failure = WrongAnswer("the clip was not there when the time was over")
            raise
        finally:
            self._tell(order, started, time.perf_counter() - began, failure)

    def _result(self, order: Order) -> Any:
        """What comes of an order, in the way that it says."""
        if order.way == "run":
            return self._ran(order)
        if order.way == "stream":
            return self._streamed(order)
        return self._queued(order, self._uploaded() if order.way == "upload" else self.picture_uri)

    def _tell(self, order: Order, started: float, took: float, failure: WrongAnswer | None) -> None:
        """Put a clip into the statistics."""
        for name in (f"{order.way} {order.endpoint}", ALL):
            self.environment.events.request.fire(
                request_type=CLIP,
                name=name,
                response_time=None if failure else took * 1000,
                response_length=0,
                exception=failure,
                context={},
                start_time=started,
            )

    def _look_at(self, url: str) -> None:
        """Fetch the head of a clip, once, as a player does.

        Raises:
            WrongAnswer: It is not there, or it is no mp4.
        """
        headers = {"Range": f"bytes=0-{HEAD_BYTES - 1}"}
        self._call("GET", url, "head of the clip", headers, check=_check_clip, with_key=False, attempts=1)

    # ---------------------------------------------------------------- the four ways

    def _queued(self, order: Order, picture: str) -> Any:
        accepted = self._json("POST", f"/queue/{order.endpoint}", "submit", json=order.arguments(picture))
        status_url = f"{field_of(accepted, 'status_url')}?logs=false"
        while self._status(status_url) != "COMPLETED":
            gevent.sleep(POLL_SECONDS)
        return self._json("GET", field_of(accepted, "response_url"), "result")

    def _status(self, url: str) -> str:
        body = self._call("GET", url, "status", check=lambda body: status_of(parsed(body)))
        return status_of(parsed(body))

    def _ran(self, order: Order) -> Any:
        return self._json("POST", f"/{order.endpoint}", f"run {order.endpoint}", json=order.arguments(self.picture_uri))

    def _streamed(self, order: Order) -> Any:
        url, name = f"/{order.endpoint}/stream", f"stream {order.endpoint}"
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        sent = order.arguments(self.picture_uri)
        return last_event(self._call("POST", url, name, headers, check=last_event, attempts=1, json=sent))

    def _uploaded(self) -> str:
        body = {"file_name": "picture.jpg", "content_type": "image/jpeg"}
        urls = self._json("POST", "/storage/upload/initiate?storage_type=fal-cdn-v3", "initiate upload", json=body)
        headers = {"Content-Type": "image/jpeg"}
        self._call("PUT", field_of(urls, "upload_url"), "upload", headers, with_key=False, data=self.picture)
        return str(field_of(urls, "file_url"))

    # ---------------------------------------------------------------- calls

    def _json(self, method: str, url: str, name: str, **options: Any) -> Any:
        """The JSON that a call answers.

        Raises:
            WrongAnswer: It was refused, or answered something else.
        """
        return parsed(self._call(method, url, name, check=parsed, **options))

    def _call(
        self,
        method: str,
        url: str,
        name: str,
        headers: dict[str, str] | None = None,
        *,
        check: Callable[[bytes], object] = lambda body: None,
        with_key: bool = True,
        attempts: int = ATTEMPTS,
        **options: Any,
    ) -> bytes:
        """The body that a call answers, tried again where the Python client tries again.

        Args:
            method: HTTP's.
            url: A path of the service, or a URL that the service gave.
            name: Under which it stands in the statistics.
            headers: More of them.
            check: Raises ``WrongAnswer`` where the body is not what it must be.
            with_key: Whether the key goes with it.
            attempts: How often it is made at the most; the Python client makes a stream once.
            options: ``json`` or ``data`` to send.

        Raises:
            WrongAnswer: It was refused for good, or the check says no.
        """
        if not (url.startswith("/") or self.may_leave or is_loopback(url)):
            raise WrongAnswer("the service names a URL on another machine")
        options["allow_redirects"] = self.may_leave
        sent = {"Accept": "*/*", **({"Authorization": f"Key {self.key}"} if with_key else {}), **(headers or {})}
        for attempt in range(1, attempts + 1):
            body, again = self._try(method, url, name, sent, check, attempt < attempts, options)
            if not again:
                return body
            gevent.sleep(pause(attempt, random))  # type: ignore[arg-type]
        raise AssertionError("the last attempt is never tried again")

    def _try(
        self,
        method: str,
        url: str,
        name: str,
        headers: dict[str, str],
        check: Callable[[bytes], object],
        may_retry: bool,
        options: dict[str, Any],
    ) -> tuple[bytes, bool]:
        """One attempt: the body, and whether to try again. What clients bear is no failure, but counted."""
        with self.client.request(method, url, name=name, catch_response=True, headers=headers, **options) as answer:
            body, status = _told(answer)
            if may_retry and tried_again(status, [each.lower() for each in answer.headers or {}], body):
                answer.request_meta["name"] = f"{name}{AGAIN}{status or 'no answer'}"
                answer.success()
                return b"", True
            try:
                if not 200 <= status < 300:
                    raise WrongAnswer(f"{name}: {complaint(status, body) if status else 'no answer'}")
                check(body)
            except WrongAnswer as error:
                answer.failure(error)
                raise
            answer.success()
            return body, False


def _told(answer: Any) -> tuple[bytes, int]:
    """An answer's body and status; 0 where no answer came, or not all of it."""
    cut_off = answer.ok and answer.request_meta["exception"] is not None
    return (b"", 0) if cut_off else (answer.content or b"", answer.status_code)


def _check_clip(head: bytes) -> None:
    if problem := clip_problem(head):
        raise WrongAnswer(problem)
