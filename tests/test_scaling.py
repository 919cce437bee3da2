"""How many replicas there are: the policy's arithmetic, what it does in Serve's controller, and a service that scales.

The service has two GPUs that only Ray knows of: where replicas are placed is real, what they compute on is the CPU.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentID
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments import app, scaling
from deployments.inference.presence import PATIENCE_SECONDS, REPORT_SECONDS
from deployments.queue import demand as demand_of
from deployments.queue.demand import Demand
from deployments.queue.store import RequestStore
from deployments.scaling import POLICY, DemandPolicy, check, replicas_for
from tests import tiny
from tests.conftest import Server, free_port, start_server, stop_server
from tests.faulty import DAWDLES, LINGERS
from tests.queue.conftest import MODEL, bring_back, new_request, take_away
from tests.queue.past import ended
from tests.test_crashes import attempts, call, result, submit, until

# ---------------------------------------------------------------- the arithmetic

demands = st.builds(
    Demand,
    waiting=st.integers(0, 20_000),
    running=st.integers(0, 200),
    batch_seconds=st.none() | st.floats(0.01, 5000),
    batch_size=st.floats(1, 32),
)
seconds = st.floats(0.1, 5000)
replicas = st.integers(0, 100)


@given(demands, replicas, seconds, seconds)
def test_busy_replicas_are_kept_and_none_only_where_there_is_no_work(
    demand: Demand, replicas: int, target: float, assumed: float
) -> None:
    wanted = replicas_for(demand, replicas, target, assumed)
    assert wanted >= min(demand.running, replicas)
    assert (wanted == 0) == (not demand.waiting and not demand.running)


@given(demands, replicas, seconds, seconds, st.integers(0, 50), st.integers(0, 50))
def test_more_work_never_gets_fewer_replicas(
    demand: Demand, replicas: int, target: float, assumed: float, waiting: int, running: int
) -> None:
    more = replace(demand, waiting=demand.waiting + waiting, running=demand.running + running)
    assert replicas_for(more, replicas, target, assumed) >= replicas_for(demand, replicas, target, assumed)


@given(demands, replicas, seconds, seconds)
def test_all_that_waits_begins_in_time_and_no_replica_is_too_many(
    demand: Demand, replicas: int, target: float, assumed: float
) -> None:
    """By counting: a replica that is not busy begins a batch every so many seconds, a busy one after its own."""
    wanted = replicas_for(demand, replicas, target, assumed)
    each = demand.batch_seconds or assumed
    batches = math.ceil(demand.waiting / demand.batch_size)
    busy = min(demand.running, max(1, replicas))

    def work(others: int) -> float:
        return busy * max(0.0, target - each) + others * target

    idle = wanted - busy
    assert idle == batches or work(idle) >= batches * each * (1 - 1e-9)
    assert idle == 0 or work(idle - 1) < batches * each


@pytest.mark.parametrize(
    ("waiting", "running", "replicas", "wanted"),
    [
        (0, 0, 0, 0),
        (1, 0, 0, 1),
        (6, 0, 0, 3),  # 6 batches of a minute in two minutes
        (6, 0, 3, 3),
        (1, 1, 1, 1),  # the busy one gets to it in time
        (2, 1, 1, 2),
        (0, 2, 1, 1),  # one denoises and one is prepared, on one replica
        (0, 2, 4, 2),
        (0, 1, 0, 1),
    ],
)
def test_a_few_numbers_by_hand(waiting: int, running: int, replicas: int, wanted: int) -> None:
    assert replicas_for(Demand(waiting, running, 60.0), replicas, target_seconds=120, batch_seconds=1) == wanted


def test_a_batch_that_takes_longer_than_anybody_may_wait_gets_one_replica_not_several() -> None:
    assert replicas_for(Demand(3, 0, 600.0), 0, target_seconds=60, batch_seconds=1) == 3


def test_requests_that_share_a_batch_share_a_replica() -> None:
    assert replicas_for(Demand(8, 0, 120.0, batch_size=4.0), 0, target_seconds=120, batch_seconds=1) == 2


# ---------------------------------------------------------------- in the controller


def context(
    current: int = 0, target: int = 0, deployment: str = MODEL, config: AutoscalingConfig | None = None
) -> AutoscalingContext:
    return AutoscalingContext(
        deployment_id=DeploymentID(deployment, "svd-serve"),
        deployment_name=deployment,
        app_name="svd-serve",
        current_num_replicas=current,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=0,
        total_queued_requests=0,
        aggregated_metrics={},
        raw_metrics={},
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=9,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=config,
    )


@pytest.fixture
def own_database(monkeypatch: pytest.MonkeyPatch, database_url: str) -> str:
    monkeypatch.setattr(scaling, "READ_SECONDS", 0.02)
    monkeypatch.setenv("SVD_DATABASE_URL", database_url)
    return database_url


async def decided(policy: Any, wanted: int, ctx: AutoscalingContext) -> None:
    """Return once the policy says so."""
    async with asyncio.timeout(20):
        while policy(ctx) != (wanted, {}):
            await asyncio.sleep(0.01)


async def read_anew(policy: DemandPolicy) -> None:
    """Return once the rows have been read that there are now: the second reading from now on has begun after it."""
    assert policy._watch
    async with asyncio.timeout(20):
        for _ in range(2):
            read_at = policy._watch._read_at
            while policy._watch._read_at == read_at:
                await asyncio.sleep(0.01)


def watches() -> set[threading.Thread]:
    """Those of earlier tests may take a moment to end."""
    return {each for each in threading.enumerate() if each.name.startswith("demand of")}


@pytest.mark.usefixtures("own_database")
async def test_the_number_follows_the_rows_also_while_the_database_is_away(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = DemandPolicy(target_seconds=10, batch_seconds=10)
    assert policy(context(target=7)) == (7, {}), "nothing has been read yet"
    await decided(policy, 0, context(target=7))
    for _ in range(3):
        await store.submit(new_request())
    await decided(policy, 3, context())

    await take_away(store)
    async with asyncio.timeout(20):
        while policy._watch and policy._watch._read_at > time.monotonic() - 0.5:
            await asyncio.sleep(0.01)
    assert policy(context(current=7, target=7)) == (3, {}), "what was read last is believed for a while"
    assert "stays as it is" not in caplog.text
    monkeypatch.setattr(scaling, "STALE_SECONDS", 0.5)
    assert policy(context(current=7, target=7)) == (7, {})
    async with asyncio.timeout(20):
        while "stays as it is" not in caplog.text:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)  # for a second time, which does not come
    assert caplog.text.count("stays as it is") == 1

    monkeypatch.setattr(scaling, "STALE_SECONDS", 30.0)
    await bring_back(store)
    await store.submit(new_request())
    await decided(policy, 4, context())


@pytest.mark.usefixtures("own_database")
async def test_a_model_whose_batches_are_rare_is_known_by_its_last(
    store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand_of, "LOOK_BACK", 2)
    for _ in range(4):
        await store.submit(new_request())
    await ended(store, 100.0, model=MODEL, gpu_seconds=20.0, batch_size=1)
    policy = DemandPolicy(target_seconds=20, batch_seconds=5)
    await decided(policy, 4, context())
    for at in (101.0, 102.0):
        await ended(store, at, model="another", gpu_seconds=1.0, batch_size=1)
    await read_anew(policy)
    assert policy(context()) == (4, {})


@pytest.mark.usefixtures("own_database")
@pytest.mark.parametrize(("waiting", "wanted"), [(1, 4), (9, 9)])
async def test_where_none_runs_just_now_none_is_taken_back_at_once(
    store: RequestStore, waiting: int, wanted: int
) -> None:
    """As Serve calls it: replicas that start, are reconfigured or were found again by a new controller do not run."""
    for _ in range(waiting):
        await store.submit(new_request())
    policy = DemandPolicy(target_seconds=10, batch_seconds=10)
    as_serve_does = _apply_autoscaling_config(policy)
    ctx = context(target=4, config=AutoscalingConfig(min_replicas=0, max_replicas=9, downscale_delay_s=300.0))
    async with asyncio.timeout(20):
        while not policy._watch or not policy._watch.newest():
            as_serve_does(ctx)
            await asyncio.sleep(0.01)
    assert as_serve_does(ctx)[0] == wanted


@pytest.mark.usefixtures("own_database")
async def test_its_thread_ends_with_it(store: RequestStore) -> None:
    before = watches()
    policy = DemandPolicy()
    await decided(policy, 0, context())
    (mine,) = watches() - before
    assert mine.daemon, "the controller's process need not wait for it"
    del policy
    gc.collect()
    async with asyncio.timeout(20):
        while mine.is_alive():
            await asyncio.sleep(0.01)


def test_a_wrong_environment_stops_no_controller_and_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scaling, "READ_SECONDS", 0.02)
    monkeypatch.setattr(scaling, "STALE_SECONDS", 0.1)
    monkeypatch.setenv("SVD_ADMIN_KEY", "a-secret-without-an-id")
    policy = DemandPolicy()
    give_up = time.monotonic() + 20
    while "stays as it is" not in caplog.text:
        assert policy(context(current=2, target=3)) == (3, {})
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert "ValidationError" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target_seconds": 0}, "target_seconds is a number above zero"),
        ({"batch_seconds": -1}, "batch_seconds is a number above zero"),
        ({"max_running_per_key": 0}, "max_running_per_key is a number above zero"),
        ({"target_seconds": math.nan}, "target_seconds is a number above zero"),
        ({"target_seconds": "fast"}, "not supported"),
        ({"target": 1}, "unexpected keyword argument 'target'"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_starts_and_stop_no_controller(
    options: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    deployment = {"name": "a", "autoscaling_config": autoscaling(2, **options)}
    with pytest.raises(ValueError, match=why) as refused:
        check([deployment])
    assert "a: policy_kwargs" in str(refused.value)
    before = watches()
    policy = DemandPolicy(**options)
    assert policy(context(current=2, target=3)) == (3, {})
    assert why in caplog.text
    assert not watches() - before


def test_what_has_another_policy_or_none_is_not_ours_to_check() -> None:
    other = {
        "policy": {
            "policy_function": "ray.serve.autoscaling_policy:default_autoscaling_policy",
            "policy_kwargs": {"a": 1},
        }
    }
    configs = [None, {}, {"min_replicas": 0}, other, autoscaling(2)]
    check([{"name": "a"}, *({"name": "a", "autoscaling_config": each} for each in configs)])


async def test_a_model_is_empty_where_no_replica_of_it_takes_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def count_replicas() -> dict[str, dict[str, int]]:
        states = ("RUNNING", "PENDING_MIGRATION", "STARTING", "STOPPING", "RECOVERING")
        return {"none": {}, **{state: {state: 1} for state in states}, "zero": {"RUNNING": 0}}

    monkeypatch.setattr(app, "count_replicas", count_replicas)
    assert await app.find_empty() == {"none", "STARTING", "STOPPING", "RECOVERING", "zero"}


# ---------------------------------------------------------------- a service that scales


FIRST, SECOND, LARGE = "test/first", "test/second", "test/large"
ANIMATOR, PROMPT = "fal-ai/fast-svd-lcm", "fal-ai/fast-svd-lcm/text-to-video"
SOON_FORGOTTEN = {"look_back_period_s": 2.0, "metrics_interval_s": 1.0}
"""Else what Serve has noted of the last requests would start a replica again."""
MOST = 3
SHORT, LONG = 6, 15
"""Steps of half a second, and of two."""


def autoscaling(most: int, **options: Any) -> dict[str, Any]:
    """From nothing to ``most`` and back in seconds."""
    delays = {"upscale_delay_s": 0.5, "downscale_delay_s": 1.0, "downscale_to_zero_delay_s": 6.0}
    policy = {"policy_function": POLICY, "policy_kwargs": {"target_seconds": 3.0, "batch_seconds": 3.0} | options}
    return {"min_replicas": 0, "max_replicas": most, "policy": policy} | delays


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Five deployments, all scaled to zero, on a machine with two GPUs as Ray sees it."""
    folder = tmp_path_factory.mktemp("scaling")
    document = tiny.document()
    (application,) = document["applications"]
    endpoints = application["args"]["endpoints"]
    placed = {
        id: {"model": "tests.faulty:Placed", "weights": str(weights_of(folder, id)), "sizes": ["112x64"]}
        for id in (FIRST, SECOND, LARGE)
    }
    application["args"]["endpoints"] = placed | {id: endpoints[id] for id in (ANIMATOR, PROMPT)}
    kept = [each for each in application["deployments"] if each["name"] in ("Gateway", "Dispatcher")]
    next(each for each in kept if each["name"] == "Dispatcher")["user_config"] |= {"batching": {}}
    shares = {FIRST: 0.5, SECOND: 0.5, LARGE: 0.75, ANIMATOR: 0, PROMPT: 0}
    application["deployments"] = kept + [
        {
            "name": id.replace("/", "--"),
            "ray_actor_options": {"num_cpus": 0, "num_gpus": share},
            "autoscaling_config": autoscaling(MOST if id == FIRST else 1) | SOON_FORGOTTEN,
        }
        for id, share in shares.items()
    ]
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    for id in placed:
        weights_of(folder, id).touch()
    environment = {"RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": 2}), "SVD_GRACE_SECONDS": "40"}
    environment["SVD_GPU_HOURLY_USD"] = "3.6"
    server = start_server(folder, free_port(), folder / "config.yaml", environment)
    yield server
    stop_server(server)


def weights_of(folder: Path, endpoint: str) -> Path:
    return folder / endpoint.replace("/", "-")


def replicas_of(server: Server, endpoint: str) -> set[int]:
    """The process ids of a model's replicas."""
    title = f"ServeReplica:svd-serve:{endpoint.replace('/', '--')}"
    found = set()
    for each in psutil.Process(server.process.pid).children(recursive=True):
        try:
            found |= {each.pid} if each.cmdline() and each.cmdline()[0].endswith(title) else set()
        except psutil.NoSuchProcess:
            continue
    return found


def places(server: Server, endpoint: str) -> set[str]:
    """On which devices replicas of a model have been, in their own words."""
    weights = weights_of(server.data_dir, endpoint)
    return {each.read_text() for each in weights.parent.glob(f"{weights.name}.*")}


def is_ready(server: Server) -> bool:
    return call(server, "GET", "/health/ready").status_code == 200


def status(server: Server, endpoint: str, request_id: str) -> str:
    return str(call(server, "GET", f"/queue/{endpoint}/requests/{request_id}/status").json()["status"])


def test_replicas_come_with_the_work_and_go_with_it(service: Server) -> None:
    assert not replicas_of(service, FIRST)
    burst = [submit(service, FIRST, DAWDLES, SHORT) for _ in range(6)]
    until(lambda: len(replicas_of(service, FIRST)) == MOST)
    assert is_ready(service)
    long = submit(service, FIRST, LINGERS, LONG)
    for each in burst:
        assert result(service, FIRST, each).status_code == 200

    until(lambda: len(replicas_of(service, FIRST)) < MOST)
    assert is_ready(service)
    assert status(service, FIRST, long) == "IN_PROGRESS", "it is too short for this test"
    assert result(service, FIRST, long).status_code == 200
    assert {attempts(service, FIRST, each) for each in (long, *burst)} == {1}

    until(lambda: not replicas_of(service, FIRST))
    assert is_ready(service)


def test_models_share_a_gpu_as_far_as_their_shares_go(service: Server) -> None:
    until(lambda: not replicas_of(service, FIRST))
    for file in service.data_dir.glob(f"{weights_of(service.data_dir, FIRST).name}.*"):
        file.unlink()
    running = {endpoint: submit(service, endpoint, DAWDLES, 2 * SHORT) for endpoint in (FIRST, SECOND, LARGE)}
    for endpoint, request_id in running.items():
        assert result(service, endpoint, request_id).status_code == 200
    (first,), (second,), (large,) = (places(service, endpoint) for endpoint in running)
    assert first == second
    assert {first, large} == {"cpu [0]", "cpu [1]"}


def test_a_painter_comes_with_the_prompts_and_goes_with_them(service: Server) -> None:
    assert not replicas_of(service, ANIMATOR)
    assert not replicas_of(service, PROMPT)
    answer = call(service, "POST", f"/queue/{PROMPT}", json={"prompt": "a river"}).raise_for_status()
    until(lambda: replicas_of(service, PROMPT))
    assert result(service, PROMPT, answer.json()["request_id"]).status_code == 200
    until(lambda: not replicas_of(service, PROMPT) and not replicas_of(service, ANIMATOR))


def loaded(server: Server) -> dict[str, tuple[float, float]]:
    """Seconds of replicas and what they have cost, of each deployment that had any."""
    replicas = call(server, "GET", "/v1/costs", params={"expand": "replicas"}).raise_for_status().json()["replicas"]
    return {each["deployment"]: (each["replica_seconds"], each["loaded_cost_usd"]) for each in replicas}


def test_replicas_cost_their_share_of_a_gpu_while_they_are_there(service: Server) -> None:
    running = {endpoint: submit(service, endpoint, DAWDLES, SHORT) for endpoint in (SECOND, LARGE)}
    for endpoint, request_id in running.items():
        assert result(service, endpoint, request_id).status_code == 200
    until(lambda: not any(replicas_of(service, endpoint) for endpoint in (FIRST, SECOND, LARGE, ANIMATOR, PROMPT)))
    time.sleep(PATIENCE_SECONDS)  # the last word of a replica may be on its way to the rows when its process has ended
    costs = loaded(service)

    for endpoint, share in ((SECOND, 0.5), (LARGE, 0.75)):
        seconds, cost = costs[endpoint.replace("/", "--")]
        assert seconds > SHORT / 2
        assert abs(cost - seconds * share * 3.6 / 3600) < 1e-8
    time.sleep(REPORT_SECONDS)
    assert loaded(service) == costs, "what has gone costs no more"
