"""What a load test reads of the service's metrics, from the service itself and from a real Prometheus."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest.monitoring import PROMETHEUS, Prometheus, Target
from loadtest.report import write
from loadtest.watch import Watch, ask_costs, ask_prometheus, grown, load_samples, over_time, ratio, read_metrics, summed
from tests.conftest import free_port, need
from tests.loadtest.recorded import record

PATIENCE_SECONDS = 60.0
TEXT = """\
# HELP svd_requests_waiting Requests that wait in the queue.
# TYPE svd_requests_waiting gauge
svd_requests_waiting{endpoint="fal-ai/svd",priority="normal"} 3
svd_requests_waiting{endpoint="fal-ai/svd",priority="low"} 2
svd_requests_waiting{endpoint="fal-ai/stable-video",priority="normal"} 1
# HELP svd_replicas Replicas.
# TYPE svd_replicas gauge
svd_replicas{deployment="fal-ai--svd",state="RUNNING"} 2
svd_replicas{deployment="fal-ai--svd",state="STARTING"} 1
# HELP svd_requests_ended Requests that ended.
# TYPE svd_requests_ended counter
svd_requests_ended_total{endpoint="fal-ai/svd",outcome="success"} 40
svd_requests_ended_total{endpoint="fal-ai/svd",outcome="error"} 7
# HELP svd_cost_usd Cost.
# TYPE svd_cost_usd counter
svd_cost_usd_total{endpoint="fal-ai/svd"} 0.25
# HELP other Something else.
# TYPE other gauge
other 1
"""


@contextlib.contextmanager
def telling(text: str, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """A service that tells this text; yields its URL and the keys that it was asked with."""
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("authorization", ""))
            body = text.encode()
            self.send_response(status)
            self.send_header("content-type", "text/plain; version=0.0.4")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *ignored: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{service.server_port}", keys
        finally:
            service.shutdown()
            thread.join()


def test_priorities_are_summed_and_only_what_counts_is_kept() -> None:
    sample = read_metrics(TEXT, 1.0)
    assert sample.values["waiting"] == {"fal-ai/svd": 5, "fal-ai/stable-video": 1}
    assert sample.values["replicas"] == {"fal-ai--svd": 2}
    assert sample.values["successes"] == {"fal-ai/svd": 40}
    assert sample.values["cost_usd"] == {"fal-ai/svd": 0.25}
    assert sample.values["loaded_cost_usd"] == {}


def test_the_service_is_asked_with_the_key(tmp_path: Path) -> None:
    with telling(TEXT) as (url, keys), Watch(url, "a:b", tmp_path / "samples.jsonl"):
        pass
    (sample, *_) = load_samples(tmp_path / "samples.jsonl")
    assert set(keys) == {"Key a:b"} and summed([sample], "waiting") == [(sample.at, 6)]


@pytest.mark.parametrize(("text", "status", "problem"), [("", 403, "403"), ('svd_replicas{a="', 200, "format")])
def test_a_service_that_does_not_tell_is_told(tmp_path: Path, text: str, status: int, problem: str) -> None:
    with telling(text, status) as (url, _), Watch(url, "a:b", tmp_path / "samples.jsonl"):
        pass
    assert problem in load_samples(tmp_path / "samples.jsonl")[0].problem


def test_a_service_that_is_away_is_told(tmp_path: Path) -> None:
    with Watch(f"http://127.0.0.1:{free_port()}", "a:b", tmp_path / "samples.jsonl"):
        pass
    assert "did not answer" in load_samples(tmp_path / "samples.jsonl")[0].problem
    assert load_samples(tmp_path / "none.jsonl") == []


def test_a_counter_begins_again_at_midnight() -> None:
    assert grown([(0, 90.0), (1, 95.0), (2, 2.0), (3, 4.0)]) == [(0, 0), (1, 5), (2, 7), (3, 9)]
    assert grown([]) == []


def test_a_ratio_is_told_where_both_are_known() -> None:
    assert ratio([(1, 6.0), (2, 6.0), (3, 6.0)], [(1, 0.0), (2, 3.0)]) == [(2, 2.0)]


def test_a_real_prometheus_tells_the_same(tmp_path: Path) -> None:
    need(PROMETHEUS[0])
    with telling(TEXT) as (url, _):
        prometheus = Prometheus(tmp_path / "prometheus", [Target("svd-serve", url.removeprefix("http://"))])
        prometheus.start()
        try:
            began = time.time()
            while not (waiting := prometheus.query("svd_requests_waiting")):
                assert time.time() < began + PATIENCE_SECONDS
                time.sleep(0.1)
            assert len(waiting) == 3
            samples = ask_prometheus(prometheus.url, began - 10, time.time() + 2)
            with pytest.raises(OSError, match="cannot answer"):
                ask_prometheus(prometheus.url, 10, 0)
        finally:
            prometheus.stop()
    told = read_metrics(TEXT, samples[-1].at)
    kept = {name: values for name, values in told.values.items() if values}
    assert samples[-1].values == kept
    assert over_time(samples, "replicas").keys() == {"fal-ai--svd"}
    folder = record(tmp_path / "run", [{"users": 1}], watched=f"Prometheus at {prometheus.url}")
    (folder / "samples.jsonl").write_text("".join(f"{each.dump()}\n" for each in samples))
    page = write(folder).read_text()
    assert f"Prometheus at {prometheus.url}" in page and "waiting: fal-ai/svd at most 5" in page


def test_a_prometheus_that_is_away_is_told() -> None:
    with pytest.raises(OSError, match="does not answer"):
        ask_prometheus(f"http://127.0.0.1:{free_port()}", 0, 1)


def test_costs_are_not_told_to_everybody() -> None:
    with telling('{"detail": "no"}', 403) as (url, _):
        assert ask_costs(url, "a:b", 0, 1) is None
    assert ask_costs(f"http://127.0.0.1:{free_port()}", "a:b", 0, 1) is None
