"""The component that keeps what replicas compile, laid over each overlay."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT
from tests.k8s.conftest import OVERLAYS, Build, kubectl


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_gpu_pods_share_the_volume_and_no_others(overlay: str, tmp_path: Path) -> None:
    k8s = os.path.relpath(ROOT / "k8s", tmp_path)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{k8s}/overlays/{overlay}"],
        "components": [f"{k8s}/components/compile-cache"],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    printed = subprocess.run([kubectl(), "kustomize", str(tmp_path)], capture_output=True, text=True, check=True).stdout
    build = Build(overlay, tuple(yaml.safe_load_all(printed)))

    holders = {}
    for name, template in build.templates():
        claims = [
            volume.get("persistentVolumeClaim", {}).get("claimName") for volume in template["spec"].get("volumes", [])
        ]
        if "svd-serve-compiled" in claims:
            holders[name] = template
    assert holders.keys() == {"gpu"}
    (container,) = holders["gpu"]["spec"]["containers"]
    (variable,) = container["env"]
    assert variable["name"] == "SVD_COMPILE_CACHE"
    assert {"name": "compiled", "mountPath": variable["value"]} in container["volumeMounts"]
    kubernetes_validate.validate(build.named("PersistentVolumeClaim", "svd-serve-compiled"), "1.33", strict=True)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gpu"}, "spec": holders["gpu"]["spec"]}
    kubernetes_validate.validate(pod, "1.33", strict=True)
