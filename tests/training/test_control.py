"""The depth ControlNet learns to read before it leads."""

from typing import Any

import numpy as np
import pytest
import torch

from deployments.models.networks import VideoUNet
from training.clips import FRAMES, PAN, make_maps
from training.control import READ_SIZES, Led, Reader, reader_loss
from training.loop import Recipe
from training.networks import EMBEDDING, depth_controlnet, video_unet

BESIDES = (torch.tensor([1.0]), torch.zeros(1, 1, EMBEDDING), torch.tensor([[6.0, 127.0, 0.02]]))


def _reader() -> Reader:
    torch.manual_seed(0)
    return Reader(depth_controlnet(video_unet()))


def test_each_latent_of_each_frame_has_a_reading_that_maps_change() -> None:
    reader = _reader()
    _, _, maps = make_maps(np.random.default_rng(0), READ_SIZES[1])
    with torch.no_grad():
        read, other = reader(maps[None], *BESIDES), reader(maps.flip(-1)[None], *BESIDES)
    assert read.shape == (1, FRAMES, 6, 10)
    assert (read - other).abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_what_is_wanted_is_how_far_the_maps_went(seed: int) -> None:
    recipe = Recipe(1, seed=seed)
    rng = recipe.generator(0)
    ways = []

    def read(maps: torch.Tensor, *_: Any) -> torch.Tensor:
        """How far the maps went, from where they came from."""
        for each in maps:
            mode, path, again = make_maps(rng, READ_SIZES[0])
            assert torch.equal(each, again) and mode in ("left", "right")
            ways.append(path.shift[:, 0] / PAN)
        return torch.from_numpy(np.stack(ways)).float()[..., None, None]

    assert float(reader_loss(read, recipe)(0)) == 0  # type: ignore[arg-type]
    assert {float(np.sign(way[-1])) for way in ways} == {-1.0, 1.0}


def test_what_is_read_is_said_aloud() -> None:
    """A UNet is told two sets of maps apart by as much as they are read apart, and that there are maps at all."""
    reader = _reader()
    maps = torch.stack([make_maps(np.random.default_rng(seed), READ_SIZES[1])[2] for seed in range(2)])
    besides = [each.expand(2, *each.shape[1:]) for each in BESIDES]
    with torch.no_grad():
        read = reader(maps, *besides)
        control = Led(VideoUNet.from_config(video_unet().config), reader).control
        features = control.embed(maps.expand(-1, -1, 3, -1, -1))
        nothing = features.new_zeros(*features.shape[:2], control.config.in_channels, *features.shape[3:])
        *skips, middle = control(nothing, *besides, features=features, accumulate=True)
    assert not any(each.any() for each in skips)
    told = middle.unflatten(0, (2, -1))
    apart, read_apart = told[1] - told[0], read[1] - read[0]
    direction = apart[-1, :, 3, 3] / read_apart[-1, 3, 3]
    there = told[0] - direction[:, None, None] * read[0][:, None]
    torch.testing.assert_close(there, there[:1, :, :1, :1].expand_as(there), rtol=1e-2, atol=5e-2)
    assert there.square().mean().sqrt() > 2
    aloud = apart.square().mean(1).sqrt() / read_apart.abs()
    torch.testing.assert_close(aloud, aloud.mean().expand_as(aloud), rtol=1e-2, atol=1e-2)
    assert 2 < aloud.mean() < 8
    assert not any(parameter.requires_grad for parameter in control.parameters())
