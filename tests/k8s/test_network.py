"""Who may talk to whom: the NetworkPolicies, judged as Kubernetes judges them."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest

from tests.k8s.conftest import Build, Manifest, build

OURS = "svd-serve"


@dataclass(frozen=True)
class Pod:
    """As far as a policy sees it."""

    labels: Manifest
    namespace: str = OURS
    ports: Manifest = field(default_factory=dict)


Place = Pod | IPv4Address | IPv6Address


def selects(selector: Manifest, labels: Manifest) -> bool:
    """Whether a label selector of Kubernetes selects these labels."""
    wanted = selector.get("matchLabels", {})
    return wanted.items() <= labels.items() and all(
        each["key"] in labels if each["operator"] == "Exists" else labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )


def is_peer(peer: Manifest, place: Place) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        within = [ip_network(cidr) for cidr in (block["cidr"], *block.get("except", []))]
        return not isinstance(place, Pod) and place in within[0] and not any(place in each for each in within[1:])
    if not isinstance(place, Pod):
        return False
    namespaces = peer.get("namespaceSelector")
    near = place.namespace == OURS if namespaces is None else selects(namespaces, of_namespace(place.namespace))
    return near and selects(peer.get("podSelector", {}), place.labels)


def of_namespace(name: str) -> Manifest:
    return {"kubernetes.io/metadata.name": name}


@dataclass(frozen=True)
class Network:
    """The policies of an overlay."""

    policies: list[Manifest]

    def lets(self, source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
        """Whether a connection comes about: who calls must be allowed out, who is called must be allowed in."""
        call = (port, protocol, target)
        out = not isinstance(source, Pod) or self._one_way("egress", "to", source, target, call)
        return out and (not isinstance(target, Pod) or self._one_way("ingress", "from", target, source, call))

    def of(self, pod: Pod, direction: str) -> list[Manifest]:
        return [
            each["spec"]
            for each in self.policies
            if direction.capitalize() in each["spec"]["policyTypes"]
            and selects(each["spec"]["podSelector"], pod.labels)
        ]

    def _one_way(self, direction: str, side: str, pod: Pod, other: Place, call: Any) -> bool:
        if pod.namespace != OURS:
            return True
        policies = self.of(pod, direction)
        rules = [rule for policy in policies for rule in policy.get(direction, [])]
        return not policies or any(self._allows(rule, side, other, call) for rule in rules)

    def _allows(self, rule: Manifest, side: str, other: Place, call: Any) -> bool:
        port, protocol, target = call
        named = target.ports if isinstance(target, Pod) else {}
        ports = [(named.get(each["port"], each["port"]), each["protocol"]) for each in rule.get("ports", [])]
        peers = rule.get(side, [])
        return (not ports or (port, protocol) in ports) and (not peers or any(is_peer(each, other) for each in peers))


def network(build: Build) -> Network:
    return Network(build.of_kind("NetworkPolicy"))


def pods(build: Build) -> dict[str, Pod]:
    """Ours, with the labels that KubeRay adds, and others that live beside us."""
    ours = {
        role: Pod(
            {**template["metadata"]["labels"], "ray.io/is-ray-node": "yes"},
            ports={p["name"]: p["containerPort"] for p in template["spec"]["containers"][0].get("ports", [])},
        )
        for role, template in build.templates()
    }
    return ours | {
        "stranger": Pod({"app": "other"}, "default"),
        "neighbour": Pod({"app": "other"}),
        "operator": Pod({"app.kubernetes.io/name": "kuberay-operator"}, "kuberay-system"),
        "prometheus": Pod({"app": "prometheus"}, "monitoring"),
        "dns": Pod({"k8s-app": "kube-dns"}, "kube-system"),
        "istiod": Pod({"app": "istiod"}, "istio-system"),
        "public": Pod({"gateway.networking.k8s.io/gateway-name": "svd-serve-public"}),
        "kuberays": Pod({"gateway.networking.k8s.io/gateway-name": "svd-serve-gateway"}),
    }


def place(build: Build, name: str) -> Place:
    return pods(build)[name] if name in pods(build) else ip_address(name)


ALLOWED = [
    *[(role, "dns", 53) for role in ("head", "cpu", "gpu", "svd-serve-weights", "public")],
    ("203.0.113.9", "public", 443),
    ("public", "cpu", 8000),
    ("public", "kuberays", 80),
    ("kuberays", "gpu", 8000),
    ("kuberays", "istiod", 15012),
    ("public", "istiod", 15012),
    ("cpu", "head", 6379),
    ("gpu", "head", 6379),
    ("head", "gpu", 34567),
    ("cpu", "gpu", 34567),
    ("gpu", "cpu", 34567),
    ("operator", "head", 8265),
    ("operator", "head", 8000),
    ("head", "10.96.0.1", 443),
    ("head", "10.1.2.3", 5432),
    ("cpu", "10.1.2.3", 5432),
    ("head", "10.1.2.3", 6379),
    ("cpu", "93.184.216.34", 443),
    ("gpu", "93.184.216.34", 8443),
    ("gpu", "2606:2800:220:1::1", 443),
    ("svd-serve-weights", "93.184.216.34", 443),
    ("prometheus", "head", 8080),
    ("prometheus", "gpu", 8080),
    ("prometheus", "cpu", 8000),
]
REFUSED = [
    *[("stranger", role, port) for role in ("head", "cpu", "gpu") for port in (6379, 8000, 8080, 8265, 10001, 52365)],
    *[("neighbour", role, 8000) for role in ("head", "cpu", "gpu")],
    ("public", "head", 8265),
    ("operator", "cpu", 8000),
    ("operator", "head", 10001),
    ("prometheus", "head", 8265),
    ("prometheus", "gpu", 10001),
    ("gpu", "10.1.2.3", 5432),
    ("gpu", "10.1.2.3", 443),
    ("cpu", "10.1.2.3", 443),
    ("gpu", "169.254.169.254", 80),
    ("cpu", "169.254.169.254", 80),
    ("gpu", "100.100.100.200", 80),
    ("gpu", "fd00:ec2::254", 80),
    ("gpu", "10.1.2.3", 6379),
    ("gpu", "93.184.216.34", 22),
    ("gpu", "stranger", 80),
    ("head", "93.184.216.34", 80),
    ("svd-serve-weights", "head", 6379),
    ("svd-serve-weights", "10.1.2.3", 443),
    ("neighbour", "93.184.216.34", 443),
    ("stranger", "public", 15012),
    *[(source, "kuberays", 80) for source in ("203.0.113.9", "stranger", "neighbour")],
    ("203.0.113.9", "public", 80),
]
TRIALS = [
    ("head", "svd-serve-postgres", 5432, True),
    ("cpu", "svd-serve-postgres", 5432, True),
    ("gpu", "svd-serve-postgres", 5432, False),
    ("svd-serve-weights", "svd-serve-postgres", 5432, False),
    ("head", "svd-serve-redis", 6379, True),
    ("cpu", "svd-serve-redis", 6379, False),
    ("gpu", "svd-serve-redis", 6379, False),
    ("svd-serve-postgres", "93.184.216.34", 443, False),
    ("svd-serve-redis", "head", 6379, False),
]


def test_what_must_be_possible_is(manifests: Build) -> None:
    closed = [
        (source, target, port)
        for source, target, port in ALLOWED
        if not network(manifests).lets(
            place(manifests, source), place(manifests, target), port, "UDP" if port == 53 else "TCP"
        )
    ]
    assert closed == []


def test_nothing_else_is(manifests: Build) -> None:
    open_ = [
        (source, target, port)
        for source, target, port in REFUSED
        if network(manifests).lets(place(manifests, source), place(manifests, target), port)
    ]
    assert open_ == []


@pytest.mark.parametrize(("source", "target", "port", "allowed"), TRIALS)
def test_the_stores_of_a_trial_are_reached_by_who_needs_them(
    source: str, target: str, port: int, allowed: bool
) -> None:
    single = build("single-gpu")
    assert network(single).lets(place(single, source), place(single, target), port) is allowed


def test_every_pod_is_closed_both_ways_to_begin_with(manifests: Build) -> None:
    for name, pod in pods(manifests).items():
        if pod.namespace == OURS:
            for direction in ("ingress", "egress"):
                assert any(not each.get(direction) for each in network(manifests).of(pod, direction)), name


def test_without_policies_everything_would_be_open(manifests: Build) -> None:
    """The judge of these tests refuses nothing by itself."""
    nothing = Network([])
    assert all(nothing.lets(place(manifests, s), place(manifests, t), port) for s, t, port in REFUSED)
