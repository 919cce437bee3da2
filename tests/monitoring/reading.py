"""What k8s/monitoring says, read for tests: rules and alerts, the queries of the dashboard, the metrics they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.conftest import ROOT

MONITORING = ROOT / "k8s" / "monitoring"

VARIABLES = {"$__rate_interval": "1m", "$__range": "1h"}
"""What Grafana puts into queries by itself; the variables of the dashboard stand for everything."""

_KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
_NO_METRICS = (
    r'"[^"]*"',  # strings
    r"\{[^}]*\}",  # matchers
    r"\[[^\]]*\]",  # ranges
    r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)",  # labels
    r"\boffset\s+\w+",
    r"\b\w+\s*(?=\()",  # functions
    r"\b[0-9][\w.]*",
)


def rules() -> dict[str, Any]:
    """The rules as Prometheus reads them: ``{"groups": […]}``."""
    return dict(yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"])


def each_rule() -> list[dict[str, Any]]:
    return [rule for group in rules()["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in each_rule() if "alert" in rule]


def dashboard() -> dict[str, Any]:
    return dict(json.loads((MONITORING / "dashboard.json").read_text()))


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, its rows left out."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard as Grafana sends it, each with the title of its panel."""
    values = VARIABLES | {f"${variable['name']}": ".*" for variable in dashboard()["templating"]["list"]}
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], re.sub(r"\$\w+", lambda found: values[found[0]], target["expr"])


def names_in(expression: str) -> set[str]:
    """The metrics that an expression names."""
    for pattern in _NO_METRICS:
        expression = re.sub(pattern, " ", expression)
    return set(re.findall(r"[A-Za-z_:][\w:]*", expression)) - _KEYWORDS


def hurried(spec: dict[str, Any], factor: float = 60.0) -> dict[str, Any]:
    """These rules, evaluated every second, where each ``for`` is so many times as short."""

    def hurry(rule: dict[str, Any]) -> dict[str, Any]:
        return rule | {"for": f"{round(seconds(rule['for']) * 1000 / factor)}ms"} if "for" in rule else rule

    return {
        "groups": [group | {"interval": "1s", "rules": list(map(hurry, group["rules"]))} for group in spec["groups"]]
    }


def seconds(duration: str) -> float:
    """Of a duration of Prometheus with one unit."""
    return float(duration[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[duration[-1]]
