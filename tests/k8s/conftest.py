"""What the manifests become: built by kustomize as ``kubectl apply --kustomize`` builds them."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, missing

OVERLAYS = ("single-gpu", "production")

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Build:
    """The objects of an overlay."""

    overlay: str
    objects: tuple[Manifest, ...]

    def of_kind(self, kind: str) -> list[Manifest]:
        return [each for each in self.objects if each["kind"] == kind]

    def named(self, kind: str, name: str) -> Manifest:
        (found,) = [each for each in self.of_kind(kind) if each["metadata"]["name"] == name]
        return found

    @property
    def service(self) -> Manifest:
        (service,) = self.of_kind("RayService")
        return service

    @property
    def cluster(self) -> Manifest:
        cluster: Manifest = self.service["spec"]["rayClusterConfig"]
        return cluster

    @property
    def serve_config(self) -> Manifest:
        config: Manifest = yaml.safe_load(self.service["spec"]["serveConfigV2"])
        return config

    @property
    def deployments(self) -> dict[str, Manifest]:
        (application,) = self.serve_config["applications"]
        return {each["name"]: each for each in application["deployments"]}

    @property
    def environment(self) -> dict[str, str]:
        """What a pod finds of the ConfigMap."""
        (found,) = [each for each in self.of_kind("ConfigMap") if "environment" in each["metadata"]["name"]]
        return dict(found["data"])

    def group(self, name: str) -> Manifest:
        """A group of workers."""
        (group,) = [each for each in self.cluster["workerGroupSpecs"] if each["groupName"] == name]
        return dict(group)

    def templates(self) -> Iterator[tuple[str, Manifest]]:
        """Every pod template: those of Kubernetes' own kinds, and the head's and the groups' of Ray."""
        for each in self.objects:
            if each["kind"] in ("Job", "StatefulSet", "Deployment", "CronJob", "DaemonSet"):
                yield each["metadata"]["name"], each["spec"]["template"]
        yield "head", self.cluster["headGroupSpec"]["template"]
        for group in self.cluster["workerGroupSpecs"]:
            yield group["groupName"], group["template"]


def kubectl() -> str:
    """The one that was installed with the tests, whose kustomize is the one that was tried."""
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    return found or missing("kubectl")


@functools.cache
def build(overlay: str) -> Build:
    command = [kubectl(), "kustomize", str(ROOT / "k8s" / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Build(overlay, tuple(yaml.safe_load_all(done.stdout)))


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> Build:
    """Each overlay in turn."""
    return build(request.param)


@pytest.fixture
def production() -> Build:
    """The overlay of many GPUs."""
    return build("production")
