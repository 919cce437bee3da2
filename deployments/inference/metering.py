"""How long a group of clips has had the device, and whose share is what.

    the device's thread: with meter ──▶ generate ──▶ keep(0), keep(1), … ──▶ shares: microseconds of each clip

A clip's share goes by its pixels, frames and the steps that were computed of it: one that left early pays less, and one
of which nothing may move was not computed at all.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

from deployments import costs
from deployments.models.base import Clip


class Meter:
    """Measures one run on the device, from within its thread; read when the run has ended."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        """Measure a run of these clips."""
        self._pixel_frames = [0 if clip.is_static else clip.pixel_frames for clip in clips]
        self._steps = [0] * len(clips)
        self._computing: Collection[int] = range(len(clips))
        self._since: float | None = None
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._since is not None
        self.seconds = time.monotonic() - self._since

    def note(self, done: int, wanted: Collection[int]) -> None:
        """So many steps have been computed of those that were wanted before; these are wanted from now on."""
        for index in self._computing:
            self._steps[index] = done
        self._computing = wanted

    def shares(self) -> list[int]:
        """Microseconds of each clip; they add up to the run's."""
        weights = [pixels * steps for pixels, steps in zip(self._pixel_frames, self._steps, strict=True)]
        total = round(self.seconds * costs.MICRO)
        return costs.share(total, weights if any(weights) else self._pixel_frames)
