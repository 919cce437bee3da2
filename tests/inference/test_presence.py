"""A replica's word that it is there, as a dispatcher hears it."""

from __future__ import annotations

import asyncio

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import ReplicaUnavailableError

from deployments.inference import presence as presence_module
from deployments.inference.presence import Presence, find_hardware
from deployments.models.messages import Hardware, ReplicaReport

REPORT = ReplicaReport("one", "fal-ai/svd", "fal-ai--svd", "H100", 0.5, age_seconds=30.0)


class Ears:
    """Those who are told, and who fail sometimes."""

    def __init__(self, *failures: BaseException | None) -> None:
        self.failures = list(failures)
        self.heard: list[ReplicaReport] = []
        self.called = asyncio.Condition()

    async def __call__(self, report: ReplicaReport) -> None:
        async with self.called:
            self.called.notify_all()
        if self.failures and (failure := self.failures.pop(0)):
            raise failure
        self.heard.append(report)

    async def hear(self, count: int) -> None:
        async with asyncio.timeout(10), self.called:
            await self.called.wait_for(lambda: len(self.heard) >= count)


async def test_a_replica_is_reported_again_and_again_and_once_at_its_end() -> None:
    ears = Ears()
    presence = Presence(REPORT, ears, report_seconds=0.001)
    presence.start()
    await ears.hear(3)
    await presence.stop()
    count = len(ears.heard)
    await asyncio.sleep(0.02)  # for another, which does not come

    assert len(ears.heard) == count
    ages = [report.age_seconds for report in ears.heard]
    assert ages == sorted(ages)
    assert 30.0 <= ages[0] < 31.0
    assert {report.replica_id for report in ears.heard} == {"one"}


async def test_a_report_that_fails_is_followed_by_the_next() -> None:
    """However it fails. Serve cancels what is awaited where the one who was told goes away with it."""
    by_serve = (ActorDiedError(), ReplicaUnavailableError("no dispatcher"), asyncio.CancelledError())
    ears = Ears(*by_serve, TimeoutError(), RuntimeError("the loop is closed"))
    presence = Presence(REPORT, ears, report_seconds=0.001)
    presence.start()
    await ears.hear(1)
    await presence.stop()
    assert ears.failures == []


async def test_the_end_does_not_wait_for_a_dispatcher_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "LAST_SECONDS", 0.01)
    called = asyncio.Event()

    async def never(report: ReplicaReport) -> None:
        called.set()
        await asyncio.Event().wait()

    presence = Presence(REPORT, never)
    presence.start()
    await called.wait()
    async with asyncio.timeout(5):
        await presence.stop()


class Context:
    """What Ray says of a process."""

    def __init__(self, gpus: float, accelerator: str | None = None) -> None:
        self.gpus, self.accelerator = gpus, accelerator

    def get_assigned_resources(self) -> dict[str, float]:
        return {"CPU": 1.0, "GPU": self.gpus} if self.gpus else {"CPU": 1.0}

    def get_node_labels(self) -> dict[str, str]:
        return {presence_module.ACCELERATOR_TYPE: self.accelerator} if self.accelerator else {}


@pytest.mark.parametrize(
    ("context", "hardware"),
    [
        (Context(0.0, "H100"), Hardware("CPU", 1.0)),
        (Context(0.25, "H100"), Hardware("H100", 0.25)),
        (Context(2.0, "L4"), Hardware("L4", 2.0)),
        (Context(0.5), Hardware("CPU", 0.5)),
    ],
)
def test_hardware_is_what_ray_gave(context: Context, hardware: Hardware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_module, "_name_of_gpu", lambda: "CPU")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert find_hardware() == hardware


def test_the_label_is_rays_own() -> None:
    assert ray._raylet.RAY_NODE_ACCELERATOR_TYPE_KEY == presence_module.ACCELERATOR_TYPE
