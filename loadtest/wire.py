"""What the users of a load test say on fal's wire, and what they check of the answers; plain functions, no tool.

    order ──▶ arguments ──▶ … the calls of ``users`` … ──▶ result ──▶ video_of ──▶ head of the clip ──▶ clip_problem
                                   └── refused? tried_again, pause: as the official Python client does

Locust replaces the sockets of the process that imports it, so whatever can be told without it is told here.
"""

from __future__ import annotations

import ipaddress
import json
import random
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

WAYS = ("queue", "run", "stream", "upload")
"""How a clip can be asked for."""

ENDPOINTS = "fal-ai/stable-video=2,fal-ai/svd=1,fal-ai/fast-svd-lcm=4,fal-ai/fast-svd-lcm/text-to-video=1"
ASKED = ("ways", "endpoints", "clips", "idle", "picture", "seed")
"""The options of ``add_options`` that have values."""

CLIP, ALL = "CLIP", "all"
"""In locust's statistics: the kind of a line that counts clips, and the name of the one that counts all of them."""

AGAIN = ", tried again after "
"""In locust's statistics: between the name of calls that were made once more, and what they had been answered."""

HEAD_BYTES = 4096
"""How much of a clip is looked at: what comes before its pictures fits into it."""

ATTEMPTS = 10
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 30.0
TRIED_AGAIN = frozenset({408, 409, 429})
BAD_GATEWAYS = frozenset({502, 503, 504})
LONGEST_COMPLAINT = 120


class WrongAnswer(Exception):
    """An answer that is not what fal's API promises; its message names no request, so equal ones count as one."""


@dataclass(frozen=True)
class Order:
    """A clip to be made: how it is asked for (one of ``WAYS``), of which endpoint, and with which seed."""

    way: str
    endpoint: str
    seed: int

    def arguments(self, image_url: str) -> dict[str, Any]:
        """The input, with a picture where the endpoint takes one."""
        if self.endpoint.endswith("/text-to-video"):
            return {"prompt": "a white boat on the sea at sunset", "seed": self.seed}
        return {"image_url": image_url, "seed": self.seed}


class Book:
    """Deals out orders: ways and endpoints by weight, every seed another one, at most so many."""

    def __init__(self, ways: Mapping[str, int], endpoints: Mapping[str, int], most: int, seed: int) -> None:
        """Deal ``most`` orders, the same ones for the same seed."""
        self._ways = dict(ways)
        self._endpoints = dict(endpoints)
        self._left = most
        self._dice = random.Random(seed)

    @property
    def is_empty(self) -> bool:
        """Whether all have been dealt."""
        return self._left <= 0

    def next(self, favourite: int | None = None) -> Order | None:
        """The next order, None after the last one; a favourite endpoint gets nine orders of ten."""
        if self.is_empty:
            return None
        self._left -= 1
        way, endpoint = self._one_of(self._ways), self._one_of(self._endpoints)
        if favourite is not None and self._dice.random() < 0.9:
            endpoint = list(self._endpoints)[favourite % len(self._endpoints)]
        return Order(way, endpoint, self._dice.randrange(2**31))

    def _one_of(self, weighted: Mapping[str, int]) -> str:
        (name,) = self._dice.choices(list(weighted), list(weighted.values()))
        return name


def weights(text: str) -> dict[str, int]:
    """``queue=6,run=2`` as a mapping; a name alone weighs 1.

    Raises:
        ValueError: A weight is no whole number above or equal 0, or none is above 0.
    """
    parts = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    found = {name.strip(): int(weight or 1) for name, _, weight in parts}
    if not any(found.values()) or min(found.values()) < 0:
        raise ValueError(f"there is nothing to choose from in {text!r}")
    return found


def check_ways(ways: Iterable[str]) -> None:
    """Let only the ways pass that there are.

    Raises:
        ValueError: One of them is none.
    """
    if unknown := set(ways) - set(WAYS):
        raise ValueError(f"{', '.join(sorted(unknown))} is none of {', '.join(WAYS)}")


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine, by its text alone: no name is looked up but ``localhost``."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def add_options(parser: Any) -> None:
    """Have a parser, ours or locust's, take what users may be told."""
    parser.add_argument("--ways", default="queue=6,run=2,stream=1,upload=1", help="how clips are asked for, by weight")
    parser.add_argument("--endpoints", default=ENDPOINTS, help="what is asked for, by weight")
    parser.add_argument("--clips", type=int, default=2000, help="at the most, of each load")
    parser.add_argument("--idle", type=float, default=0.0, help="seconds between two clips of a user")
    parser.add_argument("--picture", default="deployments/gateway/playground/sample.jpg")
    parser.add_argument("--seed", type=int, default=1, help="repeats the orders")
    parser.add_argument("--allow-remote", action="store_true", help="let the host be another machine")


# ---------------------------------------------------------------- refusals


def tried_again(status: int, headers: Iterable[str], body: bytes) -> bool:
    """Whether the official Python client repeats a call after such an answer.

    Args:
        status: The answer's; 0 where no answer came.
        headers: The names of the answer's headers, in lower case.
        body: The answer's.
    """
    if status in BAD_GATEWAYS:  # a gateway in between said so, and not the service
        return "x-fal-request-id" not in headers and b"nginx" in body
    return status == 0 or status in TRIED_AGAIN


def pause(attempt: int, dice: random.Random) -> float:
    """Seconds that the official Python client waits after its n-th try, from 1 on."""
    doubled = min(FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1), LONGEST_PAUSE_SECONDS)
    return doubled * dice.uniform(0.5, 1.5)


def complaint(status: int, body: bytes) -> str:
    """Why a call failed, in words that are the same for the same reason."""
    if 300 <= status < 400:
        return f"{status}: the service sends its callers on, maybe to another machine (--allow-remote follows)"
    try:
        answer = json.loads(body)
        detail = answer.get("error_type") or answer["detail"]
        why = detail if isinstance(detail, str) else ", ".join(sorted({each["type"] for each in detail}))
    except (ValueError, KeyError, TypeError, AttributeError):
        why = f"{len(body)} bytes that are no error of fal's"
    return f"{status}: {why}"[:LONGEST_COMPLAINT]


# ---------------------------------------------------------------- answers


def field_of(answer: Any, *names: str) -> Any:
    """What an answer has under these names, one below the other.

    Raises:
        WrongAnswer: It has no such thing.
    """
    found = answer
    for name in names:
        if not isinstance(found, dict) or name not in found:
            raise WrongAnswer(f"the answer has no {'.'.join(names)}")
        found = found[name]
    return found


def parsed(body: bytes | None) -> Any:
    """An answer that must be JSON.

    Raises:
        WrongAnswer: It is not.
    """
    try:
        return json.loads(body or b"")
    except ValueError:
        raise WrongAnswer("the answer is not JSON") from None


def status_of(answer: Any) -> str:
    """The status of a queued request.

    Raises:
        WrongAnswer: It is none of fal's, or the request ended by an error.
    """
    status = field_of(answer, "status")
    if status not in ("IN_QUEUE", "IN_PROGRESS", "COMPLETED"):
        raise WrongAnswer("the status is none of fal's")
    if answer.get("error"):
        raise WrongAnswer(f"the request ended with {answer.get('error_type') or 'an error'}"[:LONGEST_COMPLAINT])
    return str(status)


def video_of(result: Any, order: Order) -> str:
    """The clip's URL in a result.

    Raises:
        WrongAnswer: The result is not of the shape that the endpoint documents, or is of another seed.
    """
    key = "image" if order.endpoint == "fal-ai/svd" else "video"
    url = field_of(result, key, "url")
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise WrongAnswer(f"{key}.url is no http URL")
    if field_of(result, key, "content_type") != "video/mp4":
        raise WrongAnswer(f"{key}.content_type is not video/mp4")
    if not isinstance(size := field_of(result, key, "file_size"), int) or size <= 0:
        raise WrongAnswer(f"{key}.file_size is no size")
    if field_of(result, "seed") != order.seed:
        raise WrongAnswer("the seed is not the one that was sent")
    return url


def last_event(stream: bytes) -> Any:
    """The last of some server-sent events, which must be the result.

    Raises:
        WrongAnswer: There is none, it is not JSON, or it tells an error.
    """
    events = [line[5:] for line in stream.splitlines() if line.startswith(b"data:")]
    if not events:
        raise WrongAnswer("the stream has no events")
    last = parsed(events[-1])
    if isinstance(last, dict) and "error" in last:
        raise WrongAnswer(f"the stream ended with {last.get('error_type') or 'an error'}"[:LONGEST_COMPLAINT])
    return last


def clip_problem(head: bytes) -> str | None:
    """Why a file that begins like this is no mp4 that plays while it loads; None if it is one.

    A file is a row of boxes, each with its length and type before its content (ISO/IEC 14496-12, 4.2): ``ftyp`` comes
    first, and a player wants ``moov`` before ``mdat``.
    """
    boxes = list(_boxes(head))
    if not boxes or boxes[0] != b"ftyp":
        return "the clip is no mp4: it does not begin with ftyp"
    if b"moov" not in boxes:
        return "the clip cannot be played while it loads: moov does not come first"
    return None


def _boxes(head: bytes) -> Iterable[bytes]:
    """The types of the boxes that begin within the head, up to the pictures."""
    at = 0
    while at + 8 <= len(head):
        size, kind = struct.unpack(">I4s", head[at : at + 8])
        if kind == b"mdat" or (size < 8 and at == 0):
            return
        yield kind
        if size < 8:
            return
        at += size
