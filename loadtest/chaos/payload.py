"""What a request asks for, and the clip that must come of it.

    seed, motion_bucket_id, cond_aug, colour ──▶ digest (64 bits) ──▶ black and white blocks ──▶ mp4 ──▶ digest again

No two requests of a campaign have the same payload, so a clip says whose it is. ``motion_bucket_id`` also says what the
engine does to it: the highest numbers are the ones that fail.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from deployments.inference.encode import ffmpeg_binary

if TYPE_CHECKING:
    import numpy as np

FAILS = 252
"""The model raises an error that it does not name."""

POISON = 253
"""The process that runs it dies."""

HANGS = 254
"""The model never comes back, and looks at nothing meanwhile."""

INVALID = 256
"""The gateway refuses it: the request fails before it is queued."""

LAST_GOOD = 200

SIDE, BLOCK, FRAMES = 32, 8, 4
_BLOCKS = (SIDE // BLOCK) ** 2
assert _BLOCKS * FRAMES == 64
_DECODED_AT_ONCE = 200


@dataclass(frozen=True)
class Payload:
    """The input of one request."""

    seed: int
    motion: int
    cond_aug: float
    colour: tuple[int, int, int]

    @classmethod
    def of_input(cls, text: str) -> Self | None:
        """The payload behind an input as the queue keeps it; None if there is none."""
        input = json.loads(text)
        try:
            picture = Image.open(io.BytesIO(base64.b64decode(input["image_url"].partition(",")[2])))
            return cls(input["seed"], input["motion_bucket_id"], input["cond_aug"], colour_of(picture.convert("RGB")))
        except (KeyError, TypeError, OSError):
            return None

    @property
    def digest(self) -> int:
        """64 bits that no other payload has."""
        text = f"{self.seed} {self.motion} {self.cond_aug} {self.colour}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    @property
    def body(self) -> dict[str, Any]:
        """What is POSTed."""
        return {
            "image_url": picture_url(self.colour),
            "seed": self.seed,
            "motion_bucket_id": self.motion,
            "cond_aug": self.cond_aug,
        }

    def dump(self) -> dict[str, Any]:
        """The same for a journal."""
        return vars(self) | {"colour": list(self.colour)}

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Self:
        """From a journal."""
        return cls(values["seed"], values["motion"], values["cond_aug"], tuple(values["colour"]))


def picture_url(colour: tuple[int, int, int]) -> str:
    """A picture of one colour as a data URI."""
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def colour_of(picture: Image.Image) -> tuple[int, int, int]:
    """The colour of a picture of one colour."""
    red, green, blue = picture.getpixel((SIDE // 2, SIDE // 2))  # type: ignore[misc]  # RGB has three
    return int(red), int(green), int(blue)


def paint(digest: int) -> np.ndarray:
    """A clip that shows a digest, as uint8 RGB frames."""
    import numpy as np

    bits = np.array([digest >> place & 1 for place in range(64)], dtype=np.uint8).reshape(FRAMES, *_grid())
    blocks = bits.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2) * 255
    return np.repeat(blocks[..., None], 3, axis=3)


def read(frames: np.ndarray) -> int:
    """The digest that a clip shows, from frames of grey."""
    import numpy as np

    blocks = frames.reshape(FRAMES, SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK).mean(axis=(2, 4))
    return sum(1 << place for place, bit in enumerate(np.ravel(blocks > 128)) if bit)


def decode(clips: Sequence[Path]) -> list[int | None]:
    """The digests that files show; None for what is no clip of ours. Many at once, as a decoder starts slowly."""
    decoded: list[int | None] = []
    for start in range(0, len(clips), _DECODED_AT_ONCE):
        some = clips[start : start + _DECODED_AT_ONCE]
        together = _decode(some)
        decoded += together if together else [each for clip in some for each in _decode([clip]) or [None]]
    return decoded


def _decode(clips: Sequence[Path]) -> list[int | None] | None:
    """The digests of files that are all whole; None if they are not."""
    import numpy as np

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listing:
        listing.write("".join(f"file '{clip}'\n" for clip in clips))
        listing.flush()
        command = [ffmpeg_binary(), "-v", "error", "-f", "concat", "-safe", "0", "-i", listing.name]
        command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray", "pipe:"]
        done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or len(done.stdout) != len(clips) * FRAMES * SIDE * SIDE:
        return None
    return [read(clip) for clip in np.frombuffer(done.stdout, np.uint8).reshape(len(clips), FRAMES, SIDE, SIDE)]


def _grid() -> tuple[int, int]:
    return SIDE // BLOCK, SIDE // BLOCK
