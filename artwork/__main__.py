"""Draw every picture, or those that are named, and say how large each has become."""

from __future__ import annotations

import sys
from pathlib import Path

from artwork.scenes import SCENES

FOLDER = Path(__file__).parents[1] / "deployments" / "gateway" / "playground" / "examples"


def main() -> None:
    """Draw what the command line names; all where it names nothing."""
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or SCENES:
        data = SCENES[name]().jpeg()
        (FOLDER / f"{name}.jpg").write_bytes(data)
        print(f"{name}.jpg: {len(data)} bytes")


if __name__ == "__main__":
    main()
