"""The UNet begins by copying, in the stock class and whatever the noise."""

import pytest
import torch

from deployments.models.schedules import lcm_schedule
from training.networks import LATENT_CHANNELS, begin_copying, depth_controlnet, flatten_time, video_unet
from training.unet import asking, clean, predict, wanted_velocity

SPREAD = torch.linspace(2.5, 0.4, LATENT_CHANNELS)


def _clips() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    latents = torch.randn(1, 3, LATENT_CHANNELS, 6, 8) * SPREAD[:, None, None]
    return {
        "clip": latents,
        "first": latents[:, :1] + SPREAD[:, None, None],
        "embedding": torch.randn(1, 1, 32),
        "time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }


@pytest.mark.parametrize("sigma", [0.5, 13.0, 700.0])
def test_a_new_unet_answers_with_the_picture(sigma: float) -> None:
    torch.manual_seed(0)
    unet = video_unet()
    begin_copying(unet, SPREAD)
    clips = _clips()
    noisy = clips["clip"] + sigma * torch.randn_like(clips["clip"])
    with torch.no_grad():
        velocity = predict(asking(unet.half().float()), noisy, torch.tensor([sigma]), clips, torch.ones(1))
    off = (velocity + clips["first"]) / SPREAD[:, None, None]
    assert off.square().mean().sqrt() < 0.1


def test_convolutions_along_time_alone_are_the_same_sums() -> None:
    torch.manual_seed(0)
    unet = video_unet()
    for name, parameter in unet.named_parameters():
        if "conv2" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    clips = _clips()
    asked = (clips["clip"], torch.tensor([3.0]), clips, torch.ones(1))
    with torch.no_grad():
        stock = predict(asking(unet), *asked)
        flatten_time(unet)
        torch.testing.assert_close(predict(asking(unet), *asked), stock, rtol=1e-4, atol=1e-4)


def test_the_wanted_velocity_leads_to_the_clean_clip() -> None:
    clips, sigma = torch.randn(2, 3, 4), torch.tensor([0.3, 20.0])
    noisy = clips + sigma[:, None, None] * torch.randn_like(clips)
    guess = clean(noisy, wanted_velocity(clips, noisy, sigma), sigma)
    torch.testing.assert_close(guess, clips, rtol=1e-4, atol=1e-4)


def test_a_guess_is_what_the_service_takes_it_for() -> None:
    schedule = lcm_schedule(4)
    noisy, velocity = torch.randn(2, 1, 3, 4)
    for index, sigma in enumerate(schedule.sigmas[:-1]):
        guess = clean(noisy, velocity, torch.tensor([sigma]))
        torch.testing.assert_close(guess, schedule.clean(noisy, velocity, index), rtol=1e-4, atol=1e-3)


def test_a_new_controlnet_hears_its_maps_but_no_latents_and_adds_nothing() -> None:
    torch.manual_seed(0)
    control = depth_controlnet(video_unet())
    clips = _clips()
    sample = torch.cat([clips["clip"], clips["first"].expand_as(clips["clip"])], dim=2)
    features = control.embed(torch.rand(1, 3, 3, 48, 64))
    asked = (torch.tensor([0.1]), clips["embedding"], clips["time_ids"])
    assert not any(each.any() for each in control(sample, *asked, features, accumulate=True))
    torch.nn.init.dirac_(control.controlnet_mid_block.weight)
    middle, of_other_latents, of_other_maps = (
        control(latents, *asked, maps, accumulate=True)[-1]
        for latents, maps in ((sample, features), (sample.flip(-1), features), (sample, features.flip(-1)))
    )
    assert torch.equal(middle, of_other_latents)
    assert not torch.allclose(middle, of_other_maps, atol=1e-3)
