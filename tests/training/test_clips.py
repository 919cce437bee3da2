"""The clips show the motion that they say."""

import numpy as np
import pytest
import torch

from deployments.models.size import Size
from training.clips import FRAMES, MODES, PAN, PANS, Path, film, make_clip, make_led_clip, make_maps
from training.pictures import SIDE, draw

SIZE = Size(48, 32)
PICTURE = draw(0)


def test_a_picture_follows_from_its_seed() -> None:
    assert np.array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


def test_a_picture_is_of_all_brightnesses() -> None:
    assert PICTURE.shape == (SIDE, SIDE, 3)
    assert PICTURE.std() > 20


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_moves_at_full_motion_and_hardly_at_the_least(mode: str) -> None:
    def moved(motion: int) -> float:
        path = Path.of(mode, motion, SIZE, np.random.default_rng(1))
        clip = film(PICTURE, path, SIZE, np.random.default_rng(2))
        return float((clip - clip[:1]).abs().mean())

    assert moved(255) > 10 * moved(1) > 0


@pytest.mark.parametrize("pan", PANS)
def test_a_pan_moves_what_is_seen_that_way(pan: str) -> None:
    path = Path.of(pan, 255, Size(100, 100), np.random.default_rng(0))
    clip = film(PICTURE, path, Size(100, 100), np.random.default_rng(2))
    by = int(PAN)
    x, y = (by * part for part in PANS[pan])
    back = torch.roll(clip[-1], (-y, -x), (1, 2))[:, by:-by, by:-by]
    assert (back - clip[0, :, by:-by, by:-by]).abs().mean() < 0.25 * (clip[-1] - clip[0]).abs().mean()


def test_a_clip_follows_from_its_source_of_chance() -> None:
    pictures = np.stack([draw(seed) for seed in range(3)])
    first, second = (make_clip(pictures, np.random.default_rng(5), SIZE) for _ in range(2))
    assert torch.equal(first.frames, second.frames)
    assert first.frames.shape == (FRAMES, 3, SIZE.height, SIZE.width)
    assert 1 <= first.motion <= 255


@pytest.mark.parametrize("mode", MODES)
def test_a_mix_says_what_happens(mode: str) -> None:
    pictures = np.stack([draw(seed) for seed in range(3)])
    clips = [make_clip(pictures, np.random.default_rng(seed), SIZE, {mode: 1.0}) for seed in range(3)]
    assert {clip.mode for clip in clips} == {mode}
    for clip in clips:
        assert clip.frames.shape == (FRAMES, 3, SIZE.height, SIZE.width)
        assert clip.frames.abs().max() <= 1
        assert clip.frames.std(0).max() > 0  # at motion 1 hardly more


def test_depth_maps_go_where_the_clip_goes_and_as_far() -> None:
    pictures = PICTURE[None]
    for seed in range(4):
        clip = make_led_clip(pictures, np.random.default_rng(seed), Size(144, 80))
        assert clip.maps is not None
        assert clip.maps.shape == (FRAMES, 1, 80, 144)
        assert _shift(clip.maps) == pytest.approx(_shift(clip.frames), abs=1)


def test_maps_that_are_to_be_read_go_both_ways_as_far_as_they_say() -> None:
    ways = set()
    for seed in range(6):
        mode, path, maps = make_maps(np.random.default_rng(seed), Size(144, 80))
        assert _shift(maps) == pytest.approx(path.shift[-1, 0], abs=1)
        ways.add(mode)
    assert ways == {"left", "right"}


def _shift(frames: torch.Tensor) -> int:
    """By how many pixels the first of some frames [F, C, H, W] must go to the right to be most like the last."""
    by = int(PAN)
    inside = frames[-1][..., by:-by]
    off = [float((frames[0].roll(shift, -1)[..., by:-by] - inside).abs().mean()) for shift in range(-by, by + 1)]
    return int(np.argmin(off)) - by
