"""The service under its public address: whether it answers, is ready, has replicas and a clock like ours."""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from deployments.doctor.findings import Finding, fail, ok, warn
from deployments.doctor.store import Clock, skew

ANSWER_SECONDS = 4.0
_ON_THE_WAY = "correct SVD_PUBLIC_URL, or look at what stands between (DNS, load balancer, firewall)"
RUNNERS = "fal_app_runners"


async def check_service(url: str, key: str, clock: Clock = time.time) -> AsyncIterator[Finding]:
    """Ask the service as a client does. It need not run: then its port has to be free."""
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_SECONDS, trust_env=False) as client:
        try:
            ready = await client.get("/health/ready")
        except httpx.ConnectError as error:
            yield _untrusted(url, tls) if (tls := _tls_error(error)) else _nobody(url)
            return
        except httpx.ConnectTimeout:
            says = f"{url} cannot be reached: no connection within {ANSWER_SECONDS:g} s"
            yield fail("service", says, _ON_THE_WAY)
            return
        except httpx.HTTPError as error:
            advice = "restart what listens there; if it is this service, its log says what it is busy with"
            yield fail("service", f"{url} takes connections and does not answer ({type(error).__name__})", advice)
            return
        yield _readiness(url, ready)
        if not _is_ours(ready):
            return
        if "date" in ready.headers:
            theirs = parsedate_to_datetime(ready.headers["date"]).timestamp()
            yield skew("service clock", theirs + 0.5 - clock())  # the header tells whole seconds
        if key:
            async for finding in _replicas(client, key):
                yield finding


def _is_ours(ready: httpx.Response) -> bool:
    """Whether an answer is one of our gateway's."""
    try:
        told = ready.json()
    except ValueError:
        return False
    return isinstance(told, dict) and bool(told.keys() & {"status", "error_type"})


def _readiness(url: str, ready: httpx.Response) -> Finding:
    if not _is_ours(ready):
        advice = "choose another port (svd-serve serve --port), or correct SVD_PUBLIC_URL"
        return fail("service", f"something else answers at {url} ({ready.status_code})", advice)
    if ready.is_success:
        return ok("service", f"{url} is ready")
    told = ready.json()
    advice = "wait if it has just started; else look at what it names, and at the log of svd-serve serve"
    return fail("service", f"{url} is not ready: {told.get('status') or told.get('detail')}", advice)


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """What was wrong with TLS where that is why there is no connection."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _untrusted(url: str, error: ssl.SSLError) -> Finding:
    advice = "renew or correct the certificate of what stands in front; http:// in SVD_PUBLIC_URL if it speaks no TLS"
    reason = getattr(error, "verify_message", "") or error.reason or type(error).__name__
    return fail("service", f"{url} speaks no TLS that can be trusted: {reason}", advice)


def _nobody(url: str) -> Finding:
    """Why nobody answers at an address."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return fail("service", f"port {port} is taken by a program that answers nobody", "svd-serve serve --port N")
        return fail("service", f"{url} cannot be reached", _ON_THE_WAY)
    says = f"nothing runs at {url}; port {port} is free"
    return warn("service", says, f"svd-serve serve --port {port}, unless it is meant to be stopped")


async def _replicas(client: httpx.AsyncClient, key: str) -> AsyncIterator[Finding]:
    """The replicas of each application, by what they do."""
    try:
        reply = await client.get("/v1/serverless/metrics", headers={"authorization": f"Key {key}"})
    except httpx.HTTPError as error:
        yield warn("replicas", f"not counted: {type(error).__name__}", "look at the log of the service")
        return
    if reply.status_code in (401, 403):
        advice = "use the service's SVD_DATA_DIR and SVD_ADMIN_KEY here, or restart it if they were changed"
        yield fail("admin key", "the running service does not know the key of this environment", advice)
        return
    if not reply.is_success:
        yield warn(
            "replicas", f"not counted: the service answered {reply.status_code}", "look at the log of the service"
        )
        return
    for app, states in _runners(reply.text).items():
        told = ", ".join(f"{count:g} {state}" for state, count in states.items())
        if sum(states.values()):
            yield ok("replicas", f"{app}: {told}")
        else:
            advice = "look at the log of the service; unless it scales to zero, its replicas cannot start"
            yield warn("replicas", f"{app} has none", advice)


def _runners(text: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name == RUNNERS else ():
            found[sample.labels["application"]][sample.labels["state"]] = sample.value
    return found
