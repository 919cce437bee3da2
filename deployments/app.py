"""The composition root: the only file that knows every deployment.

What ``bind`` receives is pickled into Serve's state, so it is told how to open a store, never a URL with a password:
the ``open_…`` functions read ``Settings`` in the process that needs them.

Annotations are not postponed here: Serve reads ``build_app``'s to know what to check ``args`` against.
"""

import asyncio
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus
from starlette.types import ASGIApp

from deployments import cluster, logs, metrics, tracing
from deployments.errors import Unavailable
from deployments.gateway.api import create_api
from deployments.inference.decoder.pool import Decoder
from deployments.inference.device import open_device
from deployments.inference.fetch import FileSource
from deployments.inference.presence import Presence, find_hardware
from deployments.inference.replica import PictureReplica, VideoReplica
from deployments.models.base import Endpoint, VideoModel
from deployments.models.messages import Hardware, ReplicaReport
from deployments.models.text_to_video import TextToVideo
from deployments.models.tuning import keep_compiled
from deployments.queue.database import refuse_out_of_reach
from deployments.queue.dispatcher import Dispatcher
from deployments.queue.store import RequestStore
from deployments.queue.tariff import Tariff
from deployments.queue.webhooks import Sender
from deployments.settings import AppArgs, Settings
from deployments.storage import FileStorage

DISPATCHER = "Dispatcher"
GATEWAY = "Gateway"
BATCHES_ON_A_REPLICA = 2
"""One batch denoises while the next prepares."""

STEP_SECONDS = 0.2
"""How often a replica that is to end looks whether it still works on something."""

GIVING_BACK_SECONDS = 20.0
"""How long a dispatcher may take to give back what is left after the grace time."""

SERVING = ("RUNNING", "PENDING_MIGRATION")
"""States of replicas to which Serve sends requests: one whose node is being drained goes on until another runs."""

HEALTH_SECONDS, HEALTH_ANSWER_SECONDS = 5.0, 10.0
"""How often a process is asked for its health, and how long it may take to answer. Serve replaces it the third time."""

ANSWER_SECONDS = 4.0
"""How long the cluster may take to say whether the service is ready."""

READY_SECONDS = 1.0
"""How long an answer about readiness is good for."""


SECRETS_OF_THE_GATEWAY = ("SVD_ADMIN_KEY", "SVD_DATABASE_URL")
SECRETS_OF_THE_STORAGE = ("AWS_",)
"""By their variables, which a process whose work has no use for them drops as it begins."""


def build_app(args: AppArgs) -> Application:
    """The application that serve_config.yaml imports."""
    endpoints = args.build()
    grace = Settings().grace_seconds
    upkeep: dict[str, Any] = {
        "graceful_shutdown_timeout_s": grace,
        "graceful_shutdown_wait_loop_s": STEP_SECONDS,
        "health_check_period_s": HEALTH_SECONDS,
        "health_check_timeout_s": HEALTH_ANSWER_SECONDS,
    }
    painters = {
        endpoint.id: serve.deployment(name=endpoint.deployment, **upkeep)(PictureDeployment).bind(endpoint)
        for endpoint in endpoints.values()
        if isinstance(endpoint, TextToVideo)
    }
    replicas = {
        model.deployment: _bind_replica(model, endpoints, painters, upkeep)
        for model in endpoints.values()
        if isinstance(model, VideoModel)
    }
    upkeep_of_dispatcher = upkeep | {"graceful_shutdown_timeout_s": grace + GIVING_BACK_SECONDS}
    dispatcher = serve.deployment(name=DISPATCHER, **upkeep_of_dispatcher)(DispatcherDeployment).bind(
        replicas, endpoints, grace
    )

    def build_api() -> ASGIApp:
        _begin()
        settings = Settings()
        return create_api(
            endpoints,
            open_store,
            open_storage(),
            settings.key(),
            settings.public_url,
            Readiness(),
            poll_hold_seconds=settings.poll_hold_seconds,
            max_upload_bytes=settings.max_upload_bytes,
            webhook_ip_ranges=[str(network) for network in settings.webhook_ip_ranges],
            runners=count_replicas,
            keep_payloads_days=settings.keep_payloads_days,
            keep_requests_days=settings.keep_requests_days,
            keep_files_days=settings.keep_files_days,
            signed_seconds=settings.storage_signed_seconds,
            cors_origins=settings.cors_origins,
            webhook_reach=settings.webhook_reach,
        )

    return serve.deployment(name=GATEWAY, **upkeep)(serve.ingress(build_api)()).bind(dispatcher)


def _begin(needless: Sequence[str] = ()) -> None:
    """What every process of a deployment does first."""
    cluster.forget(needless)
    cluster.listen_on_this_node()
    logs.configure()
    metrics.send_to(metrics.RaySink())
    tracing.start(serve.get_replica_context().deployment)


def _bind_replica(
    model: VideoModel,
    endpoints: Mapping[str, Endpoint],
    painters: Mapping[str, Application],
    upkeep: Mapping[str, Any],
) -> Application:
    served = {id: endpoint for id, endpoint in endpoints.items() if endpoint.video_endpoint == model.id}
    deployment = serve.deployment(
        name=model.deployment,
        max_ongoing_requests=BATCHES_ON_A_REPLICA,
        **upkeep,
    )
    return deployment(VideoDeployment).bind(
        model, served, {id: painter for id, painter in painters.items() if id in served}
    )


async def open_store() -> RequestStore:
    """The queue that the environment names.

    Raises:
        ValueError: It is SQLite, and this Ray cluster has more nodes than one.
        Unavailable: It cannot be reached.
    """
    url = Settings().database_url
    refuse_out_of_reach(url, await asyncio.to_thread(count_nodes))
    return await RequestStore.open(url)


def count_nodes() -> int:
    """The living nodes of the Ray cluster that this process belongs to."""
    return sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]


def open_storage() -> FileStorage:
    """The file storage that the environment names."""
    settings = Settings()
    return FileStorage.open(settings.storage_url, settings.public_url)


async def count_replicas() -> Mapping[str, Mapping[str, int]]:
    """For each deployment of the application that asks, how many replicas are in each of Serve's states."""
    status = await asyncio.to_thread(serve.status)
    deployments = status.applications[serve.get_replica_context().app_name].deployments
    return {  # Serve declares an enum here and gives its values
        name: {str(getattr(state, "value", state)): count for state, count in deployment.replica_states.items()}
        for name, deployment in deployments.items()
    }


async def find_empty() -> set[str]:
    """Ask Serve which deployments of the application that asks have no replica that takes requests.

    Raises:
        Unavailable: It does not say.
    """
    try:
        counts = await count_replicas()
    except (RayError, RayServeException, KeyError) as error:
        raise Unavailable("Serve does not say which replicas there are") from error
    return {name for name, states in counts.items() if not any(states.get(state) for state in SERVING)}


async def find_abandoned(attempts: Mapping[str, int]) -> set[str]:
    """Ask a dispatcher which attempts nobody wants any more. Replicas have no way to the database."""
    dispatcher: Any = serve.get_deployment_handle(DISPATCHER)
    answer: set[str] = await dispatcher.abandoned.remote(attempts)
    return answer


async def note_replica(report: ReplicaReport) -> None:
    """Tell a dispatcher that a replica is there."""
    dispatcher: Any = serve.get_deployment_handle(DISPATCHER)
    await dispatcher.note_replica.remote(report)


def be_present(endpoint: Endpoint, hardware: Hardware, began: float) -> Presence:
    """Let this process be counted as a replica for an endpoint, which began to start at a moment (monotonic)."""
    context = serve.get_replica_context()
    report = ReplicaReport(
        replica_id=context.replica_id.unique_id,
        model=endpoint.id,
        deployment=context.deployment,
        accelerator=hardware.accelerator,
        gpu_fraction=hardware.fraction,
        age_seconds=time.monotonic() - began,
    )
    presence = Presence(report, note_replica)
    presence.start()
    return presence


async def paint(painter: DeploymentHandle[Any], input: str) -> Any:
    """Have a picture painted. Who does not wait for it any more ends it: Serve does not do so by itself."""
    painting: Any = painter.paint.remote(input)
    try:
        return await painting
    except asyncio.CancelledError:
        painting.cancel()
        raise


class Counted:
    """A replica that is counted, from when it has loaded its weights until its end."""

    _presence: Presence | None = None

    async def __del__(self) -> None:
        """Serve's hook for a graceful end. The process is killed right after it."""
        if self._presence:
            await self._presence.stop()
        await tracing.end_with_process()


class VideoDeployment(Counted, VideoReplica):
    """The Serve deployment of one video model."""

    def __init__(
        self, model: VideoModel, endpoints: Mapping[str, Endpoint], painters: Mapping[str, DeploymentHandle[Any]]
    ) -> None:
        """Load the weights, and make what is to be warmed up: Serve sends nothing before that."""
        began = time.monotonic()
        _begin(needless=SECRETS_OF_THE_GATEWAY)
        decoder = Decoder()  # its processes start beside the loading of the weights
        storage = open_storage()
        files = FileSource(storage, Settings().fetch_reach)
        if folder := Settings().compile_cache:
            keep_compiled(folder)
        model.setup(open_device())
        paints = {id: functools.partial(paint, handle) for id, handle in painters.items()}
        hardware = find_hardware()
        super().__init__(model, endpoints, paints, storage, files, decoder, find_abandoned, hardware)
        self._presence = be_present(model, hardware, began)


class PictureDeployment(Counted, PictureReplica):
    """The Serve deployment of one text-to-image pipeline."""

    def __init__(self, endpoint: TextToVideo) -> None:
        """Load the weights."""
        began = time.monotonic()
        _begin(needless=(*SECRETS_OF_THE_GATEWAY, *SECRETS_OF_THE_STORAGE))
        endpoint.setup(open_device())
        hardware = find_hardware()
        super().__init__(endpoint, hardware)
        self._presence = be_present(endpoint, hardware, began)


class DispatcherDeployment(Dispatcher):
    """The Serve deployment of the dispatcher, and of the sender of webhooks beside it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, replicas: Mapping[str, DeploymentHandle[Any]], endpoints: Mapping[str, Endpoint], grace_seconds: float
    ) -> None:
        """Open the queue and begin. Once it is to end, what runs then has ``grace_seconds``."""
        _begin(needless=("SVD_ADMIN_KEY",))
        handles: dict[str, Any] = {
            model: handle.options(method_name="generate", stream=True) for model, handle in replicas.items()
        }
        tariff = Tariff(endpoints, Settings().gpu_hourly_usd)
        super().__init__(await open_store(), open_storage(), handles, str(uuid4()), tariff, find_empty=find_empty)
        self._grace_seconds = grace_seconds
        self._sender = Sender(self._store.database, Settings().webhook_reach)
        await self.start()
        self._sender.start()

    def check_health(self) -> None:
        """Fail when a loop has died, so that Serve replaces this deployment."""
        super().check_health()
        self._sender.check_health()

    async def is_draining(self) -> bool:
        """Whether it claims nothing any more, because the service ends."""
        return self.draining

    async def __del__(self) -> None:
        """Serve's hook for a graceful end."""
        try:
            await self.drain(self._grace_seconds)
            await asyncio.gather(self.stop(), self._sender.stop())
            await tracing.end_with_process()
        finally:
            await self._store.close()


class Readiness:
    """Whether every deployment of this application has the replicas it should have."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._asked = -READY_SECONDS
        self._reason: str | None = None
        self._lock = asyncio.Lock()
        self._asking: asyncio.Task[str | None] | None = None

    async def __call__(self) -> str | None:
        """Why the application cannot serve, or None."""
        async with self._lock:
            if time.monotonic() - self._asked >= READY_SECONDS:
                self._reason = await self._ask()
                self._asked = time.monotonic()
        return self._reason

    async def _ask(self) -> str | None:
        """Ask the cluster; one question at a time, for one whose head has died answers none."""
        self._asking = self._asking or asyncio.create_task(_find_reason(serve.get_replica_context().app_name))
        await asyncio.wait([self._asking], timeout=ANSWER_SECONDS)
        if not self._asking.done():
            return "the cluster does not answer"
        asking, self._asking = self._asking, None
        return asking.result()


async def _find_reason(app_name: str) -> str | None:
    return await asyncio.to_thread(_not_ready, app_name) or await _draining()


def _not_ready(app_name: str) -> str | None:
    """An application that runs is ready, also while it is scaled; of a deployment scaled to zero nothing is missing."""
    application = serve.status().applications[app_name]
    if application.status == ApplicationStatus.RUNNING:
        return None
    waiting = [
        f"{name} is {deployment.status}"
        for name, deployment in application.deployments.items()
        if deployment.status != "HEALTHY"
    ]
    return "; ".join(waiting) or f"the application is {application.status}"


async def _draining() -> str | None:
    dispatcher: Any = serve.get_deployment_handle(DISPATCHER)
    try:
        draining = await dispatcher.is_draining.remote()
    except (RayError, RayServeException):
        return "the dispatcher does not answer"
    return "the service is about to end" if draining else None
