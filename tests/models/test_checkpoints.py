"""Checkpoints: what is missing, left over, misshapen or damaged is named; the published layouts at their full size."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
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
    load_pipeline,
    pipeline_parts,
    sha256,
    svd_parts,
)
from deployments.models.fast_svd_lcm import FastSVDLCM
from deployments.models.networks import DepthControlNet
from deployments.models.svd import SVD, SVDConfig
from tests import tiny
from tests.tiny import WEIGHTS

SHIPPED = Path(deployments.models.weights.__file__).parent
FOLDERS = ("svd", "depth", "text-to-image")
UNET = "unet/diffusion_pytorch_model.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def svd(tmp_path: Path) -> Path:
    """A copy of the small SVD checkpoint, to be spoilt; without its list of hashes."""
    shutil.copytree(WEIGHTS / "svd", tmp_path / "svd", ignore=shutil.ignore_patterns(HASHES))
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
    part = parts_of(WEIGHTS / "svd")[name]
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
    parts = pipeline_parts(Checkpoint(str(WEIGHTS / "text-to-image")), None)

    assert {name: part.has_tensors for name, part in parts.items()} == {
        "scheduler": False,
        "text_encoder": True,
        "tokenizer": False,
        "unet": True,
        "vae": True,
    }
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS / "text-to-image")
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = parts[name].load(torch.float32).state_dict(), getattr(pipeline, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key].float()) for key in ours)


def test_a_pipelines_networks_may_have_the_names_of_their_time(tmp_path: Path) -> None:
    """Stable Diffusion 1 and 2 were published when attention called its projections otherwise."""
    shutil.copytree(WEIGHTS / "text-to-image", tmp_path / "t")
    path = tmp_path / "t" / "vae" / "diffusion_pytorch_model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(path)
    for new, old in names.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert any(".query." in name for name in tensors)
    save_file(tensors, path, metadata={"format": "pt"})

    vae, untouched = (
        pipeline_parts(Checkpoint(str(root)), None)["vae"] for root in (tmp_path / "t", WEIGHTS / "text-to-image")
    )
    assert vae.check() == untouched.check() == 367_527
    ours, theirs = vae.load(torch.float32).state_dict(), untouched.load(torch.float32).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_a_pipelines_networks_are_held_to_their_tensors(tmp_path: Path, name: str) -> None:
    shutil.copytree(WEIGHTS / "text-to-image", tmp_path / "t")
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
    shutil.copytree(WEIGHTS / "text-to-image", tmp_path / "t", ignore=shutil.ignore_patterns("tokenizer"))
    with pytest.raises(CheckpointError, match=r"there is nothing in .*tokenizer"):
        pipeline_parts(Checkpoint(str(tmp_path / "t")), None)["tokenizer"].check()


# ---------------------------------------------------------------- checkpoints made to do harm


def safetensors(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWICE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
HARMFUL = {
    "nothing": b"",
    "less than a length": b"\x08\0\0",
    "a header of exabytes": safetensors({"a": PAIR}, length=2**63),
    "a header of all there is": safetensors({"a": PAIR}, length=2**64 - 1),
    "a header longer than the file": safetensors({"a": PAIR}, length=90_000_000),
    "a tensor beyond the end": safetensors({"a": PAIR | {"data_offsets": [0, 8000]}}),
    "a tensor of another length": safetensors({"a": PAIR | {"data_offsets": [0, 4]}}, bytes(4)),
    "a tensor that ends before it begins": safetensors({"a": PAIR | {"data_offsets": [8, 0]}}),
    "a tensor before the start": safetensors({"a": PAIR | {"data_offsets": [-8, 0]}}),
    "two tensors in one place": safetensors({"a": PAIR, "b": PAIR}),
    "two tensors of one name": safetensors(TWICE, bytes(16)),
    "a hole between tensors": safetensors({"a": PAIR, "b": PAIR | {"data_offsets": [16, 24]}}, bytes(24)),
    "something after the tensors": safetensors({"a": PAIR}, bytes(80)),
    "a shape whose size overflows": safetensors({"a": PAIR | {"shape": [2**62, 2**62]}}),
    "a shape below nothing": safetensors({"a": PAIR | {"shape": [-2]}}),
    "an unknown kind of number": safetensors({"a": PAIR | {"dtype": "PICKLE"}}),
    "a kind that torch cannot convert": safetensors({"a": PAIR | {"dtype": "F4", "shape": [16]}}),
    "complex numbers": safetensors({"a": PAIR | {"dtype": "C64", "shape": [1]}}),
    "no JSON": safetensors(b"not a header"),
    "JSON that is no object": safetensors([1, 2]),
    "JSON a hundred thousand deep": safetensors(b'{"a":' * 100_000),
    "no UTF-8": safetensors(b'{"\xff": 1}'),
}


@pytest.mark.parametrize("name", ["unet", "image_encoder"])
@pytest.mark.parametrize("content", HARMFUL.values(), ids=HARMFUL)
def test_a_harmful_file_of_tensors_is_refused_by_its_name(svd: Path, name: str, content: bytes) -> None:
    [path] = (svd / name).glob("*.safetensors")
    path.write_bytes(content)
    part = parts_of(svd)[name]
    for read in (part.check, lambda: part.load(torch.float32)):  # of two tensors in one place, either may be named
        with pytest.raises(CheckpointError) as refused:
            read()
        assert str(refused.value).startswith(str(path))


class Canary:
    """Touches a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that is there if code from a checkpoint ran."""
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists()


def test_the_canary_would_sing(tmp_path: Path) -> None:
    torch.save(Canary(tmp_path / "canary"), tmp_path / "weights.bin")
    torch.load(tmp_path / "weights.bin", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["unet", "vae", "image_encoder"])
@pytest.mark.parametrize("ending", [".bin", ".ckpt", ".pt", ".pth", ".pkl", ".safetensors"])
def test_no_pickle_is_read_whatever_it_is_called(svd: Path, canary: Path, name: str, ending: str) -> None:
    [path] = (svd / name).glob("*.safetensors")
    path.unlink()
    for stem in (path.stem, "pytorch_model", "model"):
        torch.save({"a": Canary(canary)}, svd / name / f"{stem}{ending}")
    assert str(path) in refuse(parts_of(svd)[name])


@pytest.mark.parametrize("name", ["unet", "image_encoder"])
@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../../stolen.safetensors", "/etc/passwd", "", 7, None, ["a"]])
def test_an_index_names_safetensors_beside_it_and_nothing_else(
    svd: Path, canary: Path, name: str, shard: object
) -> None:
    [path] = (svd / name).glob("*.safetensors")
    path.rename(svd.parent / "stolen.safetensors")
    torch.save({"a": Canary(canary)}, svd / name / "pytorch_model.bin")
    index = svd / name / f"{path.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard}}))
    assert index.name in refuse(parts_of(svd)[name])


def plant_index(path: Path, canary: Path, name: str) -> None:
    """Lay a list beside a file of tensors that has all of them lie in a pickle."""
    torch.save({"a": Canary(canary)}, path.with_name("shard.bin"))
    listing = {"metadata": {}, "weight_map": dict.fromkeys(load_file(path), "shard.bin")}
    path.with_name(name).write_text(json.dumps(listing))


@pytest.fixture
def no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the unpickler that knows tensors alone is asked."""

    def load(*_: object, **__: object) -> None:
        pytest.fail("a pickle was opened")

    monkeypatch.setattr(torch, "load", load)


@pytest.mark.usefixtures("no_pickles")
@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_an_index_beside_a_single_file_is_refused_by_its_name(
    painter: Path, canary: Path, name: str, variant: str | None
) -> None:
    [path] = (painter / name).glob("*.safetensors")
    if variant:
        path = path.rename(path.with_suffix(f".{variant}.safetensors"))
    index = f"{path.name.partition('.')[0]}.safetensors.index{f'.{variant}' if variant else ''}.json"
    plant_index(path, canary, index)
    message = refuse(pipeline_parts(Checkpoint(str(painter)), variant)[name])
    assert message == f"beside {path} lies {index}, which names other files: remove one of the two"


@pytest.mark.usefixtures("no_pickles")
@pytest.mark.parametrize("name", ["unet", "vae", "image_encoder"])
def test_an_index_beside_a_single_file_of_svd_is_refused_too(svd: Path, canary: Path, name: str) -> None:
    [path] = (svd / name).glob("*.safetensors")
    plant_index(path, canary, f"{path.name}.index.json")
    assert f"beside {path} lies {path.name}.index.json" in refuse(parts_of(svd)[name])


@pytest.mark.usefixtures("no_pickles")
@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    "index", ["{}.safetensors.fp16.index.json", "{}.bin.index.json", "pytorch_model.bin.index.json", "other.index.json"]
)
def test_an_index_that_no_part_asks_for_is_not_read(painter: Path, canary: Path, name: str, index: str) -> None:
    """Some name the pickles of a repository that has safetensors too; of others only older libraries know."""
    [path] = (painter / name).glob("*.safetensors")
    stem, _, variant = path.stem, path.suffix, "fp16"
    path = path.rename(path.with_suffix(f".{variant}.safetensors"))
    plant_index(path, canary, index.format(stem))
    part = pipeline_parts(Checkpoint(str(painter)), variant)[name]
    assert part.check() > 0
    loaded = part.load(torch.float32).state_dict()
    assert all(torch.equal(loaded[key], tensor.float()) for key, tensor in load_file(path).items() if key in loaded)


@pytest.mark.usefixtures("no_pickles")
@pytest.mark.parametrize("named", ["evil.safetensors.index.json", "evil.safetensors", "adapter_model.bin", "../x"])
def test_a_configuration_does_not_choose_what_is_read(svd: Path, canary: Path, named: str) -> None:
    """transformers would take the name of the file of tensors from it, before any other."""
    path = svd / "image_encoder" / "model.safetensors"
    plant_index(path, canary, "evil.safetensors.index.json")
    for other in ("evil.safetensors", "adapter_model.bin"):
        shutil.copy(path, path.with_name(other))
    config = json.loads(path.with_name("config.json").read_text())
    path.with_name("config.json").write_text(json.dumps(config | {"transformers_weights": named}))
    message = refuse(parts_of(svd)["image_encoder"])
    assert message == f"{path.with_name('config.json')} names a file of tensors (transformers_weights): remove the line"


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_pipelines_networks_may_lie_in_several_files(painter: Path, name: str, variant: str | None) -> None:
    [path] = (painter / name).glob("*.safetensors")
    network = pipeline_parts(Checkpoint(str(painter)), None)[name].load(torch.float32)
    path.unlink()
    network.save_pretrained(path.parent, max_shard_size="50KB", variant=variant)
    assert len(list(path.parent.glob("*.safetensors"))) > 1

    loaded = pipeline_parts(Checkpoint(str(painter)), variant)[name].load(torch.float32).state_dict()
    assert loaded.keys() == network.state_dict().keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("listing", [{"weight_map": []}, {"weight_map": {}}, {"weight_map": None}, {"a": 1}])
def test_an_index_of_another_form_is_named(svd: Path, listing: object) -> None:
    (svd / UNET).unlink()
    (svd / f"{UNET}.index.json").write_text(json.dumps(listing))
    assert f"{UNET}.index.json of {svd} names no files" in refuse(parts_of(svd)["unet"])


@pytest.mark.parametrize("name", ["unet", "vae", "image_encoder"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_out_of_the_directory_is_not_followed(svd: Path, tmp_path: Path, name: str, kind: str) -> None:
    linked = svd / name if kind == "folder" else next((svd / name).glob("*.safetensors"))
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    message = refuse(parts_of(svd)[name])
    assert str(linked) in message
    assert message.endswith(f"leads out of {svd}")


def test_a_directory_may_be_a_link_itself_and_its_files_links_within(svd: Path, tmp_path: Path) -> None:
    (svd / UNET).rename(svd / "vae" / "unet.safetensors")
    (svd / UNET).symlink_to("../vae/unet.safetensors")
    (tmp_path / "link").symlink_to(svd)
    assert parts_of(tmp_path / "link")["unet"].check() == 1_112_781


def test_a_snapshot_of_the_hubs_cache_links_to_its_blobs_and_no_further(svd: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    svd.rename(snapshot)
    for place, welcome in ((tmp_path / "models--a--b" / "blobs", True), (tmp_path / "models--c--d" / "blobs", False)):
        place.mkdir(parents=True)
        (snapshot / UNET).rename(place / "0123")
        (snapshot / UNET).symlink_to(place / "0123")
        if welcome:
            assert parts_of(snapshot)["unet"].check() == 1_112_781
            (snapshot / UNET).unlink()
            (place / "0123").rename(snapshot / UNET)
    assert refuse(parts_of(snapshot)["unet"]).endswith(f"leads out of {snapshot}")


@pytest.mark.parametrize("name", ["unet", "vae", "image_encoder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_named_when_they_are_loaded(svd: Path, name: str, value: float) -> None:
    [path] = (svd / name).glob("*.safetensors")
    spoilt = sorted(load_file(path))[-1]

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[spoilt].view(-1)[-1] = value

    change_tensors(path, spoil)
    with pytest.raises(CheckpointError, match=f"{path}: {spoilt} holds what is no number"):
        parts_of(svd)[name].load(torch.float32)


def test_a_number_too_large_for_the_precision_is_named(svd: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {name: tensor.float() for name, tensor in tensors.items()}
        tensors["conv_in.bias"][0] = 1e30

    change_tensors(svd / UNET, spoil)
    parts_of(svd)["unet"].load(torch.float32)
    with pytest.raises(CheckpointError, match=r"conv_in\.bias holds what is no number, or too large"):
        parts_of(svd)["unet"].load(torch.float16)


CODE = {
    "auto_map": {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]},
    "custom_pipelines": {"evil": {"pt": ["Evil"]}},
    "trust_remote_code": True,
    "attn_implementation": "evil/kernels",
    "_attn_implementation": {"": "evil/kernels"},
    "_attn_implementation_internal": "evil/kernels@main:evil",
    "text_config": {"auto_map": {"AutoModel": "evil.Evil"}},
    "processors": [[{"auto_map": {"AutoProcessor": ["evil.Evil", None]}}]],
}


def plant(folder: Path, canary: Path) -> None:
    """Lay code beside weights, under the names by which libraries look for it."""
    for name in ("evil", "pipeline", "unet", "modeling", "tokenizer"):
        (folder / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass Evil: pass\n")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("unet", "unet/config.json"),
        ("vae", "vae/config.json"),
        ("image_encoder", "image_encoder/config.json"),
        ("feature_extractor", "feature_extractor/preprocessor_config.json"),
    ],
)
@pytest.mark.parametrize("code", CODE)
def test_a_configuration_that_names_code_is_refused(svd: Path, canary: Path, name: str, file: str, code: str) -> None:
    plant((svd / file).parent, canary)
    config = json.loads((svd / file).read_text())
    (svd / file).write_text(json.dumps(config | {code: CODE[code]}))
    with pytest.raises(CheckpointError) as refused:
        parts_of(svd)[name].check()
    assert str(refused.value).startswith(f"{svd / file} names code to run (")


def test_code_that_lies_beside_weights_is_not_run_and_words_of_the_library_are_no_code(svd: Path, canary: Path) -> None:
    for name in ("unet", "vae", "image_encoder", "feature_extractor", "."):
        plant(svd / name, canary)
    config = json.loads((svd / "image_encoder/config.json").read_text())
    (svd / "image_encoder/config.json").write_text(json.dumps(config | {"attn_implementation": "sdpa"}))
    for part in parts_of(svd).values():
        part.check()
        if part.has_tensors:
            part.load(torch.float32)


@pytest.fixture
def painter(tmp_path: Path, canary: Path) -> Path:
    """A copy of the small text-to-image pipeline, with code in every folder."""
    shutil.copytree(WEIGHTS / "text-to-image", tmp_path / "t", ignore=shutil.ignore_patterns(HASHES))
    for folder in (tmp_path / "t", *(path for path in (tmp_path / "t").iterdir() if path.is_dir())):
        plant(folder, canary)
    return tmp_path / "t"


def change_index(painter: Path, **changes: object) -> None:
    index = json.loads((painter / "model_index.json").read_text())
    (painter / "model_index.json").write_text(json.dumps(index | changes))


def refuse_pipeline(painter: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        load_pipeline(Checkpoint(str(painter)), None, torch.float32)
    return str(refused.value)


def test_a_pipeline_beside_code_is_loaded_without_it(painter: Path) -> None:
    pipeline = load_pipeline(Checkpoint(str(painter)), None, torch.float32)
    assert type(pipeline) is StableDiffusionPipeline
    assert type(pipeline.tokenizer).__module__.startswith("transformers.")


@pytest.mark.parametrize(
    "kind",
    [["evil", "Evil"], ["pipeline", "Evil"], "Evil", "evil.Evil", "UNet2DConditionModel", "utils", "", 5, None, {}],
)
def test_a_pipeline_of_a_foreign_class_is_refused(painter: Path, kind: object) -> None:
    change_index(painter, _class_name=kind)
    assert f"model_index.json of {painter}: {kind!r} is no pipeline of diffusers" in refuse_pipeline(painter)


@pytest.mark.parametrize("component", ["unet", "tokenizer", "scheduler", "evil"])
@pytest.mark.parametrize(
    "value",
    [
        ["evil", "Evil"],
        ["unet", "Evil"],
        ["..evil", "Evil"],
        ["stable_diffusion.convert_from_ckpt", "os"],
        ["diffusers", "utils.logging.logging.Logger"],
        ["diffusers", "DiffusionPipeline"],
        ["transformers", "PreTrainedConfig"],
        [5, None],
        [["evil"], {}],
    ],
)
def test_a_component_of_a_foreign_class_is_refused(painter: Path, component: str, value: object) -> None:
    change_index(painter, **{component: value})
    message = refuse_pipeline(painter)
    assert message.startswith(f"model_index.json of {painter}: {component} is nothing that can be loaded: ")


@pytest.mark.parametrize("file", ["tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("code", CODE)
def test_a_tokenizer_or_scheduler_that_names_code_is_refused(painter: Path, file: str, code: str) -> None:
    config = json.loads((painter / file).read_text())
    (painter / file).write_text(json.dumps(config | {code: CODE[code]}))
    assert refuse_pipeline(painter).startswith(f"{painter / file} names code to run (")


def test_code_of_the_one_name_that_diffusers_looks_for_unasked_is_refused(painter: Path, canary: Path) -> None:
    (painter / "evil.py").rename(painter / "None.py")
    assert refuse_pipeline(painter).startswith(f"{painter} makes no pipeline: ")


def test_an_index_that_names_code_is_refused(painter: Path) -> None:
    change_index(painter, custom_pipelines={"evil": {}})
    assert refuse_pipeline(painter) == (
        f"{painter}/model_index.json names code to run (custom_pipelines), and weights are only data here"
    )


def test_a_pipelines_pickles_are_not_read(painter: Path, canary: Path) -> None:
    for name in ("unet", "vae", "text_encoder"):
        [path] = (painter / name).glob("*.safetensors")
        torch.save({"a": Canary(canary)}, path.with_suffix(".bin"))
        torch.save({"a": Canary(canary)}, painter / name / "pytorch_model.bin")
    load_pipeline(Checkpoint(str(painter)), None, torch.float32)
    (painter / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "there is no " in refuse_pipeline(painter)


def test_a_tokenizer_that_leads_elsewhere_is_refused(painter: Path, tmp_path: Path) -> None:
    (painter / "tokenizer").rename(tmp_path / "elsewhere")
    (painter / "tokenizer").symlink_to(tmp_path / "elsewhere")
    assert refuse_pipeline(painter).endswith(f"leads out of {painter}")


# ---------------------------------------------------------------- hashes


def test_the_shipped_weights_have_the_hashes_that_are_listed() -> None:
    folders = {path.parent.name for path in SHIPPED.glob(f"*/{HASHES}")}
    assert folders == {"svd", "depth", "text-to-image"}
    for directory in folders:
        listed = {tuple(line.split("  ")) for line in (SHIPPED / directory / HASHES).read_text().splitlines()}
        files = [path for path in (SHIPPED / directory).rglob("*") if path.is_file() and path.name != HASHES]
        assert {(sha256(path), path.relative_to(SHIPPED / directory).as_posix()) for path in files} == listed
    assert [part.check_hashes() for part in parts_of(SHIPPED / "svd").values()] == [2, 2, 2, 1]


def test_the_shipped_weights_are_few_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 25_000_000


def test_the_weights_of_tests_are_the_same_whoever_writes_them(tmp_path: Path) -> None:
    tiny.main([str(tmp_path)])
    for directory in FOLDERS:
        assert (tmp_path / directory / HASHES).read_text() == (WEIGHTS / directory / HASHES).read_text()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS / "svd", tmp_path / "svd")
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


def test_a_link_is_held_against_the_list_too_however_its_name_is_written(svd: Path) -> None:
    (svd / UNET).rename(svd / "elsewhere")
    (svd / UNET).symlink_to(svd / "elsewhere")
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
    config = SVDConfig(weights=str(WEIGHTS / "svd"), controlnet=ControlNetConfig(weights=str(WEIGHTS / "depth")))
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
