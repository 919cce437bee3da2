"""Every object is what Kubernetes, KubeRay and Ray Serve take: nothing misspelt, nothing of a wrong kind."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.conftest import ROOT
from tests.k8s.conftest import Build, Manifest

VERSIONS = ("1.33", "1.37")
"""The oldest and the newest Kubernetes that are tried."""

OTHERS = ("gateway.networking.k8s.io", "monitoring.coreos.com", "ray.io")
"""Groups of kinds that are not Kubernetes' own."""

CRDS = Path(os.environ.get("SVD_KUBERAY_CRDS", ROOT.parent / "shared" / "kuberay"))


def is_native(object: Manifest) -> bool:
    return not object["apiVersion"].startswith(OTHERS)


def as_pods(build: Build) -> list[Manifest]:
    """The pods that KubeRay makes, before it adds what it knows better."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, **template["metadata"]},
            "spec": template["spec"],
        }
        for name, template in build.templates()
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_every_object(manifests: Build, version: str) -> None:
    checked = [*filter(is_native, manifests.objects), *as_pods(manifests)]
    assert len(checked) > 15
    for each in checked:
        kubernetes_validate.validate(each, version, strict=True)


def test_a_misspelt_field_is_not_taken(manifests: Build) -> None:
    for each in (*filter(is_native, manifests.objects), *as_pods(manifests)):
        wrong = copy.deepcopy(each)
        wrong.setdefault("spec", {})["misspelt"] = 1
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


# ---------------------------------------------------------------- KubeRay's own schema


def strict(schema: Any, at_root: bool = False) -> Any:
    """A CRD's schema as JSON schema that knows no field but those it names, as the API server with strict checks."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]} | {key: schema[key] for key in ("pattern",) if key in schema}
    told = {key: strict(value) for key, value in schema.items() if key not in ("properties", "default", "description")}
    told["properties"] = {name: strict(value) for name, value in schema.get("properties", {}).items()}
    if at_root:
        told["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        told.setdefault("additionalProperties", False)
    return told


@pytest.fixture(scope="module")
def ray_service() -> jsonschema_rs.Draft202012Validator:
    files = sorted(CRDS.glob("ray.io_rayservices*.yaml"))
    if not files:
        pytest.skip(f"KubeRay's CRDs are not at {CRDS}; name their place in SVD_KUBERAY_CRDS")
    versions = yaml.safe_load(files[-1].read_text())["spec"]["versions"]
    (schema,) = [each["schema"]["openAPIV3Schema"] for each in versions if each["name"] == "v1"]
    return jsonschema_rs.Draft202012Validator(strict(schema, at_root=True))


def test_kuberay_takes_the_service(manifests: Build, ray_service: jsonschema_rs.Draft202012Validator) -> None:
    wrong = [f"{each.instance_path}: {each.message}" for each in ray_service.iter_errors(manifests.service)]
    assert wrong == []


WRONGS: dict[str, Callable[[Manifest], Any]] = {
    "a misspelt field": lambda spec: spec["rayClusterConfig"].update(workerGroupSpec=[]),
    "a word for a number": lambda spec: spec["rayClusterConfig"]["workerGroupSpecs"][0].update(replicas="one"),
    "an unknown autoscaler": lambda spec: spec["rayClusterConfig"]["autoscalerOptions"].update(version="v3"),
    "a misspelt field of a pod": lambda spec: spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"].update(x=1),
    "no class of Gateway": lambda spec: spec["upgradeStrategy"].update(clusterUpgradeOptions={"stepSizePercent": 1}),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_kuberay_takes_no(wrong: str, manifests: Build, ray_service: jsonschema_rs.Draft202012Validator) -> None:
    changed = copy.deepcopy(manifests.service)
    WRONGS[wrong](changed["spec"])
    assert not ray_service.is_valid(changed)


# ---------------------------------------------------------------- Ray Serve's


def test_serve_takes_the_configuration(manifests: Build) -> None:
    document = manifests.serve_config
    ServeDeploySchema.model_validate(document)
    assert set(document) - set(ServeDeploySchema.model_fields) == set(), "Serve ignores what it does not know here"
