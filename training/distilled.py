"""Latent consistency distillation: from any noise, a UNet's guess is to be the clip at which guided sampling would end.

    noisy clip ──▶ teacher, guided ──▶ one Euler step ──▶ what the student guesses from there, without a gradient
        └────────▶ student ──▶ its guess, held against that

Luo et al. 2023, "Latent Consistency Models". What is aimed at comes from the student itself, not from a running mean of
it: Song and Dhariwal 2023, "Improved Techniques for Training Consistency Models".
"""

from __future__ import annotations

import torch

from deployments.models.schedules import euler_schedule
from training.bank import Bank
from training.loop import Loss, Recipe
from training.unet import CLIPS, SIGMA_MIN, Ask, clean, guided, predict

STEPS = 25
"""Of the teacher's sampling."""

GUIDANCE = (1.0, 1.5)
"""Of the first frame and of the last, as the guided endpoint has it."""

SHARDS = 4
"""Of the bank: what is learnt is the teacher's, not new clips."""


def distilled_loss(student: Ask, teacher: Ask, bank: Bank, recipe: Recipe) -> Loss:
    """What a step of the student is to lessen: how far its guesses lie apart, at two neighbouring noise levels."""
    schedule = euler_schedule(STEPS, SIGMA_MIN)

    def loss(step: int) -> torch.Tensor:
        rng = recipe.generator(step)
        clips = {name: values.to(recipe.device) for name, values in bank.draw(rng, CLIPS, SHARDS).items()}
        torch.manual_seed(int(rng.integers(2**31)))
        index = int(rng.integers(schedule.steps))
        seen = torch.ones(CLIPS, device=recipe.device)
        sigma, less = (schedule.sigmas[at] * seen for at in (index, index + 1))
        noisy = clips["clip"] + schedule.sigmas[index] * torch.randn_like(clips["clip"])
        with torch.no_grad():
            wanted = schedule.step(noisy, guided(teacher, noisy, sigma, clips, GUIDANCE).float(), index)
            if index + 1 < schedule.steps:
                wanted = clean(wanted, predict(student, wanted, less, clips, seen).float(), less)
        guess = clean(noisy, predict(student, noisy, sigma, clips, seen).float(), sigma)
        return (guess - wanted).square().mean()

    return loss
