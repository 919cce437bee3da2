"""The text-to-image model: captions of a small vocabulary to latents of pictures.

    caption ──▶ tokens ──▶ text tower ──┐
    noisy latents ──────────────────────┴──▶ UNet ──▶ velocity

Both towers learn together. Noise levels and velocities are the video UNet's, so one sampler says how both are used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTokenizer

from deployments.models.schedules import euler_schedule
from deployments.models.size import Size
from training import networks
from training.bank import SIZES
from training.loop import Loss, Recipe, contact_sheet
from training.scenes import draw_scene
from training.unet import BLIND, wanted_velocity
from training.vae import Patches

SCENES = 32
"""Pictures a step."""

LOG_SIGMA = (2.0, 1.4)
"""Mean and standard deviation of the noise levels' logarithms."""

GUIDANCE = 3.0
"""How much farther than the caption alone would lead the service goes."""

SIGMA_MIN = 1.0
"""The least noise that it is asked about: below, it would leave a grain."""

STEPS = 16

LONGEST = 32
"""Tokens of a caption; the longest of ours has about twenty words."""

START, END = "<|startoftext|>", "<|endoftext|>"

PROMPTS = (
    "a red circle on a blue background",
    "a yellow square on a green background",
    "a blue triangle and a white circle on a red ground",
    "the sun on the sea at sunset",
    "a red boat on a calm lake at sunrise",
    "a yellow balloon over green hills by day",
    "the moon over snowy mountains at night",
    "green hills under a blue sky",
)
"""What sheets show."""


class Painter(nn.Module):
    """Both towers, as they are trained."""

    def __init__(self, vocabulary: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = networks.text_encoder(vocabulary)
        self.unet = networks.image_unet()

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The velocity [B, C, h, w] of noisy latents at noise levels [B] under captions, as tokens [B, LONGEST]."""
        scaled = noisy / torch.sqrt(sigma**2 + 1)[:, None, None, None]
        words = self.text_encoder(tokens).last_hidden_state
        velocity: torch.Tensor = self.unet(scaled, 0.25 * sigma.log(), words).sample
        return velocity


def tokenizer() -> CLIPTokenizer:
    """One token for each word of the vocabulary, and one for each byte, so that any prompt can be read."""
    rng = np.random.default_rng(0)
    captions = [draw_scene(rng, Size(16, 16))[0] for _ in range(2000)]
    words = sorted({word for caption in captions for word in caption.split()})
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    # Known beforehand: the trainer would number them as it meets them, by chance, and break ties by their numbers.
    last_letters = [f"{letter}</w>" for letter in letters]
    options: dict[str, Any] = {"vocab_size": 10_000, "special_tokens": last_letters, "show_progress": False}
    learner.train_from_iterator(words, trainers.BpeTrainer(end_of_word_suffix="</w>", **options))
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = [*letters, *last_letters, *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LONGEST)


def tokens_of(vocabulary: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """Captions as the pipeline reads them, [N, LONGEST]."""
    read = vocabulary(list(captions), padding="max_length", max_length=LONGEST, truncation=True, return_tensors="pt")
    tokens: torch.Tensor = read.input_ids
    return tokens


def painter_loss(painter: Painter, vocabulary: CLIPTokenizer, patches: Patches, recipe: Recipe) -> Loss:
    """What a step is to lessen: the error of its velocity. Pictures are drawn anew for each."""

    def loss(step: int) -> torch.Tensor:
        rng = recipe.generator(step)
        size = SIZES[int(rng.integers(len(SIZES)))]
        captions, pictures = zip(*(draw_scene(rng, size) for _ in range(SCENES)), strict=True)
        told = ["" if rng.random() < BLIND else caption for caption in captions]
        clean = patches.encode(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1)
        clean = clean.to(recipe.device)
        torch.manual_seed(int(rng.integers(2**31)))
        sigma = torch.from_numpy(np.exp(rng.normal(*LOG_SIGMA, SCENES))).float().to(recipe.device)
        noisy = clean + sigma[:, None, None, None] * torch.randn_like(clean)
        velocity: torch.Tensor = painter(noisy, sigma, tokens_of(vocabulary, told).to(recipe.device))
        error = velocity.float() - wanted_velocity(clean, noisy, sigma)
        return error.square().mean()

    return loss


@torch.no_grad()
def paint(painter: Painter, tokens: torch.Tensor, nothing: torch.Tensor, size: Size, seed: int) -> torch.Tensor:
    """Latents [N, C, h, w] of captions [N, LONGEST], led away from ``nothing``, the tokens [1, LONGEST] of none."""
    schedule = euler_schedule(STEPS, SIGMA_MIN)
    count, device = len(tokens), tokens.device
    noise = torch.randn(
        count,
        networks.LATENT_CHANNELS,
        size.height // 8,
        size.width // 8,
        generator=torch.Generator().manual_seed(seed),
    )
    latents = noise.to(device) * schedule.initial_scale
    for index in range(schedule.steps):
        sigma = torch.full((count,), schedule.sigmas[index], device=device)
        without, told = (painter(latents, sigma, each) for each in (nothing.expand(count, -1), tokens))
        latents = schedule.step(latents, without + GUIDANCE * (told - without), index)
    return latents


def painter_sheet(vocabulary: CLIPTokenizer, patches: Patches) -> Callable[[Any], Image.Image]:
    """Draw what ``PROMPTS`` give."""
    half = len(PROMPTS) // 2
    halves = tokens_of(vocabulary, PROMPTS[:half]), tokens_of(vocabulary, PROMPTS[half:])
    nothing = tokens_of(vocabulary, [""])

    def sheet(painter: Any) -> Image.Image:
        device = next(painter.parameters()).device
        rows = [
            patches.decode(paint(painter, part.to(device), nothing.to(device), SIZES[0], seed=0).cpu()).clamp(-1, 1)
            for part in halves
        ]
        return contact_sheet(rows)

    return sheet
