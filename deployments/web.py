"""The web outside: the one HTTP client for URLs that callers gave us.

    a caller's URL ──▶ scheme, port ──▶ name ──▶ addresses ──▶ connect to the very address that was checked

It reaches public addresses on the web's usual ports, and says in a few words why it did not. ssrfguard does the
checking, for names, redirects and addresses alike.
"""

from __future__ import annotations

from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_network

import httpx
from ssrfguard import Policy, SSRFGuardError
from ssrfguard.httpx import AsyncClient

CONNECT_SECONDS = 5.0

FAILURES = (httpx.HTTPError, httpx.InvalidURL, SSRFGuardError, TimeoutError, ValueError)
"""What a call may raise, ``asyncio.timeout`` around it included."""

_FORBIDDEN = (SSRFGuardError, httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError)
_PUBLIC_WEB = Policy(allowed_ports=frozenset({80, 443, 8080, 8443}))
_ANYWHERE = Policy(
    allowed_networks=(ip_network("0.0.0.0/0"), ip_network("::/0")), allowed_ports=frozenset(range(1, 65536))
)


def open_client(allow_private: bool, seconds: float, *, follow_redirects: bool) -> httpx.AsyncClient:
    """A client for callers' URLs.

    Args:
        allow_private: Lift the lists of addresses and ports, and nothing else.
        seconds: How long any one wait may take.
        follow_redirects: Go where an answer points, by the same rules.
    """
    return AsyncClient(
        policy=_ANYWHERE if allow_private else _PUBLIC_WEB,
        follow_redirects=follow_redirects,
        trust_env=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # one caller's host sets none for another's
        timeout=httpx.Timeout(seconds, connect=CONNECT_SECONDS),
        headers={"Accept-Encoding": "identity", "User-Agent": "svd-serve"},
    )


def is_forbidden(error: Exception) -> bool:
    """Whether one of ``FAILURES`` says that the URL itself may not be called: trying again is of no use."""
    return isinstance(error, _FORBIDDEN)


def reason(error: Exception) -> str:
    """Why a call failed, without an address or path of ours."""
    match error:
        case httpx.HTTPStatusError():
            return f"the server answered {error.response.status_code}"
        case TimeoutError() | httpx.TimeoutException():
            return "it took too long"
        case _ if is_forbidden(error):
            return "this address is not allowed"
        case _:
            return "the server could not be reached"
