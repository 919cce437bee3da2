"""One configuration file for who runs it by hand and for the cluster; and the pods find what it needs."""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import cli
from deployments.models.base import Endpoint
from deployments.settings import AppArgs, Settings
from tests.conftest import ROOT
from tests.k8s.conftest import Build, build

FILES = {"single-gpu": "base/serve_config.yaml", "production": "overlays/production/serve_config.yaml"}
OURS = ("Gateway", "Dispatcher")


def file_of(build: Build) -> Path:
    return ROOT / "k8s" / FILES[build.overlay]


def endpoints(build: Build) -> dict[str, Endpoint]:
    (application,) = build.serve_config["applications"]
    return AppArgs.model_validate(application["args"]).build()


def models(build: Build) -> dict[str, Any]:
    return {name: each for name, each in build.deployments.items() if name not in OURS}


def test_the_file_is_what_is_deployed_and_what_is_run_by_hand(manifests: Build) -> None:
    text = file_of(manifests).read_text()
    assert manifests.service["spec"]["serveConfigV2"] == text
    assert manifests.named("ConfigMap", "svd-serve-config")["data"] == {"serveConfigV2": text}

    options = argparse.Namespace(config=file_of(manifests), host="127.0.0.1", port=8123)
    by_hand = cli._serve_config(options).model_dump(exclude_unset=True)
    deployed = yaml.safe_load(text)
    assert by_hand["http_options"] == deployed["http_options"] | {"host": "127.0.0.1", "port": 8123}
    assert [each["name"] for each in by_hand["applications"][0]["deployments"]] == list(manifests.deployments)


def test_what_it_names_is_in_the_code(manifests: Build) -> None:
    (application,) = manifests.serve_config["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(import_module(module), name))
    served = endpoints(manifests)
    assert set(manifests.deployments) == {*OURS, *(each.deployment for each in served.values())}
    told = manifests.deployments["Dispatcher"]["user_config"]
    batched = {each.deployment for each in served.values() if each.id == each.video_endpoint}
    assert set(told["batching"]) <= batched
    assert set(told["run_seconds"]) == batched, "without one, a batch may have the device for an hour"
    for each in manifests.deployments.values():
        if policy := each.get("autoscaling_config", {}).get("policy"):
            module, _, name = policy["policy_function"].partition(":")
            assert callable(getattr(import_module(module), name))


def test_it_serves_what_the_small_networks_serve(manifests: Build) -> None:
    """So that both are one service; only weights, sizes and steps differ."""
    (small,) = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"]
    assert set(endpoints(manifests)) == set(small["args"]["endpoints"])
    top = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["http_options"]
    assert manifests.serve_config["http_options"] == top | {"host": "0.0.0.0"}


def test_each_repository_has_its_commit_or_says_that_it_wants_one(manifests: Build) -> None:
    (application,) = manifests.serve_config["applications"]
    parts = [
        part
        for endpoint in application["args"]["endpoints"].values()
        for part in (endpoint, endpoint.get("unet", {}), endpoint.get("controlnet", {}))
        if part
    ]
    assert {len(part["revision"]) for part in parts if part["revision"] != "COMMIT"} == {40}


# ---------------------------------------------------------------- where it runs


def test_only_the_cpu_group_has_cpus_and_only_the_gpu_group_gpus(manifests: Build) -> None:
    """What Ray is told of its nodes, and what the deployments ask for."""
    for name in OURS:
        options = manifests.deployments[name]["ray_actor_options"]
        assert options["num_cpus"] > 0 and "num_gpus" not in options
    for each in models(manifests).values():
        assert each["ray_actor_options"]["num_cpus"] == 0 and each["ray_actor_options"]["num_gpus"] > 0
    head = manifests.cluster["headGroupSpec"]["rayStartParams"]
    cpu, gpu = (manifests.group(name)["rayStartParams"] for name in ("cpu", "gpu"))
    assert (head["num-cpus"], head["num-gpus"], cpu["num-gpus"], gpu["num-cpus"]) == ("0", "0", "0", "0")
    container = manifests.group("gpu")["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_there_is_room_for_every_replica(manifests: Build) -> None:
    cpus = sum(
        each["ray_actor_options"]["num_cpus"] * each.get("num_replicas", 1) for each in manifests.deployments.values()
    )
    offered = manifests.group("cpu")
    assert cpus * 1.5 <= int(offered["rayStartParams"]["num-cpus"]) * offered["replicas"], (
        "and half again for a roll-out"
    )
    most = sum(
        each["ray_actor_options"]["num_gpus"] * each.get("autoscaling_config", {}).get("max_replicas", 1)
        for each in models(manifests).values()
    )
    assert most <= manifests.group("gpu")["maxReplicas"]
    whole = {name: each["ray_actor_options"]["num_gpus"] for name, each in models(manifests).items()}
    assert all(share <= 1 for share in whole.values())


def test_with_one_gpu_all_models_share_it() -> None:
    single = build("single-gpu")
    shares = [each["ray_actor_options"]["num_gpus"] for each in models(single).values()]
    assert len(shares) == 4 and 0.9 < sum(shares) < 1


# ---------------------------------------------------------------- what the pods find


def test_a_pod_finds_what_svd_serve_serve_sets(manifests: Build) -> None:
    found = manifests.environment
    assert cli.SERVICE_ENVIRONMENT.items() <= found.items()
    assert not set(cli.ONE_MACHINE) & set(found), "this holds on one machine alone"
    assert not [name for name in found if name.startswith("RAY_AUTH")], "KubeRay makes the token"


def test_every_container_that_runs_ray_has_the_environment(manifests: Build) -> None:
    (name,) = [
        each["metadata"]["name"] for each in manifests.of_kind("ConfigMap") if "environment" in str(each["metadata"])
    ]
    for role, template in manifests.templates():
        if role in ("head", "cpu", "gpu"):
            container = template["spec"]["containers"][0]
            assert {"configMapRef": {"name": name}} in container["envFrom"]
            assert container["command"] == ["umask", "077"], "as close_to_others on one machine"


def test_the_settings_of_the_pods_are_settings(manifests: Build) -> None:
    names = {name for name in manifests.environment if name.startswith("SVD_")}
    assert names <= {f"SVD_{field.upper()}" for field in Settings.model_fields}
    assert manifests.environment["SVD_STORAGE_URL"].startswith("s3://")


def test_secrets_are_where_they_are_needed_and_nowhere_else(manifests: Build) -> None:
    """The database's password and the administrator's key are not for GPU pods, which open what callers send."""
    found = {role: secrets_of(template) for role, template in manifests.templates()}
    assert found["head"] == {"svd-serve-gateway"}
    assert found["cpu"] == {"svd-serve-gateway", "svd-serve-storage"}
    assert found["gpu"] == {"svd-serve-storage"}
    assert found["svd-serve-weights"] == {"svd-serve-hub"}
    head = manifests.cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert [each["name"] for each in head["env"]] == ["SVD_DATABASE_URL"], "for the policy that scales"
    assert manifests.of_kind("Secret") == [], "none is in this repository"


def secrets_of(template: Any) -> set[str]:
    containers = [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
    whole = {each["secretRef"]["name"] for c in containers for each in c.get("envFrom", []) if "secretRef" in each}
    single = {
        each["valueFrom"]["secretKeyRef"]["name"]
        for c in containers
        for each in c.get("env", [])
        if "valueFrom" in each
    }
    return whole | single


# ---------------------------------------------------------------- how long things take


def test_what_runs_may_end_before_its_pod_and_its_cluster(manifests: Build) -> None:
    longest = max(manifests.deployments["Dispatcher"]["user_config"]["run_seconds"].values())
    grace = int(manifests.environment["SVD_GRACE_SECONDS"])
    assert manifests.service["spec"]["rayClusterDeletionDelaySeconds"] >= longest + grace
    for name in ("cpu", "gpu"):
        spec = manifests.group(name)["template"]["spec"]
        hook = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert hook[:3] == ["svd-serve", "leave", "--seconds"]
        assert grace < int(hook[3]) < spec["terminationGracePeriodSeconds"]


def test_the_version_of_ray_is_the_tested_one(manifests: Build) -> None:
    assert manifests.cluster["rayVersion"] == version("ray")


def test_an_upgrade_goes_step_by_step_in_production(production: Build) -> None:
    strategy = production.service["spec"]["upgradeStrategy"]
    assert strategy["type"] == "NewClusterWithIncrementalUpgrade"
    options = strategy["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
    assert production.cluster["enableInTreeAutoscaling"] and production.cluster["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("overlay", FILES)
def test_ray_is_closed_and_its_head_is_kept(overlay: str) -> None:
    cluster = build(overlay).cluster
    assert cluster["authOptions"] == {"mode": "token"}
    assert (
        cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "svd-serve-redis"
    )
    scheme = cluster["gcsFaultToleranceOptions"]["redisAddress"].partition("://")[0]
    assert scheme == ("rediss" if overlay == "production" else "redis")
