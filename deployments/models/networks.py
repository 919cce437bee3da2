"""The networks that the libraries do not have as we need them. Imports torch, so it is imported inside functions only.

    depth maps ──▶ DepthControlNet ──▶ residuals ──┐ added to what the encoder hands to the decoder
    noisy clip ──▶ VideoUNet: encoder ─────────────┴──▶ decoder ──▶ velocity

Both load published checkpoints by their own names: ``VideoUNet`` any of ``UNetSpatioTemporalConditionModel``,
``DepthControlNet`` those of CiaraRowles' temporal ControlNets for SVD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin, UNetSpatioTemporalConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding, zero_module
from torch import nn
from torch.nn import functional


class Conditions(NamedTuple):
    """What every block is told, one row a frame: [B * F, …].

    Attributes:
        time: Embedding of noise level, motion and augmentation, [B * F, T].
        picture: Embedding of the first picture, [B * F, 1, D].
        no_pictures: Zeros, [B, F]: each row of the batch is a video.
    """

    time: torch.Tensor
    picture: torch.Tensor
    no_pictures: torch.Tensor


class VideoUNet(UNetSpatioTemporalConditionModel):  # type: ignore[misc]  # diffusers has no types
    """SVD's UNet, which also takes a ControlNet's residuals, and what it found beneath its outermost level before."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_time_ids: torch.Tensor,
        residuals: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Predict the velocity, [B, F, C, h, w].

        Args:
            sample: Noisy latents beside those of the first picture, [B, F, 2 * C, h, w].
            timestep: EDM's c_noise, [B].
            encoder_hidden_states: Embedding of the first picture, [B, 1, D].
            added_time_ids: Frames a second, motion bucket and augmentation, [B, 3] float32.
            residuals: What ``DepthControlNet`` answers.
        """
        return self.predict(sample, timestep, encoder_hidden_states, added_time_ids, residuals)[0]

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_time_ids: torch.Tensor,
        residuals: Sequence[torch.Tensor] | None = None,
        beneath: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The velocity, and what the outermost level was told from beneath, [B, F, C', h, w].

        Whoever gives the latter back at the next noise level spares all that is beneath: what is coarse changes little
        from level to level (Ma et al. 2024, "DeepCache"). The velocity is then an approximation.

        Args:
            sample: As ``forward``'s.
            timestep: As ``forward``'s.
            encoder_hidden_states: As ``forward``'s.
            added_time_ids: As ``forward``'s.
            residuals: As ``forward``'s; without ``beneath`` only.
            beneath: From another call, at a noise level close by.
        """
        conditions = _conditions(self, sample, timestep, encoder_hidden_states, added_time_ids)
        outermost = self.up_blocks[-1]
        hidden = self.conv_in(sample.flatten(0, 1))
        if beneath is None:
            hidden, skips = self._ascend(*_encode(self, hidden, conditions), conditions, residuals)
        else:
            _, outputs = self.down_blocks[0](hidden_states=hidden, **_told(self.down_blocks[0], conditions))
            hidden, skips = beneath.flatten(0, 1), [hidden, *outputs[: len(outermost.resnets) - 1]]
        ascended = hidden.reshape(*sample.shape[:2], *hidden.shape[1:])
        hidden = outermost(hidden_states=hidden, res_hidden_states_tuple=tuple(skips), **_told(outermost, conditions))
        velocity: torch.Tensor = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return velocity.reshape(*sample.shape[:2], *velocity.shape[1:]), ascended

    def _ascend(
        self,
        hidden: torch.Tensor,
        skips: list[torch.Tensor],
        conditions: Conditions,
        residuals: Sequence[torch.Tensor] | None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """From the middle up to the outermost level; also the skips that are left for it."""
        if residuals is not None:
            *onto_skips, onto_middle = residuals
            skips = [skip + residual for skip, residual in zip(skips, onto_skips, strict=True)]
            hidden = hidden + onto_middle
        for block in list(self.up_blocks)[:-1]:
            skips, ours = skips[: -len(block.resnets)], skips[-len(block.resnets) :]
            hidden = block(hidden_states=hidden, res_hidden_states_tuple=tuple(ours), **_told(block, conditions))
        return hidden, skips


class DepthControlNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """A copy of the UNet's encoder that also sees a picture for each frame (Zhang et al. 2023, "ControlNet").

    The arguments are the published configuration's; all but the last two are the UNet's.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 8,
        out_channels: int = 4,
        down_block_types: Sequence[str] = (*("CrossAttnDownBlockSpatioTemporal",) * 3, "DownBlockSpatioTemporal"),
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        addition_time_embed_dim: int = 256,
        projection_class_embeddings_input_dim: int = 768,
        layers_per_block: int | Sequence[int] = 2,
        cross_attention_dim: int | Sequence[int] = 1024,
        transformer_layers_per_block: int | Sequence[int] = 1,
        num_attention_heads: int | Sequence[int] = (5, 10, 10, 20),
        num_frames: int = 25,
        conditioning_channels: int = 3,
        conditioning_embedding_out_channels: Sequence[int] = (16, 32, 96, 256),
    ) -> None:
        super().__init__()
        unet = UNetSpatioTemporalConditionModel(
            in_channels=in_channels,
            down_block_types=tuple(down_block_types),
            up_block_types=("UpBlockSpatioTemporal",) * len(down_block_types),  # built and let go
            block_out_channels=tuple(block_out_channels),
            addition_time_embed_dim=addition_time_embed_dim,
            projection_class_embeddings_input_dim=projection_class_embeddings_input_dim,
            layers_per_block=layers_per_block,
            cross_attention_dim=cross_attention_dim,
            transformer_layers_per_block=transformer_layers_per_block,
            num_attention_heads=num_attention_heads,
            num_frames=num_frames,
        )
        self.conv_in = unet.conv_in
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.add_time_proj, self.add_embedding = unet.add_time_proj, unet.add_embedding
        self.down_blocks, self.mid_block = unet.down_blocks, unet.mid_block
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            block_out_channels[0], conditioning_channels, tuple(conditioning_embedding_out_channels)
        )
        per_block = [len(block.resnets) + bool(block.downsamplers) for block in self.down_blocks]
        widths = [width for width, skips in zip(block_out_channels, per_block, strict=True) for _ in range(skips)]
        self.controlnet_down_blocks = nn.ModuleList(
            zero_module(nn.Conv2d(width, width, kernel_size=1)) for width in (block_out_channels[0], *widths)
        )
        width = block_out_channels[-1]
        self.controlnet_mid_block = zero_module(nn.Conv2d(width, width, kernel_size=1))
        blocks = len(per_block)
        self._repeats = [blocks, *(blocks - i for i, skips in enumerate(per_block) for _ in range(skips)), 1]

    def embed(self, maps: torch.Tensor) -> torch.Tensor:
        """The pictures as features of the latents' size, [B, F, C, h, w], from maps [B, F, 3, H, W].

        They do not depend on the noise, so once a request is enough.
        """
        features: torch.Tensor = self.controlnet_cond_embedding(maps.flatten(0, 1))
        return features.reshape(*maps.shape[:2], *features.shape[1:])

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        added_time_ids: torch.Tensor,
        features: torch.Tensor,
        accumulate: bool,
    ) -> list[torch.Tensor]:
        """What to add to each of the UNet's skips, and last to its middle.

        Args:
            sample: As the UNet's.
            timestep: As the UNet's.
            encoder_hidden_states: As the UNet's.
            added_time_ids: As the UNet's.
            features: From ``embed``.
            accumulate: Add a residual once for each encoder block that follows it, its own included. The published
                ControlNets were trained so: their UNet adds all residuals so far anew after every block.
        """
        conditions = _conditions(self, sample, timestep, encoder_hidden_states, added_time_ids)
        hidden = self.conv_in(sample.flatten(0, 1)) + features.flatten(0, 1)
        middle, skips = _encode(self, hidden, conditions)
        projections = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        residuals = [project(level) for project, level in zip(projections, [*skips, middle], strict=True)]
        if not accumulate:
            return residuals
        return [residual * times for residual, times in zip(residuals, self._repeats, strict=True)]


class OneTokenAttention:
    """Cross-attention to a single token, as an attention processor of diffusers.

    A softmax over one score is 1, so every query's answer is the token's value: exact, without queries and keys.
    """

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, *_: Any, **__: Any
    ) -> torch.Tensor:
        """The answer for every query at once, [rows, 1, C]; it is broadcast where it is added."""
        return torch.as_tensor(attn.to_out[0](attn.to_v(encoder_hidden_states)))


def attend_to_one_token(network: nn.Module) -> None:
    """Take the shortcut in every cross-attention of a network, and drop the norms that only fed its queries.

    The network must only ever be shown one token, as SVD's are: the picture's embedding.
    """
    block: Any
    for block in network.modules():
        if getattr(block, "attn2", None) is not None:
            block.attn2.set_processor(OneTokenAttention())
            block.norm2 = nn.Identity()


def project_together(network: nn.Module) -> None:
    """Make queries, keys and values of every self-attention over tokens by one matrix product in place of three."""
    from diffusers.models.attention_processor import FusedAttnProcessor2_0

    block: Any
    for block in network.modules():
        if getattr(block, "attn1", None) is not None:
            block.attn1.fuse_projections()
            block.attn1.set_processor(FusedAttnProcessor2_0())
            del block.attn1.to_q, block.attn1.to_k, block.attn1.to_v
            block.attn1.requires_grad_(False)


def put_channels_last(network: nn.Module) -> None:
    """Lay the kernels of convolutions out so that the channels of a pixel are beside each other; pictures follow."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if layout := layouts.get(parameter.dim()):
            parameter.data = parameter.data.contiguous(memory_format=layout)


class TimeConvolution(nn.Module):
    """A convolution along time alone, with height and width as one axis of a convolution in two dimensions.

    The same sums, for which torch has faster code on a CPU.
    """

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight = nn.Parameter(convolution.weight.squeeze(-1), requires_grad=False)
        self.bias = convolution.bias
        self.padding = int(convolution.padding[0])

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """From [B, C, F, H, W] to [B, C', F', H, W]."""
        flat = functional.conv2d(clips.flatten(3), self.weight, self.bias, padding=(self.padding, 0))
        return flat.reshape(*flat.shape[:3], *clips.shape[3:])


def convolve_time_in_two_dimensions(network: nn.Module) -> None:
    """Replace every convolution of a network that spans time alone by a ``TimeConvolution``."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv3d) and _spans_time_alone(child):
                setattr(module, name, TimeConvolution(child))


def _spans_time_alone(convolution: nn.Conv3d) -> bool:
    plain = convolution.groups == 1 and set(convolution.stride) | set(convolution.dilation) == {1}
    return plain and convolution.kernel_size[1:] == (1, 1) and tuple(convolution.padding)[1:] == (0, 0)


def _conditions(
    network: Any, sample: torch.Tensor, timestep: torch.Tensor, picture: torch.Tensor, time_ids: torch.Tensor
) -> Conditions:
    """Embed what goes to every block, and repeat it for each frame."""
    rows, frames = sample.shape[:2]
    time = network.time_embedding(network.time_proj(timestep).to(sample.dtype))
    time = time + network.add_embedding(network.add_time_proj(time_ids.flatten()).view(rows, -1).to(sample.dtype))
    return Conditions(
        time=time.repeat_interleave(frames, dim=0),
        picture=picture.repeat_interleave(frames, dim=0),
        no_pictures=sample.new_zeros(rows, frames),
    )


def _encode(network: Any, hidden: torch.Tensor, conditions: Conditions) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Down to the middle; also what is handed across to the decoder, from the outside in."""
    skips = [hidden]
    for block in network.down_blocks:
        hidden, outputs = block(hidden_states=hidden, **_told(block, conditions))
        skips += outputs
    return network.mid_block(hidden_states=hidden, **_told(network.mid_block, conditions)), skips


def _told(block: Any, conditions: Conditions) -> dict[str, torch.Tensor]:
    told = {"temb": conditions.time, "image_only_indicator": conditions.no_pictures}
    if getattr(block, "has_cross_attention", False):
        told["encoder_hidden_states"] = conditions.picture
    return told
