"""The networks that are trained: stock classes of small widths, and how a CPU computes them faster."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from deployments.models.networks import DepthControlNet, OneTokenAttention

LATENT_CHANNELS = 32
"""Six numbers of a picture become one: photographs of this size are all edges, and four channels lose them."""

VAE_WIDTHS = (96, 64, 64, 96)
"""At both ends three channels in each group of the last norm, so that a number goes through it as it is."""

STILL_WIDTHS = (24, 48, 48, 96)
"""The same of single pictures; the encoder's patches of 4 by 4 pixels have 48 numbers."""

UNET_WIDTHS = (96,)
"""One level: what moves by parts of a latent is lost where latents are halved. Every group norm has 32 groups; with
three channels in each, ``begin_copying`` finds room for a latent."""

PAINTER_WIDTHS = (64, 64)
"""The same of single pictures."""

MAP_WIDTHS = (8, 16, 32, 32)
"""What depth maps go through while they are halved three times."""

BESIDE = 12.0
"""A constant that is large beside latents in units of their spread."""

EMBEDDING = 32
"""Width of the picture's embedding."""

WORDS = 64
"""Width of a word's."""


def video_vae() -> AutoencoderKLTemporalDecoder:
    """A temporal VAE: 8 pixels a latent."""
    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * len(VAE_WIDTHS),
        block_out_channels=VAE_WIDTHS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        sample_size=64,
        scaling_factor=1.0,
    )
    begin_plain(vae)
    return vae


class LinearDecoder(nn.Sequential):
    """What a decoder is without its residual branches: five convolutions, and pixels doubled between them.

    It has a twentieth of the decoder's work, so that all that is linear is learnt in minutes.
    """

    def __init__(self, channels: int, outer: int, inner: int) -> None:
        double = [nn.Upsample(scale_factor=2.0) for _ in range(3)]
        super().__init__(
            *(nn.Conv2d(channels, outer, 3, padding=1), double[0]),
            *(nn.Conv2d(outer, outer, 3, padding=1), nn.Conv2d(outer, inner, 1), double[1]),
            *(nn.Conv2d(inner, inner, 3, padding=1), double[2]),
            nn.Conv2d(inner, 3, 3, padding=1),
        )

    @torch.no_grad()
    def install(self, decoder: Any) -> None:
        """Let a decoder, as ``begin_plain`` leaves it, begin with this: what it then learns is what is not linear.

        The colours go past its last block and norm as latents do in ``begin_copying``.
        """
        first, eighth, narrower, quarter, last = (layer for layer in self if isinstance(layer, nn.Conv2d))
        blocks = decoder.up_blocks
        for theirs, ours in (
            (decoder.conv_in, first),
            (blocks[0].upsamplers[0].conv, eighth),
            (_shortcut(blocks[1].resnets[0]), narrower),
            (blocks[1].upsamplers[0].conv, quarter),
        ):
            theirs.load_state_dict(ours.state_dict())
        half, widest = blocks[2].upsamplers[0].conv, _shortcut(blocks[3].resnets[0])
        half.weight[:3], half.bias[:3] = last.weight, last.bias
        colour = torch.arange(3)
        widest.weight[:9], widest.bias[:9] = 0, 0
        widest.weight[3 * colour, colour], widest.weight[3 * colour + 1, colour] = 1.0, -1.0
        widest.bias[3 * colour + 2] = BESIDE
        decoder.conv_norm_out.weight[:9] = BESIDE * 2**0.5 / 3
        decoder.conv_norm_out.bias[:9] = 5 * BESIDE / 6
        nn.init.zeros_(decoder.conv_out.weight)
        nn.init.zeros_(decoder.conv_out.bias)
        decoder.conv_out.weight[colour, 3 * colour, 1, 1] = 0.5
        decoder.conv_out.weight[colour, 3 * colour + 1, 1, 1] = -0.5
        if hasattr(decoder, "time_conv_out"):
            nn.init.dirac_(decoder.time_conv_out.weight)
            nn.init.zeros_(decoder.time_conv_out.bias)


def _shortcut(resnet: Any) -> Any:
    """What goes past a block, of a picture or of clips."""
    return getattr(resnet, "spatial_res_block", resnet).conv_shortcut


def linear_decoder(widths: Sequence[int]) -> LinearDecoder:
    """That of a VAE of such widths."""
    return LinearDecoder(LATENT_CHANNELS, outer=widths[-1], inner=widths[-2])


def image_vae() -> AutoencoderKL:
    """The same for single pictures, and smaller, for it may have fewer groups."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(STILL_WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(STILL_WIDTHS),
        block_out_channels=STILL_WIDTHS,
        norm_num_groups=STILL_WIDTHS[0] // 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        sample_size=64,
        scaling_factor=1.0,
    )
    begin_plain(vae)
    nn.init.dirac_(vae.post_quant_conv.weight)
    nn.init.zeros_(vae.post_quant_conv.bias)
    return vae


@torch.no_grad()
def begin_plain(network: nn.Module) -> None:
    """Let every residual branch add nothing at first, which is where training is fastest."""
    module: Any
    for module in network.modules():
        last = module.conv2 if isinstance(module, (ResnetBlock2D, TemporalResnetBlock)) else None
        last = module.to_out[0] if isinstance(module, Attention) and module.residual_connection else last
        last = module.proj_out if isinstance(module, (Transformer2DModel, TransformerSpatioTemporalModel)) else last
        if last is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)


class FlatConvolution(nn.Conv3d):
    """A convolution along time alone, computed with height and width as one axis: torch's faster code on a CPU."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """From [B, C, F, H, W] to [B, C', F', H, W]."""
        weight, padding = self.weight.squeeze(-1), (int(self.padding[0]), 0)
        flat = functional.conv2d(clips.flatten(3), weight, self.bias, padding=padding)
        return flat.reshape(*flat.shape[:3], *clips.shape[3:])


def flatten_time(network: nn.Module) -> None:
    """Compute every convolution that spans time alone as a ``FlatConvolution``; the parameters stay what they are."""
    module: Any
    for module in network.modules():
        if type(module) is nn.Conv3d and module.kernel_size[1:] == (1, 1):
            module.__class__ = FlatConvolution


def attend_to_one_token(network: nn.Module) -> None:
    """Spare every cross-attention its queries: all that it sees is one token, the picture's, so its answer is that."""
    module: Any
    for module in network.modules():
        if getattr(module, "attn2", None) is not None:
            module.attn2.set_processor(OneTokenAttention())


def video_unet() -> UNetSpatioTemporalConditionModel:
    """SVD's UNet with one level, whose attention is on the way up alone, where half the time would go otherwise."""
    unet = UNetSpatioTemporalConditionModel(
        sample_size=18,
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlockSpatioTemporal",),
        up_block_types=("CrossAttnUpBlockSpatioTemporal",),
        block_out_channels=UNET_WIDTHS,
        addition_time_embed_dim=EMBEDDING,
        projection_class_embeddings_input_dim=3 * EMBEDDING,
        layers_per_block=1,
        cross_attention_dim=EMBEDDING,
        num_attention_heads=1,
        num_frames=14,
    )
    begin_plain(unet)
    return unet


def depth_controlnet(unet: UNetSpatioTemporalConditionModel) -> DepthControlNet:
    """The ControlNet of a UNet. It adds nothing at first, and hears nothing of the latents: those the UNet has.

    It does not begin as a copy of the UNet's encoder, as the published ones do: what that knows of latents is of no use
    in reading maps.
    """
    names = set(inspect.signature(DepthControlNet.__init__).parameters) - {"self"}
    network: DepthControlNet = DepthControlNet(
        conditioning_embedding_out_channels=MAP_WIDTHS,
        **{name: unet.config[name] for name in names & unet.config.keys()},
    )
    nn.init.zeros_(network.conv_in.weight)
    nn.init.zeros_(network.conv_in.bias)
    for parameter in network.controlnet_cond_embedding.parameters():
        if parameter.dim() > 1:  # two zeros behind each other would learn slowly, and so does what is faint
            nn.init.orthogonal_(parameter, gain=1.6)
        else:
            nn.init.zeros_(parameter)
    return network


@torch.no_grad()
def begin_copying(unet: UNetSpatioTemporalConditionModel, spread: torch.Tensor) -> None:
    """Let a UNet answer at first that every frame is the picture, which is nearly right: what it learns is what moves.

    The picture goes into the first skip, from there past the last block, and out; of the noise nothing is heard
    yet. The last norm would take away how strong a channel is, so each goes with its negative and a large constant, as
    in ``Patches.install``.

    Args:
        unet: As ``begin_plain`` leaves it, with three channels in each group of its last norm.
        spread: Standard deviation of each latent channel, [C].
    """
    count, channel = len(spread), torch.arange(len(spread))
    signal, negative, constant = 3 * channel, 3 * channel + 1, 3 * channel + 2
    unet.conv_in.weight[:, :count] = 0
    unet.conv_in.weight[:count] = 0
    unet.conv_in.weight[channel, count + channel, 1, 1] = 1 / spread
    unet.conv_in.bias[:count] = 0
    past = unet.up_blocks[-1].resnets[-1].spatial_res_block.conv_shortcut
    skip = past.in_channels - unet.conv_in.out_channels
    past.weight[: 3 * count] = 0
    past.weight[signal, skip + channel], past.weight[negative, skip + channel] = 1.0, -1.0
    past.bias[: 3 * count] = 0
    past.bias[constant] = BESIDE
    unet.conv_norm_out.weight[: 3 * count] = BESIDE * 2**0.5 / 3
    unet.conv_norm_out.bias[: 3 * count] = 5 * BESIDE / 6
    nn.init.zeros_(unet.conv_out.weight)
    unet.conv_out.weight[channel, signal, 1, 1] = -spread / 2
    unet.conv_out.weight[channel, negative, 1, 1] = spread / 2
    nn.init.zeros_(unet.conv_out.bias)


def image_unet() -> UNet2DConditionModel:
    """Stable Diffusion's UNet with two levels, both of which see the words."""
    unet = UNet2DConditionModel(
        sample_size=18,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=PAINTER_WIDTHS,
        layers_per_block=1,
        cross_attention_dim=WORDS,
        attention_head_dim=(2, 3),  # heads, in spite of the name
    )
    begin_plain(unet)
    nn.init.zeros_(unet.conv_out.weight)
    return unet


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text half."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WORDS,
            intermediate_size=2 * WORDS,
            projection_dim=WORDS,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP's picture half; what the UNet needs of the picture it sees in the latents."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=EMBEDDING,
            intermediate_size=2 * EMBEDDING,
            projection_dim=EMBEDDING,
            num_hidden_layers=2,
            num_attention_heads=1,
            image_size=224,
            patch_size=32,
        )
    )
