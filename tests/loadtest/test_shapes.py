"""Load shapes: what they are, and that none exceeds what it was given."""

from __future__ import annotations

import pytest

from loadtest.shapes import LONGEST_SECONDS, MOST_USERS, SHAPES, Stage, stage_at, stages


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("users", [1, 2, 7, 250])
@pytest.mark.parametrize("seconds", [1.0, 45.0, 3600.0])
def test_a_shape_lasts_as_long_and_has_as_many_users_as_it_was_given(shape: str, users: int, seconds: float) -> None:
    planned = stages(shape, users, seconds, 4)
    assert sum(stage.seconds for stage in planned) == pytest.approx(seconds)
    assert max(stage.users for stage in planned) == users
    assert all(stage.users >= 1 and stage.seconds > 0 for stage in planned)
    assert stage_at(planned, seconds + 0.01) is None


def test_a_ramp_only_rises() -> None:
    counts = [stage.users for stage in stages("ramp", 25, 60, 1)]
    assert counts == sorted(counts) and len(set(counts)) == 10


def test_a_spike_comes_and_goes() -> None:
    assert [stage.users for stage in stages("spike", 20, 60, 1)] == [4, 20, 4]


def test_a_mixed_load_favours_each_endpoint_in_turn() -> None:
    assert [stage.favourite for stage in stages("mixed", 3, 50, 4)] == [0, 1, 2, 3, None]


def test_a_stage_is_found_by_its_time() -> None:
    planned = [Stage(10, 1), Stage(5, 2)]
    found = [stage_at(planned, second) for second in (0, 9.9, 10, 14.9)]
    assert [stage.users for stage in found if stage] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("shape", "users", "seconds"),
    [
        ("cliff", 1, 10),
        ("soak", 0, 10),
        ("soak", MOST_USERS + 1, 10),
        ("soak", 1, 0),
        ("soak", 1, LONGEST_SECONDS + 1),
    ],
)
def test_a_load_without_bounds_is_refused(shape: str, users: int, seconds: float) -> None:
    with pytest.raises(ValueError):
        stages(shape, users, seconds, 1)
