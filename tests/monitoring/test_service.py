"""What rules and dashboard ask, a real Prometheus answers that scrapes the running service."""

from __future__ import annotations

import itertools
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from deployments import metrics
from loadtest.monitoring import Prometheus, targets_of
from tests.conftest import Server, need
from tests.monitoring.conftest import wait_until
from tests.monitoring.reading import each_rule, names_in, queries

OF_PROMETHEUS = {"ALERTS"}
"""What Prometheus itself knows of rules."""

WITH_A_GPU = {"ray_svd_gpu_memory_bytes", "ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"}
"""What a machine without a GPU does not tell."""

WHEN_IT_HAPPENS = {"ray_serve_deployment_error_counter_total"}
"""What Ray tells from the first time on that it happens, and what need not have happened here."""

QUERIES = list(queries())
RECORDED = {rule["record"] for rule in each_rule() if "record" in rule}
NAMED = set(
    itertools.chain(*(names_in(rule["expr"]) for rule in each_rule()), *(names_in(query) for _, query in QUERIES))
)


def test_everything_is_scraped(prometheus: Prometheus) -> None:
    assert {(target["health"], target["lastError"]) for target in prometheus.targets()} == {("up", "")}
    assert {target["scrapePool"].partition("-")[0] for target in prometheus.targets()} == {"svd", "ray"}


def test_every_rule_is_evaluated_without_error(prometheus: Prometheus) -> None:
    wait_until(lambda: {rule["health"] for rule in prometheus.rules()} != {"unknown"}, "an evaluation of every rule")
    assert {(rule["name"], rule.get("lastError")) for rule in prometheus.rules() if rule["health"] != "ok"} == set()
    assert len(prometheus.rules()) == len(each_rule())


@pytest.mark.parametrize("rule", each_rule(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_every_rule_has_something_to_look_at(prometheus: Prometheus, rule: dict[str, str]) -> None:
    """What it takes is there, so that an alert that is silent is silent for good reason."""
    for name in names_in(rule["expr"]) - WHEN_IT_HAPPENS:
        assert prometheus.query(name), name


@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_every_query_of_the_dashboard_is_answered(prometheus: Prometheus, panel: str, query: str) -> None:
    answer = prometheus.query(query)
    assert answer or names_in(query) & (WITH_A_GPU | WHEN_IT_HAPPENS | OF_PROMETHEUS) or 'status=~"5.."' in query


def test_every_metric_that_is_named_is_exported(prometheus: Prometheus) -> None:
    assert NAMED - prometheus.names() - WITH_A_GPU - WHEN_IT_HAPPENS - OF_PROMETHEUS == set()


def test_what_is_not_exported_here_is_known_to_who_exports_it() -> None:
    spec = find_spec("ray")
    assert spec and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    source = "".join(
        path.read_text() for part in ("serve", "dashboard/modules/reporter") for path in folder.rglob(f"{part}/**/*.py")
    )
    ours = {f"ray_{metric.name}" for metric in metrics.OF_A_PROCESS}
    for name in WITH_A_GPU | WHEN_IT_HAPPENS:
        assert name in ours or f'"{name.removeprefix("ray_").removesuffix("_total")}"' in source, name


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    asked = set(itertools.chain(*(names_in(query) for _, query in QUERIES)))
    ours = {each.name for each in metrics.OF_THE_ROWS} | {f"ray_{each.name}" for each in metrics.OF_A_PROCESS}
    assert {name for name in ours if not any(each.startswith(name) for each in asked)} == set()


def test_a_service_that_works_fires_no_alert(prometheus: Prometheus) -> None:
    assert [dict(series.labels) for series in prometheus.query('ALERTS{alertstate="firing"}')] == []


LABELS_OF_RAY = '(NodeAddress|SessionName|Version|WorkerId)="[^"]*",?'
"""What Ray itself adds to every line, in a spelling that promtool does not like."""

SUFFIXES = {metrics.Counter: "_total", metrics.Histogram: "_count"}
ANSWERS = [f"{each.name}{SUFFIXES.get(type(each), '')}" for each in metrics.OF_THE_ROWS]
ANSWERS += [f"ray_{each.name}{SUFFIXES.get(type(each), '')}" for each in metrics.OF_A_PROCESS]


@pytest.mark.parametrize("name", ANSWERS)
def test_every_metric_is_answered(prometheus: Prometheus, name: str) -> None:
    assert prometheus.query(name), name


def test_what_has_not_happened_is_zero(prometheus: Prometheus) -> None:
    """So that its first time is seen by a rate."""
    [memory] = {series.value for series in prometheus.query("ray_svd_out_of_memory_total")}
    assert memory == 0.0


def test_promtool_has_nothing_against_either_port(prometheus: Prometheus, server: Server) -> None:
    gateway, *nodes = targets_of(server.url, server.key, server.process.pid)
    text = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Key {gateway.key}"}).text
    for node in nodes:
        lines = httpx.get(f"http://{node.address}/metrics").text.splitlines()
        ours = [line for line in lines if re.match("(# (HELP|TYPE) )?ray_svd_", line)]
        text += "".join(re.sub(LABELS_OF_RAY, "", line) + "\n" for line in ours)
    assert text.count("# TYPE ray_svd_") == len(metrics.OF_A_PROCESS)
    done = subprocess.run([need("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def test_both_ports_have_few_series(prometheus: Prometheus) -> None:
    """As many as there are endpoints, routes and replicas: a label that a caller can fill would show here."""
    [ours] = prometheus.query('count({__name__=~"(ray_)?svd_.*"})')
    assert ours.value < 5000, ours
