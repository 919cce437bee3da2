"""What a program's environment says so that the official fal clients inside it reach our end point.

HTTPS_PROXY, SSL_CERT_FILE                  Python: httpx, and websockets from version 15 on
NODE_OPTIONS, NODE_EXTRA_CA_CERTS, SVD_…    Node: preload.cjs, since its fetch knows no proxy
NO_PROXY                                    what goes past us: this machine, and the server's own file URLs
FAL_KEY                                     unless the program has one
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # it is there, untyped

from deployments.connect.certificates import TrustFiles

PRELOAD = Path(__file__).with_name("preload.cjs")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

Changes = Mapping[str, str | None]
"""Variables to set, by name, and to remove (None)."""


def changes(
    inherited: Mapping[str, str], address: str, hosts: Iterable[str], trust: TrustFiles, key: str | None, server: str
) -> Changes:
    """What to change in an environment.

    Args:
        inherited: The environment as it is. What it says of keys, of Node's options and of hosts without a proxy stays.
        address: ``host:port`` of our end point.
        hosts: fal's hosts.
        trust: The certificates to trust.
        key: What to authenticate by, if the program has no key of its own.
        server: The host of our server, which is reached directly.
    """
    no_proxy = _no_proxy(inherited, server)
    proxied = [host for host in hosts if not _bypassed(host, no_proxy)]
    options = (inherited.get("NODE_OPTIONS", ""), f"--require {json.dumps(str(PRELOAD))}")
    return {
        **dict.fromkeys(("HTTPS_PROXY", "https_proxy"), f"http://{address}"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), no_proxy),
        "SSL_CERT_FILE": str(trust.bundle),
        "NODE_EXTRA_CA_CERTS": str(trust.extra),
        "NODE_OPTIONS": " ".join(filter(None, options)),
        "SVD_CONNECT_TO": address,
        "SVD_CONNECT_HOSTS": ",".join(proxied),
        # They would send the Python client to hosts that are not fal's, which we refuse.
        **{name: None for name in ("FAL_RUN_HOST", "FAL_QUEUE_RUN_HOST") if name in inherited},
        **({"FAL_KEY": key} if key else {}),
    }


def has_key(environment: Mapping[str, str]) -> bool:
    """Whether the clients would find a key in an environment."""
    return bool(environment.get("FAL_KEY") or (environment.get("FAL_KEY_ID") and environment.get("FAL_KEY_SECRET")))


def passing_by(environment: Mapping[str, str], hosts: Iterable[str]) -> Sequence[str]:
    """Those of some hosts that NO_PROXY sends past every proxy, and so past us."""
    return [host for host in hosts if _bypassed(host, _stated(environment))]


def applied(inherited: Mapping[str, str], changes: Changes) -> dict[str, str]:
    """An environment after changes."""
    return {name: value for name, value in {**inherited, **changes}.items() if value is not None}


def _stated(environment: Mapping[str, str]) -> str:
    return environment.get("no_proxy") or environment.get("NO_PROXY", "")


def _no_proxy(inherited: Mapping[str, str], server: str) -> str:
    stated = [name.strip() for name in _stated(inherited).split(",") if name.strip()]
    return "*" if "*" in stated else ",".join(dict.fromkeys([*stated, *LOOPBACK, server]))


def _bypassed(host: str, no_proxy: str) -> bool:
    return bool(proxy_bypass_environment(host, {"no": no_proxy}))
