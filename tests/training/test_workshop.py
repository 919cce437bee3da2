"""Everything is made once, at toy size."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from training.__main__ import NAMES
from training.workshop import TOY, Workshop


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything has been trained, in the order of the command line."""
    directory = tmp_path_factory.mktemp("runs")
    workshop = Workshop(directory, TOY)
    for name in NAMES:
        training = getattr(workshop, name)()
        torch.save(training.network.state_dict(), directory / f"{name}.first")
        training.run()
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_trained_kept_and_drawn(directory: Path, name: str) -> None:
    first = torch.load(directory / f"{name}.first", weights_only=True)
    kept = torch.load(directory / f"{name}.pt", weights_only=True)
    assert kept["step"] == 2
    assert any(not torch.equal(value, first[key]) for key, value in kept["network"].items())
    with Image.open(directory / f"{name}.png") as sheet:
        assert sheet.width > sheet.height / 2
    assert getattr(Workshop(directory, TOY), name)().step == 2
