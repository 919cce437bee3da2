"""What a service stands on: its configuration, keys, file storage, disk space, weights and ffmpeg."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import BaseModel, ValidationError

from deployments import scaling
from deployments.doctor.findings import Finding, fail, ok, warn
from deployments.errors import StorageUnavailable
from deployments.models.base import Endpoint
from deployments.models.checkpoints import CheckpointError
from deployments.settings import AppArgs, Settings
from deployments.storage import FileStorage
from deployments.words import in_bytes, many

APPLICATION = "deployments.app:build_app"
SPACE_WARN, SPACE_FAIL = 1024**3, 100 * 1024**2
FFMPEG_SECONDS = 4.0
OF_MODELS = ("batching", "run_seconds")
"""What the dispatcher's ``user_config`` says of each model."""

# ---------------------------------------------------------------- configuration


def read_configuration(path: Path) -> tuple[Any, AppArgs]:
    """A configuration file: the document, and the arguments of our application in it.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no configuration of ours; the message says where.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem or 'it is no YAML'}") from None
    applications = document.get("applications") if isinstance(document, dict) else None
    if not isinstance(applications, list) or not applications or not isinstance(applications[0], dict):
        raise ValueError("it names no application")
    try:
        return document, AppArgs.model_validate(applications[0].get("args", {}))
    except ValidationError as error:
        raise ValueError(_first_of(error, "args")) from None


def _first_of(error: ValidationError, *above: str) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, (*above, *first['loc'])))}: {first['msg']}"


async def check_configuration(path: Path) -> AsyncIterator[Finding]:
    """Whether Serve and we understand it, and whether what it names exists."""
    name = "configuration"
    advice = f"correct {path}; nothing is deployed from it as it is"
    try:
        document, args = read_configuration(path)
        endpoints = args.build()
        _check_for_serve(document)
    except FileNotFoundError:
        yield fail(name, f"there is no {path}", "name it with --config FILE")
        return
    except (OSError, ValueError) as error:
        yield fail(name, f"{path}: {error}", advice)
        return
    strangers = _strangers(document, endpoints)
    if strangers:
        yield fail(name, f"{path} names {', '.join(strangers)}, which do not exist", advice)
    else:
        yield ok(name, f"{path}: {many(len(endpoints), 'endpoint')}")


def _check_for_serve(document: Any) -> None:
    """Whether Serve takes it, and ignores nothing of it.

    Raises:
        ValueError: The first thing that it does not take, or does not know.
    """
    from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema

    from deployments.queue.dispatcher import DispatcherConfig

    application = document["applications"][0]
    parts: list[tuple[str, Any, type[BaseModel]]]
    parts = [("", document, ServeDeploySchema), ("applications.0.", application, ServeApplicationSchema)]
    parts += [(f"{each.get('name')}.", each, DeploymentSchema) for each in _deployments(document)]
    for where, part, schema in parts:
        if unknown := set(part) - set(schema.model_fields):
            raise ValueError(f"{where}{min(unknown)}: Serve knows no such thing")
    try:
        ServeDeploySchema.model_validate(document)
        for deployment in _deployments(document):
            if deployment.get("name") == "Dispatcher":
                DispatcherConfig.model_validate(deployment.get("user_config") or {})
    except ValidationError as error:
        raise ValueError(_first_of(error)) from None
    scaling.check(_deployments(document))


def _deployments(document: Any) -> list[dict[str, Any]]:
    return list(document["applications"][0].get("deployments") or [])


def _strangers(document: Any, endpoints: Mapping[str, Endpoint]) -> list[str]:
    """Deployments and models that the configuration says something about, and that there are not."""
    if document["applications"][0].get("import_path") != APPLICATION:
        return []
    existing = {"Gateway", "Dispatcher"} | {endpoint.deployment for endpoint in endpoints.values()}
    named = [deployment["name"] for deployment in _deployments(document)]
    models = {endpoint.model for endpoint in endpoints.values()}
    for deployment in _deployments(document):
        told = deployment.get("user_config") or {}
        named += [model for name in OF_MODELS for model in told.get(name, {}) if model not in models]
    return [name for name in named if name not in existing]


# ---------------------------------------------------------------- keys


async def check_keys(settings: Settings) -> AsyncIterator[Finding]:
    """Whether there is an admin key, and whether others can read it."""
    file = settings.key_file
    if settings.admin_key:
        yield ok("admin key", "from SVD_ADMIN_KEY")
    elif not file.exists():
        yield warn("admin key", f"there is none at {file}", "svd-serve serve makes one; else set SVD_DATA_DIR")
    elif not all(file.read_text(encoding="utf-8").strip().partition(":")):
        advice = f"delete {file} and restart: a new key is made, which its users must be told"
        yield fail("admin key", f"{file} does not hold id:secret", advice)
    elif file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield warn("admin key", f"others on this machine can read {file}", f"chmod 600 {file}; and make a new key")
    else:
        yield ok("admin key", f"in {file}")


def kept_key(settings: Settings) -> str:
    """The key that a service with these settings has; empty where none has been made yet."""
    if settings.admin_key:
        return settings.admin_key
    try:
        return settings.key_file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


# ---------------------------------------------------------------- files and space


async def check_storage(settings: Settings) -> AsyncIterator[Finding]:
    """Whether the file storage takes a file and gives it back."""
    parts = urlsplit(settings.storage_url)
    directory = Path(unquote(parts.path)) if parts.scheme == "file" else None
    if directory and not directory.exists():
        advice = "svd-serve serve makes it; if there were clips in it, its disk is not mounted"
        yield warn("file storage", f"there is no {directory}", advice)
        return
    reasons: list[str] = []
    with _overheard(reasons):
        try:
            await FileStorage.open(settings.storage_url, settings.public_url).check()
            yield ok("file storage", f"{directory or settings.storage_url} takes files and gives them back")
        except ValueError as error:
            yield fail("file storage", str(error), "correct SVD_STORAGE_URL")
        except StorageUnavailable as error:
            says = f"{directory or settings.storage_url}: {reasons[-1] if reasons else error.message}"
            yield fail("file storage", says, _storage_advice(directory))


def _storage_advice(directory: Path | None) -> str:
    if directory:
        return (
            f"make {directory} writable for this user, and see that its disk is not full; requests go on by themselves"
        )
    return "check bucket, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and its rights; requests go on by themselves"


@contextmanager
def _overheard(reasons: list[str]) -> Iterator[None]:
    """Listen to what the storage logs: it knows why, and its error does not say."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reasons.append(record.getMessage())

    logger, listener = logging.getLogger("deployments.storage"), Listener()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagates


async def check_space(settings: Settings, database: Path | None) -> AsyncIterator[Finding]:
    """Whether the disks of the database and of the files have room."""
    parts = urlsplit(settings.storage_url)
    files = Path(unquote(parts.path)) if parts.scheme == "file" else None
    seen: set[int] = set()
    for path in (database, files):
        place = path and next((each for each in (path, *path.parents) if each.exists()), None)
        if place and place.stat().st_dev not in seen:
            seen.add(place.stat().st_dev)
            yield room(place)


def room(place: Path) -> Finding:
    """Whether the disk under a path has room for bytes, and for files."""
    free, inodes = shutil.disk_usage(place).free, os.statvfs(place)
    says = f"{in_bytes(free)} free at {place}"
    advice = "free some space, or move SVD_DATA_DIR; SVD_KEEP_… say how long things are kept"
    if inodes.f_files and inodes.f_favail < max(100, inodes.f_files // 1000):
        return fail("disk space", f"no more files can be made at {place}: its inodes are used up", advice)
    return (
        (fail if free < SPACE_FAIL else warn)("disk space", says, advice)
        if free < SPACE_WARN
        else ok("disk space", says)
    )


# ---------------------------------------------------------------- weights, ffmpeg


async def check_weights(path: Path) -> AsyncIterator[Finding]:
    """Whether the weights of every endpoint are there, whole and of the right shapes. Nothing is downloaded."""
    try:
        endpoints = read_configuration(path)[1].build()
    except (OSError, ValueError):
        yield warn("weights", "not looked at: the configuration cannot be read", "see configuration, above")
        return
    for endpoint in endpoints.values():
        yield _weights_of(endpoint, path)


def _weights_of(endpoint: Endpoint, config: Path) -> Finding:
    try:
        parameters = sum(part.check() for part in endpoint.parts().values())
        return ok("weights", f"{endpoint.id}: {parameters:,} parameters")
    except CheckpointError as error:
        advice = f"svd-serve weights fetch {config}, or correct the path in it; then svd-serve weights check {config}"
        return fail("weights", f"{endpoint.id}: {error}", advice)


async def check_ffmpeg() -> AsyncIterator[Finding]:
    """Whether there is an ffmpeg that can write H.264."""
    from deployments.inference.encode import ffmpeg_binary

    advice = "install a whole ffmpeg (apt-get install ffmpeg), or pip install imageio-ffmpeg"
    binary = ""
    try:
        binary = ffmpeg_binary()
        command = [binary, "-hide_banner", "-loglevel", "error", "-encoders"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=FFMPEG_SECONDS)  # noqa: S603 - our own
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        yield fail("ffmpeg", f"{binary or 'there is none'}: {type(error).__name__}", advice)
        return
    if done.returncode == 0 and " libx264 " in done.stdout:
        yield ok("ffmpeg", f"{binary} has libx264")
    else:
        yield fail("ffmpeg", f"{binary} has no libx264", advice)
