"""Weights on disk: where the files are, whether they are what a network wants, and how they get into it.

    directory | repository @ commit ──▶ files ──▶ hashes, names, shapes ──▶ network

Strict throughout: a tensor that is missing, left over or of another shape is an error, because a network with a random
part still answers. Only safetensors are read, so nothing is unpickled. Shapes come from the files' headers and from
networks without memory, so gigabytes are checked in a moment and without a GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]

HASHES = "SHA256SUMS"
"""Beside a directory's ``model_index.json``, as written by ``sha256sum``: what its files must hash to."""

MOST_PROBLEMS = 5
"""A network that does not fit at all is not listed tensor by tensor."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIFFUSERS_STEM = "diffusion_pytorch_model"
_READ_BYTES = 16 * 1024 * 1024


class CheckpointError(Exception):
    """Weights that cannot be served. The message names the file, the tensor or the shape."""


@dataclass(frozen=True)
class Checkpoint:
    """A directory, or a repository of the Hugging Face hub at one commit.

    Args:
        weights: The directory, or the repository's id.
        revision: The commit. A repository needs one, so that what is served cannot change under its operator.
    """

    weights: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.weights}@{self.revision[:12]}" if self.revision else self.weights

    @cached_property
    def is_repository(self) -> bool:
        """Whether the files come from the hub.

        Raises:
            CheckpointError: Neither a directory nor a repository's id, or one without its commit.
        """
        if Path(self.weights).is_dir():
            return False
        if not _REPOSITORY.fullmatch(self.weights):
            raise CheckpointError(f"there is no directory of weights at {self.weights}")
        if not _COMMIT.fullmatch(self.revision or ""):
            raise CheckpointError(
                f"there is no directory {self.weights}, and a repository needs a revision: a commit of 40 digits"
            )
        return True

    def path(self, name: str) -> Path:
        """A file of the checkpoint. A repository's is downloaded unless the hub's cache already has it.

        Raises:
            CheckpointError: It is not there, or cannot be had.
        """
        if self.is_repository:
            return self._from_hub(name)
        path = Path(self.weights, name)
        if path.is_file():
            return path
        beside = sorted(other.name for other in path.parent.glob("*") if other.is_file())
        raise CheckpointError(f"there is no {path}" + (f"; beside it: {', '.join(beside)}" if beside else ""))

    def read_json(self, name: str) -> dict[str, Any]:
        """A configuration file of the checkpoint.

        Raises:
            CheckpointError: It is missing, or no JSON object.
        """
        path = self.path(name)
        with _told_as(f"{path} is no JSON object"):
            return dict(json.loads(path.read_text(encoding="utf-8")))

    def folder(self, variant: str | None = None) -> Path:
        """The directory of a whole pipeline; what is not in the hub's cache is downloaded first.

        Raises:
            CheckpointError: The repository, or a file of it, cannot be had.
        """
        if not self.is_repository:
            return Path(self.weights)
        from diffusers import DiffusionPipeline

        with _told_as(f"{self}: no pipeline in the hub's cache, nor can it be had"):
            options = {"revision": self.revision, "variant": variant, "use_safetensors": True}
            return Path(DiffusionPipeline.download(self.weights, **options))

    def known_hash(self, path: Path) -> str | None:
        """The SHA-256 that a file of this checkpoint should have, where anything says so.

        A directory may have a list of its own. The hub's cache keeps each large file under its SHA-256.
        """
        if self._listed_hashes:
            return self._listed_hashes.get(os.path.normpath(path.relative_to(self.weights)))
        blob = path.resolve().name
        return blob if path.is_symlink() and _SHA256.fullmatch(blob) else None

    @cached_property
    def _listed_hashes(self) -> dict[str, str]:
        listing = Path(self.weights, HASHES)
        lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
        with _told_as(f"{listing} is not what sha256sum writes"):
            pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
            return {os.path.normpath(name.lstrip("*")): digest.lower() for digest, name in pairs}

    def _from_hub(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        with _told_as(f"{self}: no {name} in the hub's cache, nor can it be had"):
            return Path(hf_hub_download(self.weights, name, revision=self.revision))


@dataclass(frozen=True)
class Part(ABC):
    """One component of a checkpoint: a folder with a configuration, and a network's tensors.

    Args:
        checkpoint: Where it is.
        folder: Which folder of it; empty for the checkpoint itself.
        variant: ``fp16`` takes ``….fp16.safetensors``, as in diffusers.
    """

    has_tensors: ClassVar[bool] = True

    checkpoint: Checkpoint
    folder: str
    variant: str | None = None

    def check_hashes(self) -> int:
        """How many of its files have a known hash, after each has been compared with it.

        Raises:
            CheckpointError: One differs, or is missing.
        """
        known = {path: digest for source, path in self.files() if (digest := source.known_hash(path))}
        for path, digest in known.items():
            if (found := sha256(path)) != digest:
                raise CheckpointError(f"{path} is damaged: its SHA-256 is {found}, not {digest}")
        return len(known)

    @abstractmethod
    def files(self) -> Sequence[tuple[Checkpoint, Path]]:
        """The files that the part is made of, each with the checkpoint that it belongs to.

        Raises:
            CheckpointError: One is missing.
        """

    @abstractmethod
    def check(self) -> int:
        """The number of parameters, after names and shapes have been compared with what the network wants.

        Raises:
            CheckpointError: They differ, or a file is missing or broken.
        """

    def config(self) -> dict[str, Any]:
        """The part's configuration.

        Raises:
            CheckpointError: It is missing, or no JSON object.
        """
        return self.checkpoint.read_json(self._named("config.json"))

    def load(self, dtype: torch.dtype) -> Any:
        """The part's network on the CPU, in evaluation mode and in this precision.

        Raises:
            CheckpointError: As ``check``.
        """
        raise NotImplementedError

    def _named(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder else name

    def _tensor_files(self, stem: str) -> list[Path]:
        """The file with the tensors, or the several that an index names."""
        variant = f".{self.variant}" if self.variant else ""
        index = self._named(f"{stem}.safetensors.index{variant}.json")
        try:
            return [self.checkpoint.path(self._named(f"{stem}{variant}.safetensors"))]
        except CheckpointError as missing:
            try:
                shards = self.checkpoint.read_json(index).get("weight_map", {}).values()
            except CheckpointError:
                raise missing from None
            if not shards:
                raise CheckpointError(f"{index} of {self.checkpoint} names no files") from None
            return [self.checkpoint.path(self._named(shard)) for shard in sorted(set(shards))]


@dataclass(frozen=True)
class Extractor(Part):
    """A feature extractor: a configuration, and no tensors."""

    has_tensors = False
    name: ClassVar[str] = "preprocessor_config.json"

    def files(self) -> Sequence[tuple[Checkpoint, Path]]:  # noqa: D102
        return [(self.checkpoint, self.checkpoint.path(self._named(self.name)))]

    def check(self) -> int:  # noqa: D102
        self.config()
        return 0

    def config(self) -> dict[str, Any]:  # noqa: D102
        config = self.checkpoint.read_json(self._named(self.name))
        if missing := {"image_mean", "image_std"} - config.keys():
            raise CheckpointError(
                f"{self._named(self.name)} of {self.checkpoint} has no {' and no '.join(sorted(missing))}"
            )
        return config


@dataclass(frozen=True)
class Plain(Part):
    """A component without tensors, such as a tokenizer or a scheduler, in a directory."""

    has_tensors = False

    def files(self) -> Sequence[tuple[Checkpoint, Path]]:  # noqa: D102
        folder = Path(self.checkpoint.weights, self.folder)
        paths = sorted(path for path in folder.glob("*") if path.is_file())
        if not paths:
            raise CheckpointError(f"there is nothing in {folder}")
        return [(self.checkpoint, path) for path in paths]

    def check(self) -> int:  # noqa: D102
        self.files()
        return 0


@dataclass(frozen=True)
class Network(Part):
    """A network whose tensors must have exactly the names that its class gives them.

    Args:
        type: Its class, ``package.module:Class``.
        tensors: A safetensors file of another checkpoint to take the tensors from, and that checkpoint.
    """

    type: str = field(kw_only=True)
    tensors: tuple[Checkpoint, str] | None = None

    def files(self) -> Sequence[tuple[Checkpoint, Path]]:  # noqa: D102
        config = (self.checkpoint, self.checkpoint.path(self._named("config.json")))
        if self.tensors:
            source, name = self.tensors
            return [config, (source, source.path(name))]
        return [config, *((self.checkpoint, path) for path in self._tensor_files(_DIFFUSERS_STEM))]

    def check(self) -> int:  # noqa: D102
        network, _ = self._checked()
        return sum(parameter.numel() for parameter in network.parameters())

    def load(self, dtype: torch.dtype) -> Any:  # noqa: D102
        from safetensors import safe_open

        network, paths = self._checked()
        tensors: dict[str, torch.Tensor] = {}
        for path in paths:
            with safe_open(path, "pt") as file:
                tensors |= {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118 - no mapping
        network.load_state_dict(tensors, assign=True)
        return network.eval().requires_grad_(False)

    def _checked(self) -> tuple[Any, list[Path]]:
        """The network without memory, and the files that hold exactly its tensors."""
        from accelerate import init_empty_weights

        paths = [path for _, path in self.files()[1:]]
        config = self.config()
        with _told_as(f"{self._named('config.json')} of {self.checkpoint} makes no network"), init_empty_weights():
            network = pkgutil.resolve_name(self.type).from_config(config)
        wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        _compare(wanted, dict(_shapes(paths)), paths)
        return network, paths


@dataclass(frozen=True)
class LibraryNetwork(Part):
    """A network whose library reads the files, because it knows the names that its older versions gave to tensors.

    Args:
        type: Its class, ``package.module:Class``.
        stem: What the library calls the file of tensors.
    """

    type: str = field(kw_only=True)
    stem: str = "model"

    def files(self) -> Sequence[tuple[Checkpoint, Path]]:  # noqa: D102
        config = self.checkpoint.path(self._named("config.json"))
        return [(self.checkpoint, path) for path in (config, *self._tensor_files(self.stem))]

    def check(self) -> int:  # noqa: D102
        network = self._read(device_map="meta")
        return sum(parameter.numel() for parameter in network.parameters())

    def load(self, dtype: torch.dtype) -> Any:  # noqa: D102
        return self._read(dtype=dtype).eval().requires_grad_(False)

    def _read(self, **options: Any) -> Any:
        config, *tensors = [path for _, path in self.files()]
        self.config()
        dict(_shapes(tensors))  # broken files are named before a loader says something vaguer
        with _told_as(f"{config.parent} makes no network"):
            network, info = pkgutil.resolve_name(self.type).from_pretrained(
                config.parent,
                variant=self.variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, with the names
                **options,
            )
        differing = {name: (found, wanted) for name, found, wanted in info["mismatched_keys"]}
        wanted = dict.fromkeys(info["missing_keys"], ()) | {name: w for name, (_, w) in differing.items()}
        found = dict.fromkeys(info["unexpected_keys"], ()) | {name: f for name, (f, _) in differing.items()}
        _compare(wanted, found, tensors)
        return network


def svd_parts(checkpoint: Checkpoint, variant: str | None, unet: tuple[Checkpoint, str] | None) -> dict[str, Part]:
    """The parts of a Stable Video Diffusion checkpoint. ``scheduler/`` is not among them: an endpoint has its own.

    Args:
        checkpoint: In the layout of StableVideoDiffusionPipeline.
        variant: Which of several files of each network.
        unet: A safetensors file with all tensors of another UNet of the same shape.
    """
    networks = "deployments.models.networks"
    return {
        "unet": Network(checkpoint, "unet", variant, type=f"{networks}:VideoUNet", tensors=unet),
        "vae": Network(checkpoint, "vae", variant, type="diffusers:AutoencoderKLTemporalDecoder"),
        "image_encoder": LibraryNetwork(
            checkpoint, "image_encoder", variant, type="transformers:CLIPVisionModelWithProjection"
        ),
        "feature_extractor": Extractor(checkpoint, "feature_extractor"),
    }


def controlnet_part(checkpoint: Checkpoint, folder: str, variant: str | None) -> Part:
    """A temporal ControlNet."""
    return Network(checkpoint, folder, variant, type="deployments.models.networks:DepthControlNet")


def pipeline_parts(checkpoint: Checkpoint, variant: str | None) -> dict[str, Part]:
    """The components of any diffusers pipeline, as its ``model_index.json`` names them.

    Raises:
        CheckpointError: The index is missing, or names a class that is neither diffusers' nor transformers'.
    """
    directory = Checkpoint(str(checkpoint.folder(variant)))
    index = directory.read_json("model_index.json")
    components = {name: value for name, value in index.items() if isinstance(value, list) and any(value)}
    if not components:
        raise CheckpointError(f"model_index.json of {checkpoint} names no component")
    return {name: _component(directory, name, variant, value) for name, value in components.items()}


@cache
def sha256(path: Path) -> str:
    """The hash of a file; several endpoints may share it, so it is computed once a process."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _component(checkpoint: Checkpoint, name: str, variant: str | None, value: Sequence[Any]) -> Part:
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    with _told_as(f"model_index.json of {checkpoint}: {name} is nothing that can be loaded"):
        library, kind = value
        module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
        type = f"{module}:{kind}"
        bases = pkgutil.resolve_name(type).__mro__
    if ModelMixin in bases:
        return LibraryNetwork(checkpoint, name, variant, type=type, stem=_DIFFUSERS_STEM)
    if PreTrainedModel in bases:
        return LibraryNetwork(checkpoint, name, variant, type=type)
    return Plain(checkpoint, name)


@contextmanager
def _told_as(what: str) -> Iterator[None]:
    """Whatever a library raises over somebody's files, as the one error that this module raises."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{what}: {reason}") from error


def _shapes(paths: Sequence[Path]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of every tensor, from the files' headers."""
    from safetensors import SafetensorError, safe_open

    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    yield name, tuple(file.get_slice(name).get_shape())
        except SafetensorError as error:
            raise CheckpointError(f"{path} is no whole safetensors file: {error}") from error


def _compare(wanted: Shapes, found: Shapes, paths: Sequence[Path]) -> None:
    """Refuse tensors that are not exactly the wanted ones."""
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"{name} belongs to no part of the network" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {list(found[name])}, the network wants {list(wanted[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if tuple(found[name]) != tuple(wanted[name])
    ]
    if problems:
        more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        where = ", ".join(map(str, paths))
        raise CheckpointError(f"{where}: {'; '.join(problems[:MOST_PROBLEMS])}{more}")
