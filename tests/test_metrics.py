"""How metrics are named, and where what is measured goes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from deployments import metrics
from deployments.metrics import Counter, Gauge, Histogram, Metric, RaySink
from tests.observing import Kept

ALL = (*metrics.OF_THE_ROWS, *metrics.OF_A_PROCESS)
OF_RAY = {"application", "deployment", "replica", "NodeAddress", "SessionName", "Version", "WorkerId", "le", "quantile"}
UNITS = ("_seconds", "_bytes", "_usd")
COUNTED = ("_waiting", "_running", "_replicas", "_files", "_up", "_received", "_ended", "_lost", "_size", "_memory")


def test_every_metric_is_declared_once() -> None:
    declared = [each for each in vars(metrics).values() if isinstance(each, Metric)]
    assert {each.name for each in declared} == {each.name for each in ALL}
    assert len(declared) == len(ALL) == len({each.name for each in ALL})


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_names_are_prometheus_own(metric: Metric) -> None:
    assert re.fullmatch("svd(_[a-z]+)+", metric.name)
    assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert metric.name.endswith((*UNITS, *COUNTED, "_requests"))
    assert metric.help.endswith(".") and "\n" not in metric.help
    if isinstance(metric, Histogram):
        assert list(metric.buckets) == sorted(set(metric.buckets)) and metric.buckets[0] > 0


@pytest.mark.parametrize("metric", metrics.OF_A_PROCESS, ids=lambda metric: metric.name)
def test_no_label_of_ours_is_one_of_rays(metric: Metric) -> None:
    assert not set(metric.labels) & OF_RAY


def test_what_is_measured_goes_to_the_sink(kept: Kept) -> None:
    metrics.OUT_OF_MEMORY.inc(model="a")
    metrics.DEVICE_BUSY.inc(2.5, model="a")
    metrics.GPU_MEMORY.set(7, model="a", kind="reserved")
    metrics.BATCH_SIZE.observe(4, model="a")

    assert kept.measures == [
        ("svd_out_of_memory", 1.0, {"model": "a"}),
        ("svd_device_busy_seconds", 2.5, {"model": "a"}),
        ("svd_gpu_memory_bytes", 7, {"model": "a", "kind": "reserved"}),
        ("svd_batch_size", 4, {"model": "a"}),
    ]


def test_what_fails_is_not_timed(kept: Kept) -> None:
    with metrics.ENCODE_SECONDS.timed(model="a"):
        pass
    with pytest.raises(OSError), metrics.ENCODE_SECONDS.timed(model="a"):
        raise OSError

    [seconds] = kept.values(metrics.ENCODE_SECONDS)
    assert 0 <= seconds < 60


def test_without_a_sink_nothing_is_measured_and_nothing_imported() -> None:
    code = (
        "import sys, deployments.metrics as metrics; metrics.BATCH_SIZE.observe(1, model='a');"
        "print(sorted({'ray', 'torch', 'prometheus_client'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ray_takes_every_kind_as_it_was_declared(kept: Kept) -> None:
    sink = RaySink()
    metrics.send_to(sink)
    metrics.OUT_OF_MEMORY.inc(0.0, model="a")  # which Ray's own counters refuse: see ``RaySink``
    metrics.GPU_MEMORY.set(1.0, model="a", kind="reserved")
    metrics.HTTP_SECONDS.observe(0.2, route="/")

    opened = {name: instrument.info for name, instrument in sink._instruments.items()}
    assert {name: info["tag_keys"] for name, info in opened.items()} == {
        "svd_out_of_memory": ("model",),
        "svd_gpu_memory_bytes": ("model", "kind"),
        "svd_http_seconds": ("route",),
    }
    assert opened["svd_http_seconds"]["boundaries"] == list(metrics.HTTP_SECONDS.buckets)


def test_what_cannot_be_measured_is_told_once_and_harms_nobody(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    metrics.send_to(RaySink())
    for _ in range(3):
        metrics.OUT_OF_MEMORY.inc(endpoint="a")  # a label that is not declared

    [told] = caplog.records
    assert told.getMessage() == "svd_out_of_memory could not be measured"
    assert "Missing value for tag key" in str(told.exc_info)


def test_the_readme_names_every_metric() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()

    def told(metric: Metric, prefix: str) -> str:
        kind = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}[type(metric)]
        name = f"{prefix}{metric.name}{'_total' if kind == 'counter' else ''}"
        return f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in metric.labels) or '–'} |"  # noqa: RUF001

    lines = [told(metric, "") for metric in metrics.OF_THE_ROWS]
    lines += [told(metric, "ray_") for metric in metrics.OF_A_PROCESS]
    assert [line for line in lines if line not in readme] == []
