"""What a dispatcher shows of the attempts that it takes to a replica: their spans, and how soon they begin.

row ── traceparent ──▶ queue wait (arrival to claim), run (claim to end) ── traceparent ──▶ Attempt ──▶ the replica's
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from deployments import tracing
from deployments.metrics import DISPATCH_SECONDS
from deployments.models.messages import Attempt
from deployments.tracing import About

LOST = "lost"
"""Of a run whose end its replica did not tell."""


class Runs:
    """The attempts of one batch, from their claim to their end."""

    def __init__(self, model: str, attempts: Sequence[Attempt]) -> None:
        """They have been claimed just now."""
        self._model = model
        self._claimed_at = time.monotonic()
        self._begun = False
        for attempt in attempts:
            _show_wait(attempt, model)
        about: About = {"model": model, "batch_size": len(attempts)}
        self._spans = {
            attempt.request_id: tracing.begin("run", attempt.traceparent, {**_about(attempt), **about})
            for attempt in attempts
        }
        self.attempts = [
            replace(attempt, traceparent=tracing.traceparent_of(self._spans[attempt.request_id]))
            for attempt in attempts
        ]

    def begin(self) -> None:
        """The replica has said something."""
        if not self._begun:
            DISPATCH_SECONDS.observe(time.monotonic() - self._claimed_at, model=self._model)
        self._begun = True

    def end(self, request_id: str, error: str | None = None) -> None:
        """One of them has ended; with an error of this type, where one is told."""
        tracing.end(self._spans.pop(request_id), error)

    def close(self) -> None:
        """All of them have ended."""
        for request_id in list(self._spans):
            self.end(request_id, LOST)


def _show_wait(attempt: Attempt, model: str) -> None:
    """From the arrival, whatever has been tried since: on the database's clock, which has seen both."""
    about: About = {**_about(attempt), "model": model}
    tracing.end(tracing.begin("queue wait", attempt.traceparent, about, at=attempt.created_at), at=attempt.claimed_at)


def _about(attempt: Attempt) -> About:
    return {"request_id": attempt.request_id, "attempt": attempt.number, "endpoint": attempt.endpoint}
