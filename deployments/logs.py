"""Logs: one line of JSON an event, with the request id of whoever is being served, and the trace it belongs to.

``configure`` is called once in each process; ``request_context`` binds both around a piece of work. What is done to
keys goes to a logger of its own, ``svd_serve.audit``: who, what, and to which key; never a secret.

What callers send may find its way into a message. There it is a text: JSON leaves it no line to end and no terminal to
write to, and what looks like a secret is left out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from opentelemetry import context

from deployments import tracing
from deployments.words import presentable

AUDIT = "svd_serve.audit"

LONGEST_MESSAGE = 8_000
LONGEST_TRACEBACK = 20_000
"""In characters. Of a traceback the end is kept, where it says what happened."""

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class JsonFormatter(logging.Formatter):
    """Time (ISO 8601, UTC), level, logger, message, and the ids of request and trace where they are bound."""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": presentable(record.getMessage()[:LONGEST_MESSAGE], LONGEST_MESSAGE),
        }
        if served := request_id():
            line["request_id"] = served
        if trace_id := tracing.trace_id():
            line["trace_id"] = trace_id
        if record.exc_info:
            traceback = self.formatException(record.exc_info)[-LONGEST_TRACEBACK:]
            line["exception"] = presentable(traceback, LONGEST_TRACEBACK)
        return json.dumps(line)


def configure(level: int = logging.INFO, names: Sequence[str] = ("deployments", AUDIT, "opentelemetry")) -> None:
    """Send the logs of this package, of the export of traces, and of what is done to keys to standard error as JSON."""
    for name in names:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        if not logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(JsonFormatter())
            logger.addHandler(handler)


def audit(who: str, action: str, key_id: str, **details: object) -> None:
    """Write down what somebody did to a key. Details are what a log may show: never a secret.

    Args:
        who: By which key, or as which user of this machine.
        action: What was done, for instance ``create``.
        key_id: To which key.
        **details: What else is worth knowing.
    """
    said = "".join(f", {name}={value}" for name, value in details.items())
    logging.getLogger(AUDIT).info("%s: %s key %s%s", who, action, key_id, said)


def request_id() -> str | None:
    """The id that is bound; None outside of ``request_context``."""
    return _request_id.get()


@contextlib.contextmanager
def request_context(request_id: str, traceparent: str | None = None) -> Iterator[None]:
    """Bind a request id to every log line inside, and the trace that it belongs to, where it comes from elsewhere."""
    token = _request_id.set(request_id)
    attached = context.attach(tracing.context_of(traceparent)) if traceparent else None
    try:
        yield
    finally:
        if attached:
            context.detach(attached)
        _request_id.reset(token)
