"""What stays still, pixel by pixel and latent by latent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.models.stillness import feather, lay_over, still_cells


def random_mask(seed: int, height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 2, (4, 4)).astype(bool)
    return coarse.repeat(height // 4, axis=0).repeat(width // 4, axis=1)


def half_still(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[:, : width // 2] = True
    return mask


# ---------------------------------------------------------------- latents


def test_a_latent_stays_only_if_all_its_pixels_stay() -> None:
    still = np.ones((32, 48), dtype=bool)
    still[9, 17] = False  # one pixel of the cell in row 1, column 2

    cells = still_cells(still, 8)
    assert cells.shape == (4, 6)
    assert (~cells).nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("value", [True, False])
def test_a_uniform_mask_is_uniform_in_latents(value: bool) -> None:
    assert torch.equal(still_cells(np.full((16, 32), value), 8), torch.full((2, 4), value))


# ---------------------------------------------------------------- the feather


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.sampled_from([16, 64, 80, 256]), width=st.sampled_from([16, 112, 256]))
def test_the_feather_lies_on_the_moving_side(seed: int, height: int, width: int) -> None:
    still = torch.from_numpy(random_mask(seed, height, width))
    weight = feather(still)

    assert weight.shape == still.shape
    assert bool((weight[still] > 0.99999).all())
    assert bool(((weight >= 0) & (weight <= 1)).all())


@pytest.mark.parametrize(("height", "reach"), [(64, 4), (576, 12), (1024, 20)])
def test_the_feather_falls_to_nothing_within_its_reach(height: int, reach: int) -> None:
    weight = feather(torch.from_numpy(half_still(height, 1024)))
    row = weight[height // 2, 512:]

    assert bool((row[reach:] == 0).all())
    assert bool((row[: reach // 2] > 0).all())
    assert bool((row.diff() <= 1e-6).all())


@pytest.mark.parametrize(("height", "step"), [(64, 0.34), (576, 0.15)])
def test_no_neighbours_differ_by_more_than_a_step_of_the_feather(height: int, step: float) -> None:
    """The hardest border there is: a black picture laid over white frames."""
    frames, picture = torch.ones(2, 3, height, 1024), torch.zeros(3, height, 1024)
    laid = lay_over(frames, picture, half_still(height, 1024))

    assert laid.diff(dim=3).abs().max() <= step
    assert laid.diff(dim=2).abs().max() <= 1e-6


# ---------------------------------------------------------------- laying over


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_what_stays_is_the_picture_bit_for_bit(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(3, 3, 64, 80, generator=generator)
    picture = torch.rand(3, 64, 80, generator=generator)
    still = random_mask(seed, 64, 80)

    laid = lay_over(frames, picture, still)

    stays = torch.from_numpy(still)
    assert torch.equal(laid[..., stays], picture.expand(3, -1, -1, -1)[..., stays])
    far = feather(stays) == 0
    assert torch.equal(laid[..., far], frames[..., far])
