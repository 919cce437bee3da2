"""What the shipped weights can do, on photographs that they have never seen."""

from pathlib import Path

import pytest

from training import evidence
from training.evidence import Exhibits

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"


@pytest.fixture(scope="module")
def exhibits() -> Exhibits:
    return Exhibits(CONFIG, most=3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # the stock scheduler's
@pytest.mark.parametrize(
    "claim",
    [
        evidence.motion_rises,
        evidence.the_least_is_nearly_still,
        evidence.the_first_frame_is_the_picture,
        evidence.clips_stay_sharp,
        evidence.white_stays_and_black_moves,
        evidence.clips_go_where_depth_maps_go,
        evidence.clips_stay_where_depth_maps_stay,
        evidence.few_steps_are_like_many,
        evidence.augmentation_keeps_less,
        evidence.prompts_give_colours_and_shapes,
    ],
)
def test_the_shipped_weights_do_what_their_card_says(exhibits: Exhibits, claim: evidence.Claim) -> None:
    finding = claim(exhibits)
    assert finding.holds, finding
