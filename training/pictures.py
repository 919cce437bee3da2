"""Pictures that the program draws by itself, for there is no data set: leaves laid over leaves, and small landscapes.

    seed ──▶ ground (gradient, texture or landscape) ──▶ shapes laid over it, far to near ──▶ uint8 [SIDE, SIDE, 3]

Shapes whose sizes follow a power law and hide each other have much of the statistics of photographs: edges at all
scales, flat areas between them (Lee, Mumford and Huang 2001, "Occlusion models for natural images"). Inside, textures
whose spectra fall as those of photographs do (Field 1987: amplitude as 1 / frequency).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from deployments.models.size import Size

SIDE = 256
"""Pixels each way: about twice a clip's, so that there is something to move to."""

FINER = 2
"""Samples a pixel has each way while the edge of a shape is drawn."""

_TEXTURES = 48


def draw(seed: int, side: int = SIDE) -> np.ndarray:
    """A picture, uint8 [side, side, 3]; the same for the same seed."""
    rng = np.random.default_rng(seed)
    scene = rng.random() < 0.35
    canvas = _landscape(rng, side) if scene else _ground(rng, side)
    for _ in range(int(rng.integers(2, 14) if scene else rng.integers(15, 90))):
        _lay(canvas, *_shape(rng, side), rng)
    if rng.random() < 0.3:
        _write(canvas, rng)
    return _expose(canvas, rng)


def draw_depth(rng: np.random.Generator, size: Size) -> np.ndarray:
    """How near things are, uint8 [H, W]: a plain that comes nearer downwards, far things, and a near one in the middle.

    Pictures are mostly of something that is about their middle; where it goes tells at once where all goes.
    """
    height, width = size.height, size.width
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    depth = np.broadcast_to(rng.uniform(0, 0.2) + rng.uniform(0, 0.3) * rows, (height, width)).copy()
    for far in np.sort(rng.uniform(0.1, 0.5, int(rng.integers(0, 8)))):
        _rise(depth, *_shape(rng, width), far)
    radius = height * rng.uniform(0.2, 0.5)
    box = int(2.4 * radius) + 4
    mask = _rasterise(_outline(rng, radius) + box / 2, box, box)
    left, top = (rng.normal(0.5, 0.06) * side - box / 2 for side in (width, height))
    _rise(depth, mask, int(left), int(top), rng.uniform(0.6, 1))
    blurred = Image.fromarray((depth * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(rng.uniform(0, 8)))
    return np.asarray(blurred)


def _rise(depth: np.ndarray, mask: np.ndarray, left: int, top: int, near: float) -> None:
    """Bring what a mask covers to a depth, in place."""
    x0, y0 = max(left, 0), max(top, 0)
    under = depth[y0 : top + len(mask), x0 : left + len(mask)]
    under += mask[y0 - top :, x0 - left :][: under.shape[0], : under.shape[1]] * (np.float32(near) - under)


def shape_mask(rng: np.random.Generator, side: int, size: float) -> np.ndarray:
    """A shape about ``size`` times as large as its square of ``side`` pixels, in its middle: float32 in 0..1."""
    radius = size * side / 2
    return _rasterise(_outline(rng, radius) + side / 2, side, side)


def _ground(rng: np.random.Generator, side: int) -> np.ndarray:
    """A gradient with a texture over it, float32 [side, side, 3]."""
    return _fill(rng, side, side, contrast=rng.uniform(0.02, 0.2))


def _landscape(rng: np.random.Generator, side: int) -> np.ndarray:
    """A sky, perhaps with a sun and clouds; hills behind hills, or a sea."""
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / side
    horizon = rng.uniform(0.35, 0.7)
    top, low = _sky_colours(rng)
    canvas = top + (low - top) * np.clip(rows / horizon, 0, 1)[..., None]
    if rng.random() < 0.6:  # the sun, and the light around it
        x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.05, horizon), rng.uniform(0.02, 0.08)
        distance = np.hypot(columns - x, rows - y)
        light = np.clip((radius - distance) * side + 0.5, 0, 1) + 0.5 * np.exp(-((distance / (4 * radius)) ** 2))
        canvas = canvas + np.clip(light, 0, 1)[..., None] * (np.array([1, 0.93, 0.7], np.float32) - canvas)
    if rng.random() < 0.6:  # clouds
        cover = np.clip(_texture(rng, side, side, stretch=2) * rng.uniform(0.3, 0.8), 0, 1)[..., None]
        canvas = canvas + cover * (np.float32(rng.uniform(0.7, 1)) - canvas)
    for depth in np.sort(rng.uniform(0, 1, int(rng.integers(0, 5)))):  # hills, far ones in the colour of the air
        ridge = horizon - 0.25 * (1 - depth) * rng.random() + _ridge(rng, side) * rng.uniform(0.03, 0.15)
        cover = np.clip((rows - ridge) * side, 0, 1)[..., None]
        colour = _fill(rng, side, side, contrast=0.1) * (0.3 + 0.5 * depth) + low * (0.4 * (1 - depth))
        canvas = canvas + cover * (colour - canvas)
    ground = horizon + rng.uniform(0, 0.2)
    cover = np.clip((rows - ground) * side, 0, 1)[..., None]
    near = _sea(rng, side, top) if rng.random() < 0.5 else _fill(rng, side, side, contrast=rng.uniform(0.1, 0.3))
    return np.asarray(canvas + cover * (near - canvas), np.float32)


def _sky_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Above, and at the horizon."""
    pairs = [
        ((0.2, 0.4, 0.8), (0.75, 0.87, 0.95)),
        ((0.25, 0.2, 0.45), (0.98, 0.6, 0.35)),
        ((0.05, 0.07, 0.2), (0.25, 0.25, 0.45)),
        ((0.55, 0.6, 0.65), (0.85, 0.85, 0.85)),
    ]
    top, low = pairs[int(rng.integers(len(pairs)))]
    jitter = rng.normal(0, 0.05, (2, 3))
    return np.clip(top + jitter[0], 0, 1).astype(np.float32), np.clip(low + jitter[1], 0, 1).astype(np.float32)


def _sea(rng: np.random.Generator, side: int, sky: np.ndarray) -> np.ndarray:
    waves = _texture(rng, side, side, stretch=rng.uniform(4, 10))[..., None]
    colour = 0.6 * sky + 0.4 * np.array([0.05, 0.25, 0.35], np.float32)
    return np.asarray(colour * (0.75 + 0.2 * waves), np.float32)


def _ridge(rng: np.random.Generator, side: int) -> np.ndarray:
    """The line of a hill's top, float32 [side], about -1..1."""
    x = np.arange(side, dtype=np.float32) / side
    line = sum(np.sin(2 * np.pi * (f * x + rng.random())) / f**1.2 for f in (0.7, 1.5, 3.1, 6.3, 13, 29))
    return np.asarray(line, np.float32) * 0.6


def _shape(rng: np.random.Generator, side: int) -> tuple[np.ndarray, int, int]:
    """The mask of a leaf [h, w] in 0..1, and where its left upper corner lies. Radii follow a power law."""
    smallest, largest = 0.015, 0.4
    radius = side / np.sqrt(rng.uniform(1 / largest**2, 1 / smallest**2))
    radius = side * rng.uniform(0.05, 0.3) if rng.random() < 0.25 else radius
    box = int(2.4 * radius) + 4
    mask = _rasterise(_outline(rng, radius) + box / 2, box, box)
    x, y = rng.uniform(-0.5 * radius, side + 0.5 * radius, 2) - box / 2
    return mask, int(x), int(y)


def _outline(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Corners around the origin, [n, 2]: an ellipse, a blob, a polygon, a box, or a stroke."""
    kind = rng.choice(["ellipse", "blob", "polygon", "box", "stroke"], p=[0.25, 0.2, 0.2, 0.2, 0.15])
    turn = rng.uniform(0, 2 * np.pi)
    if kind == "stroke":
        return _stroke(rng, radius)
    if kind == "box":
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / np.sqrt(2) * [1, rng.uniform(0.15, 1)]
        turn = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.05) if rng.random() < 0.6 else turn
    else:
        count = int(rng.integers(3, 8)) if kind == "polygon" else 40
        angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
        bumps = sum(rng.normal(0, 0.25 / f) * np.sin(f * angles + rng.uniform(0, 6.3)) for f in (2, 3, 4, 5, 7))
        lengths = {"ellipse": np.ones(count), "blob": 0.75 + bumps, "polygon": rng.uniform(0.6, 1, count)}[kind]
        corners = np.stack([np.cos(angles), np.sin(angles)], 1) * np.clip(lengths, 0.1, 1.1)[:, None]
        corners = corners * [1, rng.uniform(0.4, 1)]
    turned = corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.asarray(turned * radius)


def _stroke(rng: np.random.Generator, radius: float) -> np.ndarray:
    """A bent line that grows thinner towards its ends."""
    along = np.linspace(-1, 1, 24)
    direction = rng.uniform(0, 2 * np.pi)
    angles = direction + rng.normal(0, 1) * along + rng.normal(0, 0.5) * along**2
    middle = np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1), 0) / 12
    middle -= middle.mean(0)
    across = np.stack([-np.sin(angles), np.cos(angles)], 1) * ((1 - along**4) * rng.uniform(0.03, 0.12))[:, None]
    return np.asarray(np.concatenate([middle + across, (middle - across)[::-1]]) * radius)


def _rasterise(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """What a polygon covers of each pixel, float32 [height, width]."""
    image = Image.new("L", (width * FINER, height * FINER))
    ImageDraw.Draw(image).polygon([(float(x) * FINER, float(y) * FINER) for x, y in corners], fill=255)
    return np.asarray(image.reduce(FINER), np.float32) / 255


def _lay(canvas: np.ndarray, mask: np.ndarray, left: int, top: int, rng: np.random.Generator) -> None:
    """Paint what a mask covers, in place; some shapes are out of focus, and some cast a shadow."""
    if rng.random() < 0.15:
        mask = _blurred(mask, rng.uniform(0.5, 3))
    side = len(canvas)
    box = len(mask)
    x0, x1, y0, y1 = max(left, 0), min(left + box, side), max(top, 0), min(top + box, side)
    if x0 >= x1 or y0 >= y1:
        return
    part, paint = mask[y0 - top : y1 - top, x0 - left : x1 - left, None], _fill(rng, box, box, rng.gamma(1, 0.08))
    under = canvas[y0:y1, x0:x1]
    if rng.random() < 0.3:
        dark = rng.uniform(0.2, 0.6) * _blurred(np.roll(mask, (box // 12 + 1, box // 12 + 1), (0, 1)), 1 + box / 24)
        under *= 1 - dark[y0 - top : y1 - top, x0 - left : x1 - left, None]
    under += part * (paint[y0 - top : y1 - top, x0 - left : x1 - left] - under)


def _fill(rng: np.random.Generator, height: int, width: int, contrast: float) -> np.ndarray:
    """A colour, shaded across, with texture: float32 [height, width, 3]."""
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    turn, depth = rng.uniform(0, 2 * np.pi), np.float32(rng.gamma(1, 0.15))
    shade = (np.cos(turn) * columns + np.sin(turn) * rows) * depth
    texture = _texture(rng, height, width, stretch=np.exp(rng.normal(0, 0.4))) * np.float32(contrast)
    tint = np.float32(rng.normal(1, 0.15, 3))
    return np.asarray(_colour(rng) + (shade + texture)[..., None] * tint, np.float32)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Mostly muted, sometimes strong, as colours in photographs are."""
    light, strength = rng.beta(1.3, 1.6), rng.beta(1, 3)
    return np.clip(light + strength * rng.uniform(-0.6, 0.6, 3), 0, 1).astype(np.float32)


def _texture(rng: np.random.Generator, height: int, width: int, stretch: float) -> np.ndarray:
    """A piece of noise of variance about 1, longer across than high by ``stretch``: float32 [height, width]."""
    noise = _noise()[int(rng.integers(_TEXTURES))]
    zoom = np.exp(rng.uniform(-0.7, 0.7))
    rows = (np.arange(height) * zoom * stretch**0.5 + rng.integers(SIDE)).astype(int) % len(noise)
    columns = (np.arange(width) * zoom / stretch**0.5 + rng.integers(SIDE)).astype(int) % len(noise)
    return np.asarray(noise[rows][:, columns] if rng.random() < 0.5 else noise.T[rows][:, columns])


@cache
def _noise() -> np.ndarray:
    """Fields whose amplitude falls with the frequency by several powers, float32 [_TEXTURES, SIDE, SIDE]."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = 1
    fields = []
    for power in np.linspace(0.6, 2.2, _TEXTURES):
        spectrum = np.fft.rfft2(rng.normal(size=(SIDE, SIDE))) / frequency**power
        spectrum[0, 0] = 0
        field = np.fft.irfft2(spectrum, (SIDE, SIDE))
        fields.append(np.float32(field / field.std()))
    return np.stack(fields)


def _write(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """A few words' worth of strokes, in place: small marks of one colour in a row."""
    side = len(canvas)
    image = Image.new("L", (side, side))
    size = int(rng.integers(9, 40))
    letters = "".join(chr(int(code)) for code in rng.integers(33, 127, int(rng.integers(4, 24))))
    x, y = rng.uniform(0, 0.6 * side), rng.uniform(0, 0.9 * side)
    ImageDraw.Draw(image).text((x, y), letters, fill=255, font=ImageFont.load_default(size))
    mask = np.asarray(image, np.float32)[..., None] / 255
    canvas += mask * (_colour(rng) - canvas)


def _expose(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As a camera would: a little blur, a contrast, a brightness, rounded to bytes."""
    canvas = (canvas - 0.5) * np.float32(rng.uniform(0.7, 1.15)) + np.float32(0.5 + rng.normal(0, 0.05))
    image = Image.fromarray((np.clip(canvas, 0, 1) * 255).round().astype(np.uint8))
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2)))
    return np.asarray(image)


def _blurred(mask: np.ndarray, sigma: float) -> np.ndarray:
    image = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(image, np.float32) / 255
