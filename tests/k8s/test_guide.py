"""The operations guide: its commands are there, its secrets are those of the manifests, its files and names exist."""

from __future__ import annotations

import re

import pytest

from deployments import cli
from tests.conftest import ROOT
from tests.k8s.conftest import Build, build
from tests.k8s.test_serve_config import secrets_of

GUIDE = (ROOT / "k8s" / "README.md").read_text()
COMMANDS = sorted({" ".join(words.split()) for words in re.findall(r"`(?:\w+=\S+ )*svd-serve ([a-z][^`]*)`", GUIDE)})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_of_ours_with_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    before_values = re.match(r"[a-z -]+?(?= --| [A-Z.…]|$)", command)
    assert before_values
    with pytest.raises(SystemExit) as ended:
        cli.main([*before_values[0].split(), "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert [option for option in re.findall(r"--[a-z-]+", command) if f"{option} " not in told] == []


def test_commands_are_found_in_it() -> None:
    assert {"leave", "doctor", "keys rotate ID --keep 24h", "requests retry --failed --since 1h"} <= set(COMMANDS)


def test_every_secret_of_the_manifests_is_made_in_it_and_no_other() -> None:
    made = set(re.findall(r"create secret (?:generic|tls) (\S+)", GUIDE))
    wanted = {name for overlay in ("single-gpu", "production") for name in secrets(build(overlay))}
    assert made == wanted


def secrets(manifests: Build) -> set[str]:
    (gateway,) = manifests.of_kind("Gateway")
    redis = manifests.cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]["name"]
    certificates = {each["name"] for each in gateway["spec"]["listeners"][0]["tls"]["certificateRefs"]}
    return {redis, *certificates}.union(*(secrets_of(template) for _, template in manifests.templates()))


@pytest.mark.parametrize("overlay", ["single-gpu", "production"])
def test_every_key_of_a_secret_is_made_in_it(overlay: str) -> None:
    objects = [*build(overlay).objects, *(template for _, template in build(overlay).templates())]
    keys = {(each["name"], each["key"]) for each in references(objects)}
    made = [(text.split()[0], text.partition("kubectl")[0]) for text in GUIDE.split("create secret generic ")[1:]]
    there = {(name, key) for name, values in made for key in re.findall(r"--from-literal=(\w+)=", values)}
    assert len(keys) > 2 and keys <= there


def references(value: object) -> list[dict[str, str]]:
    """Every place that wants one key of a secret."""
    if isinstance(value, list):
        return [each for item in value for each in references(item)]
    if not isinstance(value, dict):
        return []
    here = [value["secretKeyRef"]] if isinstance(value.get("secretKeyRef"), dict) else []
    return here + [each for item in value.values() for each in references(item)]


def test_every_file_that_it_names_is_there() -> None:
    named = re.findall(r"`((?:base|overlays|components|monitoring)/[\w./-]+)`", GUIDE)
    assert len(named) > 8
    assert [name for name in named if not (ROOT / "k8s" / name).exists()] == []


def test_every_object_that_it_names_is_there() -> None:
    """Or is what Kubernetes and KubeRay make of ours."""
    named = set(re.findall(r"svd-serve-[a-z-]*[a-z]", GUIDE))
    builds = [build(overlay) for overlay in ("single-gpu", "production")]
    ours = {name for each in builds for name in (*(o["metadata"]["name"] for o in each.objects), *secrets(each))}
    assert named - ours == {"svd-serve-serve-svc", "svd-serve-httproute"}
