"""Print the SHA-256 of the frames of three small clips as JSON: ``python -m tests.models.golden``."""

from __future__ import annotations

import hashlib
import json
import warnings

import numpy as np
import torch
from PIL import Image

from deployments.models.base import Clip, ControlNetConfig
from deployments.models.checkpoints import Checkpoint, controlnet_part, svd_parts
from deployments.models.sampler import SVDSampler
from deployments.models.schedules import Schedule, euler_schedule, lcm_schedule
from tests.tiny import WEIGHTS

WIDTH, HEIGHT = 48, 32


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    config = ControlNetConfig(weights=str(WEIGHTS / "depth"))
    parts = svd_parts(Checkpoint(str(WEIGHTS / "svd")), None, None)
    parts["controlnet"] = controlnet_part(config.checkpoint, config.folder, config.variant)
    sampler = SVDSampler.load(parts, control=config)
    still = np.zeros((HEIGHT, WIDTH), dtype=bool)
    still[:, :20] = True
    clips = {
        "euler": (Clip(stripes(1), 11, 127, 0.02), euler_schedule(4), (1.0, 3.0)),
        "lcm": (Clip(stripes(2), 2**40, 200, 0.5), lcm_schedule(4), (1.0, 1.0)),
        "led": (
            Clip(stripes(3), 0, 1, 0.0, still, tuple(stripes(each) for each in range(4, 7))),
            euler_schedule(3),
            (1.0, 3.0),
        ),
    }
    print(json.dumps({name: frame_hash(sampler, *told) for name, told in clips.items()}))


def stripes(step: int) -> Image.Image:
    """A picture by integers alone."""
    row, column = np.ogrid[:HEIGHT, :WIDTH]
    channels = [(row * step * 7 + column * (3 + channel) * step) % 256 for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def frame_hash(sampler: SVDSampler, clip: Clip, schedule: Schedule, guidance: tuple[float, float]) -> str:
    (frames,) = sampler.sample([clip], schedule, guidance, lambda done: [0])
    assert frames is not None
    return hashlib.sha256(frames.tobytes()).hexdigest()


if __name__ == "__main__":
    main()
