"""Checkpoints: what is missing, left over, misshapen or damaged is named; the published layouts at their full size."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, StableDiffusionPipeline, UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import deployments.models.weights
from deployments.models.base import ControlNetConfig, UNetConfig, VideoConfig
from deployments.models.checkpoints import (
    HASHES,
    Checkpoint,
    CheckpointError,
    Network,
    Part,
    controlnet_part,
    pipeline_parts,
    svd_parts,
)
from deployments.models.fast_svd_lcm import FastSVDLCM
from deployments.models.networks import DepthControlNet
from deployments.models.svd import SVD, SVDConfig
from deployments.models.weights.generate import main as generate

SHIPPED = Path(deployments.models.weights.__file__).parent
UNET = "unet/diffusion_pytorch_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def svd(tmp_path: Path) -> Path:
    """A copy of the small SVD checkpoint, to be spoilt; without its list of hashes."""
    shutil.copytree(SHIPPED / "svd", tmp_path / "svd", ignore=shutil.ignore_patterns(HASHES))
    return tmp_path / "svd"


def parts_of(directory: Path, variant: str | None = None) -> dict[str, Part]:
    return svd_parts(Checkpoint(str(directory)), variant, unet=None)


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refuse(part: Part) -> str:
    """Why a part is refused: by the check, and by loading it in the same words."""
    with pytest.raises(CheckpointError) as checked:
        part.check()
    with pytest.raises(CheckpointError) as loaded:
        part.load(torch.float32)
    assert str(checked.value) == str(loaded.value)
    return str(checked.value)


# ---------------------------------------------------------------- whole checkpoints


@pytest.mark.parametrize("name", ["unet", "vae", "image_encoder"])
def test_what_is_loaded_is_what_is_in_the_file(name: str) -> None:
    part = parts_of(SHIPPED / "svd")[name]
    network = part.load(torch.float32)
    [*_, path] = (path for _, path in part.files())

    state = network.state_dict()
    for key, tensor in load_file(path).items():
        assert torch.equal(state[key], tensor.float())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert not network.training
    assert part.check() == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("max_shard_size", ["10GB", "1MB"])
def test_what_diffusers_saves_is_served_in_one_file_or_several(svd: Path, max_shard_size: str) -> None:
    unet = UNetSpatioTemporalConditionModel.from_pretrained(svd / "unet")
    shutil.rmtree(svd / "unet")
    unet.save_pretrained(svd / "unet", max_shard_size=max_shard_size)
    assert len(list((svd / "unet").glob("*.safetensors"))) == (1 if max_shard_size == "10GB" else 5)

    loaded = parts_of(svd)["unet"].load(torch.float32).state_dict()

    for key, tensor in unet.state_dict().items():
        assert torch.equal(loaded[key], tensor.float())


def test_a_variant_is_taken_by_name(svd: Path) -> None:
    for name in ("unet", "vae", "image_encoder"):
        stem = "model" if name == "image_encoder" else "diffusion_pytorch_model"
        (svd / name / f"{stem}.safetensors").rename(svd / name / f"{stem}.fp16.safetensors")

    assert [part.check() for part in parts_of(svd, "fp16").values()] == [1_112_781, 405_946, 118_176, 0]
    assert "beside it: config.json, diffusion_pytorch_model.fp16.safetensors" in refuse(parts_of(svd)["unet"])


def test_a_text_to_image_pipeline_is_taken_apart_by_its_index() -> None:
    parts = pipeline_parts(Checkpoint(str(SHIPPED / "text-to-image")), None)

    assert {name: part.has_tensors for name, part in parts.items()} == {
        "scheduler": False,
        "text_encoder": True,
        "tokenizer": False,
        "unet": True,
        "vae": True,
    }
    pipeline = StableDiffusionPipeline.from_pretrained(SHIPPED / "text-to-image")
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = parts[name].load(torch.float32).state_dict(), getattr(pipeline, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key].float()) for key in ours)


def test_a_pipelines_networks_may_have_the_names_of_their_time(tmp_path: Path) -> None:
    """Stable Diffusion 1 and 2 were published when attention called its projections otherwise."""
    shutil.copytree(SHIPPED / "text-to-image", tmp_path / "t")
    path = tmp_path / "t" / "vae" / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(path)
    for new, old in names.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert any(".query." in name for name in tensors)
    save_file(tensors, path, metadata={"format": "pt"})

    vae, shipped = (
        pipeline_parts(Checkpoint(str(root)), None)["vae"] for root in (tmp_path / "t", SHIPPED / "text-to-image")
    )
    assert vae.check() == shipped.check() == 367_527
    ours, theirs = vae.load(torch.float32).state_dict(), shipped.load(torch.float32).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_a_pipelines_networks_are_held_to_their_tensors(tmp_path: Path, name: str) -> None:
    shutil.copytree(SHIPPED / "text-to-image", tmp_path / "t")
    [path] = (tmp_path / "t" / name).glob("*.safetensors")
    first, second = sorted(load_file(path))[:2]

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[first]
        tensors[second] = torch.zeros(3, 5)

    change_tensors(path, spoil)
    message = refuse(pipeline_parts(Checkpoint(str(tmp_path / "t")), None)[name])
    assert "is missing" in message
    assert "has shape [3, 5], the network wants" in message


# ---------------------------------------------------------------- spoilt checkpoints


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("unet", "unet/config.json"),
        ("unet", UNET),
        ("vae", "vae/config.json"),
        ("vae", "vae/diffusion_pytorch_model.safetensors"),
        ("image_encoder", "image_encoder/config.json"),
        ("image_encoder", "image_encoder/model.safetensors"),
    ],
)
def test_a_missing_file_is_named(svd: Path, name: str, file: str) -> None:
    (svd / file).unlink()
    assert f"there is no {svd / file}" in refuse(parts_of(svd)[name])


def test_a_missing_feature_extractor_is_named(svd: Path) -> None:
    (svd / "feature_extractor" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"there is no .*preprocessor_config\.json"):
        parts_of(svd)["feature_extractor"].check()


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert f"no directory of weights at {tmp_path}/nowhere" in refuse(parts_of(tmp_path / "nowhere")["unet"])


def test_pickled_weights_are_not_read(svd: Path) -> None:
    torch.save(load_file(svd / UNET), svd / "unet" / "diffusion_pytorch_model.bin")
    (svd / UNET).unlink()

    assert "beside it: config.json, diffusion_pytorch_model.bin" in refuse(parts_of(svd)["unet"])


@pytest.mark.parametrize("name", ["unet", "vae", "image_encoder"])
def test_missing_foreign_and_misshapen_tensors_are_named(svd: Path, name: str) -> None:
    [path] = (svd / name).glob("*.safetensors")
    keys = sorted(load_file(path))

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[keys[0]]
        tensors["stowaway"] = torch.zeros(1)
        tensors[keys[1]] = torch.zeros(3, 5)

    wanted = list(load_file(path)[keys[1]].shape)
    change_tensors(path, spoil)

    message = refuse(parts_of(svd)[name])
    assert str(path) in message
    assert f"{keys[0]} is missing" in message
    assert "stowaway belongs to no part of the network" in message
    assert f"{keys[1]} has shape [3, 5], the network wants {wanted}" in message


def test_a_checkpoint_of_another_width_is_not_listed_to_the_end(svd: Path) -> None:
    config = json.loads((svd / "unet/config.json").read_text())
    (svd / "unet/config.json").write_text(json.dumps(config | {"block_out_channels": [64, 128]}))

    message = refuse(parts_of(svd)["unet"])
    assert message.count("has shape") == 5
    assert "; and 238 more" in message


@pytest.mark.parametrize("name", ["unet", "image_encoder"])
def test_a_download_that_broke_off_is_named(svd: Path, name: str) -> None:
    [path] = (svd / name).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path} is no whole safetensors file" in refuse(parts_of(svd)[name])


@pytest.mark.parametrize("name", ["unet", "vae", "image_encoder"])
@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff"])
def test_a_configuration_that_is_no_json_object_is_named(svd: Path, name: str, text: str) -> None:
    (svd / name / "config.json").write_text(text, encoding="latin-1")
    assert f"{svd}/{name}/config.json is no JSON object" in refuse(parts_of(svd)[name])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("unet", {"down_block_types": ["NoSuchBlock", "NoSuchBlock"]}),
        ("unet", {"num_attention_heads": 0}),
        ("unet", {"block_out_channels": [1, 2, 3]}),
        ("vae", {"block_out_channels": "wide"}),
        ("image_encoder", {"hidden_act": "no_such_function"}),
        ("image_encoder", {"num_attention_heads": 7}),
        ("image_encoder", {"patch_size": "big"}),
    ],
)
def test_a_configuration_that_makes_no_network_is_named(svd: Path, name: str, change: dict[str, Any]) -> None:
    config = json.loads((svd / name / "config.json").read_text())
    (svd / name / "config.json").write_text(json.dumps(config | change))
    message = refuse(parts_of(svd)[name])
    assert f"{name}" in message
    assert "makes no network" in message


@pytest.mark.parametrize("missing", ["image_mean", "image_std"])
def test_a_feature_extractor_without_its_colours_is_named(svd: Path, missing: str) -> None:
    path = svd / "feature_extractor" / "preprocessor_config.json"
    config = json.loads(path.read_text())
    del config[missing]
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"has no {missing}"):
        parts_of(svd)["feature_extractor"].check()


def test_an_index_that_names_no_files_is_named(svd: Path) -> None:
    (svd / UNET).unlink()
    (svd / f"{UNET}.index.json").write_text("{}")
    assert "names no files" in refuse(parts_of(svd)["unet"])


@pytest.mark.parametrize(
    "value",
    [["os", "system"], ["diffusers", "NoSuchPipeline"], ["no_such_module", "Class"], ["diffusers"], ["a", "b", "c"]],
)
def test_a_pipeline_of_unknown_classes_is_refused(tmp_path: Path, value: list[str]) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", "unet": value}))
    with pytest.raises(CheckpointError, match=r"model_index\.json of .*: unet is nothing that can be loaded"):
        pipeline_parts(Checkpoint(str(tmp_path)), None)


def test_a_pipeline_without_components_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="names no component"):
        pipeline_parts(Checkpoint(str(tmp_path)), None)


def test_a_pipeline_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "text-to-image", tmp_path / "t", ignore=shutil.ignore_patterns("tokenizer"))
    with pytest.raises(CheckpointError, match=r"there is nothing in .*tokenizer"):
        pipeline_parts(Checkpoint(str(tmp_path / "t")), None)["tokenizer"].check()


# ---------------------------------------------------------------- hashes


def test_the_shipped_weights_have_the_hashes_that_are_listed() -> None:
    for directory in ("svd", "text-to-image"):
        listed = (SHIPPED / directory / HASHES).read_text().splitlines()
        files = [path for path in (SHIPPED / directory).rglob("*") if path.is_file() and path.name != HASHES]
        assert len(listed) == len(files)
    assert [part.check_hashes() for part in parts_of(SHIPPED / "svd").values()] == [2, 2, 2, 1]


def test_the_shipped_weights_are_what_their_program_writes(tmp_path: Path) -> None:
    generate([str(tmp_path)])
    for directory in ("svd", "depth", "text-to-image"):
        assert (tmp_path / directory / HASHES).read_text() == (SHIPPED / directory / HASHES).read_text()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "svd", tmp_path / "svd")
    path = tmp_path / "svd" / UNET
    change_tensors(path, lambda tensors: tensors["conv_in.bias"].add_(1))
    part = parts_of(tmp_path / "svd")["unet"]

    assert part.check() == 1_112_781  # nothing that names or shapes could tell
    with pytest.raises(CheckpointError, match=f"{path} is damaged"):
        part.check_hashes()


def test_files_that_nobody_listed_have_no_known_hash(svd: Path) -> None:
    assert parts_of(svd)["unet"].check_hashes() == 0
    (svd / HASHES).write_text("0000  something/else.bin\n\n")
    assert parts_of(svd)["unet"].check_hashes() == 0


def test_a_link_is_held_against_the_list_too_however_its_name_is_written(svd: Path, tmp_path: Path) -> None:
    (svd / UNET).rename(tmp_path / "elsewhere")
    (svd / UNET).symlink_to(tmp_path / "elsewhere")
    (svd / HASHES).write_text(f"{'0' * 64}  ./{UNET}\n")
    with pytest.raises(CheckpointError, match="is damaged"):
        parts_of(svd)["unet"].check_hashes()


def test_a_list_of_hashes_that_cannot_be_read_is_named(svd: Path) -> None:
    (svd / HASHES).write_text("nonsense\n")
    with pytest.raises(CheckpointError, match="is not what sha256sum writes"):
        parts_of(svd)["unet"].check_hashes()


# ---------------------------------------------------------------- repositories


@pytest.mark.parametrize("revision", [None, "main", "v1.1", COMMIT[:12]])
def test_a_repository_needs_its_commit(revision: str | None) -> None:
    with pytest.raises(CheckpointError, match="a repository needs a revision: a commit of 40 digits"):
        svd_parts(Checkpoint("stabilityai/svd", revision), None, None)["unet"].check()


@pytest.mark.parametrize("weights", ["a/b/c", "/srv/weights", "./weights", "weights", "../a/b", "a/b?"])
def test_a_path_that_is_not_there_is_no_repository(weights: str) -> None:
    with pytest.raises(CheckpointError, match="no directory of weights at"):
        Checkpoint(weights, COMMIT).path("config.json")


# ---------------------------------------------------------------- parts of several checkpoints


def test_one_file_replaces_the_unet_over_the_other_parts(svd: Path, tmp_path: Path) -> None:
    """As AnimateLCM-SVD comes: all tensors of a UNet, and nothing else."""
    (tmp_path / "lcm").mkdir()
    shutil.copy(svd / UNET, tmp_path / "lcm" / "LCM.safetensors")
    change_tensors(tmp_path / "lcm" / "LCM.safetensors", lambda tensors: tensors["conv_in.bias"].fill_(2))
    config = VideoConfig(weights=str(svd), unet=UNetConfig(weights=str(tmp_path / "lcm"), file="LCM.safetensors"))
    parts = FastSVDLCM("fal-ai/fast-svd-lcm", config).parts()

    assert parts["unet"].load(torch.float32).conv_in.bias.unique().tolist() == [2]
    assert [path.name for _, path in parts["unet"].files()] == ["config.json", "LCM.safetensors"]
    change_tensors(tmp_path / "lcm" / "LCM.safetensors", lambda tensors: tensors.pop("conv_in.bias"))
    assert "LCM.safetensors: conv_in.bias is missing" in refuse(parts["unet"])


def test_the_controlnet_is_a_part_of_svd_alone() -> None:
    config = SVDConfig(weights=str(SHIPPED / "svd"), controlnet=ControlNetConfig(weights=str(SHIPPED / "depth")))
    assert SVD("fal-ai/svd", config).parts()["controlnet"].check() == 697_965
    with pytest.raises(ValueError, match="controlnet"):
        FastSVDLCM.Config.model_validate({"weights": "x", "controlnet": {"weights": "y"}})


# ---------------------------------------------------------------- the published layouts, at full size


UNET_CONFIG = {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "_diffusers_version": "0.24.0.dev0",
    "addition_time_embed_dim": 256,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "down_block_types": [*["CrossAttnDownBlockSpatioTemporal"] * 3, "DownBlockSpatioTemporal"],
    "in_channels": 8,
    "layers_per_block": 2,
    "num_attention_heads": [5, 10, 20, 20],
    "num_frames": 25,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 768,
    "sample_size": 96,
    "transformer_layers_per_block": 1,
    "up_block_types": ["UpBlockSpatioTemporal", *["CrossAttnUpBlockSpatioTemporal"] * 3],
}
VAE_CONFIG = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
ENCODER_CONFIG = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "image_size": 224,
    "intermediate_size": 5120,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
    "torch_dtype": "float16",
}
CONTROLNET_CONFIG = {
    "_class_name": "ControlNetSDVModel",
    "addition_time_embed_dim": 256,
    "block_out_channels": [320, 640, 1280, 1280],
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "cross_attention_dim": 1024,
    "down_block_types": [*["CrossAttnDownBlockSpatioTemporal"] * 3, "DownBlockSpatioTemporal"],
    "in_channels": 8,
    "layers_per_block": 2,
    "num_attention_heads": [5, 10, 20, 20],
    "num_frames": 14,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 768,
    "sample_size": 96,
    "transformer_layers_per_block": 1,
}


def write_hollow(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of float32 tensors whose bytes are a hole in the disk: gigabytes that take no room."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def shapes_of(network: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three repositories as they are published, from the libraries' own classes; 12 GB that take no room."""
    root = tmp_path_factory.mktemp("published")
    with torch.device("meta"):
        unet = shapes_of(UNetSpatioTemporalConditionModel.from_config(UNET_CONFIG))
        vae = shapes_of(AutoencoderKLTemporalDecoder.from_config(VAE_CONFIG))
        encoder = shapes_of(CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(ENCODER_CONFIG)))
        controlnet = shapes_of(DepthControlNet.from_config(CONTROLNET_CONFIG))
    for folder, config in {"unet": UNET_CONFIG, "vae": VAE_CONFIG, "image_encoder": ENCODER_CONFIG}.items():
        write_json(root / "svd" / folder / "config.json", config)
    write_hollow(root / "svd" / UNET, unet)
    write_hollow(root / "svd" / "vae" / "diffusion_pytorch_model.safetensors", vae)
    write_hollow(root / "svd" / "image_encoder" / "model.safetensors", encoder)
    extractor = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    write_json(root / "svd" / "feature_extractor" / "preprocessor_config.json", extractor)
    write_hollow(root / "lcm" / "AnimateLCM-SVD-xt-1.1.safetensors", unet)
    write_json(root / "depth" / "controlnet" / "config.json", CONTROLNET_CONFIG)
    write_hollow(root / "depth" / "controlnet" / "diffusion_pytorch_model.safetensors", controlnet)
    return root


def test_the_published_layouts_are_checked_at_full_size(published: Path) -> None:
    parts = parts_of(published / "svd")
    assert parts["unet"].check() == 1_524_623_082
    assert round(parts["vae"].check() / 1e6, 2) == 97.74
    assert round(parts["image_encoder"].check() / 1e6, 2) == 632.08
    controlnet = controlnet_part(Checkpoint(str(published / "depth")), "controlnet", None)
    assert controlnet.check() == 682_021_537


def test_the_published_lcm_unet_is_checked_over_svd(published: Path) -> None:
    lcm = (Checkpoint(str(published / "lcm")), "AnimateLCM-SVD-xt-1.1.safetensors")
    assert svd_parts(Checkpoint(str(published / "svd")), None, lcm)["unet"].check() == 1_524_623_082


@pytest.mark.parametrize(
    ("part", "count", "names"),
    [
        (
            "unet",
            1428,
            {
                "conv_in.weight": [320, 8, 3, 3],
                "add_embedding.linear_1.weight": [1280, 768],
                "down_blocks.0.resnets.0.temporal_res_block.conv1.weight": [320, 320, 3, 1, 1],
                "down_blocks.2.attentions.1.temporal_transformer_blocks.0.attn2.to_k.weight": [1280, 1024],
                "mid_block.resnets.1.time_mixer.mix_factor": [1],
                "up_blocks.3.attentions.2.time_pos_embed.linear_2.bias": [320],
                "conv_out.bias": [4],
            },
        ),
        (
            "vae",
            374,
            {
                "quant_conv.weight": [8, 8, 1, 1],
                "encoder.down_blocks.3.resnets.1.conv2.weight": [512, 512, 3, 3],
                "decoder.mid_block.attentions.0.to_q.weight": [512, 512],
                "decoder.up_blocks.0.resnets.2.temporal_res_block.conv2.weight": [512, 512, 3, 1, 1],
                "decoder.time_conv_out.weight": [3, 3, 3, 1, 1],
            },
        ),
        (
            "image_encoder",
            520,
            {
                "vision_model.embeddings.class_embedding": [1280],
                "vision_model.embeddings.position_embedding.weight": [257, 1280],
                "vision_model.encoder.layers.31.mlp.fc1.weight": [5120, 1280],
                "vision_model.pre_layrnorm.bias": [1280],
                "visual_projection.weight": [1024, 1280],
            },
        ),
        (
            "controlnet",
            671,
            {
                "controlnet_cond_embedding.conv_in.weight": [16, 3, 3, 3],
                "controlnet_cond_embedding.blocks.5.weight": [256, 96, 3, 3],
                "controlnet_cond_embedding.conv_out.weight": [320, 256, 3, 3],
                "controlnet_down_blocks.0.weight": [320, 320, 1, 1],
                "controlnet_down_blocks.6.weight": [640, 640, 1, 1],
                "controlnet_down_blocks.11.weight": [1280, 1280, 1, 1],
                "controlnet_mid_block.bias": [1280],
                "time_embedding.linear_1.weight": [1280, 320],
            },
        ),
    ],
)
def test_the_tensors_have_their_published_names(
    published: Path, part: str, count: int, names: dict[str, list[int]]
) -> None:
    folder = published / "depth" if part == "controlnet" else published / "svd"
    [path] = (folder / part).glob("*.safetensors")
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))

    assert len(header) == count
    assert {name: header[name]["shape"] for name in names} == names


def test_a_wrong_tensor_in_gigabytes_is_found(published: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = shapes_of(DepthControlNet.from_config(CONTROLNET_CONFIG))
    shapes["controlnet_down_blocks.11.weight"] = (640, 640, 1, 1)
    write_json(tmp_path / "config.json", CONTROLNET_CONFIG)
    write_hollow(tmp_path / "diffusion_pytorch_model.safetensors", shapes)

    part = Network(Checkpoint(str(tmp_path)), "", type="deployments.models.networks:DepthControlNet")
    with pytest.raises(CheckpointError, match=r"controlnet_down_blocks\.11\.weight has shape \[640, 640, 1, 1\], the"):
        part.check()


def test_a_repository_whose_name_no_hub_takes_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"a/b\.\.c@0123456789ab: no config\.json"):
        Checkpoint("a/b..c", COMMIT).path("config.json")
