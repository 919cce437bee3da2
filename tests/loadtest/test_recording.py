"""What is read out of a load test's files, and where the knee is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from loadtest.recording import Level, knee, load, saturation
from tests.loadtest.recorded import BEGAN, record, watched


def level(users: int, per_minute: float, mean: float) -> Level:
    return Level(users, 10, per_minute, mean, mean, 2 * mean, 3 * mean, None, None, 0)


def test_levels_are_of_clips_while_all_users_were_there(tmp_path: Path) -> None:
    loads = [{"users": 2, "per_minute": 60, "mean": 1000, "p95": 1500, "failed": 6}]
    (found,) = load(record(tmp_path, loads)).levels
    assert (found.users, found.clips, found.failed) == (2, 54, 6)
    assert found.per_minute == pytest.approx(60 * 54 / 59, rel=0.02)  # its first second had no users yet
    assert (found.mean, found.p50, found.p95, found.p99) == (1.0, 1.0, 1.5, 1.5)
    assert found.waiting is None


def test_the_queue_of_a_load_is_that_of_its_own_time(tmp_path: Path) -> None:
    folder = record(tmp_path, [{"users": 1}, {"users": 4}])
    watched(folder)
    first, second = load(folder).levels
    assert first.waiting and first.waiting < 5 and first.most_waiting == 5
    assert (second.waiting, second.most_waiting) == (5, 5)


def test_the_mean_of_the_queue_is_of_the_time_in_which_all_users_were_there(tmp_path: Path) -> None:
    folder = record(tmp_path, [{"users": 1, "full_after": 50}])
    watched(folder)
    assert load(folder).levels[0].waiting == 5


def test_clips_that_failed_have_no_time(tmp_path: Path) -> None:
    (found,) = load(record(tmp_path, [{"users": 1, "failed": 60}])).levels
    assert math.isnan(found.mean) and math.isnan(found.p99) and found.power == 0


def test_percentiles_of_a_time_without_clips_are_not_known(tmp_path: Path) -> None:
    (part,) = load(record(tmp_path, [{"users": 1}])).parts
    assert math.isnan(part.history[0].p50) and part.history[-1].p50 == 1.0


def test_a_row_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    folder = record(tmp_path, [{"users": 1}])
    with (folder / "load-1_stats_history.csv").open("a") as file:
        file.write(f"{BEGAN + 61},1,CLIP,al")
    (part,) = load(folder).parts
    assert part.history[-1].at == BEGAN + 60


def test_files_that_locust_did_not_come_to_write_are_empty(tmp_path: Path) -> None:
    folder = record(tmp_path, [{"users": 1}])
    for file in folder.glob("load-1_*"):
        file.unlink()
    (part,) = load(folder).parts
    assert part.clips is None and not part.history
    assert (load(folder).levels[0].clips, load(folder).levels[0].per_minute) == (0, 0)


def test_an_exception_of_the_load_test_is_a_failure(tmp_path: Path) -> None:
    (part,) = load(record(tmp_path, [{"users": 1, "exceptions": [(3, "KeyError: 'x'")]}])).parts
    assert [(each.why, each.count) for each in part.failures] == [("KeyError: 'x'", 3)]


def test_the_failures_of_all_clips_together_are_not_counted_twice(tmp_path: Path) -> None:
    failures = [("CLIP", "all", "wrong", 2), ("CLIP", "queue fal-ai/svd", "wrong", 2)]
    (part,) = load(record(tmp_path, [{"users": 1, "failures": failures}])).parts
    assert [each.count for each in part.failures] == [2]


def test_the_knee_has_the_greatest_power() -> None:
    levels = [level(1, 60, 1.0), level(4, 180, 1.3), level(12, 190, 3.8)]
    assert knee(levels) is levels[1]


def test_a_service_that_does_one_thing_at_a_time_has_its_knee_at_one() -> None:
    assert knee([level(1, 60, 1.0), level(4, 60, 4.0), level(12, 60, 12.0)]) == level(1, 60, 1.0)


def test_without_a_clip_there_is_no_knee() -> None:
    assert knee([]) is None
    assert knee([level(1, 0, 0)]) is None


def test_saturation_is_littles_law_at_the_best_throughput() -> None:
    assert saturation([level(1, 60, 1.0), level(4, 180, 1.3)]) == pytest.approx(3.0)
    assert saturation([level(4, 180, 1.3)]) is None
