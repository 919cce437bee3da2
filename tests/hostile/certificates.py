"""TLS of the hostile world's media server: a certificate for each name, most of them bad in one way."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import trustme

GOOD = "trusted.example"


def contexts() -> tuple[ssl.SSLContext, str]:
    """What the server shows, by the name that it is asked for; and the authority's certificate, in PEM."""
    authority, stranger = trustme.CA(), trustme.CA(organization_name="A stranger's")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    shown = {
        GOOD: authority.issue_cert(GOOD),
        "selfsigned.example": stranger.issue_cert("selfsigned.example"),
        "expired.example": authority.issue_cert("expired.example", not_after=yesterday),
        "wrongname.example": authority.issue_cert("another.example"),
    }
    by_name = {name: _context(certificate) for name, certificate in shown.items()}
    outer = by_name[GOOD]

    def choose(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = by_name.get(name or "", outer)

    outer.sni_callback = choose  # type: ignore[assignment]
    return outer, authority.cert_pem.bytes().decode()


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
