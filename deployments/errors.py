"""Every failure with a name.

    ServingError
    ├── PlatformError              the service's own answer: {"detail": "…", "error_type": "…"}
    │   ├── BadRequest             400
    │   ├── StillInProgress        400
    │   ├── Unauthenticated        401
    │   ├── Forbidden              403
    │   ├── NotFound               404
    │   ├── MethodNotAllowed       405
    │   ├── RequestTimeout         408
    │   ├── Conflict               409
    │   ├── PayloadTooLarge        413
    │   ├── UriTooLong             414
    │   ├── UnsupportedMediaType   415
    │   ├── IdempotencyKeyReused   422
    │   ├── HeadersTooLarge        431
    │   ├── LimitReached           429, and says when to come again
    │   │   ├── RateLimited            429
    │   │   ├── ConcurrentRequestsLimit 429
    │   │   ├── QueueFull              429
    │   │   ├── SpendLimit             429
    │   │   └── UploadLimit            429
    │   ├── ClientCancelled        499
    │   ├── RunnerServerError      500
    │   ├── InternalError          500
    │   ├── FileDamaged            500
    │   ├── RunnerDisconnected     503, another attempt may succeed
    │   ├── Unavailable            503
    │   ├── StorageUnavailable     503, another attempt may succeed
    │   └── StartTimeout           504
    └── ModelError                 what the model says of its input: {"detail": [{loc, msg, type, …}]}
        ├── InvalidInput           422, from pydantic
        │   └── InvalidParameter       422, from pydantic, of what is not the body
        ├── FileDownloadError      422
        ├── FileTooLarge           422
        ├── ImageLoadError         422
        ├── ImageTooSmall          422
        ├── ImageTooLarge          422
        ├── UnsupportedImageFormat 422
        ├── InvalidArchive         422
        ├── ArchiveFileCountBelowMinimum    422
        ├── ArchiveFileCountExceedsMaximum  422
        ├── FeatureNotSupported    422
        └── GenerationTimeout      504

HTTP status, fal's type name and whether another attempt may help stand on the class (fal's error reference). A
``Failure`` is the same thing as a value: what a replica sends back and what a row keeps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

DOCUMENTATION_URL = "https://docs.fal.ai/errors#"
_LONGEST_ECHO = 1024
_PASSWORD = re.compile(r"//[^/?#\s]*@")
"""What stands before the host of a URL."""

BUSY_SECONDS = 5.0
"""When to come again where nobody can tell when there will be room: a guess."""

Loc = Sequence[str | int]
"""The path to an offending value, as pydantic writes it."""


@dataclass(frozen=True)
class Failure:
    """A failure that has happened: the answer to give, and whether to try again instead."""

    status: int
    type: str
    message: str
    body: Mapping[str, Any]
    retryable: bool = False


class ServingError(Exception):
    """The root. All arguments go to the base constructor, so that errors survive pickling between processes."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False
    retry_after: float | None = None
    """In how many seconds the same call may succeed, where that can be said (``Retry-After``)."""

    @property
    def message(self) -> str:
        """One sentence for a person."""
        return str(self.args[0])

    def body(self) -> dict[str, Any]:
        """The JSON object that fal's clients read."""
        raise NotImplementedError

    def failure(self) -> Failure:
        """The same as a value."""
        return Failure(self.status, self.type, self.message, self.body(), self.retryable)


class PlatformError(ServingError):
    """The service itself could not do what was asked."""

    def body(self) -> dict[str, Any]:  # noqa: D102
        return {"detail": self.message, "error_type": self.type}


class BadRequest(PlatformError):
    """A header, a query parameter or the body's form is wrong."""

    status, type = 400, "bad_request"


class StillInProgress(PlatformError):
    """The result was asked for before there was one. Not 409 or 429: clients would retry those."""

    status, type = 400, "bad_request"


class Unauthenticated(PlatformError):
    """No key, or not one of ours."""

    status, type = 401, "unauthorized"


class Forbidden(PlatformError):
    """The caller is known, and may not do this."""

    status, type = 403, "forbidden"


class NotFound(PlatformError):
    """No such endpoint, request or file, or not this caller's."""

    status, type = 404, "not_found"


class MethodNotAllowed(PlatformError):
    """There is such a path, and not for this method."""

    status, type = 405, "bad_request"


class RequestTimeout(PlatformError):
    """The caller took longer to say what it wants than we listen."""

    status, type = 408, "bad_request"


class Conflict(PlatformError):
    """Somebody else is at it; it may be tried again, and clients do."""

    status, type = 409, "bad_request"


class IdempotencyKeyReused(PlatformError):
    """An Idempotency-Key came again with another request than its first."""

    status, type = 422, "bad_request"


class PayloadTooLarge(PlatformError):
    """The body of an HTTP request is larger than we read."""

    status, type = 413, "bad_request"


class UriTooLong(PlatformError):
    """The URL of an HTTP request is longer than we read."""

    status, type = 414, "bad_request"


class UnsupportedMediaType(PlatformError):
    """The body of an HTTP request is compressed; we read it as it is."""

    status, type = 415, "bad_request"


class HeadersTooLarge(PlatformError):
    """The headers of an HTTP request are larger, or more, than we read."""

    status, type = 431, "bad_request"


class LimitReached(PlatformError):
    """The caller has had what it may have for now. Nothing was accepted; clients try again by themselves."""

    status, type = 429, "rate_limited"

    def __init__(self, message: str, retry_after: float = BUSY_SECONDS) -> None:
        """Name the limit.

        Args:
            message: One sentence for a person.
            retry_after: In how many seconds there is room again.
        """
        super().__init__(message, retry_after)
        self.retry_after = retry_after


class RateLimited(LimitReached):
    """The key makes more calls a second than it may."""


class ConcurrentRequestsLimit(LimitReached):
    """A synchronous run would have to wait, for as many of its key's requests as may run at once are there already."""

    type = "concurrent_requests_limit"


class QueueFull(LimitReached):
    """More requests wait than the key may have waiting, or its caller accepts (``fal_max_queue_length``)."""

    type = "queue_full"


class SpendLimit(LimitReached):
    """The key's requests of this day are billed as much as they may be."""

    type = "spend_limit"


class UploadLimit(LimitReached):
    """The key has uploaded as much this day as it may."""

    type = "upload_limit"


class ClientCancelled(PlatformError):
    """The caller cancelled the request, or went away during a synchronous run."""

    status, type = 499, "client_cancelled"


class RunnerServerError(PlatformError):
    """The model failed in a way that it does not name."""

    status, type = 500, "runner_server_error"


class InternalError(PlatformError):
    """A fault of ours."""


class FileDamaged(PlatformError):
    """A stored file is lost, or has not the bytes that it was stored with."""


class RunnerDisconnected(PlatformError):
    """The replica died or could not be reached while it held the request."""

    status, type, retryable = 503, "runner_disconnected", True


class Unavailable(PlatformError):
    """The store cannot be written at the moment; nothing was accepted."""

    status, type = 503, "internal_error"
    retry_after = BUSY_SECONDS


class StorageUnavailable(PlatformError):
    """The file storage takes nothing at the moment: it is full, or cannot be reached."""

    status, type, retryable = 503, "internal_error", True
    retry_after = BUSY_SECONDS


class StartTimeout(PlatformError):
    """The request did not start within the time its caller gave it (``X-Fal-Request-Timeout``)."""

    status, type = 504, "startup_timeout"


class ModelError(ServingError):
    """The input cannot be used. ``loc`` says where, as pydantic does; ``ctx`` holds the limits."""

    status: ClassVar[int] = 422

    def __init__(self, message: str, loc: Loc = ("body",), ctx: Mapping[str, Any] | None = None) -> None:
        """Name the failure.

        Args:
            message: One sentence for a person.
            loc: The path to the offending value.
            ctx: The limits it broke, by fal's names.
        """
        super().__init__(message, tuple(loc), dict(ctx or {}))

    def body(self) -> dict[str, Any]:  # noqa: D102
        message, loc, ctx = self.args
        return {"detail": [_detail(loc, message, self.type, ctx, None)]}


class InvalidInput(ModelError):
    """Pydantic refused the body."""

    type = "value_error"
    _before: ClassVar[Loc] = ("body",)

    def __init__(self, errors: Sequence[Mapping[str, Any]]) -> None:
        """Keep pydantic's error list (``ValidationError.errors()``)."""
        ServingError.__init__(self, errors)

    @property
    def message(self) -> str:
        """The first of the errors, with its place."""
        first = self.args[0][0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"

    def body(self) -> dict[str, Any]:  # noqa: D102
        return {
            "detail": [
                _detail((*self._before, *e["loc"]), e["msg"], e["type"], e.get("ctx", {}), e.get("input"))
                for e in self.args[0]
            ]
        }


class InvalidParameter(InvalidInput):
    """Pydantic refused something else than the body, and says of each what it is: query, path or header."""

    _before: ClassVar[Loc] = ()


class FileDownloadError(ModelError):
    """The file behind a URL cannot be had."""

    type = "file_download_error"


class FileTooLarge(ModelError):
    """The file behind a URL is larger than we read."""

    type = "file_too_large"


class ImageLoadError(ModelError):
    """The bytes are no picture, or a broken one."""

    type = "image_load_error"


class ImageTooSmall(ModelError):
    """The picture has fewer pixels than a clip can be made from."""

    type = "image_too_small"


class ImageTooLarge(ModelError):
    """The picture has more pixels than we decode."""

    type = "image_too_large"


class UnsupportedImageFormat(ModelError):
    """The bytes are a file of a format that we do not read."""

    type = "unsupported_image_format"


class InvalidArchive(ModelError):
    """The bytes are no archive, a broken one, or one made to do harm; or a picture in it cannot be read."""

    type = "invalid_archive"


class ArchiveFileCountBelowMinimum(ModelError):
    """The archive holds fewer pictures than are needed."""

    type = "archive_file_count_below_minimum"


class ArchiveFileCountExceedsMaximum(ModelError):
    """The archive holds more pictures than can be used."""

    type = "archive_file_count_exceeds_maximum"


class FeatureNotSupported(ModelError):
    """A part of fal's API that this server does not offer."""

    type = "feature_not_supported"


class GenerationTimeout(ModelError):
    """The run took longer than it may."""

    status, type = 504, "generation_timeout"


def _detail(loc: Loc, msg: str, kind: str, ctx: Mapping[str, Any], value: Any) -> dict[str, Any]:
    detail: dict[str, Any] = {"loc": list(loc), "msg": msg, "type": kind, "url": DOCUMENTATION_URL + kind}
    if ctx:
        detail["ctx"] = {
            name: limit if isinstance(limit, int | float | list) else str(limit) for name, limit in ctx.items()
        }
    if value is not None and _can_be_echoed(value):
        detail["input"] = value
    return detail


def _can_be_echoed(value: Any) -> bool:
    """Whether a value is short, holds no password, and is JSON.

    1e400 is a number to a parser, and infinity to us; half a pair is no text.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        return len(text.encode()) <= _LONGEST_ECHO and not _PASSWORD.search(text)
    except (TypeError, ValueError):
        return False
