"""What an operator may say: ``AppArgs`` in serve_config.yaml, ``Settings`` in the environment.

``AppArgs`` holds what changes with a release: which endpoints exist. GPUs, replicas and batching stand in the same
file under ``deployments:``, because Serve restarts every replica when ``args`` change and none when they do.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ImportString,
    IPvAnyNetwork,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from deployments.models.base import Endpoint, VideoModel
from deployments.web import Place, Reach, parse_places


class EndpointArgs(BaseModel):
    """One line of ``args.endpoints``: a model class, and what that class's ``Config`` declares."""

    model_config = ConfigDict(extra="allow")

    model: ImportString[type[Endpoint]] = Field(description='"package.module:Class" of the endpoint.')

    def endpoint(self, id: str) -> Endpoint:
        """The endpoint with its configuration checked."""
        return self.model(id, self.model.Config.model_validate(self.model_extra))


class AppArgs(BaseModel):
    """``applications[].args`` of serve_config.yaml. A typo stops the deployment."""

    model_config = ConfigDict(extra="forbid")

    endpoints: dict[str, EndpointArgs] = Field(min_length=1)

    def build(self) -> dict[str, Endpoint]:
        """Every endpoint by its id."""
        return {id: args.endpoint(id) for id, args in self.endpoints.items()}

    @model_validator(mode="after")
    def _check_endpoints(self) -> Self:
        endpoints = self.build()
        for endpoint in endpoints.values():
            video = endpoints.get(endpoint.video_endpoint)
            if not isinstance(video, VideoModel):
                raise ValueError(f"{endpoint.id}: {endpoint.video_endpoint!r} is no endpoint that animates pictures")
            ours, theirs = endpoint.config.frames, video.config.frames
            if ours != theirs:
                raise ValueError(f"{endpoint.id}: clips of {video.id} have {theirs} frames, not {ours}")
        return self


def _split(text: object) -> object:
    """Values that a variable holds with commas between them."""
    return [part.strip() for part in text.split(",")] if isinstance(text, str) else text


Places = Annotated[tuple[Place, ...], NoDecode, BeforeValidator(parse_places)]


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


def _check_origin(text: str) -> str:
    """``*``, or an origin as browsers send it: a scheme, a host, and a port where it is not the scheme's own."""
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise ValueError(f"{text!r} is no origin such as https://example.com, nor *")
    return text


Origin = Annotated[str, AfterValidator(_check_origin)]


class Settings(BaseSettings):
    """Secrets and addresses, from ``SVD_…`` variables."""

    model_config = SettingsConfigDict(env_prefix="SVD_", env_ignore_empty=True)

    data_dir: Path = Field(Path("data"), description="Database, files and key, where nothing else is said.")
    database_url: str = Field("", description="`sqlite+aiosqlite:///…` or `postgresql+asyncpg://…`; SQLite by default.")
    storage_url: str = Field(
        "",
        description="Where files are: a directory `file:///…`, in `SVD_DATA_DIR` by default; or `s3://bucket/prefix`.",
    )
    storage_signed_seconds: float = Field(
        0.0,
        ge=0,
        le=7 * 24 * 3600,
        description="How long a bucket's own address of a file is good for, to which its readers are sent; 0, not.",
    )
    public_url: str = Field("http://127.0.0.1:8000", description="The address under which clients reach this server.")
    admin_key: str = Field("", description="`id:secret` that clients send; made and kept in `SVD_DATA_DIR` if absent.")
    max_upload_bytes: int = Field(1024**3, ge=1, description="How large an uploaded file may be.")
    fetch_allow_private: bool = Field(False, description="Let `image_url` name private addresses and any port.")
    fetch_allow: Places = Field(
        (), description="Where `image_url` may lead beside the public web: networks, hosts and `.suffixes`, with ports."
    )
    webhook_allow_private: bool = Field(False, description="Let `fal_webhook` name private addresses and any port.")
    webhook_allow: Places = Field((), description="Where `fal_webhook` may lead beside the public web, likewise.")
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split)] = Field(
        ("*",), description="The origins whose pages may call, with commas between; `*` for any."
    )
    webhook_ip_ranges: Annotated[tuple[IPvAnyNetwork, ...], NoDecode, BeforeValidator(_split)] = Field(
        (), description="Where webhooks come from, in CIDR notation with commas between; `/v1/meta` tells it."
    )
    keep_payloads_days: float = Field(
        30.0, ge=0, description="How long input, output and log of a request are kept once it has ended; 0, for ever."
    )
    keep_requests_days: float = Field(
        400.0, ge=0, description="How long its row is kept, which reports and billing count; 0, for ever."
    )
    keep_files_days: float = Field(
        0.0, ge=0, description="How long files are kept that have no lifetime of their own; 0, for ever."
    )
    grace_seconds: float = Field(
        60.0, ge=0, description="How long what runs may go on when the service or a replica is told to end."
    )
    poll_hold_seconds: float = Field(
        1.0, ge=0, le=30, description="How long a status is held back that its caller has been told already; 0, not."
    )
    compile_cache: Path | None = Field(
        None,
        description="Where what replicas compile (`tuning`) is kept for those that start later; nowhere by default.",
    )
    gpu_hourly_usd: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="What an hour of any accelerator costs you in USD, in place of what `serve_config.yaml` says.",
    )

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        self.data_dir = self.data_dir.absolute()
        self.public_url = self.public_url.rstrip("/")
        self.database_url = self.database_url or f"sqlite+aiosqlite:///{self.data_dir}/svd-serve.db"
        self.storage_url = self.storage_url or f"{self.data_dir.as_uri()}/files"
        if self.admin_key and not all(self.admin_key.partition(":")):
            raise ValueError("SVD_ADMIN_KEY is written id:secret")
        return self

    def key(self) -> str:
        """The key that clients send: ``admin_key``, or one made once and kept in the data directory."""
        return self.admin_key or kept_secret(self.key_file, _new_key)

    @property
    def fetch_reach(self) -> Reach:
        """Where `image_url` may lead."""
        return Reach(self.fetch_allow_private, self.fetch_allow)

    @property
    def webhook_reach(self) -> Reach:
        """Where `fal_webhook` may lead."""
        return Reach(self.webhook_allow_private, self.webhook_allow)

    @property
    def key_file(self) -> Path:
        """Where the key is kept that was made."""
        return self.data_dir / "admin.key"


def _new_key() -> str:
    return f"{secrets.token_hex(8)}:{secrets.token_hex(16)}"


def kept_secret(path: Path, make: Callable[[], str]) -> str:
    """A secret of the service's own, made once and kept where only its owner reads it.

    Raises:
        OSError: It can be neither read nor kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    draft.touch(mode=0o600)
    draft.write_text(f"{make()}\n")
    try:
        os.link(draft, path)  # unlike a rename, this fails if another process was first
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_text().strip()
