from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.settings import AppArgs
from tests.conftest import ROOT, Server
from tests.test_faults import process_of

HEAVY = ("torch", "diffusers", "transformers")
NETWORKS = (
    "deployments/models/networks.py"  # defines torch's classes, so it imports torch and is itself imported lazily
)


def test_importing_the_application_loads_no_torch() -> None:
    check = "import sys, deployments.app, deployments.cli; print([m for m in sys.argv[1:] if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check, *HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def libraries_of(server: Server, title: str) -> str:
    return Path(f"/proc/{process_of(server, title).pid}/maps").read_text()


def test_the_running_gateway_and_dispatcher_hold_no_torch(server: Server) -> None:
    for title in ("ServeReplica:svd-serve:Gateway", "ServeReplica:svd-serve:Dispatcher"):
        assert "libtorch" not in libraries_of(server, title)
    assert "libtorch" in libraries_of(server, "ServeReplica:svd-serve:fal-ai--svd")


def test_torch_is_imported_only_inside_functions() -> None:
    heavy = (*HEAVY, "deployments.models.networks")
    at_the_top = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in (ROOT / "deployments").rglob("*.py")
        for line in path.read_text().split("if TYPE_CHECKING:")[0].splitlines()
        if line.startswith(tuple(f"{word} {module}" for word in ("import", "from") for module in heavy))
    ]
    assert [line for line in at_the_top if not line.startswith(NETWORKS)] == []
    assert at_the_top, "the rule sees nothing"


def test_configuration_names_only_deployments_that_exist() -> None:
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config = ServeDeploySchema.model_validate(document)
    (application,) = config.applications
    endpoints = AppArgs.model_validate(application.args).build()
    named = {deployment.name for deployment in application.deployments}
    assert named == {"Gateway", "Dispatcher"} | {endpoint.deployment for endpoint in endpoints.values()}
    (dispatcher,) = [deployment for deployment in application.deployments if deployment.name == "Dispatcher"]
    assert set(dispatcher.user_config["batching"]) <= {endpoint.model for endpoint in endpoints.values()}
    unknown = set(document) - set(ServeDeploySchema.model_fields)
    assert unknown == set(), "Serve ignores what it does not know at the top of this file"
