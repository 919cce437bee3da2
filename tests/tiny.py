"""The smallest networks of the real architectures, with random weights, and a service of them: what tests run on.

    configurations ──▶ networks, from a fixed seed ──▶ DIR/svd, DIR/depth, DIR/text-to-image
    serve_config.yaml, with those ──▶ a configuration whose clips take part of a second

What ships may be trained anew, and grow, and no test changes but those of what ships. ``python -m tests.tiny DIR``
writes the checkpoints in the file layout of the published ones; the widths are the smallest their group norms take.
The same versions of torch, diffusers and transformers write the same bytes every time.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        AutoencoderKLTemporalDecoder,
        UNet2DConditionModel,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    from deployments.models.networks import DepthControlNet

ROOT = Path(__file__).parents[1]


def _name() -> str:
    """Another one for whatever else would be written."""
    sources = (
        "tests/tiny.py",
        "training/layout.py",
        "deployments/models/networks.py",
        "deployments/models/schedules.py",
    )
    digest = hashlib.sha256(b"".join((ROOT / source).read_bytes() for source in sources))
    digest.update("".join(version(library) for library in ("torch", "diffusers", "transformers")).encode())
    return digest.hexdigest()[:16]


WEIGHTS = ROOT / ".tiny" / _name()
"""Where they are once ``write_once`` was called, in this checkout by any process."""

SIZES = ["112x64", "64x112", "80x80"]
PICTURED = {"weights": str(WEIGHTS / "svd"), "sizes": SIZES}
LED = {"controlnet": {"weights": str(WEIGHTS / "depth")}}
PROMPTED = {"weights": str(WEIGHTS / "text-to-image"), "scale": 0.109375, "multiple": 16, "steps": 4}
"""What endpoints of theirs say: 1024x576 becomes 112x64."""

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write all checkpoints."""
    parser = argparse.ArgumentParser(prog="python -m tests.tiny", description="Write small random checkpoints.")
    parser.add_argument("directory", type=Path, help="where")
    write(parser.parse_args(arguments).directory)


def write_once() -> None:
    """Write ``WEIGHTS`` if nobody has: in a process of its own, which leaves this one's seeds and memory alone."""
    if WEIGHTS.exists():
        return
    WEIGHTS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WEIGHTS.parent) as folder:
        draft = Path(folder, "weights")
        subprocess.run([sys.executable, "-m", "tests.tiny", str(draft)], cwd=ROOT, check=True)
        with contextlib.suppress(OSError):  # another process was quicker, and wrote the same
            draft.rename(WEIGHTS)


def document() -> Any:
    """``serve_config.yaml``, of which each endpoint computes with these."""
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    endpoints = document["applications"][0]["args"]["endpoints"]
    for id, entry in endpoints.items():
        kept = {name: entry[name] for name in ("model", "video") if name in entry}
        led = LED if id == "fal-ai/svd" else {}
        endpoints[id] = kept | (PROMPTED if "video" in entry else PICTURED | led)
    return document


def config(folder: Path) -> Path:
    """A file with that, and the weights that it names."""
    write_once()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document(), sort_keys=False))
    return path


def write(directory: Path) -> None:
    """Write all checkpoints."""
    from training.layout import write_depth, write_svd, write_text_to_image

    write_svd(directory / "svd", unet=_video_unet(), vae=_video_vae(), image_encoder=_image_encoder())
    write_depth(directory / "depth", _depth_controlnet())
    tokenizer = _tokenizer()
    write_text_to_image(
        directory / "text-to-image",
        vae=_image_vae(),
        text_encoder=_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=_image_unet(),
    )


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


if __name__ == "__main__":
    main()
