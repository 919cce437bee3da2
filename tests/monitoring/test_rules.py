"""The rules: Prometheus reads them, each alert fires when it should and only then, and each is explained."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.app import DISPATCHER, GATEWAY
from tests.conftest import ROOT, need
from tests.monitoring.reading import MONITORING, alerts, each_rule, names_in, rules

Labels = dict[str, str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The rules, and their tests beside them, as promtool reads them."""
    (tmp_path / "rules.yaml").write_text(json.dumps(rules()))
    (tmp_path / "rules_test.yaml").write_text((MONITORING / "rules_test.yaml").read_text())
    return tmp_path


def promtool(folder: Path, *arguments: str) -> str:
    done = subprocess.run([need("promtool"), *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_reads_every_rule(folder: Path) -> None:
    assert f"{len(each_rule())} rules found" in promtool(folder, "check", "rules", "rules.yaml")


def test_alerts_fire_when_they_should(folder: Path) -> None:
    assert "SUCCESS" in promtool(folder, "test", "rules", "rules_test.yaml")


def expected() -> list[tuple[str, list[Labels]]]:
    """Of each check of the tests: the alert it asks for, and the labels of those that it expects to fire."""
    tests = yaml.safe_load((MONITORING / "rules_test.yaml").read_text())["tests"]
    return [
        (check["alertname"], [alert["exp_labels"] for alert in check["exp_alerts"]])
        for test in tests
        for check in test["alert_rule_test"]
    ]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: "-".join([alert["alert"], *alert["labels"].values()]))
def test_every_alert_fires_in_one_test_and_is_silent_in_another(alert: dict[str, Any]) -> None:
    asked = [fired for name, fired in expected() if name == alert["alert"]]
    fires = [any(alert["labels"].items() <= labels.items() for labels in fired) for fired in asked]
    assert True in fires
    assert [] in asked


def runbook() -> dict[str, str]:
    """The sections of the operations guide by their anchors."""
    parts = re.split(r"^#+ +(.*)$", (ROOT / "k8s" / "README.md").read_text(), flags=re.MULTILINE)
    headings = [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in parts[1::2]]
    return dict(zip(headings, map(str.strip, parts[2::2]), strict=True))


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_says_what_to_do(alert: dict[str, Any]) -> None:
    page, anchor = alert["annotations"]["runbook_url"].split("#")
    assert page == "k8s/README.md"
    assert "**Do**" in runbook()[anchor]
    assert alert["annotations"]["summary"] and alert["annotations"]["description"].endswith(".")
    assert alert["labels"]["severity"] in ("page", "ticket")


def test_the_guide_explains_no_alert_that_is_not_there() -> None:
    explained = {anchor for anchor in runbook() if anchor.startswith("svd") and "-" not in anchor}
    assert explained == {alert["alert"].lower() for alert in alerts()}


def test_the_deployments_that_rules_name_are_those_of_the_application() -> None:
    named = {name for rule in each_rule() for name in re.findall(r'deployment[=!]~"([^"]*)"', rule["expr"])}
    assert named == {f"{GATEWAY}|{DISPATCHER}"}


def test_what_rules_use_of_other_rules_is_recorded() -> None:
    recorded = {rule["record"] for rule in each_rule() if "record" in rule}
    used = {name for rule in each_rule() for name in names_in(rule["expr"]) if ":" in name}
    assert used <= recorded


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        (
            'sum by (a) (rate(x_total{route="/y/{path:path}", b!~"z"}[5m])) / on (c) group_left () d:e:f > 1',
            "x_total d:e:f",
        ),
        ("(a unless b offset 15m) or vector(0) and 1e3 < inf", "a b"),
    ],
)
def test_names_are_found_in_expressions(expression: str, names: str) -> None:
    assert names_in(expression) == set(names.split())


def test_requests_may_wait_no_shorter_than_scaling_aims_at() -> None:
    (allowed,) = {float(le) for rule in each_rule() for le in re.findall(r'le="([0-9.]+)"', rule["expr"])}
    config = yaml.safe_load((ROOT / "k8s" / "overlays" / "production" / "serve_config.yaml").read_text())
    scaled = [
        deployment["autoscaling_config"]["policy"]["policy_kwargs"]["target_seconds"]
        for deployment in config["applications"][0]["deployments"]
        if "autoscaling_config" in deployment
    ]
    assert scaled and max(scaled) <= allowed
