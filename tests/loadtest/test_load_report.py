"""The report of a load test: that it holds what was recorded, and nothing that a browser would fetch or run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtest.plots import MOST_LINES, OTHERS, clock, fewer
from loadtest.report import usd, write
from loadtest.watch import Sample
from tests.browser import open_browser
from tests.loadtest.recorded import record, watched

LOADS = [
    {"users": 1, "per_minute": 60, "mean": 1000, "p95": 1200},
    {"users": 4, "per_minute": 180, "mean": 1300, "p95": 1900},
    {"users": 12, "per_minute": 186, "mean": 3800, "p95": 5200},
]
HOSTILE = '"><script>alert(1)</script><img src=http://example.com/x onerror=alert(1)>$\\frac{$'


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three loads that were watched."""
    folder = record(tmp_path_factory.mktemp("loads"), LOADS)
    watched(folder, 210)
    return write(folder)


def page_of(folder: Path) -> Elements:
    return Elements(write(folder).read_text())


def test_a_report_holds_every_plot_and_the_knee(whole: Path) -> None:
    page = Elements(whole.read_text())
    titles = ["Users", "How long a clip takes", "Throughput", "Queue", "Replicas", "Cost of a clip so far", "Errors"]
    drawings = [each["aria-label"] or "" for each in page.named("svg") if each.get("role") == "img"]
    assert all(any(label.startswith(f"{title}:") for label in drawings) for title in titles)
    (marked,) = [place for place, row in enumerate(page.named("tr")) if row.get("class") == "knee"]
    assert marked == 2  # after the head and the load of one user
    assert "Knee4 users" in page.text
    assert "3.1 clips in flight" in page.text  # the best throughput, 3.1 a second, times the one second of one user
    assert "may be at a larger one" not in page.text
    assert "0.001 USD" in page.text and "0.004 USD" in page.text  # what a clip costs, without and with idle time


def test_a_knee_at_the_largest_load_may_be_beyond(tmp_path: Path) -> None:
    text = page_of(record(tmp_path, LOADS[:2])).text
    assert "knee, or beyond" in text and "may be at a larger one" in text


def test_what_clients_bear_is_not_hidden(tmp_path: Path) -> None:
    text = page_of(record(tmp_path, [{"users": 1, "refused": 17}, {"users": 2, "refused": 4}])).text
    assert "Calls tried again21" in text and "submit, tried again after 429" in text


def test_the_services_own_account_goes_before_the_samples(tmp_path: Path) -> None:
    folder = record(tmp_path, LOADS)
    watched(folder)
    sums = {"requests": 9, "successes": 8, "gpu_seconds": 16.0, "cost_usd": 0.8, "loaded_cost_usd": 2.4}
    sums |= {"price_usd": 0.6, "cost_per_video_usd": 0.1, "loaded_cost_per_video_usd": 0.3}
    none = {**dict.fromkeys(sums, 0), "cost_per_video_usd": None, "loaded_cost_per_video_usd": None}
    lines = [{"endpoint_id": HOSTILE, **sums}, {"endpoint_id": "b/b", **none}]
    (folder / "costs.json").write_text(json.dumps({"summary": lines, "totals": sums}))
    page = page_of(folder)
    assert "by the service's account" in page.text and not page.named("script")
    assert all(each in page.text for each in ("2.00 s", "0.8 USD", "0.1 USD", "0.3 USD", "0.6 USD"))


def test_the_last_load_of_a_plot_is_marked(tmp_path: Path) -> None:
    one, three = (write(record(tmp_path / str(len(loads)), loads)).read_text() for loads in (LOADS[:1], LOADS))
    assert three.count("stroke-dasharray: 0.6,0.99") - one.count("stroke-dasharray: 0.6,0.99") == 2 * 4


def test_a_report_fetches_and_runs_nothing(whole: Path) -> None:
    page = Elements(whole.read_text())
    assert not {tag for tag, _ in page.found} & {"script", "link", "img", "iframe", "object", "image", "base"}
    linked = [value for _, each in page.found for name, value in each.items() if name in ("src", "href", "xlink:href")]
    assert all(value and value.startswith("#") for value in linked)
    assert "url(h" not in whole.read_text() and "@import" not in whole.read_text()
    assert "default-src 'none'" in str(page.named("meta"))


def test_no_name_is_used_twice(whole: Path) -> None:
    text = whole.read_text()
    names = re.findall(r'\bid="([^"]+)"', text)
    assert names and len(names) == len(set(names))
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(names)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    failures = [("CLIP", HOSTILE, HOSTILE, 2)]
    loads: list[dict[str, Any]] = [{"users": 1, "line": HOSTILE, "failures": failures, "exceptions": [(1, HOSTILE)]}]
    folder = record(tmp_path, loads, host=HOSTILE, command=HOSTILE, shape=HOSTILE, watched=HOSTILE)
    watched(folder, endpoint=HOSTILE, deployment=HOSTILE)
    page = page_of(folder)
    assert not page.named("script") and not page.named("img")
    assert not [name for _, each in page.found for name in each if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 6


@pytest.mark.parametrize("samples", [True, False])
def test_an_empty_run_says_so(tmp_path: Path, samples: bool) -> None:
    folder = record(tmp_path, [{"users": 1, "per_minute": 0}])
    if samples:
        watched(folder)
    page = write(folder).read_text()
    assert "No clip was asked for" in page
    assert ("Nobody watched the service" in page) != samples
    assert ("<h3>Queue" in page) == samples


def test_a_run_of_failures_says_so_first(tmp_path: Path) -> None:
    failures = [("CLIP", "queue fal-ai/svd", "429: queue_full", 60)]
    text = page_of(record(tmp_path, [{"users": 1, "failed": 60, "failures": failures}])).text
    assert "all 60 failed" in text and "429: queue_full" in text
    assert text.index("all 60 failed") < text.index("Over time")


def test_a_service_that_could_not_be_watched_is_told(tmp_path: Path) -> None:
    folder = record(tmp_path, LOADS[:1])
    (folder / "samples.jsonl").write_text(Sample(1.0, {}, "/metrics answered 403").dump() + "\n")
    assert "told nothing of queue, replicas and cost 1 of 1 times: /metrics answered 403" in page_of(folder).text


def test_an_accelerator_without_a_price_is_told(tmp_path: Path) -> None:
    folder = record(tmp_path, LOADS[:1])
    samples = [
        Sample(1.0 + n, {"successes": {"a/b": n}, "gpu_seconds": {"a/b": 2.0 * n}, "cost_usd": {"a/b": 0.0}})
        for n in range(9)
    ]
    (folder / "samples.jsonl").write_text("".join(f"{each.dump()}\n" for each in samples))
    text = page_of(folder).text
    assert "prices this accelerator at nothing" in text and "2.00" in text


def test_lines_beyond_the_colours_are_summed() -> None:
    lines = {str(n): [(0.0, float(n)), (1.0, 0.0)] for n in range(12)}
    kept = fewer(lines)
    assert len(kept) == MOST_LINES and next(iter(kept)) == "11"
    assert kept[OTHERS] == [(0.0, float(sum(range(5)))), (1.0, 0.0)]
    assert fewer(dict(list(lines.items())[:MOST_LINES])).keys() == set(list(lines)[:MOST_LINES])


def test_times_and_amounts_read_well() -> None:
    assert [clock(second) for second in (0, 65, 7210)] == ["0:00", "1:05", "2:00:10"]
    assert [usd(value) for value in (0, None, 0.000123, 0.225, 1234.5)] == [
        "0.00 USD",
        "-",
        "0.000123 USD",
        "0.225 USD",
        "1,234.50 USD",
    ]


async def test_a_phone_shows_all_of_it(tmp_path: Path, whole: Path) -> None:
    async with open_browser(tmp_path / "profile") as browser:
        await browser.call(
            "Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True
        )
        await browser.open(whole.as_uri())
        await browser.wait_for("document.querySelectorAll('figure svg[role=img]').length >= 7")
        assert await browser.value("document.documentElement.scrollWidth") <= 360
        drawn = "document.querySelector('figure svg[role=img]').getBoundingClientRect()"
        assert await browser.value(f"{drawn}.width") > 300
        assert await browser.value(f"{drawn}.height") > 120
        for scheme, ink in (("light", "rgb(28, 31, 35)"), ("dark", "rgb(232, 234, 237)")):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            await browser.call("Emulation.setEmulatedMedia", features=features)
            assert await browser.value("getComputedStyle(document.querySelector('figure svg text')).fill") == ink
        assert browser.complaints == []
