"""Everything is made once, at toy size."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from training.workshop import TOY, Workshop


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", TOY.recipes)
def test_a_network_is_trained_kept_and_drawn(name: str, tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, TOY)
    training = getattr(workshop, name)()
    before = {key: value.clone() for key, value in training.network.state_dict().items()}
    training.run()
    kept = torch.load(tmp_path / f"{name}.pt", weights_only=True)
    assert kept["step"] == 2
    assert any(not torch.equal(value, before[key]) for key, value in kept["network"].items())
    with Image.open(tmp_path / f"{name}.png") as sheet:
        assert sheet.width > sheet.height / 2
    assert getattr(Workshop(tmp_path, TOY), name)().step == 2
