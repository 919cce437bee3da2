"""Logs: one line of JSON an event, with the request id of whoever is being served.

``configure`` is called once in each process; ``request_context`` binds the id around a piece of work.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from contextvars import ContextVar

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class JsonFormatter(logging.Formatter):
    """Time (ISO 8601, UTC), level, logger, message, and the request id where one is bound."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id.get():
            line["request_id"] = request_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: int = logging.INFO) -> None:
    """Send the logs of this package to standard error as JSON."""
    logger = logging.getLogger("deployments")
    logger.setLevel(level)
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logger.addHandler(handler)


@contextlib.contextmanager
def request_context(request_id: str) -> Iterator[None]:
    """Bind a request id to every log line inside."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)
