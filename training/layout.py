"""Checkpoints in the file layout of the published models: float16 safetensors, configurations, and their hashes.

networks ──▶ DIR/svd, DIR/lcm, DIR/depth, DIR/text-to-image, each with its SHA256SUMS
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

from deployments.models.checkpoints import HASHES, sha256
from deployments.models.schedules import SIGMA_MAX, SIGMA_MIN

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


def scheduler(sigma_min: float = SIGMA_MIN) -> EulerDiscreteScheduler:
    """The stock one with the noise levels of ``deployments.models.schedules``, as SVD is published with."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_max=SIGMA_MAX,
        sigma_min=sigma_min,
        steps_offset=1,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )


def write_svd(directory: Path, sigma_min: float = SIGMA_MIN, **networks: Any) -> None:
    """Write ``unet``, ``vae`` and ``image_encoder`` as StableVideoDiffusionPipeline and SVDSampler load them."""
    for name, network in networks.items():
        _save(network, directory / name)
    scheduler(sigma_min).save_pretrained(directory / "scheduler")
    _write_json(directory / "feature_extractor" / "preprocessor_config.json", FEATURE_EXTRACTOR)
    _write_json(directory / "model_index.json", SVD_INDEX)
    write_hashes(directory)


def write_unet(directory: Path, unet: Any) -> None:
    """Write a UNet alone, as an endpoint's ``unet`` takes it in place of another checkpoint's."""
    _save(unet, directory / "unet")
    write_hashes(directory)


def write_depth(directory: Path, control: Any) -> None:
    """Write a ControlNet in the layout of the published ones."""
    _save(control, directory / "controlnet")
    write_hashes(directory)


def write_text_to_image(directory: Path, sigma_min: float = SIGMA_MIN, **parts: Any) -> None:
    """Write ``vae``, ``text_encoder``, ``tokenizer`` and ``unet`` as StableDiffusionPipeline loads them."""
    halved = {name: part if name == "tokenizer" else part.half() for name, part in parts.items()}
    StableDiffusionPipeline(
        **halved,
        scheduler=scheduler(sigma_min),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory, safe_serialization=True)
    write_hashes(directory)


def write_hashes(directory: Path) -> None:
    """Write what ``svd-serve weights check`` holds the files against, as ``sha256sum`` would."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != HASHES)
    lines = [f"{sha256(path)}  {path.relative_to(directory).as_posix()}\n" for path in files]
    (directory / HASHES).write_text("".join(lines), encoding="utf-8")


def _save(network: Any, directory: Path) -> None:
    """In float16, which halves the files; a CPU reads it back as float32."""
    network.half().save_pretrained(directory, safe_serialization=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
