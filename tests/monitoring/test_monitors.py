"""The monitors of the Prometheus operator: they find our pods and ports, and keep what rules and dashboard ask for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.k8s.conftest import Build, build
from tests.k8s.test_network import selects
from tests.monitoring.reading import each_rule, names_in, queries


@pytest.fixture
def production() -> Build:
    """The overlay that is monitored."""
    return build("production")


def monitor(build: Build, kind: str) -> dict[str, Any]:
    (found,) = build.of_kind(kind)
    return dict(found["spec"])


def test_what_is_asked_of_ray_is_not_thrown_away(production: Build) -> None:
    nodes, _ = monitor(production, "PodMonitor")["podMetricsEndpoints"]
    (kept,) = nodes["metricRelabelings"]
    assert (kept["action"], kept["sourceLabels"]) == ("keep", ["__name__"])
    asked = {name for rule in each_rule() for name in names_in(rule["expr"])}
    asked |= {name for _, query in queries() for name in names_in(query)}
    of_ray = {name for name in asked if name.startswith("ray_")}
    assert len(of_ray) > 20
    assert {name for name in of_ray if not re.fullmatch(kept["regex"], name)} == set()


def test_the_pods_and_ports_that_are_scraped_are_there(production: Build) -> None:
    spec = monitor(production, "PodMonitor")
    ports = {
        role: {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        for role, template in production.templates()
        if selects(spec["selector"], template["metadata"]["labels"])
    }
    assert set(ports) == {"head", "cpu", "gpu"}
    assert all("metrics" in each for each in ports.values())
    assert {each["port"] for each in spec["podMetricsEndpoints"]} <= ports["head"]


def test_the_gateways_are_asked_by_the_administrators_key(production: Build) -> None:
    """By each serve service that KubeRay makes, and of its pods only those where gateways are."""
    spec = monitor(production, "ServiceMonitor")
    labels = {"ray.io/serve": "svd-serve-x-serve", "ray.io/originated-from-crd": "RayService"}
    assert selects(spec["selector"], labels) and not selects(spec["selector"], {"app": "other"})
    (endpoint,) = spec["endpoints"]
    (head,) = production.cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert endpoint["port"] in {port["name"] for port in head["ports"]}, "KubeRay names the service's port so"
    assert (endpoint["path"], endpoint["honorLabels"], endpoint["authorization"]["type"]) == ("/metrics", True, "Key")
    wanted = endpoint["authorization"]["credentials"]
    (container,) = production.group("cpu")["template"]["spec"]["containers"]
    assert {"secretRef": {"name": wanted["name"]}} in container["envFrom"] and wanted["key"] == "SVD_ADMIN_KEY"
    (kept,) = endpoint["relabelings"]
    roles = [
        r for r, t in production.templates() if re.fullmatch(kept["regex"], t["metadata"]["labels"]["svd-serve/role"])
    ]
    assert roles == ["cpu"]
