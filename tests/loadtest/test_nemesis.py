"""The plan of faults is a function of its seed."""

from __future__ import annotations

from itertools import pairwise

from loadtest.chaos.nemesis import EARLY, FAULTS, LATE, plan


def test_seed_decides_the_plan() -> None:
    assert plan(1, 75) == plan(1, 75)
    assert len({tuple(plan(seed, 75)) for seed in range(20)}) == 20


def test_short_plan_has_its_faults_once_and_in_time() -> None:
    for seed in range(50):
        planned = plan(seed, 75)
        assert sorted(each.fault for each in planned) == sorted([*EARLY, *LATE])
        assert all(before.second < after.second < 75 for before, after in pairwise(planned))


def test_long_plan_has_every_fault_and_goes_on_until_the_end() -> None:
    planned = plan(1, 1200, list(FAULTS))
    assert {each.fault for each in planned} == set(FAULTS)
    assert len(planned) >= 2 * len(FAULTS) and planned[-1].second > 1100
