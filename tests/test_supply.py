"""What the service is made of: pinned, hashed, listed; and nothing in it that turns a caller's bytes into code."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import cyclonedx.schema
import jsonschema_rs
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

LOCK = (ROOT / "requirements" / "production.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_A_GPU = re.compile("(nvidia|cuda)-|triton$")
"""What only torch's build for GPUs requires. The environment of the tests has its build for CPUs."""


def pins(text: str) -> dict[str, str]:
    found = re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;\\]+)", text)
    assert len({canonicalize_name(name) for name, _ in found}) == len(found), "a package is named twice"
    return {canonicalize_name(name): pinned for name, pinned in found}


LOCKED = pins(LOCK)
CONSTRAINED = pins((ROOT / "constraints.txt").read_text())


# ---------------------------------------------------------------- the lock


def test_the_lock_holds_nothing_but_pins_and_hashes() -> None:
    """No index, no path, no marker by which a package could be left out, and nothing without its hash."""
    entry = r"[a-z0-9-]+==[0-9][0-9a-z.]*(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    body = "".join(line for line in LOCK.splitlines(keepends=True) if not line.startswith("#"))
    assert re.fullmatch(f"(?:{entry})+", body)
    assert len(LOCKED) > 100


def test_the_lock_is_what_was_tested_together() -> None:
    differing = {
        name: (pinned, CONSTRAINED[name]) for name, pinned in LOCKED.items() if CONSTRAINED.get(name, pinned) != pinned
    }
    assert differing == {}
    assert [name for name in LOCKED if name not in CONSTRAINED and not OF_A_GPU.match(name)] == []


def production(wanted: list[str]) -> Iterator[Requirement]:
    """What a production environment of this Python needs, as what is installed here says."""
    seen: set[str] = set()
    left = [Requirement(line) for line in wanted]
    while left:
        each = left.pop()
        yield each
        if str(each) not in seen:
            seen.add(str(each))
            below = [Requirement(line) for line in requires(each.name) or ()]
            extras = each.extras or {""}
            left += [r for r in below if not r.marker or any(r.marker.evaluate({"extra": extra}) for extra in extras)]


def test_the_lock_is_whole() -> None:
    needed = list(production(PROJECT["dependencies"]))
    assert len({each.name for each in needed}) > 100
    missing = [str(each) for each in needed if canonicalize_name(each.name) not in LOCKED]
    outside = [str(each) for each in needed if LOCKED.get(canonicalize_name(each.name), "0") not in each.specifier]
    assert (missing, outside) == ([], []), "pyproject.toml has changed: make lock"


def test_the_lock_holds_none_of_the_tools() -> None:
    tools = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["dev"]}
    assert {"pytest", "bandit"} <= tools
    assert tools.isdisjoint(LOCKED)


def test_everything_installed_here_is_pinned_at_what_is_installed() -> None:
    extras = [line for each in PROJECT["optional-dependencies"].values() for line in each if "svd-serve" not in line]
    here = [line for line in extras if not (marker := Requirement(line).marker) or marker.evaluate()]
    names = {canonicalize_name(each.name) for each in production(PROJECT["dependencies"] + here)}
    installed = {name: version(name).partition("+")[0] for name in names}
    assert {name: CONSTRAINED.get(name) for name in installed} == installed


# ---------------------------------------------------------------- the list of parts


@pytest.fixture(scope="module")
def sbom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``make sbom`` writes. Its own check takes too long here, and a faster one stands below."""
    path = tmp_path_factory.mktemp("sbom") / "sbom.json"
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"\$\(BIN\)/cyclonedx-py (environment .*)", makefile)
    words = [{"$(SBOM)": str(path), "$(BIN)/python": sys.executable}.get(word, word) for word in shlex.split(line)]
    assert "--no-validate" not in words
    command = [sys.executable, "-m", "cyclonedx_py", words[0], "--no-validate", *words[1:]]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def test_the_list_of_parts_is_cyclonedx(sbom: dict[str, Any]) -> None:
    folder = Path(cyclonedx.schema.__file__).parent / "_res"
    schemas = {path.name: json.loads(path.read_text()) for path in folder.glob("*.SNAPSHOT.schema.json")}
    registry = jsonschema_rs.Registry([(f"http://cyclonedx.org/schema/{name}", each) for name, each in schemas.items()])
    validator = jsonschema_rs.validator_for(
        schemas[f"bom-{sbom['specVersion']}.SNAPSHOT.schema.json"], registry=registry
    )

    assert list(validator.iter_errors(sbom)) == []
    assert list(validator.iter_errors(sbom | {"bomFormat": "other"})), "this schema refuses nothing"


@pytest.mark.parametrize("name", ["torch", "ray", "diffusers", "transformers", "fastapi", "SQLAlchemy", "safetensors"])
def test_the_list_of_parts_names_version_and_licence(sbom: dict[str, Any], name: str) -> None:
    (part,) = [each for each in sbom["components"] if each["name"] == name]
    assert part["version"] == version(name)
    assert part["purl"].startswith(f"pkg:pypi/{canonicalize_name(name)}@")
    said = json.dumps(part["licenses"])
    assert re.search("Apache|BSD|MIT", said), said


def test_the_list_of_parts_is_of_this_service(sbom: dict[str, Any]) -> None:
    assert sbom["metadata"]["component"]["name"] == PROJECT["name"]
    names = {canonicalize_name(each["name"]) for each in sbom["components"]}
    assert {canonicalize_name(each.name) for each in production(PROJECT["dependencies"])} <= names


# ---------------------------------------------------------------- no code from bytes

LOADERS = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "numpy.load",
    "np.load",
    "yaml.load",
    "yaml.unsafe_load",
}


def sources() -> Iterator[tuple[Path, ast.AST]]:
    for path in (ROOT / "deployments").rglob("*.py"):
        yield path.relative_to(ROOT), ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)


def called(tree: ast.AST) -> Iterator[str]:
    yield from (ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call))


def harm(tree: ast.AST) -> set[str]:
    """What in a module makes objects or code of bytes."""
    unsafe = {
        keyword.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in ("allow_pickle", "trust_remote_code") and ast.unparse(keyword.value) != "False"
    }
    return LOADERS.intersection(imported(tree)) | CALLS.intersection(called(tree)) | {str(each) for each in unsafe}


def test_no_module_makes_objects_or_code_of_bytes() -> None:
    assert {str(path): found for path, tree in sources() if (found := harm(tree))} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import pickle", "pickle"),
        ("from ray import cloudpickle", "cloudpickle"),
        ("import ray.cloudpickle as c", "cloudpickle"),
        ("from torch.serialization import pickle as p", "pickle"),
        ("torch.load(path)", "torch.load"),
        ("eval(text)", "eval"),
        ("np.load(file, allow_pickle=True)", "allow_pickle"),
        ("Class.from_pretrained(path, trust_remote_code=setting)", "trust_remote_code"),
        ("yaml.load(text, yaml.Loader)", "yaml.load"),
    ],
)
def test_the_rule_sees_what_it_forbids(line: str, found: str) -> None:
    assert found in harm(ast.parse(line))
