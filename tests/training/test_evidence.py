"""The claims hold for clips that were made by rule, and for still, noisy and wrong ones they do not."""

from pathlib import Path

import numpy as np
import pytest

from training import evidence
from training.clips import Clip
from training.evidence import Exhibits, as_bytes
from training.scenes import COLOURS

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"


class Ruled(Exhibits):
    """Clips by rule, at once."""

    def _clip(self, name: str, motion: int, steps: int = 0, aug: float = 0.0, more: str = "") -> np.ndarray:
        return self.moved(name, motion)

    def follow(self, drawn: Clip) -> np.ndarray:
        return as_bytes(drawn.frames)


class Still(Exhibits):
    """A picture, and nothing else."""

    def _clip(self, name: str, motion: int, steps: int = 0, aug: float = 0.0, more: str = "") -> np.ndarray:
        return np.asarray(self.pictures[name])[None].repeat(14, 0)


class Led(Exhibits):
    """Full motion where maps move, none where they stay."""

    def _clip(self, name: str, motion: int, steps: int = 0, aug: float = 0.0, more: str = "") -> np.ndarray:
        return self.moved(name, {"left": 255, "stay": 0}.get(more, motion))


class Rash(Exhibits):
    """Full motion, whatever is asked for."""

    def _clip(self, name: str, motion: int, steps: int = 0, aug: float = 0.0, more: str = "") -> np.ndarray:
        return self.moved(name, 255)


class Noisy(Exhibits):
    """Clips by rule, under noise."""

    def _clip(self, name: str, motion: int, steps: int = 0, aug: float = 0.0, more: str = "") -> np.ndarray:
        return _noisy(self.moved(name, motion))

    def follow(self, drawn: Clip) -> np.ndarray:
        return as_bytes(drawn.frames)


class NoisyAtHome(Ruled):
    """Noise only where they should know best."""

    def follow(self, drawn: Clip) -> np.ndarray:
        return _noisy(as_bytes(drawn.frames))


def _noisy(frames: np.ndarray) -> np.ndarray:
    return (frames + np.random.default_rng(0).normal(0, 30, frames.shape)).clip(0, 255).astype(np.uint8)


class Painted(Exhibits):
    """Prompts answered with a square of the first colour that they name on the last."""

    def _painted(self, prompt: str) -> np.ndarray:
        colours = [COLOURS[word] for word in prompt.split() if word in COLOURS]
        picture = np.full((80, 144, 3), colours[-1], np.uint8)
        picture[20:60, 50:90] = colours[0]
        return picture


@pytest.mark.parametrize(
    ("kind", "claim", "holds"),
    [
        (Ruled, evidence.motion_rises, True),
        (Still, evidence.motion_rises, False),
        (Rash, evidence.motion_rises, False),
        (Ruled, evidence.the_least_is_nearly_still, True),
        (Rash, evidence.the_least_is_nearly_still, False),
        (Still, evidence.the_first_frame_is_the_picture, True),
        (Noisy, evidence.the_first_frame_is_the_picture, False),
        (Ruled, evidence.nothing_flickers, True),
        (Noisy, evidence.nothing_flickers, False),
        (NoisyAtHome, evidence.nothing_flickers, False),
        (Ruled, evidence.clips_stay_sharp, True),
        (Ruled, evidence.white_stays_and_black_moves, False),
        (Still, evidence.white_stays_and_black_moves, False),
        (Led, evidence.clips_go_where_depth_maps_go, True),
        (Ruled, evidence.clips_go_where_depth_maps_go, False),
        (Still, evidence.clips_go_where_depth_maps_go, False),
        (Led, evidence.clips_stay_where_depth_maps_stay, True),
        (Ruled, evidence.clips_stay_where_depth_maps_stay, False),
        (Rash, evidence.clips_stay_where_depth_maps_stay, False),
        (Ruled, evidence.few_steps_are_like_many, True),
        (Still, evidence.augmentation_keeps_less, False),
        (Painted, evidence.prompts_give_colours_and_shapes, False),
    ],
)
def test_a_claim_holds_where_it_should(kind: type[Exhibits], claim: evidence.Claim, holds: bool) -> None:
    finding = claim(kind(CONFIG, most=2))
    assert finding.holds == holds, finding
