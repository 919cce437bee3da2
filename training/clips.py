"""Clips of a camera that moves over a drawn picture, and how far it moves is what the motion id says.

    picture [S, S, 3], mode, motion id ──▶ path of the camera ──▶ frames [F, 3, H, W] in -1..1

A frame is the picture seen through an affine map, so what moves is known exactly. At motion 255 a pan goes by 14
pixels over ``FRAMES`` frames; at 1 by a twentieth of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch.nn import functional

from deployments.models.size import Size
from training.pictures import draw_depth, shape_mask

FRAMES = 14
"""Frames in a clip: as many as the first SVD was trained on."""

MOST_MOTION = 255

ZOOM = 0.35
"""By how much a clip of full motion enlarges."""

PAN = 14.0
"""How far one goes, in pixels, whatever the frame's size: nearly two latents, so that what comes is near."""

TURN = 0.2
"""By how much a rotation turns, in radians."""

SWAY = 0.08
"""How far something sways, in widths of the frame."""

PANS: Mapping[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Where what is seen goes, x to the right and y down."""

MODES = (*PANS, "zoom in", "zoom out", "turn", "parallax", "sway")
"""What may happen."""

Mix = Mapping[str, float]
"""How often each mode happens."""

SCALES = (0.9, 1.75)
"""Pixels of a picture to a pixel of a clip."""

FREE: Mix = {"left": 1.0}
"""Where nothing but the motion id leads.

Of several modes, none of which the picture tells, a network would first have to learn the mean, which is blurred. And
this one is the same everywhere in the frame: each place teaches what all need.
"""

LED: Mix = {"left": 1.0}
"""Where depth maps lead: how far is theirs to say, whatever the motion id says."""

READ: Mix = {"left": 1.0, "right": 1.0}
"""Where maps go that a ControlNet learns to read."""


@dataclass(frozen=True)
class Path:
    """Where everything is in each frame, against the first.

    Attributes:
        shift: Of what is seen, in pixels of the clip, [F, 2] as x and y.
        zoom: Enlargement, [F].
        angle: Rotation, in radians, [F].
        sway: Of what is about the middle, in pixels of the clip, [F, 2].
    """

    shift: np.ndarray
    zoom: np.ndarray
    angle: np.ndarray
    sway: np.ndarray

    @classmethod
    def of(cls, mode: str, motion: float, size: Size, rng: np.random.Generator, frames: int = FRAMES) -> Path:
        """A path of a mode at a motion id."""
        at = np.arange(frames) / (FRAMES - 1)
        done = at * motion / MOST_MOTION
        wave = np.sin(at * 2 * np.pi) * motion / MOST_MOTION
        enlarged = {"zoom in": 1 + ZOOM * done, "zoom out": 1 / (1 + ZOOM * done)}
        return cls(
            shift=np.outer(done * PAN, _direction(mode, rng)),
            zoom=enlarged.get(mode, np.ones(frames)),
            angle=done * TURN * rng.choice([-1, 1]) if mode == "turn" else np.zeros(frames),
            sway=np.outer(wave * SWAY * size.width, [mode == "sway", 0]),
        )

    def scaled(self, by: float) -> Path:
        """As something farther away moves: the same, with less shift."""
        return Path(self.shift * by, self.zoom, self.angle, self.sway)


def _direction(mode: str, rng: np.random.Generator) -> tuple[float, float]:
    """Where a mode goes."""
    if mode == "parallax":
        return float(rng.choice([-1, 1])), 0.0
    return PANS.get(mode, (0.0, 0.0))


@dataclass(frozen=True)
class Clip:
    """A clip and what it was made from.

    Attributes:
        frames: [F, 3, H, W] in -1..1.
        motion: The motion id, 1 to 255.
        mode: One of MODES.
        maps: Of how near things are, [F, 1, H, W] in -1..1; None where there are none.
    """

    frames: torch.Tensor
    motion: int
    mode: str
    maps: torch.Tensor | None = None


def draw_motion(rng: np.random.Generator) -> int:
    """A motion id; all are as likely, but those at the lower end are drawn oftener."""
    return int(np.clip(rng.integers(1, MOST_MOTION + 1) if rng.random() < 0.9 else 1, 1, MOST_MOTION))


def make_clip(pictures: np.ndarray, rng: np.random.Generator, size: Size, mix: Mix = FREE) -> Clip:
    """A clip over one of some pictures [N, S, S, 3]; a layer before it, where there is one, is of another."""
    mode = _mode(mix, rng)
    motion = draw_motion(rng)
    path = Path.of(mode, motion, size, rng)
    if mode != "parallax":
        return Clip(film(_pick(pictures, rng), path, size, rng), motion, mode)
    near = film(_layer(_pick(pictures, rng), rng), path, size, rng)
    far = film(_pick(pictures, rng), path.scaled(0.4), size, rng)
    cover = near[:, 3:] / 2 + 0.5
    return Clip(far + cover * (near[:, :3] - far), motion, mode)


def make_led_clip(pictures: np.ndarray, rng: np.random.Generator, size: Size) -> Clip:
    """A clip with depth maps that move as it does; the motion id says nothing, for the maps say all."""
    mode, path, maps = make_maps(rng, size, LED)
    return Clip(film(_pick(pictures, rng), path, size, rng), draw_motion(rng), mode, maps)


def make_maps(rng: np.random.Generator, size: Size, mix: Mix = READ) -> tuple[str, Path, torch.Tensor]:
    """A mode, how far it goes, and depth maps [F, 1, H, W] in -1..1 that go there."""
    mode = _mode(mix, rng)
    path = Path.of(mode, rng.uniform(0, MOST_MOTION), size, rng)
    depth = draw_depth(rng, Size(size.width + int(2 * PAN), size.height + int(2 * PAN)))
    return mode, path, pass_over(depth[..., None], path, size)


def pass_over(picture: np.ndarray, path: Path, size: Size) -> torch.Tensor:
    """What the camera sees, [F, C, H, W] in -1..1, that starts at the middle of a picture uint8 [h, w, C], as it is.

    Beyond the picture's edges there is its mirror image.
    """
    middle = (np.array(picture.shape[1::-1]) - 1) / 2
    return _photographed(picture, middle + _seen(path, size))


def _mode(mix: Mix, rng: np.random.Generator) -> str:
    return str(rng.choice(list(mix), p=np.array(list(mix.values())) / sum(mix.values())))


def film(picture: np.ndarray, path: Path, size: Size, rng: np.random.Generator) -> torch.Tensor:
    """What the camera sees, [F, C, H, W] in -1..1, of a picture uint8 [S, S, C]; it starts at a place that suits."""
    side = len(picture)
    scale = float(np.exp(rng.uniform(*np.log(SCALES))))
    extent = _extent(path, size)
    scale = min(scale, (side - 2) / float(max(extent[1] - extent[0])))
    low, high = -extent[0] * scale, side - 1 - extent[1] * scale
    centre = rng.uniform(low, np.maximum(high, low))
    return _photographed(picture, centre + scale * _seen(path, size))


def _photographed(picture: np.ndarray, places: np.ndarray) -> torch.Tensor:
    """What lies at some places [F, H, W, 2] of a picture uint8 [h, w, C]: [F, C, H, W] in -1..1."""
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    grid = torch.from_numpy(np.float32((places * 2 + 1) / picture.shape[1::-1] - 1))
    mirrored = "reflection"
    count = len(grid)
    return functional.grid_sample(
        image.expand(count, -1, -1, -1), grid, "bilinear", padding_mode=mirrored, align_corners=False
    )


def _seen(path: Path, size: Size) -> np.ndarray:
    """Where each pixel of each frame lies in the first frame, [F, H, W, 2] as x and y from its middle."""
    y, x = np.mgrid[0 : size.height, 0 : size.width]
    pixels = np.stack([x - (size.width - 1) / 2, y - (size.height - 1) / 2], axis=-1)
    near = np.exp(-np.sum((pixels / (0.3 * np.array([size.width, size.height]))) ** 2, -1))[..., None]
    moved = pixels - path.shift[:, None, None] - near * path.sway[:, None, None]
    turned = np.einsum("fij,fhwj->fhwi", _rotation(-path.angle), moved)
    return np.asarray(turned / path.zoom[:, None, None, None])


def _rotation(angle: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


def _extent(path: Path, size: Size) -> np.ndarray:
    """The corners of all that is seen, from the middle of the first frame, [2, 2]."""
    seen = _seen(path, size)
    return np.stack([seen.min((0, 1, 2)), seen.max((0, 1, 2))])


def _layer(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A shape cut from a picture, uint8 [S, S, 4], the last of which is what it covers."""
    cover = shape_mask(rng, len(picture), rng.uniform(0.3, 0.6))
    return np.concatenate([picture, (255 * cover).astype(np.uint8)[..., None]], -1)


def _pick(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the pictures, turned, mirrored or neither; as rich in contrast and edges as small photographs."""
    picture: np.ndarray = pictures[int(rng.integers(len(pictures)))]
    picture = np.rot90(picture, int(rng.integers(2)) * 2) if rng.random() < 0.3 else picture
    picture = picture[:, ::-1] if rng.random() < 0.5 else picture
    image = ImageEnhance.Contrast(Image.fromarray(picture)).enhance(rng.uniform(0.8, 1.5))
    return np.asarray(image.filter(ImageFilter.UnsharpMask(1.0, int(rng.uniform(0, 220)), 0)))
