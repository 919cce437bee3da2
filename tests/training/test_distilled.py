"""Distillation aims at where the teacher's guided sampling ends, and is content there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from deployments.models.size import Size
from training.bank import Bank, Shard
from training.distilled import GUIDANCE, STEPS, distilled_loss
from training.loop import Recipe
from training.networks import LATENT_CHANNELS
from training.unet import Ask, wanted_velocity

Aim = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""What a network takes for clean, of a clip and of whether the picture is seen."""


def _answering(aim: Aim, latents: torch.Tensor) -> Ask:
    def ask(_: object, asked: torch.Tensor, noise: torch.Tensor, embedding: torch.Tensor, *__: object) -> torch.Tensor:
        sigma = (4 * noise).exp()
        noisy = asked[:, :, :LATENT_CHANNELS] * torch.sqrt(sigma**2 + 1)[:, None, None, None, None]
        return wanted_velocity(aim(latents, embedding.any()), noisy, sigma)

    return ask


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(2, 5, LATENT_CHANNELS, 4, 6, generator=torch.Generator().manual_seed(0)).half().float()


@pytest.fixture
def bank(latents: torch.Tensor, tmp_path: Path) -> Bank:
    def make(rng: np.random.Generator, size: Size) -> Shard:
        both = latents[:1].expand(2, -1, -1, -1, -1)
        rest = {"embedding": torch.ones(2, 1, 8), "time_ids": torch.tensor([[6.0, 100.0, 0.02]] * 2)}
        return {"clip": both, "first": both[:, :1], **rest}

    return Bank(tmp_path, make)


def _right(latents: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    return latents[:1]


def _losses(student: Aim, teacher: Aim, latents: torch.Tensor, bank: Bank) -> list[float]:
    loss = distilled_loss(_answering(student, latents), _answering(teacher, latents), bank, Recipe(1))
    return [float(loss(step)) for step in range(2 * STEPS)]


def test_who_is_where_the_teacher_ends_has_nothing_to_learn(latents: torch.Tensor, bank: Bank) -> None:
    assert max(_losses(_right, _right, latents, bank)) < 1e-4


def test_the_last_level_aims_at_the_teachers_guided_guess(latents: torch.Tensor, bank: Bank) -> None:
    def by_sight(latents: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return latents[:1] + 0.5 * seen

    def led(latents: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return latents[:1] + 0.5 * torch.linspace(*GUIDANCE, 5)[:, None, None, None]

    assert max(_losses(led, by_sight, latents, bank)) < 1e-4
    off = _losses(_right, by_sight, latents, bank)
    assert max(off) == pytest.approx(float((0.5 * torch.linspace(*GUIDANCE, 5)).square().mean()), rel=1e-3)
    assert min(off) < 0.1 * max(off)  # elsewhere it is asked to agree with itself, and does
