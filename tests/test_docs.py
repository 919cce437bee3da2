"""The README keeps its promises: what can be set, served and run is told there; SECURITY.md names what there is."""

from __future__ import annotations

import re

import pytest
import yaml

from deployments import cli
from deployments.models.base import VideoInput
from deployments.settings import AppArgs, Settings
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()


def test_every_setting_stands_in_the_table_and_no_other() -> None:
    told = set(re.findall(r"^\| `(SVD_[A-Z_]+)`", README, re.MULTILINE))
    assert told == {f"SVD_{name.upper()}" for name in Settings.model_fields}


def endpoints() -> dict[str, type[VideoInput]]:
    (application,) = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"]
    return {id: endpoint.Input for id, endpoint in AppArgs.model_validate(application["args"]).build().items()}


@pytest.mark.parametrize("endpoint", endpoints())
def test_every_endpoint_and_its_parameters_are_told(endpoint: str) -> None:
    (line,) = [line for line in README.splitlines() if line.startswith(f"| `{endpoint}` |")]
    told = set(re.findall(r"`(\w+)`", line))
    common = set(VideoInput.model_fields) | {"image_url"}
    assert set(endpoints()[endpoint].model_fields) - common <= told


def test_every_make_target_is_told() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [target for target in targets if f"make {target}" not in README] == []


def test_every_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert commands and [command for command in commands if f"svd-serve {command}" not in README] == []


def test_every_wall_and_every_test_that_security_names_is_there() -> None:
    """Paths begin at the repository or at the package."""
    named = set(re.findall(r"`([a-z][\w-]*(?:/[\w.-]+)+|\w+\.py)`", SECURITY))
    missing = [name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "deployments"))]
    assert {"gateway/auth.py", "web.py", "tests/fuzz", "tests/test_cluster.py"} <= named
    assert missing == []


def test_every_command_that_security_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", SECURITY))
    assert "hostile" in named
    assert named <= targets
    assert "decoders run without these walls" in (ROOT / "deployments/inference/decoder/pool.py").read_text()
