"""What no schema says of the manifests: pods without rights, limits, probes, and names that belong together."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.conftest import Build, Manifest, build

RAY = ("head", "cpu", "gpu")
WRITABLE = {"tmp", "shm", "run", "data", "weights"}
"""Volumes that a container may write; the Job writes the weights, and GPU pods read them (below)."""


def containers(build: Build) -> Iterator[tuple[str, Manifest]]:
    for role, template in build.templates():
        for each in (*template["spec"].get("initContainers", []), *template["spec"]["containers"]):
            yield f"{role}/{each['name']}", each


def served(build: Build) -> Iterator[tuple[str, Manifest]]:
    """The containers that go on, but for the Job's."""
    for role, template in build.templates():
        if role != "svd-serve-weights":
            yield from ((f"{role}/{each['name']}", each) for each in template["spec"]["containers"])


# ---------------------------------------------------------------- rights


def test_no_pod_is_root_or_may_become_it(manifests: Build) -> None:
    for role, template in manifests.templates():
        context = template["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0 and context["runAsGroup"] > 0, role
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, role
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(template["spec"]), role
        assert not [volume for volume in template["spec"].get("volumes", []) if "hostPath" in volume], role


def contexts(build: Build) -> Iterator[tuple[str, Manifest]]:
    yield from ((name, each["securityContext"]) for name, each in containers(build))
    yield "autoscaler", build.cluster["autoscalerOptions"]["securityContext"]


def test_every_root_file_system_is_read_only_and_no_right_is_kept(manifests: Build) -> None:
    for name, context in contexts(manifests):
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert "privileged" not in context, name


def test_what_may_be_written_is_named(manifests: Build) -> None:
    for name, container in containers(manifests):
        written = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert written <= WRITABLE, name
        assert name.startswith(("svd-serve-weights", "svd-serve-redis")) or not written & {"weights"}, name
    assert all("/tmp" in mounts(manifests, role) for role in RAY)


def mounts(build: Build, role: str) -> set[str]:
    template = dict(build.templates())[role]
    return {mount["mountPath"] for mount in template["spec"]["containers"][0]["volumeMounts"]}


def test_only_the_head_may_speak_to_kubernetes(manifests: Build) -> None:
    """Its autoscaler does, with the account that KubeRay makes."""
    for role, template in manifests.templates():
        assert role == "head" or template["spec"]["automountServiceAccountToken"] is False, role


def test_the_namespace_refuses_what_is_worse(manifests: Build) -> None:
    labels = manifests.named("Namespace", "svd-serve")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] in ("baseline", "restricted")
    assert labels["pod-security.kubernetes.io/warn"] == "restricted"
    assert {each["metadata"].get("namespace", "svd-serve") for each in manifests.objects} == {"svd-serve"}


# ---------------------------------------------------------------- limits, images, probes


def test_every_container_has_requests_and_limits(manifests: Build) -> None:
    for name, container in containers(manifests):
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][kind]), name
        assert "ephemeral-storage" in container["resources"]["limits"], name
    assert set(manifests.cluster["autoscalerOptions"]["resources"]) == {"requests", "limits"}


def test_memory_that_is_a_volume_has_an_end(manifests: Build) -> None:
    """/dev/shm counts as the pod's memory, and Ray's objects lie there."""
    for role, template in manifests.templates():
        for volume in template["spec"].get("volumes", []):
            assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"], f"{role}/{volume['name']}"
    for role, start in [("head", manifests.cluster["headGroupSpec"])] + [
        (group["groupName"], group) for group in manifests.cluster["workerGroupSpecs"]
    ]:
        shm = next(v for v in dict(manifests.templates())[role]["spec"]["volumes"] if v["name"] == "shm")
        assert shm["emptyDir"]["medium"] == "Memory"
        size = int(shm["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024**3
        assert int(start["rayStartParams"]["object-store-memory"]) < size
        assert "/dev/shm" in mounts(manifests, role)


def test_every_image_has_a_tag_that_stays(manifests: Build) -> None:
    for name, container in containers(manifests):
        repository, _, tag = container["image"].rpartition(":")
        assert "/" in repository and tag and tag != "latest" and tag[0].isdigit(), f"{name}: {container['image']}"
    ours = {each["image"] for name, each in containers(manifests) if name.startswith((*RAY, "svd-serve-weights"))}
    assert len(ours) == 1


def test_everything_that_goes_on_is_probed(manifests: Build) -> None:
    for name, container in served(manifests):
        assert {"livenessProbe", "readinessProbe"} <= set(container), name
    for role in ("cpu", "gpu"):
        (container,) = manifests.group(role)["template"]["spec"]["containers"]
        assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": 8000}
        assert container["livenessProbe"]["httpGet"] == {"path": "/api/healthz", "port": 52365}


def test_the_job_ends_and_pods_wait_for_it(manifests: Build) -> None:
    job = manifests.named("Job", "svd-serve-weights")
    assert job["spec"]["backoffLimit"] >= 3 and job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
    assert "weights fetch /config/serveConfigV2" in job["spec"]["template"]["spec"]["containers"][0]["args"][0]
    (waiting,) = manifests.group("gpu")["template"]["spec"]["initContainers"]
    assert manifests.environment["HF_HUB_OFFLINE"] == "1", "else each GPU pod would download"
    assert manifests.environment["HF_HOME"] == "/weights"
    assert "weights fetch /config/serveConfigV2" in waiting["args"][0]
    (claim,) = manifests.of_kind("PersistentVolumeClaim")
    for role in ("svd-serve-weights", "gpu"):
        volumes = {v["name"]: v for v in dict(manifests.templates())[role]["spec"]["volumes"]}
        assert volumes["weights"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_weights_of_an_upgrade_can_be_fetched_before_it(manifests: Build) -> None:
    """The label chooses what the Job needs, and nothing that is served."""
    weights = [each for each in manifests.objects if matches({"svd-serve/part": "weights"}, each)]
    assert [(each["kind"], each["metadata"]["name"]) for each in weights] == [
        ("ConfigMap", "svd-serve-config"),
        ("PersistentVolumeClaim", "svd-serve-weights"),
        ("Job", "svd-serve-weights"),
    ]


def test_who_fetches_the_weights_stands_where_their_volume_can_be(manifests: Build) -> None:
    """A volume of one node is held by the GPU pod, which waits for them."""
    (claim,) = manifests.of_kind("PersistentVolumeClaim")
    job = manifests.named("Job", "svd-serve-weights")["spec"]["template"]["spec"]
    if claim["spec"]["accessModes"] == ["ReadWriteMany"]:
        return
    (near,) = job["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    gpu = manifests.group("gpu")["template"]
    assert near["topologyKey"] == "kubernetes.io/hostname"
    assert matches(near["labelSelector"]["matchLabels"], gpu)
    assert job["tolerations"] == gpu["spec"]["tolerations"]


def test_redis_is_what_its_pod_signals_and_its_password_no_argument(tmp_path: Path) -> None:
    """The container's own command, with a Redis that shows what it got."""
    (container,) = build("single-gpu").named("StatefulSet", "svd-serve-redis")["spec"]["template"]["spec"]["containers"]
    (tmp_path / "redis-server").write_text('#!/bin/sh\necho "$$ $*"\ncat\n')
    (tmp_path / "redis-server").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "REDIS_PASSWORD": "pass"}
    command = [*container["command"], *container["args"]]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as shell:
        told, _ = shell.communicate(timeout=60)
    first, *config = told.splitlines()
    assert first == f"{shell.pid} -"
    assert config == ["requirepass pass", "appendonly yes", "appendfsync everysec", "dir /data"]


# ---------------------------------------------------------------- names that belong together


def test_every_name_of_a_config_map_leads_to_one(manifests: Build) -> None:
    there = {each["metadata"]["name"] for each in manifests.of_kind("ConfigMap")}
    named = set(found(list(dict(manifests.templates()).values()), "configMapRef")) | set(
        found(list(dict(manifests.templates()).values()), "configMap")
    )
    assert named and named <= there


def found(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from found(each, key)
    elif isinstance(value, dict):
        if isinstance(value.get(key), dict):
            yield value[key]["name"]
        for each in value.values():
            yield from found(each, key)


def test_services_and_stateful_sets_find_their_pods(manifests: Build) -> None:
    templates = [template for _, template in manifests.templates()]
    for service in manifests.of_kind("Service"):
        selected = [each for each in templates if matches(service["spec"]["selector"], each)]
        (template,) = selected
        ports = {port["name"] for each in template["spec"]["containers"] for port in each["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for each in manifests.of_kind("StatefulSet"):
        assert each["spec"]["serviceName"] in {s["metadata"]["name"] for s in manifests.of_kind("Service")}
        assert matches(each["spec"]["selector"]["matchLabels"], each["spec"]["template"])


def matches(labels: Manifest, template: Manifest) -> bool:
    has: Manifest = template["metadata"].get("labels", {})
    return labels.items() <= has.items()


def test_a_drained_node_leaves_pods_of_each_kind(production: Build) -> None:
    """Kubernetes cannot ask a RayCluster for its scale, so that only a whole number of pods is understood."""
    selected = set()
    for budget in production.of_kind("PodDisruptionBudget"):
        assert set(budget["spec"]) == {"minAvailable", "selector"} and isinstance(budget["spec"]["minAvailable"], int)
        roles = [r for r, t in production.templates() if matches(budget["spec"]["selector"]["matchLabels"], t)]
        selected |= set(roles)
        assert len(roles) == 1
        if roles == ["cpu"]:
            assert production.group("cpu")["minReplicas"] > budget["spec"]["minAvailable"], "no node could be drained"
    assert selected == {"cpu", "gpu"}


@pytest.mark.parametrize("kind", ["single-gpu", "production"])
def test_the_route_leads_to_the_proxies(kind: str) -> None:
    manifests = build(kind)
    name, port = manifests.service["metadata"]["name"], manifests.serve_config["http_options"]["port"]
    (route,), (gateway,) = manifests.of_kind("HTTPRoute"), manifests.of_kind("Gateway")
    (rule,) = route["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    strategy = manifests.service["spec"]["upgradeStrategy"]
    if strategy["type"] == "NewClusterWithIncrementalUpgrade":
        # KubeRay makes the Gateway NAME-gateway, of which Istio makes the service GATEWAY-CLASS at port 80.
        of_class = strategy["clusterUpgradeOptions"]["gatewayClassName"]
        assert backend == {"name": f"{name}-gateway-{of_class}", "port": 80}
        assert of_class == gateway["spec"]["gatewayClassName"]
    else:
        assert backend == {"name": f"{name}-serve-svc", "port": port}
    for role in RAY:
        ports = {
            p["name"]: p["containerPort"] for p in dict(manifests.templates())[role]["spec"]["containers"][0]["ports"]
        }
        assert (ports["serve"], ports["metrics"]) == (port, 8080)
    assert route["spec"]["parentRefs"] == [{"name": gateway["metadata"]["name"]}]
    (listener,) = gateway["spec"]["listeners"]
    assert route["spec"]["hostnames"] == [listener["hostname"]]
    assert manifests.environment["SVD_PUBLIC_URL"] == f"https://{listener['hostname']}"
    assert listener["protocol"] == "HTTPS" and listener["tls"]["mode"] == "Terminate"


def test_the_route_waits_longer_than_a_clip_takes(manifests: Build) -> None:
    (route,) = manifests.of_kind("HTTPRoute")
    longest = max(manifests.deployments["Dispatcher"]["user_config"]["run_seconds"].values())
    for value in route["spec"]["rules"][0]["timeouts"].values():
        assert int(value.removesuffix("h")) * 3600 >= 2 * longest
