"""Train the small networks: ``python -m training RUNS [NAME ...]``. What was interrupted goes on where it was."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # whoever waits for a thread leaves the core to other programs
os.environ.setdefault("GOMP_SPINCOUNT", "0")

NAMES = (
    "linear_decoder",
    "decoder",
    "unet",
    "reader",
    "led",
    "distilled",
    "refined_decoder",
    "painter",
    "still_linear_decoder",
    "still_decoder",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m training", description="Train the small networks of svd-serve.")
    parser.add_argument("directory", type=Path, help="where pictures, banks and checkpoints are kept")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to train of {', '.join(NAMES)} (default: all)")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="train nothing; write checkpoints of what was trained"
    )
    parser.add_argument("--device", default="cpu", help="where (default: cpu)")
    parser.add_argument("--steps", type=int, help="how many steps, in place of the recipe's")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    from training.workshop import CPU, Workshop

    scale = CPU
    if options.steps:
        scale = replace(
            CPU, recipes={name: replace(recipe, steps=options.steps) for name, recipe in CPU.recipes.items()}
        )
    workshop = Workshop(options.directory, scale, options.device)
    if options.export:
        return workshop.export(options.export)
    for name in options.names or NAMES:
        getattr(workshop, name)().run()


if __name__ == "__main__":
    main()
