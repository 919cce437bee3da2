"""What a replica measures of its work, and where its spans are.

prepare ──▶ Run: batch size, steps, time on the device ──▶ encode ──▶ store
each of them: a span of every request's own trace; that of a batch on the device names the others as links
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from deployments import metrics, tracing
from deployments.inference.device import memory

OUT_OF_MEMORY = "OutOfMemoryError"
"""What torch calls it, by its name: it need not be imported for this. A sampler handles and counts its own."""

_SECONDS = {"prepare": metrics.PREPARE_SECONDS, "encode": metrics.ENCODE_SECONDS, "store": metrics.STORE_SECONDS}


@contextlib.contextmanager
def stage(name: str, model: str) -> Iterator[None]:
    """A part of the way of one request, off the device: ``prepare``, ``encode`` or ``store``."""
    with tracing.span(name, model=model), _SECONDS[name].timed(model=model):
        yield


def begin(model: str) -> None:
    """A replica is there: what it counts is at 0."""
    metrics.DEVICE_BUSY.inc(0.0, model=model)
    metrics.OUT_OF_MEMORY.inc(0.0, model=model)


def note_memory(model: str) -> None:
    """How much memory of its device a replica has now."""
    for kind, size in memory().items():
        metrics.GPU_MEMORY.set(size, model=model, kind=kind)


class Run:
    """One run on the device, measured from within its thread."""

    def __init__(self, name: str, model: str, parents: Sequence[str | None] = ()) -> None:
        """Measure a run.

        Args:
            name: Of its spans.
            model: Whose weights compute.
            parents: For each clip of it, the span that it is part of.
        """
        self._name = name
        self._model = model
        self._parents = parents
        self._spans = contextlib.ExitStack()
        self._noted_at = 0.0

    def __enter__(self) -> Self:
        size = len(self._parents)
        self._spans.enter_context(tracing.together(self._name, self._parents, model=self._model, batch_size=size))
        if size:
            metrics.BATCH_SIZE.observe(size, model=self._model)
        self._noted_at = time.monotonic()
        return self

    def step(self, done: int) -> None:
        """So many steps have been taken."""
        seconds = self._note_busy()
        if done:
            metrics.STEP_SECONDS.observe(seconds, model=self._model)

    def _note_busy(self) -> float:
        """Count the seconds since the last time, and answer them: a run may take long, and is seen while it does."""
        now = time.monotonic()
        seconds, self._noted_at = now - self._noted_at, now
        metrics.DEVICE_BUSY.inc(seconds, model=self._model)
        return seconds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._note_busy()
        if kind and kind.__name__ == OUT_OF_MEMORY:
            metrics.OUT_OF_MEMORY.inc(model=self._model)
        self._spans.__exit__(kind, error, traceback)
