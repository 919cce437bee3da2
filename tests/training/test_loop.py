"""A run that was killed goes on as if it had not been."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from training.loop import Loss, Recipe, Training

RECIPE = Recipe(steps=20, rate=0.02, warm_up=2, mean_over=5, keep_seconds=0)


class _Killed(Exception):
    """Stands for the end of the process."""


def _training(file: Path | None, before: Callable[[int], None] = lambda step: None) -> Training:
    torch.manual_seed(0)
    network = nn.Linear(4, 3)
    return Training(network, _loss(network, before), RECIPE, file)


def _loss(network: nn.Module, before: Callable[[int], None]) -> Loss:
    def loss(step: int) -> torch.Tensor:
        before(step)
        drawn = torch.from_numpy(RECIPE.generator(step).standard_normal((8, 4))).float()
        answer: torch.Tensor = network(drawn)
        return (answer - drawn[:, :3].flip(1)).square().mean()

    return loss


def _kill_at(fatal: int) -> Callable[[int], None]:
    def before(step: int) -> None:
        if step == fatal:
            raise _Killed

    return before


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = _training(None)
    whole.run()
    for fatal in (7, 13):
        with pytest.raises(_Killed):
            _training(tmp_path / "run.pt", _kill_at(fatal)).run()
    resumed = _training(tmp_path / "run.pt")
    assert resumed.step == 13
    resumed.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name])
        assert torch.equal(whole.mean[name], resumed.mean[name])


def test_a_run_learns_and_writes_its_figures(tmp_path: Path) -> None:
    _training(tmp_path / "run.pt").run()
    rows = [line.split(",") for line in (tmp_path / "run.csv").read_text().splitlines()]
    assert [int(row[1]) for row in rows] == list(range(1, 21))
    assert float(rows[-1][2]) < 0.8 * float(rows[0][2])


def test_what_is_not_finite_changes_nothing() -> None:
    network = nn.Linear(2, 1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Training(network, lambda step: network(torch.full((1, 2), torch.inf)).sum(), Recipe(steps=3)).run()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_rate_rises_stays_and_falls() -> None:
    recipe = Recipe(steps=100, rate=1.0, warm_up=10, cool_down=0.5)
    assert recipe.rate_at(0) == pytest.approx(0.1)
    assert recipe.rate_at(30) == 1.0
    assert recipe.rate_at(75) == pytest.approx(0.5)
    assert recipe.rate_at(99) == pytest.approx(0.02)
