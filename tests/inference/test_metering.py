from __future__ import annotations

import numpy as np
from PIL import Image

from deployments.inference.metering import Meter
from deployments.models.base import Clip


def test_a_share_is_of_pixels_frames_and_steps() -> None:
    def clip(width: int, maps: int = 0, still: bool = False) -> Clip:
        picture = Image.new("RGB", (width, 64))
        mask = np.ones((64, width), bool) if still else None
        return Clip(picture, 1, 127, 0.02, still=mask, depth=(picture,) * maps)

    meter = Meter([clip(64), clip(128), clip(64, maps=5), clip(64, still=True)])
    meter.note(0, [0, 1, 2, 3])
    meter.note(1, [1, 2, 3])
    meter.note(2, [1, 3])
    meter.note(4, [1, 3])
    meter.seconds = 0.000_235
    assert meter.shares() == [25, 200, 10, 0]  # 25 frames, one step; twice 25, four steps; 5, two steps; still
    assert Meter([clip(64, still=True)]).shares() == [0]
