"""A model that does what its input's seed says: work, die, hang, or take memory. Served as any fifth endpoint is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import ray

from deployments.models.base import Clip, Keep, Plan, VideoInput, VideoModel
from deployments.models.checkpoints import CheckpointError
from deployments.models.fast_svd_lcm import FastSVDLCMInput

if TYPE_CHECKING:
    import numpy as np

DIES, HANGS, EATS, DAWDLES, LINGERS = 666, 617, 615, 600, 602
STEP_SECONDS = 0.1
MEGABYTES_EATEN = 700
FRAMES = 3


class Faulty(VideoModel):
    """Grey frames, if any."""

    Input: ClassVar[type[VideoInput]] = FastSVDLCMInput
    title = "Faulty"

    def steps(self, input: VideoInput) -> int:
        """As many as it is asked for."""
        assert isinstance(input, FastSVDLCMInput)
        return input.steps

    def plan(self, input: VideoInput) -> Plan:
        """Few frames."""
        return Plan(self.steps(input), max(self.config.sizes), frames=FRAMES)

    def setup(self, device: str) -> None:
        """Its weights are a file that has to be there."""
        if not Path(self.config.weights).exists():
            raise CheckpointError(f"{self.config.weights} is missing")

    def generate(self, clips: Sequence[Clip], steps: int, keep: Keep) -> list[np.ndarray | None]:
        """Do what the seeds say, then work."""
        import numpy as np

        seeds = {clip.seed for clip in clips}
        if DIES in seeds:
            os.kill(os.getpid(), signal.SIGKILL)
        while HANGS in seeds:
            time.sleep(1)
        eaten = [np.ones(1024 * 1024, np.uint8) for _ in range(MEGABYTES_EATEN if EATS in seeds else 0)]
        wanted = set(keep(0))
        for step in range(steps):
            time.sleep(STEP_SECONDS * (20 if LINGERS in seeds else 5 if DAWDLES in seeds else 1))
            wanted &= set(keep(step + 1))
        del eaten
        return [_grey(clip) if i in wanted else None for i, clip in enumerate(clips)]


class Placed(Faulty):
    """Notes beside its weights where Ray has put it."""

    title = "Placed"

    def setup(self, device: str) -> None:
        """One file a process: the device that it was given, and Ray's numbers of its GPUs."""
        super().setup(device)
        Path(f"{self.config.weights}.{os.getpid()}").write_text(f"{device} {ray.get_gpu_ids()}")


def _grey(clip: Clip) -> np.ndarray:
    import numpy as np

    return np.full((FRAMES, clip.size.height, clip.size.width, 3), 128, np.uint8)
