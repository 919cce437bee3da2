"""What is drawn: a function for each picture, from the farthest thing to the nearest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from artwork.canvas import FINER, Canvas, Point, blend, rgb, smooth, waves

WIDTH, HEIGHT = 640, 360


def boat() -> Canvas:
    """A red boat with white sails on a lake at sunrise, below mountains in the mist."""
    canvas = Canvas(WIDTH, HEIGHT)
    x, shore = canvas.x, 212.0
    canvas.sky([(0, 0x2E4A77), (70, 0x6C7FA8), (140, 0xE8A98C), (190, 0xFFD9A0), (212, 0xFFE9C4)])
    canvas.glow((196, 182), 190, 0xFF9A4A, 0.30)
    canvas.glow((196, 182), 70, 0xFFC27A, 0.45)
    canvas.lay(canvas.disc((196, 180), 17), 0xFFF6DA)
    for y, height, strength in ((58, 5, 0.35), (84, 4, 0.45), (108, 3, 0.5)):
        veil = np.exp(-(((canvas.y - y - waves(x, (5, 420, y), (2, 130, 1))) / height) ** 2))
        canvas.lay(veil * smooth(-0.7, 1.2, np.sin(x / 97 + y / 9)), 0xFFD3B4, strength)
    far = 168 + waves(x, (16, 330, 0.6), (9, 141, 2.2), (4, 61, 0.4))
    canvas.land(far, [(0, 0x8E8CB0), (44, 0xE7B9A6)])
    middle = 188 + waves(x, (17, 410, 3.9), (7, 118, 1.1), (3, 47, 2.6))
    canvas.land(middle, [(0, 0x56658F), (34, 0xB593A0)])
    near = 205 + waves(x, (11, 520, 5.1), (4, 96, 0.3))
    pines = np.maximum(waves(x, (3.2, 11.3, 0), (2.3, 7.1, 1.7), (1.8, 17.9, 0.5)), 0) * smooth(210, 204, near)
    canvas.land(near - pines, [(0, 0x263A57), (16, 0x42506F)])
    canvas.lay(np.exp(-(((canvas.y - 210) / 7) ** 2)), 0xFFE2C0, 0.42)
    _sails(canvas, (436, 231), 1.0)
    canvas.mirror(shore, 0x1E3558, 6)
    path = np.exp(-(((x - 196) / (12 + (canvas.y - shore) * 0.42)) ** 2)) * (canvas.y > shore)
    sparkle = smooth(0.2, 1.6, waves(canvas.y, (1, 9.3, 0), (0.6, 14.9, 1)) + 0.7 * np.sin(x / 17 + canvas.y / 5))
    canvas.lay(path * sparkle, 0xFFE3AE, 0.72)
    wake = canvas.shape([(300, 240), (398, 234), (470, 234), (540, 238), (470, 241), (380, 243)], 3)
    canvas.lay(wake, 0xFFD9B8, 0.16)
    _hull(canvas, (436, 231), 1.0)
    _sails(canvas, (436, 231), 1.0)
    return canvas


def _sails(canvas: Canvas, at: Point, size: float) -> None:
    x, y = at

    def place(*points: Point) -> list[Point]:
        return [(x + right * size, y - up * size) for right, up in points]

    main = canvas.shape(place((1, 112), (10, 92), (24, 56), (36, 14), (1, 12)))
    shade = smooth(x - 4 * size, x + 40 * size, canvas.x)
    canvas.lay(main, blend([(0, 0xFFF7EA), (1, 0xD8B9AE)], shade))
    jib = canvas.shape(place((-2, 104), (-16, 62), (-38, 14), (-2, 12)))
    canvas.lay(jib, blend([(0, 0xE9CFC0), (1, 0xFFF3E2)], smooth(x - 40 * size, x, canvas.x)))
    canvas.lay(canvas.stroke(place((0, 118), (0, 4)), 1.8 * size), 0x5B3A2E)


def _hull(canvas: Canvas, at: Point, size: float) -> None:
    x, y = at
    points = [(-46, 8), (46, 9), (38, -3), (28, -8), (-26, -8), (-38, -2)]
    hull = canvas.shape([(x + right * size, y - up * size) for right, up in points])
    canvas.lay(hull, blend([(y - 9, 0xE2503C), (y + 8, 0x7C1F28)], canvas.y))
    rim = [(x - 46 * size, y - 8 * size), (x + 46 * size, y - 9 * size)]
    canvas.lay(canvas.stroke(rim, 2.2 * size), 0xFFE6D0)


def hills() -> Canvas:
    """Green hills one behind the other at sunrise, with mist between them, cypresses, and a path to a house."""
    canvas = Canvas(WIDTH, HEIGHT)
    x, y = canvas.x, canvas.y
    canvas.sky([(0, 0x7FB4D6), (80, 0xB9D7DE), (140, 0xFBE6BE), (190, 0xFFD690)])
    canvas.glow((482, 120), 230, 0xFFC768, 0.16)
    canvas.glow((482, 120), 52, 0xFFD98A, 0.22)
    canvas.lay(canvas.disc((482, 120), 20, 1.2), rgb(0xFFFFF2) * 1.2)
    for right, top, size in ((120, 62, 1.0), (300, 40, 0.7), (575, 58, 0.6)):
        _cloud(canvas, (right, top), size)
    layers = (
        (146, ((13, 380, 0.4), (6, 150, 2.0)), 0x9DB7B8, 0xE9DDB4),
        (176, ((15, 300, 2.4), (5, 120, 0.8)), 0x7FA88F, 0xDDDCA4),
        (206, ((19, 420, 4.2), (6, 170, 1.9)), 0x6B9B6C, 0xC9D08A),
        (244, ((22, 510, 0.9), (7, 210, 3.4)), 0x4F8850, 0x9FBA62),
    )
    for height, parts, top, bottom in layers:
        ridge = height + waves(x, *parts)
        canvas.land(ridge, [(0, top), (46, bottom), (90, bottom)])
        lit = smooth(30, 0, y - ridge) * smooth(-0.4, 1, np.cos((x - 482) / 210)) * (y > ridge)
        canvas.lay(lit, 0xFFEBA0, 0.26)
    _house(canvas, (214, 226))
    for right, foot, tall in ((238, 231, 30), (250, 233, 24), (186, 224, 26), (176, 223, 20), (262, 236, 19)):
        _cypress(canvas, (right, foot), tall, 0x2F5B41)
    front = 292 + waves(x, (20, 640, 2.6), (5, 190, 0.4))
    canvas.land(front, [(0, 0x5E9B45), (22, 0x417F3C), (90, 0x23552F)])
    rows = np.sin((x - 640) / (26 + (y - 280) * 0.34) + y / 60) * smooth(6, 60, y - front)
    canvas.lay(smooth(0.1, 1, rows) * (y > front), 0x7DB552, 0.30)
    along = np.linspace(0, 1, 60)
    middle = 300 - 92 * along + 44 * np.sin(along * 5.2) * (1 - along)
    down = 366 - 132 * along
    half = 26 * (1 - along) ** 1.7 + 1.2
    edges = [*zip(middle - half, down, strict=True), *zip((middle + half)[::-1], down[::-1], strict=True)]
    canvas.lay(canvas.shape(edges, 0.6), 0xF2DEB0, 0.92)
    for right, foot, tall in ((566, 300, 96), (596, 306, 76), (540, 296, 60), (66, 318, 70), (92, 316, 50)):
        _cypress(canvas, (right, foot), tall, 0x1D4433)
    return canvas


def _cloud(canvas: Canvas, at: Point, size: float) -> None:
    puffs = ((0, 0, 34, 9), (-24, 3, 26, 7), (26, 3, 30, 7), (6, -6, 20, 8))
    mask = np.zeros_like(canvas.x)
    for right, down, wide, high in puffs:
        place = (at[0] + right * size, at[1] + down * size)
        mask = np.maximum(mask, canvas.disc(place, (wide * size, high * size), 5 * size))
    canvas.lay(mask, blend([(at[1] - 12 * size, 0xFFFFFF), (at[1] + 10 * size, 0xFFE3C2)], canvas.y), 0.78)


def _cypress(canvas: Canvas, foot: Point, tall: float, colour: int) -> None:
    up = np.linspace(0, 1, 30)
    half = tall * 0.12 * np.sin(np.pi * np.clip(up * 0.94 + 0.06, 0, 1)) ** 0.8 * (1.25 - 0.75 * up)
    left = [(foot[0] - wide, foot[1] - tall * at) for wide, at in zip(half, up, strict=True)]
    right = [(foot[0] + wide, foot[1] - tall * at) for wide, at in zip(half, up, strict=True)]
    lit = (
        rgb(colour) * 1.0
        + np.array([0.30, 0.24, 0.06]) * smooth(-1, 1, (canvas.x - foot[0]) / (tall * 0.12))[..., None] * 0.5
    )
    canvas.lay(canvas.shape([*left, *right[::-1]]), lit)


def _house(canvas: Canvas, at: Point) -> None:
    x, y = at
    canvas.lay(canvas.shape([(x - 15, y), (x - 15, y - 14), (x + 13, y - 14), (x + 13, y + 2)]), 0xF3D9AE)
    canvas.lay(canvas.shape([(x + 3, y + 1), (x + 3, y - 14), (x + 13, y - 14), (x + 13, y + 2)]), 0xFFEBC4)
    canvas.lay(canvas.shape([(x - 18, y - 13), (x - 8, y - 22), (x + 8, y - 22), (x + 16, y - 13)]), 0xC4643F)
    canvas.lay(canvas.shape([(x - 9, y - 4), (x - 9, y - 10), (x - 5, y - 10), (x - 5, y - 4)]), 0x6B4A3A)


def balloon() -> Canvas:
    """A striped balloon over a valley of mountains in the evening: one thing that may move, before what stays."""
    canvas = Canvas(WIDTH, HEIGHT)
    x, y = canvas.x, canvas.y
    canvas.sky([(0, 0x3B5BA5), (110, 0x8FA5D8), (200, 0xF6C6C0), (250, 0xFFE0B8)])
    canvas.glow((110, 236), 210, 0xFFB07A, 0.34)
    layers = (
        (232, ((20, 260, 0.2), (10, 112, 1.4), (4, 53, 0.6)), 0x9A9CCB, 0xF2C4BE),
        (258, ((22, 340, 2.2), (11, 131, 0.1), (4, 57, 2.9)), 0x6F77B3, 0xD9A9B4),
        (288, ((20, 300, 4.6), (9, 143, 2.4), (3, 49, 0.8)), 0x48518F, 0x9C7EA0),
        (322, ((15, 420, 1.2), (7, 101, 3.3), (2.4, 37, 0.2)), 0x272E5E, 0x4E4877),
    )
    for height, parts, top, bottom in layers:
        ridge = height + waves(x, *parts)
        canvas.land(ridge, [(0, top), (44, bottom), (120, bottom)])
    canvas.lay(np.exp(-(((y - 286) / 13) ** 2)) * smooth(-1.2, 1, np.sin(x / 118 + 2)), 0xFFD9CF, 0.34)
    _balloon(canvas, (128, 96), 15, (0x6E6FB5, 0xE9D6DC, 0xB7AFD4))
    _balloon(canvas, (392, 136), 92, (0xE4483D, 0xFFF0D4, 0xF5A03C))
    return canvas


def _balloon(canvas: Canvas, at: Point, radius: float, colours: tuple[int, int, int]) -> None:
    """A balloon of gores: a ball above, drawn together to its mouth below, with a basket under it."""
    x, y = (canvas.x - at[0]) / radius, (canvas.y - at[1]) / radius
    wide = np.where(y < 0.0, np.sqrt(np.clip(1 - y * y, 0, 1)), np.clip(1 - 0.56 * np.clip(y, 0, 2) ** 1.9, 0.0, 1))
    wide = np.where(y > 1.28, 0, wide)
    across = x / np.maximum(wide, 1e-3)
    edge = (1 - np.abs(across)) * wide * radius * FINER
    mask = np.clip(edge + 0.5, 0, 1) * (y > -1) * np.clip((1.28 - y) * radius * FINER, 0, 1)
    angle = np.arcsin(np.clip(across, -1, 1))
    around = (angle / np.pi + 0.5) * 9
    gore = np.floor(around).astype(int)
    colour = np.stack([rgb(each) for each in colours])[gore % len(colours)]
    band = smooth(0.30, 0.34, y) * smooth(0.62, 0.58, y)
    colour = colour * (1 - band[..., None] * 0.9) + rgb(colours[0]) * band[..., None] * 0.9
    seam = np.abs(around - np.round(around))
    light = 0.66 + 0.42 * np.clip(-0.72 * across - 0.36 * y + 0.35, 0, 1) - 0.10 * np.exp(-((seam / 0.05) ** 2))
    canvas.lay(mask, colour * light[..., None])
    canvas.lay(mask * np.exp(-(((x + 0.46) / 0.2) ** 2 + ((y + 0.46) / 0.3) ** 2)), 0xFFFFFF, 0.30)
    foot, below = at[1] + 1.28 * radius, at[1] + 1.62 * radius
    for side in (-1, -0.36, 0.36, 1):
        ends = [(at[0] + side * 0.12 * radius, foot), (at[0] + side * 0.09 * radius, below)]
        canvas.lay(canvas.stroke(ends, max(0.5, radius * 0.012)), 0x4A3A44)
    half, deep = 0.11 * radius, 0.15 * radius
    basket = [
        (at[0] - half, below),
        (at[0] + half, below),
        (at[0] + half * 0.84, below + deep),
        (at[0] - half * 0.84, below + deep),
    ]
    canvas.lay(canvas.shape(basket), blend([(at[0] - half, 0xB07A48), (at[0] + half, 0x5E3A24)], canvas.x))


def tea() -> Canvas:
    """A cup of hot tea on a table, before a window behind which a city lights up in the evening."""
    canvas = Canvas(WIDTH, HEIGHT)
    x, y = canvas.x, canvas.y
    canvas.sky([(0, 0x1B2A4E), (120, 0x3A4374), (200, 0x8A5E7E), (260, 0xD98A6C)])
    lights = (
        (46, 176, 17, 0xFFB765),
        (98, 212, 22, 0xFF8E5A),
        (150, 168, 13, 0xFFE0A0),
        (196, 206, 19, 0xFFC070),
        (404, 186, 17, 0xFFD58C),
        (452, 214, 24, 0xFF9A60),
        (508, 172, 15, 0x9FC4FF),
        (556, 206, 21, 0xFFC375),
        (606, 180, 16, 0xFF8A66),
        (74, 132, 10, 0x8FB4FF),
        (540, 130, 11, 0xFFD9A0),
        (250, 186, 14, 0xFF9D6E),
        (352, 208, 20, 0xFFB35E),
        (24, 226, 20, 0xF7C66E),
        (628, 226, 18, 0xFFD08A),
        (300, 226, 16, 0xFFDA9C),
    )
    for right, down, radius, colour in lights:
        canvas.lay(canvas.disc((right, down), radius, 1.6), colour, 0.40)
        canvas.lay(canvas.disc((right, down), radius, 1.2) - canvas.disc((right, down), radius - 2, 1.2), colour, 0.25)
    for right in (214, 426):
        frame = np.clip(7 - np.abs(x - right), 0, 1)
        canvas.lay(frame, blend([(right - 7, 0x2C2233), (right + 7, 0x4A3848)], x))
    canvas.lay(np.clip(y - 240, 0, 1), blend([(240, 0x5A4048), (256, 0x3A2A34)], y))
    table = 262.0
    grain = waves(y * 5 + waves(x, (6, 330, 0), (2, 90, 1)), (0.5, 37, 0), (0.5, 61, 2))
    wood = blend([(table, 0xA9683F), (300, 0x85492C), (360, 0x4B2619)], y) * (1 + 0.05 * grain[..., None])
    canvas.lay(np.clip((y - table) * FINER, 0, 1), wood)
    canvas.lay(np.exp(-(((x - 320) / 210) ** 2 + ((y - table - 14) / 34) ** 2)) * (y > table), 0xFFC98A, 0.30)
    _cup(canvas, (320, 232))
    return canvas


def _cup(canvas: Canvas, at: Point) -> None:
    x, y = at
    canvas.lay(canvas.disc((x + 12, y + 84), (132, 15), 9), 0x2A120C, 0.55)
    canvas.lay(canvas.disc((x, y + 76), (118, 17)), blend([(x - 118, 0xFFF3E0), (x + 118, 0xB58F86)], canvas.x))
    canvas.lay(canvas.disc((x, y + 73), (88, 11), 3), 0xC9A79A, 0.6)
    outer, inner = canvas.disc((x + 76, y + 18), (33, 29)), canvas.disc((x + 76, y + 16), (20, 17))
    canvas.lay(np.clip(outer - inner, 0, 1), blend([(x + 60, 0xD9BBAE), (x + 108, 0xA87F7C)], canvas.x))
    down = np.linspace(0, 1, 40)
    half = 78 - 36 * down**2.6
    sides = [
        *zip(x - half, y - 18 + 88 * down, strict=True),
        *zip((x + half)[::-1], (y - 18 + 88 * down)[::-1], strict=True),
    ]
    body = np.maximum(canvas.shape(sides), canvas.disc((x, y + 70), (42, 6)))
    glaze = blend([(-80, 0xE9CDB8), (-48, 0xFFF8EC), (-6, 0xF3DED0), (52, 0xB98F8A), (80, 0x8E6A74)], canvas.x - x)
    canvas.lay(body, glaze)
    stripe = np.exp(-(((canvas.y - y - 14 - 5 * np.sqrt(np.clip(1 - ((canvas.x - x) / 78) ** 2, 0, 1))) / 5) ** 2))
    canvas.lay(body * stripe, blend([(-80, 0x4E7FA8), (-40, 0x7FB3D4), (80, 0x2C4A72)], canvas.x - x), 0.9)
    canvas.lay(canvas.disc((x, y - 18), (78, 17)), 0xFFF6EA)
    canvas.lay(canvas.disc((x, y - 17), (73, 14)), blend([(y - 31, 0x9A7468), (y - 4, 0xE8CDBE)], canvas.y))
    liquid = canvas.disc((x, y - 14), (68, 11))
    canvas.lay(liquid, blend([(x - 68, 0xA6501F), (x, 0xC9702B), (x + 68, 0x7A3315)], canvas.x))
    canvas.lay(liquid * canvas.disc((x - 22, y - 17), (26, 4), 3), 0xFFD79A, 0.55)
    rise = np.clip((y - 16 - canvas.y) / 190, 0, 1)
    fade = smooth(0, 0.10, rise) * smooth(1, 0.25, rise)
    for begin, foot, bend in ((0.3, -26, 1.0), (2.2, 4, 1.25), (4.4, 30, 0.9)):
        middle = x + foot + bend * (6 + 30 * rise) * np.sin(rise * 7.4 + begin)
        thick = 5 + 21 * rise
        canvas.lay(np.exp(-(((canvas.x - middle) / thick) ** 2)) * fade, 0xFFF1E4, 0.36)


SCENES: Mapping[str, Callable[[], Canvas]] = {"boat": boat, "hills": hills, "balloon": balloon, "tea": tea}
"""Every picture by the name of its file."""
