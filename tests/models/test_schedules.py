"""The schedules against the published tables and against diffusers."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from pydantic import ValidationError

from deployments.models.fast_svd_lcm import FastSVDLCM
from deployments.models.schedules import SIGMA_MIN, EulerSchedule, LCMSchedule, euler_schedule, lcm_schedule
from deployments.models.svd import SVD
from tests import tiny

# diffusers turns a tensor into an array in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning:diffusers.schedulers.scheduling_euler_discrete"
)

SCHEDULER = tiny.WEIGHTS / "svd" / "scheduler"

LCM_SIGMAS = {
    1: [700],
    2: [700, 13.678],
    4: [700, 128.564, 13.678, 0.4969],
    8: [700, 315.74, 128.56, 45.85, 13.68, 3.167, 0.497, 0.0398],
}


def randn(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def diffusers_euler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler.from_pretrained(SCHEDULER)


@pytest.mark.parametrize("steps", LCM_SIGMAS)
def test_lcm_levels_are_those_of_animatelcm(steps: int) -> None:
    assert lcm_schedule(steps).sigmas == pytest.approx([*LCM_SIGMAS[steps], 0], rel=2e-3)


@pytest.mark.parametrize(("steps", "stride"), [(20, 2), (21, 1), (40, 1)])
def test_lcm_levels_lie_on_the_grid_of_forty(steps: int, stride: int) -> None:
    grid = euler_schedule(40).sigmas
    assert lcm_schedule(steps).sigmas[:-1] == pytest.approx(grid[: steps * stride : stride])


@pytest.mark.parametrize("sigma_min", [SIGMA_MIN, 10.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 25, 100])
def test_euler_levels_are_those_of_diffusers(steps: int, sigma_min: float) -> None:
    diffusers_euler = EulerDiscreteScheduler.from_pretrained(SCHEDULER, sigma_min=sigma_min)
    diffusers_euler.set_timesteps(steps)
    schedule = euler_schedule(steps, sigma_min)

    assert schedule.steps == steps
    assert schedule.sigmas == pytest.approx(diffusers_euler.sigmas.tolist(), rel=1e-6)
    assert schedule.initial_scale == pytest.approx(float(diffusers_euler.init_noise_sigma))
    timesteps = [schedule.timestep(index) for index in range(steps)]
    assert timesteps == pytest.approx(diffusers_euler.timesteps.tolist(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5, 25])
def test_euler_steps_are_those_of_diffusers(steps: int, diffusers_euler: EulerDiscreteScheduler) -> None:
    diffusers_euler.set_timesteps(steps)
    schedule = euler_schedule(steps)
    latents = randn(0) * schedule.initial_scale

    for index, timestep in enumerate(diffusers_euler.timesteps):
        network_input = diffusers_euler.scale_model_input(latents, timestep)
        torch.testing.assert_close(latents * schedule.input_scale(index), network_input)
        velocity = randn(index + 1)
        ours = schedule.step(latents, velocity, index)
        theirs = diffusers_euler.step(velocity, timestep, latents).prev_sample
        # Subtracting noise of this level costs diffusers' float32 that much.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 + 1e-6 * schedule.sigmas[index])
        latents = theirs


@pytest.mark.parametrize("sigma", [700.0, 13.678, 0.4969, 0.002])
def test_lcm_and_euler_agree_on_the_clean_clip(sigma: float) -> None:
    latents, velocity = randn(0) * math.hypot(sigma, 1), randn(1)
    expected = latents / (sigma**2 + 1) - velocity * sigma / math.sqrt(sigma**2 + 1)

    lcm = LCMSchedule((sigma, 0.0)).step(latents, velocity, 0)
    euler = EulerSchedule((sigma, 0.0)).step(latents, velocity, 0)

    assert torch.equal(lcm, euler)
    torch.testing.assert_close(lcm, expected)


def test_lcm_replaces_the_noise_until_the_last_step() -> None:
    schedule = lcm_schedule(4)
    latents, velocity, noise = randn(0), randn(1), randn(2)

    assert [schedule.needs_noise(index) for index in range(4)] == [True, True, True, False]
    stepped = schedule.step(latents, velocity, 1, noise)
    torch.testing.assert_close(stepped, schedule.clean(latents, velocity, 1) + 13.678 * noise, rtol=1e-4, atol=1e-3)
    assert torch.equal(schedule.step(latents, velocity, 3), schedule.clean(latents, velocity, 3))


def test_lcm_does_not_step_without_the_noise_it_needs() -> None:
    with pytest.raises(ValueError, match="step 0 of 4 needs noise"):
        lcm_schedule(4).step(randn(0), randn(1), 0)


def test_an_endpoints_least_noise_is_what_its_configuration_says() -> None:
    for kind, schedule in ((SVD, euler_schedule), (FastSVDLCM, lcm_schedule)):
        told = kind("acme/told", kind.Config.model_validate({"weights": "any", "sigma_min": 10}))
        untold = kind("acme/untold", kind.Config.model_validate({"weights": "any"}))
        assert told.schedule(4) == schedule(4, 10.0) != schedule(4)
        assert untold.schedule(4) == schedule(4)
        assert min(told.schedule(40).sigmas[:-1]) == pytest.approx(10)


@pytest.mark.parametrize(("said", "guidance"), [({}, (1.0, 3.0)), ({"guidance": [1, 1.5]}, (1.0, 1.5))])
def test_guidance_is_the_endpoints_own_unless_its_configuration_says_otherwise(
    said: dict[str, Any], guidance: tuple[float, float]
) -> None:
    model = SVD("acme/told", SVD.Config.model_validate({"weights": "any", **said}))
    model._sampler = Mock()
    model.generate([], 2, lambda done: [])
    assert model._sampler.sample.call_args.args[2] == guidance


@pytest.mark.parametrize(
    "said", [{"guidance": [1]}, {"guidance": [-1, 3]}, {"guidance": [1, "inf"]}, {"sigma_min": 700}]
)
def test_what_no_sampler_can_do_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SVD.Config.model_validate({"weights": "any", **said})


def test_euler_never_needs_noise() -> None:
    assert not any(euler_schedule(25).needs_noise(index) for index in range(25))


def test_schedules_refuse_step_counts_they_cannot_serve() -> None:
    for steps in (0, 41):
        with pytest.raises(ValueError, match="1 to 40 steps"):
            lcm_schedule(steps)
    with pytest.raises(ValueError, match="at least one step"):
        euler_schedule(0)
