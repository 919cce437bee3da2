"""Write the small checkpoints that ship with the package: ``python -m deployments.models.weights.generate [DIR]``.

    configurations ──▶ networks with random weights, from a fixed seed ──▶ DIR/svd, DIR/depth, DIR/text-to-image

Shapes and file layout are those of the published models; the widths are the smallest their group norms take. The same
versions of torch, diffusers and transformers write the same bytes every time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deployments.models.checkpoints import HASHES, sha256

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        AutoencoderKLTemporalDecoder,
        UNet2DConditionModel,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    from deployments.models.networks import DepthControlNet

WIDTH = 32
"""The smallest width: every group norm has 32 groups."""

UNET_WIDTHS = (WIDTH, 2 * WIDTH)
"""With one channel a group, a norm would take away all that a time embedding adds to it, so one level has two."""

VIDEO_ENCODER: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": ("DownBlockSpatioTemporal",) * 2,  # the middle block, which always attends, is enough
    "block_out_channels": UNET_WIDTHS,
    "addition_time_embed_dim": WIDTH,
    "projection_class_embeddings_input_dim": 3 * WIDTH,
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "num_attention_heads": (1, 1),
    "num_frames": 25,
}
"""What the UNet and its ControlNet have in common."""

VAE_LEVELS = 4
"""Three halvings, so one latent covers 8x8 pixels as in the published VAEs."""

SEED = 20231121

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"

SVD_INDEX = {
    "_class_name": "StableVideoDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}

FEATURE_EXTRACTOR = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write all checkpoints."""
    parser = argparse.ArgumentParser(description="Write the small random checkpoints that ship with svd-serve.")
    parser.add_argument("directory", nargs="?", type=Path, default=Path(__file__).parent, help="where (default: here)")
    directory: Path = parser.parse_args(arguments).directory
    for name, write in {"svd": write_svd, "depth": write_depth, "text-to-image": write_text_to_image}.items():
        write(directory / name)
        write_hashes(directory / name)


def write_svd(directory: Path) -> None:
    """Write a checkpoint that StableVideoDiffusionPipeline and SVDSampler load."""
    from diffusers import EulerDiscreteScheduler

    networks = {"unet": _video_unet, "vae": _video_vae, "image_encoder": _image_encoder}
    for name, build in networks.items():
        _save_halved(build(), directory / name)
    EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    ).save_pretrained(directory / "scheduler")
    _write_json(directory / "feature_extractor" / "preprocessor_config.json", FEATURE_EXTRACTOR)
    _write_json(directory / "model_index.json", SVD_INDEX)


def write_depth(directory: Path) -> None:
    """Write a ControlNet for the SVD checkpoint, in the layout of the published ones."""
    _save_halved(_depth_controlnet(), directory / "controlnet")


def write_hashes(directory: Path) -> None:
    """Write what ``svd-serve weights check`` holds the files against, as ``sha256sum`` would."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != HASHES)
    lines = [f"{sha256(path)}  {path.relative_to(directory).as_posix()}\n" for path in files]
    (directory / HASHES).write_text("".join(lines), encoding="utf-8")


def write_text_to_image(directory: Path) -> None:
    """Write a checkpoint that StableDiffusionPipeline loads."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    tokenizer = _tokenizer()
    StableDiffusionPipeline(
        vae=_image_vae().half(),
        text_encoder=_text_encoder(tokenizer).half(),
        tokenizer=tokenizer,
        unet=_image_unet().half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory, safe_serialization=True)


def _video_unet() -> UNetSpatioTemporalConditionModel:
    import torch
    from diffusers import UNetSpatioTemporalConditionModel

    torch.manual_seed(SEED)
    return UNetSpatioTemporalConditionModel(up_block_types=("UpBlockSpatioTemporal",) * 2, **VIDEO_ENCODER)


def _depth_controlnet() -> DepthControlNet:
    import torch

    from deployments.models.networks import DepthControlNet

    torch.manual_seed(SEED)
    network: DepthControlNet = DepthControlNet(conditioning_embedding_out_channels=(8, 8, 16, 16), **VIDEO_ENCODER)
    for name, parameter in network.named_parameters():
        if not parameter.any():  # what training starts from: zeros, through which nothing would be seen
            torch.nn.init.normal_(parameter, std=20.0 if name.startswith("controlnet_cond_embedding") else 0.3)
    return network


def _video_vae() -> AutoencoderKLTemporalDecoder:
    import torch
    from diffusers import AutoencoderKLTemporalDecoder

    torch.manual_seed(SEED)
    return AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * VAE_LEVELS,
        block_out_channels=(WIDTH,) * VAE_LEVELS,
        layers_per_block=1,
        sample_size=64,
    )


def _image_encoder() -> CLIPVisionModelWithProjection:
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(SEED)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=1,
            image_size=224,
            patch_size=32,
        )
    )


def _image_unet() -> UNet2DConditionModel:
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(SEED)
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=UNET_WIDTHS,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=1,
    )


def _image_vae() -> AutoencoderKL:
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(SEED)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * VAE_LEVELS,
        up_block_types=("UpDecoderBlock2D",) * VAE_LEVELS,
        block_out_channels=(WIDTH,) * VAE_LEVELS,
        latent_channels=4,
        sample_size=64,
    )


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(SEED)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=1,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _tokenizer() -> CLIPTokenizer:
    """Each byte is a token, in one form inside a word and another at its end; there are no merges to learn."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), START_TOKEN, END_TOKEN]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _save_halved(network: Any, directory: Path) -> None:
    """In float16, which halves the files; a CPU reads it back as float32."""
    network.half().save_pretrained(directory, safe_serialization=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
