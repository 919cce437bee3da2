"""Pictures with their captions: coloured shapes on coloured grounds, and small landscapes.

    rng ──▶ scene ──▶ caption, picture uint8 [H, W, 3]

The vocabulary is small on purpose: what the text-to-image model can be asked for is what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from deployments.models.size import Size

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (205, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (245, 215, 50),
    "green": (50, 150, 60),
    "blue": (40, 80, 200),
    "purple": (130, 50, 160),
    "pink": (245, 150, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
"""What is meant by a word, in sRGB."""

SHAPES = ("circle", "square", "triangle")

SKIES: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "by day": ((70, 130, 220), (200, 225, 245)),
    "at sunrise": ((120, 130, 190), (255, 200, 150)),
    "at sunset": ((80, 50, 110), (250, 130, 70)),
    "at night": ((10, 14, 40), (50, 55, 95)),
}
"""When it is, and the sky's colour above and at the horizon."""

ALSO: Mapping[str, str] = {"by day": "under a blue sky", "at night": "under a dark sky"}
"""How else one may say when."""

PLACES: Mapping[str, tuple[str, str]] = {
    "sea": ("on", "the sea"),
    "lake": ("on", "a calm lake"),
    "hills": ("over", "green hills"),
    "mountains": ("over", "snowy mountains"),
}
"""Where it is."""

FINER = 4
"""Samples a pixel has each way while it is drawn."""


def draw_scene(rng: np.random.Generator, size: Size) -> tuple[str, np.ndarray]:
    """A caption and its picture."""
    return (_shapes if rng.random() < 0.6 else _landscape)(rng, size)


def _shapes(rng: np.random.Generator, size: Size) -> tuple[str, np.ndarray]:
    count = 1 if rng.random() < 0.7 else 2
    *colours, ground = (str(name) for name in rng.choice(list(COLOURS), count + 1, replace=False))
    shapes = [str(shape) for shape in rng.choice(SHAPES, count)]
    canvas = Image.new("RGB", (size.width * FINER, size.height * FINER), _shade(COLOURS[ground], rng))
    pen = ImageDraw.Draw(canvas)
    side = min(size.width / count, size.height) * FINER
    for index, (colour, shape) in enumerate(zip(colours, shapes, strict=True)):
        radius = side * rng.uniform(0.26, 0.4)
        middle = np.array([canvas.width * (index + 0.5) / count, canvas.height / 2])
        middle += rng.uniform(-1, 1, 2) * (side / 2 - radius) * 0.7
        pen.polygon(_corners(shape, middle, radius), fill=_shade(COLOURS[colour], rng))
    things = " and ".join(f"{a(colour)} {shape}" for colour, shape in zip(colours, shapes, strict=True))
    caption = f"{things} on {a(ground)} {_one(('background', 'ground'), rng)}"
    return caption, _developed(canvas, size, rng)


def _corners(shape: str, middle: np.ndarray, radius: float) -> list[tuple[float, float]]:
    turns = {
        "circle": np.linspace(0, 2 * np.pi, 48, endpoint=False),
        "square": np.pi * (np.arange(4) / 2 + 0.25),
        "triangle": np.pi * (np.arange(3) / 1.5 - 0.5),
    }[shape]
    points = middle + radius * np.stack([np.cos(turns), np.sin(turns)], 1)
    return [(float(x), float(y)) for x, y in points]


def _landscape(rng: np.random.Generator, size: Size) -> tuple[str, np.ndarray]:
    time, place = _one(list(SKIES), rng), _one(list(PLACES), rng)
    thing = _one(["sun", "boat" if PLACES[place][0] == "on" else "sun", "balloon", "nothing"], rng)
    colour = _one(["red", "orange", "yellow", "white", "blue"], rng)
    canvas = _sky(SKIES[time], rng, size)
    horizon = canvas.height * rng.uniform(0.5, 0.65)
    if thing == "sun":
        _sun(canvas, horizon, time, rng)
    _ground(canvas, place, horizon, SKIES[time], rng)
    if thing == "boat":
        _boat(canvas, horizon, COLOURS[colour], rng)
    if thing == "balloon":
        _balloon(canvas, horizon, COLOURS[colour], rng)
    when = ALSO.get(time, time) if rng.random() < 0.3 else time
    return f"{_named(thing, colour, place, time)} {when}", _developed(canvas, size, rng)


def _named(thing: str, colour: str, place: str, time: str) -> str:
    preposition, where = PLACES[place]
    if thing == "nothing":
        return where
    light = "the moon" if time == "at night" else "the sun"
    return f"{light if thing == 'sun' else f'{a(colour)} {thing}'} {preposition} {where}"


def a(word: str) -> str:
    """With its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _sky(
    colours: tuple[tuple[int, int, int], tuple[int, int, int]], rng: np.random.Generator, size: Size
) -> Image.Image:
    top, low = (np.array(_shade(colour, rng), np.float32) for colour in colours)
    down = np.clip(np.linspace(0, 1.6, size.height * FINER), 0, 1)[:, None]
    rows = (top + (low - top) * down)[:, None].repeat(size.width * FINER, 1)
    return Image.fromarray(rows.round().astype(np.uint8))


def _sun(canvas: Image.Image, horizon: float, time: str, rng: np.random.Generator) -> None:
    radius = min(canvas.size) * rng.uniform(0.09, 0.13)
    x = canvas.width * rng.uniform(0.25, 0.75)
    y = horizon * rng.uniform(0.8, 0.95) if time in ("at sunrise", "at sunset") else horizon * rng.uniform(0.3, 0.6)
    _disc(canvas, x, y, radius, (235, 235, 225) if time == "at night" else (255, 235, 150))


def _ground(
    canvas: Image.Image, kind: str, horizon: float, sky: Sequence[tuple[int, int, int]], rng: np.random.Generator
) -> None:
    pen = ImageDraw.Draw(canvas)
    light = (sum(sky[1]) / 3 + 60) / 290  # what lies under a dark sky is dark
    if kind in ("sea", "lake"):
        water = [0.35 * above + 0.65 * own for above, own in zip(sky[1], (20, 90, 130), strict=True)]
        pen.rectangle((0, horizon, *canvas.size), fill=_lit(water, 0.6 + 0.4 * light))
        for _ in range(14 if kind == "sea" else 3):
            y, x = rng.uniform(horizon, canvas.height), rng.uniform(-0.2, 1) * canvas.width
            length = canvas.width * rng.uniform(0.1, 0.4)
            pen.line((x, y, x + length, y), fill=_lit(water, 0.9 + 0.3 * light), width=FINER)
        return
    own = {"hills": (70, 150, 60), "mountains": (105, 110, 125)}[kind]
    for depth in (0.0, 0.5, 1.0):
        _ridge(
            canvas,
            kind,
            horizon + depth * (canvas.height - horizon) * 0.45,
            _lit(own, light * (1.1 - 0.35 * depth)),
            rng,
        )


def _ridge(
    canvas: Image.Image, kind: str, level: float, colour: tuple[int, int, int], rng: np.random.Generator
) -> None:
    x = np.linspace(0, 1, 41)
    if kind == "hills":
        line = 0.05 * np.sum([np.sin(2 * np.pi * (f * x + rng.random())) / f for f in (0.8, 1.7, 3.1)], axis=0)
    else:
        line = np.interp(x, np.linspace(0, 1, 9), -rng.uniform(0, 0.3, 9) * (np.arange(9) % 2))
    y = level + line * canvas.height
    pen = ImageDraw.Draw(canvas)
    pen.polygon([(0, canvas.height), *zip(x * canvas.width, y, strict=True), canvas.size], fill=colour)
    if kind == "mountains":
        snow = _lit((250, 250, 255), min(1.0, max(colour) / 110))
        for peak in range(1, 40):
            if y[peak] < min(y[peak - 1], y[peak + 1]) - 1:
                side = canvas.width / 40
                at = x[peak] * canvas.width
                low = y[peak] + 0.35 * (max(y[max(peak - 5, 0)], y[min(peak + 5, 40)]) - y[peak])
                pen.polygon([(at, y[peak]), (at - 1.8 * side, low), (at + 1.8 * side, low)], fill=snow)


def _boat(canvas: Image.Image, horizon: float, colour: tuple[int, int, int], rng: np.random.Generator) -> None:
    pen, unit = ImageDraw.Draw(canvas), min(canvas.size) * rng.uniform(0.14, 0.2)
    x, y = canvas.width * rng.uniform(0.3, 0.7), horizon + (canvas.height - horizon) * rng.uniform(0.2, 0.5)
    hull = [(-1.2, 0), (1.2, 0), (0.8, 0.5), (-0.8, 0.5)]
    sail = [(0, -1.7), (0, -0.15), (0.9, -0.15)]
    pen.polygon([(x + unit * a, y + unit * b) for a, b in hull], fill=_shade(colour, rng))
    pen.polygon([(x + unit * a, y + unit * b) for a, b in sail], fill=(240, 238, 230))
    pen.line((x, y, x, y - 1.8 * unit), fill=(70, 50, 40), width=FINER)


def _balloon(canvas: Image.Image, horizon: float, colour: tuple[int, int, int], rng: np.random.Generator) -> None:
    pen, radius = ImageDraw.Draw(canvas), min(canvas.size) * rng.uniform(0.13, 0.18)
    x, y = canvas.width * rng.uniform(0.25, 0.75), horizon * rng.uniform(0.4, 0.6)
    fill = _shade(colour, rng)
    pen.polygon(
        [(x - 0.85 * radius, y + 0.5 * radius), (x + 0.85 * radius, y + 0.5 * radius), (x, y + 1.7 * radius)], fill=fill
    )
    _disc(canvas, x, y, radius, fill)
    box = (x - 0.25 * radius, y + 1.6 * radius, x + 0.25 * radius, y + 2.0 * radius)
    pen.rectangle(box, fill=(90, 60, 40))


def _disc(canvas: Image.Image, x: float, y: float, radius: float, fill: tuple[int, int, int]) -> None:
    ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _shade(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    """About a colour."""
    return _lit(np.array(colour) + rng.normal(0, 6, 3), float(rng.uniform(0.95, 1.05)))


def _lit(colour: Sequence[float] | np.ndarray, light: float) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(colour) * light, 0, 255).round().astype(int).tolist()
    return red, green, blue


def _developed(canvas: Image.Image, size: Size, rng: np.random.Generator) -> np.ndarray:
    """At its size, lit from somewhere a little more than from elsewhere."""
    small = np.asarray(canvas.reduce(FINER).filter(ImageFilter.GaussianBlur(0.3)), np.float32)
    x, y = np.meshgrid(np.linspace(-1, 1, size.width), np.linspace(-1, 1, size.height))
    turn = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.06) * (np.cos(turn) * x + np.sin(turn) * y)
    return np.asarray(np.clip(small * light[..., None], 0, 255).round(), np.uint8)


def _one(of: Sequence[str], rng: np.random.Generator) -> str:
    return of[int(rng.integers(len(of)))]
