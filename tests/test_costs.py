from __future__ import annotations

import time
from datetime import UTC, datetime

import httpx
from hypothesis import given
from hypothesis import strategies as st

from deployments.costs import MICRO, NANO, nano_usd, share
from tests.conftest import Server

SVD, TEXT_TO_VIDEO = "fal-ai/svd", "fal-ai/fast-svd-lcm/text-to-video"
DEPLOYMENTS = 4
MONEY = ("cost_usd", "loaded_cost_usd", "price_usd", "cost_per_video_usd", "loaded_cost_per_video_usd")

micros = st.integers(0, 10**12)
weights = st.lists(st.integers(0, 10**10), min_size=1, max_size=40)


@given(micros, weights)
def test_shares_are_whole_and_add_up_whatever_the_batch(total: int, weights: list[int]) -> None:
    parts = share(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        if any(weights):
            assert abs(part * sum(weights) - total * weight) < sum(weights)  # less than one from its due


def test_what_is_left_goes_to_the_largest_remainders() -> None:
    assert share(10, [1, 1, 1]) == [4, 3, 3]
    assert share(7, [6, 3, 1]) == [4, 2, 1]  # 4.2, 2.1, 0.7
    assert share(5, [0, 0]) == [3, 2]  # where nothing was done, each is as good as the other
    assert share(0, [1, 2]) == [0, 0]


def test_an_hour_costs_its_rate() -> None:
    assert nano_usd(3600 * MICRO, 2.99) == 2_990_000_000
    assert nano_usd(1 * MICRO, 3.6) == NANO // 1000
    assert nano_usd(1 * MICRO, 3.6 * 0.25) == NANO // 4000
    assert nano_usd(10**9, 0.0) == 0


@given(st.lists(micros, min_size=1, max_size=20), st.floats(0, 100))
def test_the_cost_of_shares_is_that_of_their_sum_to_half_a_nano_dollar_each(parts: list[int], rate: float) -> None:
    assert abs(sum(nano_usd(part, rate) for part in parts) - nano_usd(sum(parts), rate)) <= (len(parts) + 1) / 2


def test_a_running_service_knows_what_its_clips_and_replicas_cost(server: Server) -> None:
    """On a CPU for which 3.60 USD an hour are paid: a microsecond is a nano dollar."""
    key = {"authorization": f"Key {server.key}"}
    window = {"expand": "summary,replicas", "start": datetime.now(UTC).isoformat()}  # others had attempts that failed
    with httpx.Client(base_url=server.url, headers=key, timeout=120) as client:
        picture = f"{server.url}/files/samples/landscape.jpg"
        for endpoint, input in ((SVD, {"image_url": picture, "steps": 2}), (TEXT_TO_VIDEO, {"prompt": "a red boat"})):
            reply = client.post(f"/{endpoint}", json=input)
            assert reply.status_code == 200, reply.text
        asked = {"endpoint_id": [SVD, TEXT_TO_VIDEO], "limit": 2}
        items = client.get("/v1/models/requests/search", params=asked).json()["items"]
        while len(replicas := (answer := client.get("/v1/costs", params=window).json())["replicas"]) < DEPLOYMENTS:
            time.sleep(0.5)  # until the last of them has reported

    assert {item["endpoint_id"] for item in items} == {SVD, TEXT_TO_VIDEO}
    for item in items:
        assert item["cost"] > 0
        assert item["margin"] == round(item["price"] - item["cost"], 9)
    totals, lines = answer["totals"], answer["summary"]
    assert round(totals["cost_usd"] * NANO) == round(totals["gpu_seconds"] * MICRO)
    assert round(totals["loaded_cost_usd"] * NANO) == round(sum(each["replica_seconds"] for each in replicas) * MICRO)
    for name in ("cost_usd", "loaded_cost_usd", "price_usd"):
        assert round(totals[name] * NANO) == sum(round(line[name] * NANO) for line in lines)
    assert totals["loaded_cost_usd"] > totals["cost_usd"]
    for line in (*lines, {"endpoint_id": "all of them", **totals}):
        print({name: line[name] for name in ("endpoint_id", "successes", "gpu_seconds", *MONEY)})
