"""What a clip looks like, in figures: how far things move, whether it flickers, how sharp it is, what colours it has.

Frames are uint8 [F, H, W, 3]. Motion is found by dense inverse search (Kroeger et al. 2016, "Fast Optical Flow using
Dense Inverse Search") as OpenCV has it: right to a tenth where what moves has texture, and it takes a millisecond.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import cv2
import numpy as np

from training.scenes import COLOURS

HOPS = 3
"""Motion is measured over so many parts of a clip: in one, much moves too far to be found again."""

FILLED: Mapping[str, tuple[float, float]] = {"circle": (0.68, 0.87), "square": (0.87, 1.0), "triangle": (0.35, 0.68)}
"""How much of its upright bounding box a shape fills: pi / 4, all and half of it, give or take a blurred edge."""


def flow(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where each pixel of a frame has gone in another, float32 [H, W, 2] as x to the right and y down, in pixels."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(search.calc(_grey(before), _grey(after), None))  # type: ignore[call-overload]  # None: a new one


def displacements(frames: np.ndarray) -> np.ndarray:
    """How far each pixel goes from the first frame to the last, [H, W, 2] in widths of the frame.

    The sum of what lies at a pixel in each part of the clip.
    """
    stops = np.linspace(0, len(frames) - 1, HOPS + 1).round().astype(int)
    hops = [flow(frames[start], frames[end]) for start, end in pairwise(stops)]
    return np.asarray(np.sum(hops, axis=0) / frames.shape[2])


def distance(frames: np.ndarray, where: np.ndarray | None = None) -> float:
    """How far what is seen goes, on average, in widths of the frame; of a part of the frame, bool [H, W], if given."""
    far = np.hypot(*np.moveaxis(displacements(frames), -1, 0))
    return float(far.mean() if where is None else far[where].mean())


def flicker(frames: np.ndarray) -> float:
    """How much of the change from frame to frame is no motion: what is left of it, of 255, where motion is undone."""
    rows, columns = np.mgrid[: frames.shape[1], : frames.shape[2]].astype(np.float32)
    left = []
    for before, after in pairwise(frames):
        moved = flow(before, after)
        back = cv2.remap(
            after, columns + moved[..., 0], rows + moved[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT
        )
        left.append(np.abs(back.astype(np.float32) - before).mean())
    return float(np.mean(left))


def sharpness(frame: np.ndarray) -> float:
    """Mean difference of neighbouring pixels, of 255."""
    grey = _grey(frame).astype(np.float32)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


def psnr(made: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal to noise ratio of bytes, in dB."""
    error = np.square(made.astype(np.float64) - wanted).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def of_colour(picture: np.ndarray, colour: str) -> np.ndarray:
    """Which pixels of a picture [H, W, 3] are nearest that colour among ``COLOURS``, as the eye sees it."""
    names = list(COLOURS)
    known = _lab(np.array([[COLOURS[name] for name in names]], np.uint8))[0]
    apart = np.linalg.norm(_lab(picture)[..., None, :] - known, axis=-1)
    return np.asarray(apart.argmin(-1) == names.index(colour))


def is_shape(mask: np.ndarray, shape: str) -> bool:
    """Whether the largest part of a mask is such a shape, by how much of its bounding box it fills."""
    _, _, parts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if len(parts) < 2:
        return False
    _, _, width, height, area = max(parts[1:], key=lambda part: int(part[4]))
    low, high = FILLED[shape]
    return bool(area > 0.01 * mask.size and low <= area / (width * height) <= high)


def _grey(frame: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY))


def _lab(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB), np.float32)
