"""The authority that a program run by ``svd-serve connect`` trusts in the place of fal's.

Whoever holds its private key can pose as any site to those who trust it. So it is made anew by every run and kept in
memory only: what reaches the disk are certificates, which are public, and they are worth nothing once the run is over.
(The key of the one certificate it signs, which names fal's hosts and no other, passes through a file that only its
owner may read, because Python's ssl reads keys from nowhere else; trustme deletes it at once.)
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import certifi
import trustme


@dataclass(frozen=True)
class TrustFiles:
    """Certificates for a program to trust.

    Attributes:
        bundle: All that is trusted, by OpenSSL and what builds on it: Python, curl.
        extra: What Node trusts besides the authorities that it carries in itself.
    """

    bundle: Path
    extra: Path


class Authority:
    """Signs one certificate for some hosts; its key never leaves the process."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """Make a new one."""
        self._ca = trustme.CA(organization_name="svd-serve connect", organization_unit_name="for one run")
        self._leaf = self._ca.issue_cert(*hosts, common_name=hosts[0])

    def server_context(self) -> ssl.SSLContext:
        """TLS as one of the hosts, speaking HTTP/1.1: that is what is piped on."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        # A ticket for a later session would be read by one thread of a client while another writes its first request;
        # Python's ssl loses that request now and then, when websockets' threads share a connection.
        context.num_tickets = 0
        self._leaf.configure_cert(context)
        return context

    def write(self, directory: Path, inherited: Mapping[str, str]) -> TrustFiles:
        """Write the files that let a program trust this authority, beside those it trusted so far.

        Args:
            directory: Where to; made if it is missing.
            inherited: The environment that the program would have had: authorities that it names stay trusted.

        Raises:
            OSError: The directory cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        files = TrustFiles(directory / "bundle.pem", directory / "ca.pem")
        ours = self._ca.cert_pem.bytes()
        files.bundle.write_bytes((_read(inherited.get("SSL_CERT_FILE")) or Path(certifi.where()).read_bytes()) + ours)
        files.extra.write_bytes(_read(inherited.get("NODE_EXTRA_CA_CERTS")) + ours)
        return files


def _read(name: str | None) -> bytes:
    """The certificates in a file; none where it cannot be read, which is what the programs make of that too."""
    try:
        return Path(name).read_bytes() + b"\n" if name else b""
    except OSError:
        return b""
