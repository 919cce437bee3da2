"""What the shipped weights can do, on photographs that they have never seen."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from training import evidence
from training.evidence import Exhibits

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"
ALL, THREE = 10, 3
"""Pictures: of the guided endpoint, which takes longer, three."""


@pytest.fixture(scope="module")
def exhibits() -> Callable[[int], Exhibits]:
    """With so many pictures."""
    return cache(lambda most: Exhibits(CONFIG, most=most))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # the stock scheduler's
@pytest.mark.parametrize(
    ("claim", "most"),
    [
        (evidence.motion_rises, ALL),
        (evidence.the_least_is_nearly_still, ALL),
        (evidence.the_first_frame_is_the_picture, ALL),
        (evidence.nothing_flickers, ALL),
        (evidence.clips_stay_sharp, ALL),
        (evidence.white_stays_and_black_moves, THREE),
        (evidence.clips_go_where_depth_maps_go, THREE),
        (evidence.clips_stay_where_depth_maps_stay, THREE),
        (evidence.few_steps_are_like_many, THREE),
        (evidence.augmentation_keeps_less, THREE),
        (evidence.prompts_give_colours_and_shapes, THREE),
    ],
)
def test_the_shipped_weights_do_what_their_card_says(
    exhibits: Callable[[int], Exhibits], claim: evidence.Claim, most: int
) -> None:
    finding = claim(exhibits(most))
    assert finding.holds, finding
