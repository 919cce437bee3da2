"""The model of the campaign: it shows a number that is a function of its input, and writes down when it did.

It is served as any fifth endpoint is: one file and one entry under ``args.endpoints``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from pydantic import Field

from deployments.models.base import (
    Clip,
    EndpointConfig,
    ImageToVideoInput,
    Keep,
    Plan,
    VideoConfig,
    VideoInput,
    VideoModel,
)
from deployments.models.tuning import SizeField
from loadtest.chaos.journal import Journal
from loadtest.chaos.payload import FAILS, FRAMES, HANGS, POISON, Payload, colour_of, paint

if TYPE_CHECKING:
    import numpy as np


class ClockConfig(VideoConfig):
    """What the campaign's configuration says of it."""

    weights: str = Field("", description="It has none.")
    sizes: tuple[SizeField, ...]
    journal: Path = Field(description="Where it writes what it does.")
    seconds: float = Field(0.3, gt=0, description="How long a batch takes.")


class Clock(VideoModel):
    """Takes its time and shows a digest of its input."""

    Input: ClassVar[type[VideoInput]] = ImageToVideoInput
    Config: ClassVar[type[EndpointConfig]] = ClockConfig
    title = "Clock"
    config: ClockConfig

    def steps(self, input: VideoInput) -> int:
        """Several kinds of requests, which never share a batch."""
        return steps_of(input.motion_bucket_id)

    def plan(self, input: VideoInput) -> Plan:
        """Few frames: they only have to show a number."""
        return Plan(self.steps(input), max(self.config.sizes), frames=FRAMES)

    def setup(self, device: str) -> None:
        """There is nothing to load."""
        self._journal = Journal(self.config.journal)

    def generate(self, clips: Sequence[Clip], steps: int, keep: Keep) -> list[np.ndarray | None]:
        """Show each clip's digest; die, hang or fail where its input says so."""
        payloads = [payload_of(clip) for clip in clips]
        batch: dict[str, Any] = {
            "batch": uuid4().hex,
            "pid": os.getpid(),
            "digests": [each.digest for each in payloads],
        }
        self._journal.write("start", **batch)
        if any(steps_of(each.motion) != steps for each in payloads):
            raise ValueError("a batch has requests of two kinds")
        wanted = self._wait(steps, keep)
        _do_as_told({each.motion for each in payloads})
        self._journal.write("end", **batch)
        return [paint(each.digest) if i in wanted else None for i, each in enumerate(payloads)]

    def _wait(self, steps: int, keep: Keep) -> set[int]:
        wanted = set(keep(0))
        for step in range(steps):
            time.sleep(self.config.seconds / steps)
            wanted &= set(keep(step + 1))
            if not wanted:
                break
        return wanted


def steps_of(motion: int) -> int:
    """How many steps a request has, and so which others it may share a batch with.

    What fails or hangs takes its whole batch with it, as any model does, so it keeps to itself. Poison does not.
    """
    return {FAILS: 5, HANGS: 6}.get(motion, 3 + motion % 2)


def payload_of(clip: Clip) -> Payload:
    """What a clip was asked with."""
    return Payload(clip.seed, clip.motion_bucket_id, clip.cond_aug, colour_of(clip.picture))


def _do_as_told(motions: set[int]) -> None:
    if POISON in motions:
        os._exit(1)
    while HANGS in motions:
        time.sleep(1)
    if FAILS in motions:
        raise RuntimeError("asked to fail")
