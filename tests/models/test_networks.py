"""Our networks against diffusers' own, and the ControlNet against one written a second time, from its description."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from deployments.models.networks import DepthControlNet, VideoUNet, attend_to_one_token

FRAMES = 3
TINY: dict[str, Any] = {
    "down_block_types": (
        "CrossAttnDownBlockSpatioTemporal",
        "CrossAttnDownBlockSpatioTemporal",
        "DownBlockSpatioTemporal",
    ),
    "block_out_channels": (32, 64, 64),
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 96,
    "layers_per_block": 2,
    "cross_attention_dim": 32,
    "num_attention_heads": (1, 2, 2),
}
UP_BLOCKS = ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")
FULL_HEADS = (5, 10, 20, 20)


def randomise(network: nn.Module) -> nn.Module:
    """Give every parameter, the zero convolutions' too, a random value."""
    generator = torch.Generator().manual_seed(7)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def stock() -> Any:
    return randomise(UNetSpatioTemporalConditionModel(up_block_types=UP_BLOCKS, **TINY))


@pytest.fixture(scope="module")
def unet(stock: Any) -> Any:
    unet = VideoUNet(up_block_types=UP_BLOCKS, **TINY)
    unet.load_state_dict(stock.state_dict())
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def controlnet() -> Any:
    return randomise(DepthControlNet(conditioning_embedding_out_channels=(4, 8, 12, 16), **TINY))


@pytest.fixture(scope="module")
def call() -> dict[str, torch.Tensor]:
    """Two clips at different noise levels."""
    torch.manual_seed(3)
    return {
        "sample": torch.randn(2, FRAMES, 8, 8, 16),
        "timestep": torch.tensor([1.6, -0.3]),
        "encoder_hidden_states": torch.randn(2, 1, 32),
        "added_time_ids": torch.tensor([[6, 127, 0.02], [6, 255, 0.5]]),
    }


@pytest.fixture(scope="module")
def maps() -> torch.Tensor:
    return torch.rand(2, FRAMES, 3, 64, 128, generator=torch.Generator().manual_seed(5)) * 2 - 1


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * float(theirs.abs().max()))


# ---------------------------------------------------------------- the UNet


def test_without_residuals_it_is_the_stock_unet(stock: Any, unet: Any, call: dict[str, torch.Tensor]) -> None:
    assert torch.equal(unet(**call), stock(**call).sample)


def test_attending_to_one_token_is_exact(unet: Any, call: dict[str, torch.Tensor]) -> None:
    shortened = copy.deepcopy(unet)
    attend_to_one_token(shortened)

    assert_same(shortened(**call), unet(**call), 1e-6)


def test_the_shortcut_asks_neither_queries_nor_keys(unet: Any, call: dict[str, torch.Tensor]) -> None:
    shortened = copy.deepcopy(unet)
    attend_to_one_token(shortened)
    asked = []
    cross = [block.attn2 for block in shortened.modules() if hasattr(block, "attn2")]
    for attention in cross:
        for projection in (attention.to_q, attention.to_k):
            projection.register_forward_hook(lambda module, *_: asked.append(module))
    shortened(**call)

    assert len(cross) == 22
    assert not asked


# ---------------------------------------------------------------- the ControlNet, written a second time


def embed_again(net: Any, maps: torch.Tensor) -> torch.Tensor:
    embedding = net.controlnet_cond_embedding
    features = functional.silu(embedding.conv_in(maps.flatten(0, 1)))
    for convolution in embedding.blocks:
        features = functional.silu(convolution(features))
    return torch.as_tensor(embedding.conv_out(features))


def encoder_again(
    net: Any,
    call: dict[str, torch.Tensor],
    added: torch.Tensor | None = None,
    after_block: Callable[[list[torch.Tensor]], list[torch.Tensor]] = list,
) -> tuple[torch.Tensor, list[torch.Tensor], dict[str, torch.Tensor]]:
    """The encoder, with what happens to the outputs so far after every block."""
    frames = call["sample"].shape[1]
    time = net.time_embedding(net.time_proj(call["timestep"]))
    ids = torch.cat([net.add_time_proj(column) for column in call["added_time_ids"].T], dim=1)
    told = {
        "temb": (time + net.add_embedding(ids)).repeat_interleave(frames, 0),
        "encoder_hidden_states": call["encoder_hidden_states"].repeat_interleave(frames, 0),
        "image_only_indicator": torch.zeros(call["sample"].shape[:2]),
    }
    hidden = net.conv_in(call["sample"].flatten(0, 1))
    hidden = hidden if added is None else hidden + added
    outputs = [hidden]
    for block in net.down_blocks:
        hidden, more = block(hidden, **told) if block_attends(block) else block(hidden, **without_picture(told))
        outputs = after_block([*outputs, *more])
    return net.mid_block(hidden, **told), outputs, told


def block_attends(block: Any) -> bool:
    return "CrossAttn" in type(block).__name__


def without_picture(told: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in told.items() if name != "encoder_hidden_states"}


def controlnet_again(net: Any, call: dict[str, torch.Tensor], maps: torch.Tensor) -> list[torch.Tensor]:
    """Its residuals as they leave the 1x1 convolutions, the middle's last."""
    middle, outputs, _ = encoder_again(net, call, embed_again(net, maps))
    levels = [conv(output) for conv, output in zip(net.controlnet_down_blocks, outputs, strict=True)]
    return [*levels, net.controlnet_mid_block(middle)]


def unet_again(net: Any, call: dict[str, torch.Tensor], residuals: Sequence[torch.Tensor], anew: bool) -> torch.Tensor:
    """The UNet the ControlNet was trained with: after *every* block, all residuals so far are added (``anew``)."""
    *onto_skips, onto_middle = residuals

    def add(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return [output + residual for output, residual in zip(outputs, onto_skips, strict=False)]

    hidden, outputs, told = encoder_again(net, call, after_block=add if anew else list)
    outputs = outputs if anew else add(outputs)
    hidden = hidden + onto_middle
    for block in net.up_blocks:
        count = len(block.resnets)
        taken, outputs = tuple(outputs[-count:]), outputs[:-count]
        hidden = block(hidden, taken, **(told if block_attends(block) else without_picture(told)))
    velocity = net.conv_out(functional.silu(net.conv_norm_out(hidden)))
    return torch.as_tensor(velocity.unflatten(0, call["sample"].shape[:2]))


@pytest.mark.parametrize("accumulate", [True, False])
def test_a_led_clip_equals_the_one_of_the_networks_written_again(
    unet: Any, controlnet: Any, call: dict[str, torch.Tensor], maps: torch.Tensor, accumulate: bool
) -> None:
    residuals = controlnet(**call, features=controlnet.embed(maps), accumulate=accumulate)
    ours = unet(**call, residuals=residuals)
    theirs = unet_again(unet, call, controlnet_again(controlnet, call, maps), anew=accumulate)

    assert_same(ours, theirs)
    assert (ours - unet(**call)).abs().mean() > 0.01 * ours.abs().mean()


def test_residuals_count_once_for_every_block_from_their_own_on(
    controlnet: Any, call: dict[str, torch.Tensor], maps: torch.Tensor
) -> None:
    features = controlnet.embed(maps)
    once = controlnet(**call, features=features, accumulate=False)
    often = controlnet(**call, features=features, accumulate=True)

    times = [float((more / one).median()) for more, one in zip(often, once, strict=True)]
    assert times == pytest.approx([3, 3, 3, 3, 2, 2, 2, 1, 1, 1])


def test_the_published_one_counts_four_three_two_one() -> None:
    with torch.device("meta"):
        network = DepthControlNet()
    assert network._repeats == [4] * 4 + [3] * 3 + [2] * 3 + [1] * 2 + [1]


@pytest.mark.parametrize("change", ["maps", "sample", "timestep", "encoder_hidden_states", "added_time_ids"])
def test_residuals_depend_on_all_they_are_told(
    controlnet: Any, call: dict[str, torch.Tensor], maps: torch.Tensor, change: str
) -> None:
    other = call | {name: value.flip(0) for name, value in call.items() if name == change}
    features = controlnet.embed(maps), controlnet.embed(maps.flip(0) if change == "maps" else maps)
    before, after = (
        controlnet(**told, features=seen, accumulate=True) for told, seen in zip((call, other), features, strict=True)
    )
    changes = [(one - other).abs().max() / one.abs().max() for one, other in zip(before, after, strict=True)]
    assert max(changes) > 1e-3


# ---------------------------------------------------------------- the shapes and costs of the published ones


def teraflops(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops() / 1e12


def test_a_full_size_step_costs_what_was_counted_and_the_shortcut_saves_its_share() -> None:
    """25 frames of 1024x576; a multiplication with its addition counts two."""
    with torch.device("meta"):
        unet, controlnet = VideoUNet(num_attention_heads=FULL_HEADS), DepthControlNet(num_attention_heads=FULL_HEADS)
    unet, controlnet = unet.to("meta"), controlnet.to("meta")  # diffusers makes one parameter on the CPU regardless
    call = {
        "sample": torch.empty(1, 25, 8, 72, 128, device="meta"),
        "timestep": torch.empty(1, device="meta"),
        "encoder_hidden_states": torch.empty(1, 1, 1024, device="meta"),
        "added_time_ids": torch.empty(1, 3, device="meta"),
    }
    maps = torch.empty(1, 25, 3, 576, 1024, device="meta")

    whole = teraflops(lambda: unet(**call))
    control = teraflops(lambda: controlnet(**call, features=controlnet.embed(maps), accumulate=True))
    attend_to_one_token(unet)
    assert whole == pytest.approx(79.948, abs=0.001)
    assert control == pytest.approx(30.13, abs=0.005)
    assert teraflops(lambda: unet(**call)) == pytest.approx(77.040, abs=0.001)
