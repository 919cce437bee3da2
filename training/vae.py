"""The temporal VAE: pictures to latents and back.

    pictures ──▶ principal components of patches ──▶ encoder, which computes just those ──▶ decoder, which is trained

The encoder is not trained. The best linear one follows from the pictures in seconds; it fits into the stock class; and
the UNet can be trained as soon as it is known, while the decoder is trained beside it. A linear encoder has another
virtue: latents of a picture that moves depend linearly on those around them, which a small UNet learns soon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from deployments.models.size import Size
from training.bank import Bank, Shard
from training.clips import FRAMES, make_clip
from training.loop import Loss, Recipe, contact_sheet
from training.measures import flow
from training.networks import LATENT_CHANNELS
from training.scenes import draw_scene

CROP = Size(64, 64)

CROPS = 16
"""Crops a step, while what is linear is learnt."""

CLIPS, TOGETHER = 4, 3
"""Clips a step, and frames in each, while the decoder learns."""

MADE, LONGER = 1, 6
"""Clips a step, and frames in each, while it learns from what the UNet makes; there are as many of other clips."""

MADE_USES = 16
"""Steps for each shard of what the UNet makes."""

STILLS = 8
"""Scenes a step, while that of single pictures learns; of other pictures there are half as many."""

LARGE, STRAIGHT = 128.0, 32.0
"""The constant beside the encoder's numbers, which are up to about 14; and where its SiLU is straight."""

LOG_VARIANCE = -5.0
"""Of the noise on latents that the decoder learns to bear."""

EDGES = 0.5
"""Weight of the error of differences between neighbours."""

FLICKER = 2.0
"""Weight of what of the error changes from frame to frame."""


@dataclass(frozen=True)
class Patches:
    """The principal components of patches of 8 by 8 pixels: what the encoder computes.

    Attributes:
        fine: Of the 48 numbers of a patch of 4 by 4 pixels, [48, 48].
        coarse: From four times those to a latent, [C, 192].
        offset: Of the latents, [C].
        inverse: From a latent to a patch, [192, C]; the best that is linear.
        mean: Of the patches, [192].
    """

    fine: torch.Tensor
    coarse: torch.Tensor
    offset: torch.Tensor
    inverse: torch.Tensor
    mean: torch.Tensor

    @classmethod
    def of(cls, pictures: np.ndarray, count: int = 2000, channels: int = LATENT_CHANNELS) -> Patches:
        """Those of some pictures [N, S, S, 3].

        Between equal variances, with which what is small would count as much as what is large, and the variances of
        pixels: the root of each component's spread is left to it, and the mean variance is 1.
        """
        rng = np.random.default_rng(0)
        crops = np.stack([_crop(pictures[int(rng.integers(len(pictures)))], rng) for _ in range(count)])
        whole = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
        quarters = _split(_split(whole))
        fine = _components(quarters, 48)[0]
        coarse, spread = _components(_split(_mixed(quarters, fine)), channels)
        scale = 0.85 * spread.rsqrt() / spread.mean().sqrt()  # photographs have more contrast than what is drawn
        coarse = coarse * scale[:, None]
        made = _mixed(_split(_mixed(quarters, fine)), coarse).permute(0, 2, 3, 1).flatten(0, 2)
        patches = _split(quarters).permute(0, 2, 3, 1).flatten(0, 2)
        mean = patches.mean(0)
        centred = made - made.mean(0)
        inverse = torch.linalg.lstsq(centred, patches - mean).solution.T
        return cls(fine, coarse, -made.mean(0), inverse, mean)

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Latents [N, C, h, w] of pictures [N, 3, H, W] in -1..1: what the VAE's encoder answers, sooner."""
        latents = _mixed(_split(_mixed(_split(_split(pictures)), self.fine)), self.coarse)
        return latents + self.offset[:, None, None]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures from latents, patch by patch."""
        patches = _mixed(latents, self.inverse) + self.mean[:, None, None]
        for _ in range(3):
            patches = functional.pixel_shuffle(patches, 2)
        return patches

    @torch.no_grad()
    def install(self, vae: Any) -> None:
        """Make a VAE's encoder compute this, whose residual branches add nothing.

        Its last norm would take away how bright a picture is. A group of three channels that holds a number, the
        number's negative and a large constant has always about the same mean and spread, and far above 0 the SiLU
        behind it is straight.
        """
        encoder, count = vae.encoder, len(self.offset)
        convolutions = [encoder.conv_in, *(block.downsamplers[0].conv for block in encoder.down_blocks[:-1])]
        shortcuts = [resnet.conv_shortcut for block in encoder.down_blocks for resnet in block.resnets]
        for layer in [*convolutions, *filter(None, shortcuts), encoder.conv_out, vae.quant_conv]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        first, half, quarter, eighth = convolutions
        first.weight[:3, :, 1, 1] = torch.eye(3)
        for layer, matrix in ((half, torch.eye(12)), (quarter, self.fine), (eighth, self.coarse)):
            layer.weight[: len(matrix), : matrix.shape[1] // 4, :2, :2] = matrix.reshape(len(matrix), -1, 2, 2)
        eighth.bias[:count] = self.offset
        narrower, widest = filter(None, shortcuts)
        nn.init.eye_(narrower.weight[..., 0, 0])
        signal, negative = torch.arange(count) * 3, torch.arange(count) * 3 + 1
        widest.weight[signal, torch.arange(count)] = 1
        widest.weight[negative, torch.arange(count)] = -1
        widest.bias[negative + 1] = LARGE
        spread = LARGE * 2**0.5 / 3
        nn.init.constant_(encoder.conv_norm_out.weight, 2 * spread)
        nn.init.constant_(encoder.conv_norm_out.bias, STRAIGHT + 2 * LARGE / 3)
        encoder.conv_out.weight[torch.arange(count), signal, 1, 1] = 0.25
        encoder.conv_out.weight[torch.arange(count), negative, 1, 1] = -0.25
        vae.quant_conv.weight[:count, :count, 0, 0] = torch.eye(count)
        vae.quant_conv.bias[count:] = LOG_VARIANCE


def _split(images: torch.Tensor) -> torch.Tensor:
    """Four neighbours' channels as one's, at half the size."""
    return functional.pixel_unshuffle(images, 2)


def _mixed(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """A matrix [C', C] times each pixel's channels."""
    return functional.conv2d(images, matrix[..., None, None])


def _components(images: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest principal components of pixels' channels [count, C], largest first, and their spreads."""
    pixels = images.permute(0, 2, 3, 1).flatten(0, 2)
    variances, directions = torch.linalg.eigh(torch.cov(pixels.T))
    return directions.T.flip(0)[:count], variances.flip(0)[:count].sqrt()


def _crop(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = rng.integers(0, len(picture) - CROP.height, 2)
    return picture[y : y + CROP.height, x : x + CROP.width]


Batch = Callable[[np.random.Generator], torch.Tensor]
"""Draws what a step sees: frames [N, 3, H, W] in -1..1."""

Decode = Callable[[torch.Tensor], Any]
"""Frames from latents [N, C, h, w]."""


def decoder_loss(patches: Patches, batch: Batch, decode: Decode, recipe: Recipe) -> Loss:
    """What a step of a decoder is to lessen."""

    def loss(step: int) -> torch.Tensor:
        rng = recipe.generator(step)
        wanted = batch(rng)
        torch.manual_seed(int(rng.integers(2**31)))
        latents = patches.encode(wanted)
        noisy = latents + math.exp(LOG_VARIANCE / 2) * torch.randn_like(latents)
        return _error_size(decode(noisy.to(recipe.device)).float() - wanted.to(recipe.device))

    return loss


def refined_decoder_loss(patches: Patches, pictures: np.ndarray, made: Bank, decode: Decode, recipe: Recipe) -> Loss:
    """What a step of a video decoder is to lessen that learns what a UNet makes of latents.

    Args:
        patches: The encoder.
        pictures: Of clips that are encoded, uint8 [N, S, S, 3].
        made: What the UNet makes of clips, ``latents``, and what they are, ``frames``.
        decode: Frames from latents of clips of ``LONGER`` frames.
        recipe: How.
    """

    def loss(step: int) -> torch.Tensor:
        rng = recipe.generator(step)
        pieces = [_piece(made.draw(rng, 1, 1 + step // MADE_USES), rng) for _ in range(MADE)]
        frames = [_frames(pictures, rng, LONGER) for _ in range(MADE)]
        wanted = torch.cat([*(piece for _, piece in pieces), *frames]).to(recipe.device)
        latents = torch.cat([*(latents for latents, _ in pieces), *map(patches.encode, frames)]).to(recipe.device)
        error = decode(latents).float() - wanted
        clips = (each.unflatten(0, (-1, LONGER)) for each in (error, wanted))
        flicker = torch.cat([changes(*clip) for clip in zip(*clips, strict=True)])
        return _error_size(error) + FLICKER * _size(flicker)

    return loss


def changes(error: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """What of a clip's error [F, 3, H, W] changes from frame to frame where motion is undone, [F - 1, 3, H, W].

    An error that goes with what moves, such as a blur, does not change.
    """
    pixels = [(frame * 127.5 + 127.5).round().byte().permute(1, 2, 0).cpu().numpy() for frame in frames]
    moved = torch.from_numpy(np.stack([flow(before, after) for before, after in pairwise(pixels)])).to(error)
    sides = torch.tensor([frames.shape[3], frames.shape[2]]).to(error)
    stay = functional.affine_grid(torch.eye(2, 3).to(error)[None], [1, *error.shape[1:]], align_corners=False)
    back = functional.grid_sample(error[1:], stay + 2 * moved / sides, padding_mode="reflection", align_corners=False)
    return back - error[:-1]


def _piece(clip: Shard, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Some latents of the one clip that was drawn, and the frames that they should become, as large as ``CROP``."""
    latents, frames = clip["latents"][0], clip["frames"][0]
    start = int(rng.integers(len(frames) - LONGER + 1))
    height, width = CROP.height // 8, CROP.width // 8
    y, x = int(rng.integers(latents.shape[2] - height + 1)), int(rng.integers(latents.shape[3] - width + 1))
    latents = latents[start : start + LONGER, :, y : y + height, x : x + width]
    frames = frames[start : start + LONGER, :, 8 * y : 8 * y + CROP.height, 8 * x : 8 * x + CROP.width]
    return latents, frames


def clips_of(pictures: np.ndarray) -> Batch:
    """Some frames of some clips, each ``TOGETHER`` after each other."""
    return lambda rng: torch.cat([_frames(pictures, rng, TOGETHER) for _ in range(CLIPS)])


def crops_of(pictures: np.ndarray) -> Batch:
    """Crops of pictures."""

    def batch(rng: np.random.Generator) -> torch.Tensor:
        crops = [_crop(pictures[int(rng.integers(len(pictures)))], rng) for _ in range(CROPS)]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1

    return batch


def stills_of(pictures: np.ndarray) -> Batch:
    """Scenes, and crops of pictures."""

    def batch(rng: np.random.Generator) -> torch.Tensor:
        scenes = [draw_scene(rng, CROP)[1] for _ in range(STILLS)]
        crops = [_crop(pictures[int(rng.integers(len(pictures)))], rng) for _ in range(STILLS // 2)]
        return torch.from_numpy(np.stack([*scenes, *crops])).permute(0, 3, 1, 2).float() / 127.5 - 1

    return batch


def _error_size(error: torch.Tensor) -> torch.Tensor:
    """Of pixels and of their differences."""
    return _size(error) + EDGES * (_size(error.diff(dim=-1)) + _size(error.diff(dim=-2)))


def decoder_sheet(pictures: torch.Tensor, patches: Patches, decode: Decode) -> Callable[[Any], Image.Image]:
    """Draw pictures [N, 3, H, W] above what comes back, each decoded for itself."""

    @torch.no_grad()
    def sheet(network: Any) -> Image.Image:
        latents = patches.encode(pictures).to(next(network.parameters()).device)
        made = torch.cat([decode(each[None]) for each in latents])
        return contact_sheet([pictures, made.clamp(-1, 1).cpu()])

    return sheet


def psnr(made: torch.Tensor, wanted: torch.Tensor) -> float:
    """Peak signal to noise ratio in dB of values in -1..1."""
    return float(10 * torch.log10(4 / (made - wanted).square().mean()))


def _frames(pictures: np.ndarray, rng: np.random.Generator, count: int) -> torch.Tensor:
    """So many frames of a clip, at one of several speeds."""
    clip = make_clip(pictures, rng, CROP).frames
    return clip[:: int(rng.integers(1, FRAMES // count + 1))][:count]


def _size(error: torch.Tensor) -> torch.Tensor:
    return error.abs().mean()
