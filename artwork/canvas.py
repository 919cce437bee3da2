"""A canvas of floats on which light is added and shapes are laid, larger than the picture that it becomes.

Coordinates are the picture's: x from 0 to its width, y from 0 at the top to its height. A colour is ``0xRRGGBB``.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

FINER = 3
"""How many samples a pixel has in each direction."""

MOST_BYTES = 14 * 1024
QUALITIES = range(90, 40, -2)

Point = tuple[float, float]
Stops = Sequence[tuple[float, int]]
"""Colours at places, in order."""


def rgb(colour: int) -> np.ndarray:
    """The three parts of a colour, each from 0 to 1."""
    return np.array([colour >> 16, colour >> 8 & 255, colour & 255]) / 255


def smooth(low: float, high: float, at: np.ndarray) -> np.ndarray:
    """From 0 at ``low`` to 1 at ``high``, without a bend."""
    along = np.clip((at - low) / (high - low), 0, 1)
    return along * along * (3 - 2 * along)


def waves(x: np.ndarray, *parts: tuple[float, float, float]) -> np.ndarray:
    """A sum of sines, each with its height, its length and where it begins."""
    sines = [height * np.sin(2 * np.pi * (x / length) + begin) for height, length, begin in parts]
    summed: np.ndarray = np.sum(sines, axis=0)
    return summed


def blend(stops: Stops, at: np.ndarray) -> np.ndarray:
    """The colours between stops."""
    places = [place for place, _ in stops]
    parts = np.array([rgb(colour) for _, colour in stops])
    return np.stack([np.interp(at, places, parts[:, part]) for part in range(3)], axis=-1)


class Canvas:
    """A picture in the making."""

    def __init__(self, width: int, height: int) -> None:
        """Begin in black."""
        self.width, self.height = width, height
        rows, columns = np.mgrid[0 : height * FINER, 0 : width * FINER]
        self.x, self.y = (columns + 0.5) / FINER, (rows + 0.5) / FINER
        self.light = np.zeros((height * FINER, width * FINER, 3))

    def sky(self, stops: Stops) -> None:
        """Fill all of it with colours by height."""
        self.light[:] = blend(stops, self.y)

    def lay(self, mask: np.ndarray, colour: int | np.ndarray, strength: float = 1.0) -> None:
        """Cover what a mask covers, from 0 to 1, with a colour, or with one for each sample."""
        cover = (mask * strength)[..., None]
        self.light = self.light * (1 - cover) + (rgb(colour) if isinstance(colour, int) else colour) * cover

    def glow(self, at: Point, radius: float, colour: int, strength: float) -> None:
        """Add light around a point."""
        distance = np.hypot(self.x - at[0], self.y - at[1]) / radius
        self.light = self.light + (np.exp(-distance * distance) * strength)[..., None] * rgb(colour)

    def land(self, ridge: np.ndarray, stops: Stops) -> None:
        """Cover all below a line, with colours by the depth below it."""
        depth = self.y - ridge
        self.lay(np.clip(depth * FINER + 0.5, 0, 1), blend(stops, depth))

    def disc(self, at: Point, radius: float | Point, soft: float = 0.4) -> np.ndarray:
        """The mask of a disc, or of an ellipse."""
        wide, high = radius if isinstance(radius, tuple) else (radius, radius)
        distance = np.hypot((self.x - at[0]) / wide, (self.y - at[1]) / high)
        edge = soft / min(wide, high)
        return 1 - smooth(1 - edge, 1 + edge, distance)

    def shape(self, points: Sequence[Point], soft: float = 0.0) -> np.ndarray:
        """The mask of a polygon, with an edge as soft as so many pixels."""
        mask = Image.new("L", (self.width * FINER, self.height * FINER))
        ImageDraw.Draw(mask).polygon([(x * FINER, y * FINER) for x, y in points], fill=255)
        if soft:
            mask = mask.filter(ImageFilter.GaussianBlur(soft * FINER))
        return np.asarray(mask) / 255

    def stroke(self, points: Sequence[Point], width: float, soft: float = 0.0) -> np.ndarray:
        """The mask of a line through points."""
        mask = Image.new("L", (self.width * FINER, self.height * FINER))
        line = [(x * FINER, y * FINER) for x, y in points]
        ImageDraw.Draw(mask).line(line, fill=255, width=max(1, round(width * FINER)), joint="curve")
        if soft:
            mask = mask.filter(ImageFilter.GaussianBlur(soft * FINER))
        return np.asarray(mask) / 255

    def mirror(self, shore: float, tint: int, ripple: float) -> None:
        """Let water lie below a height, and show what is above it: the nearer, the longer its ripples."""
        depth = np.maximum(self.y - shore, 0)
        nearness = depth / (self.height - shore)
        phase = 30 * np.log1p(5 * nearness)
        sway = np.sin(phase * 2.1 + np.sin(self.x / 47) * 1.3 + self.x / 120) + 0.5 * np.sin(phase * 3.3 - self.x / 83)
        up = shore - depth * 0.82 + sway * ripple * (0.15 + nearness)
        rows = np.clip(up * FINER, 0, shore * FINER - 1).astype(int)
        columns = np.clip((self.x + sway * ripple * 0.35 * nearness) * FINER, 0, self.x.shape[1] - 1).astype(int)
        seen = self.light[rows, columns]
        dark = (0.1 + 0.42 * nearness)[..., None]
        water = seen * (1 - dark) + rgb(tint) * dark
        self.lay(np.clip((self.y - shore) * FINER + 0.5, 0, 1), water)

    def picture(self) -> Image.Image:
        """The picture, with what is too bright rolled off."""
        light = np.clip(self.light, 0, None)
        bright = np.maximum(light - 0.85, 0)
        rolled = np.minimum(light, 0.85) + 0.15 * (1 - np.exp(-bright / 0.15))
        fine = Image.fromarray((rolled * 255 + 0.5).astype(np.uint8))
        return fine.resize((self.width, self.height), Image.Resampling.BOX)

    def jpeg(self) -> bytes:
        """The picture as a file that is as good as its size allows."""
        picture = self.picture()
        for quality in QUALITIES:
            file = BytesIO()
            picture.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
            if file.tell() <= MOST_BYTES:
                return file.getvalue()
        raise ValueError(f"this picture has too much in it for {MOST_BYTES} bytes")
