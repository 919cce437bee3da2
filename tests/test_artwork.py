"""The playground's own pictures are what the program that is said to have drawn them draws."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from artwork.__main__ import FOLDER
from artwork.canvas import MOST_BYTES, Canvas
from artwork.scenes import SCENES
from deployments.gateway.page_routes import PICTURES

NEAR = 4.0
"""How far a JPEG of these qualities may be from what it shows, on average and of 255."""


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(float)


@pytest.mark.parametrize("name", SCENES)
def test_a_picture_is_what_its_program_draws(name: str) -> None:
    with Image.open(FOLDER / f"{name}.jpg") as kept:
        difference = np.abs(pixels(kept) - pixels(SCENES[name]().picture()))

    assert difference.mean() < NEAR
    assert np.percentile(difference, 99) < 10 * NEAR


def test_no_other_picture_is_offered_and_none_is_large() -> None:
    kept = {path.stem: path.stat().st_size for path in FOLDER.iterdir()}

    assert kept.keys() == SCENES.keys() == PICTURES.keys()
    assert max(kept.values()) <= MOST_BYTES


def test_what_cannot_be_small_is_refused() -> None:
    canvas = Canvas(640, 360)
    canvas.light[:] = np.random.default_rng(1).random(canvas.light.shape).round()
    with pytest.raises(ValueError, match="too much in it"):
        canvas.jpeg()
