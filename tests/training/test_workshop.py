"""Everything is made once, at toy size."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from deployments.models.base import Clip, ControlNetConfig
from deployments.models.checkpoints import Checkpoint, controlnet_part, svd_parts
from deployments.models.sampler import SVDSampler
from deployments.models.schedules import lcm_schedule
from deployments.models.text_to_video import ImageSize, TextToVideo, TextToVideoConfig, TextToVideoInput
from training.__main__ import NAMES
from training.workshop import TOY, Workshop


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


def test_what_was_trained_is_written_as_the_service_reads_it(directory: Path, tmp_path: Path) -> None:
    Workshop(directory, TOY).export(tmp_path)
    parts = svd_parts(Checkpoint(str(tmp_path / "svd")), None, None)
    parts["controlnet"] = controlnet_part(Checkpoint(str(tmp_path / "depth")), "controlnet", None)
    assert [part.check_hashes() for part in parts.values()] == [2, 2, 2, 1, 2]
    sampler = SVDSampler.load(parts, control=ControlNetConfig(weights=str(tmp_path / "depth")))
    picture = Image.new("RGB", (48, 32), "red")
    clip = Clip(picture, 0, 127, 0.02, depth=(picture,) * 3)
    [frames] = sampler.sample([clip], lcm_schedule(1), (1.0, 1.0), lambda done: [0])
    assert frames is not None
    assert frames.shape == (3, 32, 48, 3)


def test_what_was_distilled_goes_over_the_other_unet(directory: Path, tmp_path: Path) -> None:
    Workshop(directory, TOY).export(tmp_path)
    distilled = Checkpoint(str(tmp_path / "lcm")), "unet/diffusion_pytorch_model.safetensors"
    with_it, without = (
        SVDSampler.load(svd_parts(Checkpoint(str(tmp_path / "svd")), None, unet)) for unet in (distilled, None)
    )
    clip = Clip(Image.new("RGB", (48, 32), "red"), 0, 127, 0.02, length=3)
    [ours], [others] = (
        sampler.sample([clip], lcm_schedule(1), (1.0, 1.0), lambda done: [0]) for sampler in (with_it, without)
    )
    assert ours is not None and others is not None
    assert ours.shape == others.shape == (3, 32, 48, 3)
    kept, before = (Workshop(directory, TOY).learnt(name) for name in ("distilled", "led"))
    assert any(not torch.equal(value, before[f"unet.{name}"]) for name, value in kept.items())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # the stock scheduler's
def test_a_stock_pipeline_paints_with_what_was_trained(directory: Path, tmp_path: Path) -> None:
    Workshop(directory, TOY).export(tmp_path)
    config = TextToVideoConfig(
        weights=str(tmp_path / "text-to-image"), video="fal-ai/fast-svd-lcm", scale=0.125, multiple=16, steps=2
    )
    painter = TextToVideo("fal-ai/fast-svd-lcm/text-to-video", config)
    painter.setup("cpu")
    input = TextToVideoInput(prompt="a red circle", seed=1, video_size=ImageSize(width=512, height=256))
    assert painter.paint(input).size == (64, 32)
