"""The video UNet: from noise and a first picture to the latents of a clip.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models" (EDM), with velocities as SVD
has them: ``deployments.models.schedules`` says the same about sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

from deployments.models.sampler import FPS_ID
from deployments.models.schedules import Schedule, lcm_schedule
from deployments.models.size import Size
from training.bank import Bank, Shard
from training.clips import FRAMES, Clip, make_clip
from training.loop import Loss, Recipe, contact_sheet
from training.vae import Patches

CLIPS = 2
"""Clips a step."""

SHARD = 32
"""Clips of a shard."""

USES = 6
"""How often a clip is seen before the bank grows by another."""

SIGMA_MIN = 10.0
"""The least noise that it is asked about.

A clip follows from its picture and its motion id, and under much noise a network sees nothing else. What it would have
to learn about little noise is to take that away again, and a small one leaves a grain.
"""

LOG_SIGMA = (4.5, 1.2)
"""Mean and standard deviation of the noise levels' logarithms. Where a clip's 14 frames and its picture all show the
same, little noise hides nothing: what is to be learnt is at higher levels than for single pictures."""

LOG_AUGMENTATION = (-4.0, 0.7)
"""The same of the augmentations. SVD was trained with more (-3, 0.5); a small network then blurs what it copies."""

BLIND = 0.1
"""Part of the clips whose picture is withheld, for classifier-free guidance."""


Encode = Callable[[torch.Tensor], torch.Tensor]

Ask = Callable[..., torch.Tensor]
"""A network that answers with velocities: it is told the clips, and what the service tells its UNet."""


def asking(unet: Any) -> Ask:
    """What the UNet answers by itself."""
    return lambda clips, *asked: torch.as_tensor(unet(*asked).sample)


def clip_maker(
    encode: Encode, embed: Encode, pictures: np.ndarray, shoot: Callable[..., Clip] = make_clip, count: int = SHARD
) -> Callable[..., Shard]:
    """Makes the shards of a bank.

    Args:
        encode: Frames [N, 3, H, W] to latents [N, C, h, w].
        embed: The image encoder: pictures [N, 3, H, W] to embeddings [N, 1, D].
        pictures: uint8 [N, S, S, 3].
        shoot: Makes a clip from pictures, a source of chance, and a size.
        count: Clips of a shard.
    """

    @torch.no_grad()
    def make(rng: np.random.Generator, size: Size) -> Shard:
        rows = [_encode(encode, embed, shoot(pictures, rng, size), rng) for _ in range(count)]
        return {name: torch.stack([row[name] for row in rows]).half() for name in rows[0]}

    return make


def _encode(encode: Encode, embed: Encode, clip: Clip, rng: np.random.Generator) -> Shard:
    augmentation = float(np.exp(rng.normal(*LOG_AUGMENTATION)))
    noise = torch.from_numpy(rng.standard_normal(clip.frames[0].shape, np.float32))
    first = clip.frames[:1] + augmentation * noise
    encoded = encode(torch.cat([clip.frames, first]))
    return {
        "clip": encoded[:-1],
        "first": encoded[-1:],
        "embedding": embed(clip.frames[:1])[0],
        "time_ids": torch.tensor([FPS_ID, clip.motion, augmentation]),
        **({} if clip.maps is None else {"maps": clip.maps}),
    }


def made_maker(unet: Any, encode: Encode, embed: Encode, pictures: np.ndarray, count: int) -> Callable[..., Shard]:
    """Makes the shards of a bank of what a UNet makes of clips, and the clips: a decoder learns to bear the difference.

    Args:
        unet: It samples in four steps, as the fast endpoint does.
        encode: As in ``clip_maker``.
        embed: As in ``clip_maker``.
        pictures: uint8 [N, S, S, 3].
        count: Clips of a shard.
    """

    @torch.no_grad()
    def make(rng: np.random.Generator, size: Size) -> Shard:
        clips = [make_clip(pictures, rng, size) for _ in range(count)]
        rows = [_encode(encode, embed, clip, rng) for clip in clips]
        told = {name: torch.stack([row[name] for row in rows]).to(unet.device) for name in rows[0]}
        seed = int(rng.integers(2**31))
        latents = sample(asking(unet), told, lcm_schedule(4, SIGMA_MIN), (1.0, 1.0), seed).cpu()
        return {"latents": latents.half(), "frames": torch.stack([clip.frames for clip in clips]).half()}

    return make


def unet_loss(ask: Ask, bank: Bank, recipe: Recipe) -> Loss:
    """What a step of the network is to lessen: the error of its guess of the clip."""

    def loss(step: int) -> torch.Tensor:
        rng = recipe.generator(step)
        shards = 4 + step * CLIPS // (USES * SHARD)
        clips = {name: values.to(recipe.device) for name, values in bank.draw(rng, CLIPS, shards).items()}
        torch.manual_seed(int(rng.integers(2**31)))
        sigma = torch.from_numpy(np.exp(rng.normal(*LOG_SIGMA, CLIPS))).float().to(recipe.device)
        seen = torch.from_numpy((rng.random(CLIPS) >= BLIND).astype(np.float32)).to(recipe.device)
        noisy = clips["clip"] + sigma[:, None, None, None, None] * torch.randn_like(clips["clip"])
        guess = clean(noisy, predict(ask, noisy, sigma, clips, seen).float(), sigma)
        return (guess - clips["clip"]).square().mean()

    return loss


def predict(ask: Ask, noisy: torch.Tensor, sigma: torch.Tensor, clips: Shard, seen: torch.Tensor) -> torch.Tensor:
    """The velocity [B, F, C, h, w] of noisy clips at noise levels [B], blind to the picture where ``seen`` [B] is 0."""
    scaled = noisy / torch.sqrt(sigma**2 + 1)[:, None, None, None, None]
    first = (clips["first"] * seen[:, None, None, None, None]).expand(-1, noisy.shape[1], -1, -1, -1)
    embedding = clips["embedding"] * seen[:, None, None]
    return ask(clips, torch.cat([scaled, first], dim=2), 0.25 * sigma.log(), embedding, clips["time_ids"])


def guided(
    ask: Ask, noisy: torch.Tensor, sigma: torch.Tensor, clips: Shard, guidance: tuple[float, float]
) -> torch.Tensor:
    """The velocity [B, F, C, h, w], led away from that of no picture, by so much in the first frame and in the last."""
    velocity = predict(ask, noisy, sigma, clips, torch.ones_like(sigma))
    if max(guidance) <= 1:
        return velocity
    blind = predict(ask, noisy, sigma, clips, torch.zeros_like(sigma))
    strength = torch.linspace(*guidance, noisy.shape[1], device=noisy.device)[None, :, None, None, None]
    return blind + strength * (velocity - blind)


def clean(noisy: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The guess that a velocity stands for, as ``Schedule.clean`` has it, at noise levels [B]."""
    sigma = sigma.reshape(-1, *[1] * (noisy.dim() - 1))
    return noisy / (sigma**2 + 1) - velocity * sigma / torch.sqrt(sigma**2 + 1)


def wanted_velocity(clips: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The velocity from which ``clean`` would guess right."""
    sigma = sigma.reshape(-1, *[1] * (clips.dim() - 1))
    return (noisy / (sigma**2 + 1) - clips) * torch.sqrt(sigma**2 + 1) / sigma


@torch.no_grad()
def sample(
    ask: Ask,
    clips: Shard,
    schedule: Schedule,
    guidance: tuple[float, float],
    seed: int,
    frames: int = FRAMES,
) -> torch.Tensor:
    """Latents [B, F, C, h, w] from the pictures and time ids of some clips, as the service samples them."""
    generator = torch.Generator().manual_seed(seed)
    count, _, *shape = clips["first"].shape
    device = clips["first"].device
    every = torch.ones(count, device=device)
    latents = torch.randn(count, frames, *shape, generator=generator).to(device) * schedule.initial_scale
    for index in range(schedule.steps):
        velocity = guided(ask, latents, schedule.sigmas[index] * every, clips, guidance)
        noise = torch.randn(latents.shape, generator=generator).to(device) if schedule.needs_noise(index) else None
        latents = schedule.step(latents, velocity, index, noise)
    return latents


def unet_sheet(
    pictures: torch.Tensor, patches: Patches, embed: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Any], Image.Image]:
    """Draw pictures [N, 3, H, W], and beside each four frames of what four steps make of it at a motion id of 200."""
    conditions = {
        "first": patches.encode(pictures)[:, None],
        "embedding": embed(pictures),
        "time_ids": torch.tensor([[FPS_ID, 200.0, 0.0]] * len(pictures)),
    }

    def sheet(unet: Any) -> Image.Image:
        on_device = {name: values.to(unet.device) for name, values in conditions.items()}
        latents = sample(asking(unet), on_device, lcm_schedule(4, SIGMA_MIN), (1.0, 1.0), seed=0).cpu()
        shown = [0, FRAMES // 3, 2 * FRAMES // 3, FRAMES - 1]
        clips = [patches.decode(clip[shown]).clamp(-1, 1) for clip in latents]
        return contact_sheet([torch.cat([picture[None], clip]) for picture, clip in zip(pictures, clips, strict=True)])

    return sheet
