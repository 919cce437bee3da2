"""How ``svd-serve serve`` ends where the cluster does not answer as it should."""

from __future__ import annotations

import time
from typing import NoReturn

import pytest
import ray
from ray.serve import context

from deployments import ending


def fail() -> NoReturn:
    raise ValueError("a fault at postgresql://me:secret@host/queue\nwith a second line")


def test_call_that_fails_is_one_line_and_the_others_answer(capfd: pytest.CaptureFixture[str]) -> None:
    assert ending._within(5, [fail, lambda: "an answer"]) == ["an answer"]
    said = capfd.readouterr()
    assert said.out.splitlines() == ["While stopping: ValueError: a fault at postgresql://…@host/queue"]
    assert said.err == ""


def test_call_that_takes_longer_is_left_alone() -> None:
    assert ending._within(0.1, [lambda: time.sleep(5), lambda: None]) == [None]


def test_ray_ends_in_order_though_serve_does_not(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append("ray"))
    monkeypatch.setattr(context, "_get_global_client", lambda **options: fail())
    assert ending._within(5, [ending._stop_ray]) == [None]  # an answer: its processes get the time to end by themselves
    assert ended == ["ray"]
    assert len(capfd.readouterr().out.splitlines()) == 1
