"""How large a clip is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, order=True)
class Size:
    """Width and height of a clip in pixels, written ``1024x576``."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read ``WIDTHxHEIGHT``.

        Raises:
            ValueError: The text is not two positive integers joined by ``x``.
        """
        if isinstance(text, cls):
            return text
        width, _, height = str(text).partition("x")
        if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
            raise ValueError(f"a size is written WIDTHxHEIGHT in pixels, not {text!r}")
        return cls(int(width), int(height))
