"""The dashboard, as far as it can be judged without Grafana; its queries are asked in ``test_service``."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from tests.monitoring.reading import dashboard, panels

COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {"none", "s", "ms", "bytes", "percent", "percentunit", "currencyUSD", "reqps", "reqpm", "cpm"}
"""Those of Grafana's units that we use."""

OF_GRAFANA = {"__rate_interval", "__range"}
ROWS = [
    *("Overview", "Queue", "Latency", "GPU and batches", "Cost and price"),
    *("Webhooks and storage", "Errors", "Ray Serve"),
]


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    assert place["x"] + place["w"] <= COLUMNS
    return {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}


def test_no_two_panels_share_an_id_or_a_place() -> None:
    every = dashboard()["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    overlaps = [
        (one["title"], other["title"]) for one, other in itertools.combinations(every, 2) if cells(one) & cells(other)
    ]
    assert overlaps == []


def test_rows_stand_in_this_order_and_each_has_panels() -> None:
    every = sorted(dashboard()["panels"], key=lambda panel: (panel["gridPos"]["y"], panel["gridPos"]["x"]))
    assert [panel["title"] for panel in every if panel["type"] == "row"] == ROWS
    assert not any(one["type"] == other["type"] == "row" for one, other in itertools.pairwise(every))
    assert (every[0]["type"], every[-1]["type"] == "row") == ("row", False)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_a_panel_says_what_it_shows_and_asks_the_source_that_was_chosen(panel: dict[str, Any]) -> None:
    assert panel["title"] and panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert [target["datasource"] for target in (panel, *panel["targets"])] == [SOURCE] * (1 + len(panel["targets"]))
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    assert [target["legendFormat"] for target in panel["targets"]].count("") <= (
        1 if panel["type"] != "timeseries" else 0
    )


def test_titles_are_not_repeated_within_a_row() -> None:
    row, seen = "", set()
    for panel in dashboard()["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        assert (row, panel["title"], panel["type"]) not in seen
        seen.add((row, panel["title"], panel["type"]))


def test_every_variable_is_used_and_every_used_one_is_there() -> None:
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    text = [*(target["expr"] for panel in panels() for target in panel["targets"]), SOURCE["uid"]]
    used = set(re.findall(r"\$\{?(\w+)", " ".join(text)))
    assert used - OF_GRAFANA == variables == {"datasource", "namespace", "endpoint", "model", "deployment"}


def test_a_choice_of_all_is_also_one_of_series_without_the_label() -> None:
    """Without Kubernetes nothing has a namespace; ``.*`` finds it even so."""
    chosen = [variable for variable in dashboard()["templating"]["list"] if variable["type"] == "query"]
    assert {(variable["allValue"], variable["includeAll"], variable["multi"]) for variable in chosen} == {
        (".*", True, True)
    }
