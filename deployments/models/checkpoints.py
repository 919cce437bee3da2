"""Weights on disk: where the files are, whether they are what a network wants, and how they get into it.

    directory | repository @ commit ──▶ files ──▶ hashes, names, shapes ──▶ network

Strict throughout: a tensor that is missing, left over or of another shape is an error, because a network with a random
part still answers. Shapes come from the files' headers and from networks without memory, so gigabytes are checked in a
moment and without a GPU.

Weights are data. Only safetensors are read, so nothing is unpickled; classes are those of diffusers, transformers and
this package; a configuration that names code of its own is refused, and so is a link that leads out of the directory.
A library that reads files by itself sees those that were checked, and no others that lie beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
_SHARD = re.compile(r"[\w.-]+\.safetensors")
_DIFFUSERS_STEM = "diffusion_pytorch_model"
_READ_BYTES = 16 * 1024 * 1024

NAMES_CODE = {"auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code"}
"""What a library takes classes from that came with the weights."""

NAMES_KERNELS = {"attn_implementation", "experts_implementation"}
"""What a library takes code from that it downloads, where the value is a repository's id; a word is its own code."""

_NAMES_FILE = "transformers_weights"
"""What transformers takes the name of the file of tensors from, before any other."""

NUMBERS = {"BOOL", "U8", "I8", "I16", "I32", "I64", "F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"}
"""The kinds of tensors that become a network's. Others are packed or complex: they need more than a conversion."""


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
            CheckpointError: It is not there, cannot be had, or is a link that leads elsewhere.
        """
        if self.is_repository:
            return self._from_hub(name)
        path = Path(self.weights, name)
        if path.is_file():
            if not any(path.resolve().is_relative_to(root) for root in self._roots):
                raise CheckpointError(f"{path} leads out of {self.weights}")
            return path
        beside = sorted(other.name for other in path.parent.glob("*") if other.is_file())
        raise CheckpointError(f"there is no {path}" + (f"; beside it: {', '.join(beside)}" if beside else ""))

    def read_json(self, name: str) -> dict[str, Any]:
        """A configuration file of the checkpoint.

        Raises:
            CheckpointError: It is missing, no JSON object, or names code.
        """
        path = self.path(name)
        with _told_as(f"{path} is no JSON object"):
            document = dict(json.loads(path.read_text(encoding="utf-8")))
            named = list(_code_named_in(document))
        if named:
            raise CheckpointError(f"{path} names code to run ({', '.join(named)}), and weights are only data here")
        return document

    def folder(self, variant: str | None = None) -> Path:
        """The directory of a whole pipeline; what is not in the hub's cache is downloaded first.

        Raises:
            CheckpointError: The repository, or a file of it, cannot be had.
        """
        if not self.is_repository:
            return Path(self.weights)
        from diffusers import DiffusionPipeline

        with _told_as(f"{self}: no pipeline in the hub's cache, nor can it be had"):
            options = {"revision": self.revision, "variant": variant}
            safe = {"use_safetensors": True, "trust_remote_code": False}
            return Path(DiffusionPipeline.download(self.weights, **options, **safe))

    def known_hash(self, path: Path) -> str | None:
        """The SHA-256 that a file of this checkpoint should have, where anything says so.

        A directory may have a list of its own. The hub's cache keeps each large file under its SHA-256.
        """
        if self._listed_hashes:
            return self._listed_hashes.get(os.path.normpath(path.relative_to(self.weights)))
        blob = path.resolve().name
        return blob if path.is_symlink() and _SHA256.fullmatch(blob) else None

    @cached_property
    def _roots(self) -> list[Path]:
        """Where a directory's files may lie: in it; of one in the hub's cache, which holds links, among the blobs."""
        directory = Path(self.weights).resolve()
        return [directory, directory.parents[1] / "blobs"] if directory.parent.name == "snapshots" else [directory]

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
        """The file with the tensors, or the several that an index names.

        Raises:
            CheckpointError: There is neither, or both: libraries differ in which of them they take.
        """
        variant = f".{self.variant}" if self.variant else ""
        index = f"{stem}.safetensors.index{variant}.json"
        try:
            single = self.checkpoint.path(self._named(f"{stem}{variant}.safetensors"))
        except CheckpointError as missing:
            try:
                listing = self.checkpoint.read_json(self._named(index))
            except CheckpointError:
                raise missing from None
            shards = _shards(listing, f"{self._named(index)} of {self.checkpoint}")
            return [self.checkpoint.path(self._named(shard)) for shard in shards]
        if os.path.lexists(single.with_name(index)):
            raise CheckpointError(f"beside {single} lies {index}, which names other files: remove one of the two")
        return [single]


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
        names = sorted(path.name for path in folder.glob("*") if path.is_file())
        if not names:
            raise CheckpointError(f"there is nothing in {folder}")
        return [(self.checkpoint, self.checkpoint.path(self._named(name))) for name in names]

    def check(self) -> int:  # noqa: D102
        for _, path in self.files():
            if path.name.endswith("config.json"):
                self.checkpoint.read_json(self._named(path.name))
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
        return _finished(network, paths)

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
        return _finished(self._read(dtype=dtype), [path for _, path in self.files()[1:]])

    def _read(self, **options: Any) -> Any:
        config, *tensors = [path for _, path in self.files()]
        if _NAMES_FILE in self.config():
            raise CheckpointError(f"{config} names a file of tensors ({_NAMES_FILE}): remove the line")
        shapes = {path: dict(_shapes([path])) for path in tensors}  # broken files are named; a loader says it vaguer
        with _told_as(f"{config.parent} makes no network"), _folder_of(config, self.stem, shapes) as folder:
            network, info = pkgutil.resolve_name(self.type).from_pretrained(
                folder,
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
    kind = index.pop("_class_name", None)
    components = {name: value for name, value in index.items() if isinstance(value, list) and any(value)}
    if not components:
        raise CheckpointError(f"model_index.json of {checkpoint} names no component")
    _check_pipeline(checkpoint, kind)
    return {name: _component(directory, name, variant, value) for name, value in components.items()}


def load_pipeline(checkpoint: Checkpoint, variant: str | None, dtype: torch.dtype) -> Any:
    """A diffusers pipeline on the CPU, each of its parts checked before the library reads what is left.

    Raises:
        CheckpointError: As ``pipeline_parts`` and each part's ``load``, or they make no pipeline together.
    """
    from diffusers import DiffusionPipeline

    parts = pipeline_parts(checkpoint, variant)
    for part in parts.values():
        if not part.has_tensors:
            part.check()
    networks = {name: part.load(dtype) for name, part in parts.items() if part.has_tensors}
    safe = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    with _told_as(f"{checkpoint} makes no pipeline"):
        return DiffusionPipeline.from_pretrained(checkpoint.folder(variant), **safe, **networks)


@cache
def sha256(path: Path) -> str:
    """The hash of a file; several endpoints may share it, so it is computed once a process."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _check_pipeline(checkpoint: Checkpoint, kind: Any) -> None:
    import diffusers

    with _told_as(f"model_index.json of {checkpoint}: {kind!r} is no pipeline of diffusers"):
        if not issubclass(getattr(diffusers, kind), diffusers.DiffusionPipeline):
            raise TypeError("it is something else")


def _component(checkpoint: Checkpoint, name: str, variant: str | None, value: Sequence[Any]) -> Part:
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    with _told_as(f"model_index.json of {checkpoint}: {name} is nothing that can be loaded"):
        type = _library_class(*value)
        bases = pkgutil.resolve_name(type).__mro__
        if ModelMixin in bases:
            return LibraryNetwork(checkpoint, name, variant, type=type, stem=_DIFFUSERS_STEM)
        if PreTrainedModel in bases:
            return LibraryNetwork(checkpoint, name, variant, type=type)
        if not _plain_kinds().intersection(bases):
            raise TypeError(f"{value[1]} is neither a network nor a scheduler, tokenizer or processor")
        return Plain(checkpoint, name)


def _library_class(library: str, kind: str) -> str:
    """Where a class of a library is; of ``diffusers.pipelines``, where the library is neither of the two."""
    if not (library.isidentifier() and kind.isidentifier()):
        raise ValueError(f"{library}.{kind} is no name of a class")
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    return f"{module}:{kind}"


def _plain_kinds() -> set[type]:
    """What has no tensors, and may be part of a pipeline."""
    from diffusers import SchedulerMixin
    from transformers import FeatureExtractionMixin, ImageProcessingMixin, PreTrainedTokenizerBase, ProcessorMixin

    return {SchedulerMixin, PreTrainedTokenizerBase, ImageProcessingMixin, FeatureExtractionMixin, ProcessorMixin}


def _shards(listing: Mapping[str, Any], index: str) -> list[str]:
    """The names of the files that an index spreads the tensors over, which lie beside it."""
    with _told_as(f"{index} names no files"):
        shards = sorted(set(listing["weight_map"].values()))
        strangers = [shard for shard in shards if not _SHARD.fullmatch(shard)]
    if not shards:
        raise CheckpointError(f"{index} names no files")
    if strangers:
        raise CheckpointError(f"{index} names {strangers[0]}, which is no safetensors file beside it")
    return shards


@contextmanager
def _folder_of(config: Path, stem: str, tensors: Mapping[Path, Iterable[str]]) -> Iterator[str]:
    """A folder with this configuration and these files of tensors, under the names by which libraries look for them.

    It has nothing else: a library may prefer an index, or a name that it once gave, and read what nobody has checked.
    """
    with tempfile.TemporaryDirectory(prefix="svd-serve-weights-") as folder:
        Path(folder, config.name).symlink_to(config.absolute())
        names = {path: f"{stem}.safetensors" if len(tensors) == 1 else path.name for path in tensors}
        for path, name in names.items():
            Path(folder, name).symlink_to(path.absolute())
        if len(tensors) > 1:
            listing = {name: names[path] for path in tensors for name in tensors[path]}
            index = json.dumps({"metadata": {}, "weight_map": listing})
            Path(folder, f"{stem}.safetensors.index.json").write_text(index, encoding="utf-8")
        yield folder


def _code_named_in(document: Any) -> Iterator[str]:
    """The keys of a configuration by which a library would run what came with the weights, or fetch it."""
    for each in document if isinstance(document, list) else ():
        yield from _code_named_in(each)
    for key, value in document.items() if isinstance(document, dict) else ():
        kernels = key.lstrip("_").removesuffix("_internal") in NAMES_KERNELS and "/" in json.dumps(value)
        if key in NAMES_CODE or kernels:
            yield key
        yield from _code_named_in(value)


def _finished(network: Any, paths: Sequence[Path]) -> Any:
    """A network that is ready for use: each of its numbers is one."""
    import torch

    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):
            raise CheckpointError(f"{', '.join(map(str, paths))}: {name} holds what is no number, or too large")
    return network.eval().requires_grad_(False)


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
                    if (kind := file.get_slice(name).get_dtype()) not in NUMBERS:
                        raise CheckpointError(f"{path}: {name} is of kind {kind}, of which no network here is made")
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
