"""The figures are those of clips whose motion, noise and colours are known."""

import cv2
import numpy as np
import pytest

from deployments.models.size import Size
from training import scenes
from training.clips import PAN, PANS, Path, film
from training.measures import displacements, distance, flicker, is_shape, of_colour, psnr, sharpness
from training.pictures import draw

SIZE = Size(144, 80)


def _clip(mode: str, motion: float, seed: int = 2) -> np.ndarray:
    path = Path.of(mode, motion, SIZE, np.random.default_rng(1))
    frames = film(draw(7), path, SIZE, np.random.default_rng(seed))
    return ((frames + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("pan", PANS)
@pytest.mark.parametrize("motion", [64, 255])
def test_motion_is_found_where_it_goes_and_as_far(pan: str, motion: int) -> None:
    frames = _clip(pan, motion)
    x, y = PANS[pan]
    wanted = np.array([x, y]) * PAN * motion / 255 / SIZE.width
    assert displacements(frames)[15:-15, 25:-25].mean((0, 1)) == pytest.approx(wanted, abs=0.02)
    assert distance(frames) == pytest.approx(np.abs(wanted).sum(), rel=0.2)


def test_a_still_clip_goes_nowhere_and_has_no_flicker() -> None:
    frames = _clip("left", 0)
    assert distance(frames) < 0.001
    assert flicker(frames) < 0.1


def test_motion_is_no_flicker_and_noise_is() -> None:
    frames = _clip("left", 127)
    noise = np.random.default_rng(0).normal(0, 8, frames.shape)
    noisy = (frames + noise).clip(0, 255).astype(np.uint8)
    assert flicker(noisy) > 2 * flicker(frames)


def test_what_is_blurred_is_less_sharp() -> None:
    frame = _clip("left", 0)[0]
    assert sharpness(cv2.GaussianBlur(frame, (0, 0), 2)) < 0.6 * sharpness(frame)


def test_psnr_is_that_of_known_noise() -> None:
    frame = np.full((50, 50, 3), 128)
    assert psnr(frame + 10, frame) == pytest.approx(28.13, abs=0.01)


@pytest.mark.parametrize("colour", scenes.COLOURS)
def test_a_colour_is_known_in_any_light(colour: str) -> None:
    for light in (0.9, 1.0, 1.1):
        patch = np.clip(np.full((4, 4, 3), scenes.COLOURS[colour]) * light, 0, 255).astype(np.uint8)
        assert of_colour(patch, colour).all()


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_a_shape_is_that_shape_and_no_other(shape: str) -> None:
    image = np.zeros((80, 144), np.uint8)
    corners = np.array(scenes._corners(shape, np.array([70.0, 40.0]), 25.0), np.int32)
    mask = cv2.fillPoly(image, [corners], 1).astype(bool)
    assert [each for each in scenes.SHAPES if is_shape(mask, each)] == [shape]
    assert not is_shape(np.zeros((80, 144), bool), shape)
