"""The names of the hostile world: a DNS server that tells lies on purpose.

rebind-….example ── the first question ──▶ the public address ── every later one ──▶ the loopback
silent.example   ── no answer at all         nx.example, and any name that is not here ── NXDOMAIN
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, A, DNSRecord

SERVER = "127.0.0.53"
PUBLIC = "93.184.216.34"
"""Where the media server is. Every other address of the world is a honeypot's."""

LOOPBACK = "127.0.0.1"
PRIVATE = "10.0.0.1"
OWN_NAME = "clips.example"
"""The service's own public name. It leads to a honeypot: a file of ours that is fetched over HTTP is seen there."""

ADDRESSES: dict[str, Sequence[str]] = {
    OWN_NAME: [PRIVATE],
    "localhost": [LOOPBACK, "::1"],
    "loopback.example": [LOOPBACK],
    "private.example": [PRIVATE],
    "private-six.example": ["fd00:ec2::254"],
    "mixed.example": [PUBLIC, PRIVATE],
    "mixed-six.example": [PUBLIC, "::1"],
    "metadata.google.internal": ["169.254.169.254"],
    **{f"{kind}.example": [PUBLIC] for kind in ("public", "trusted", "selfsigned", "expired", "wrongname")},
}
ALIASES = {"alias.example": "private.example"}
REBINDS = "rebind-"
SILENT = "silent.example"


class Names(asyncio.DatagramProtocol):
    """Answers questions over UDP, and counts them."""

    def __init__(self) -> None:
        """Know no question yet."""
        self.asked: Counter[str] = Counter()
        """How often the IPv4 addresses of each name were asked for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what answers go through."""
        assert hasattr(transport, "sendto")  # the loop's own class says no more of itself
        self._transport: Any = transport

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        """Answer one question."""
        question = DNSRecord.parse(data)
        name = str(question.q.qname).rstrip(".").lower()
        kind = QTYPE[question.q.qtype]
        if kind == "A":
            self.asked[name] += 1
        if name != SILENT:
            self._transport.sendto(self._answer(question, name, kind).pack(), sender)

    def _answer(self, question: DNSRecord, name: str, kind: str) -> DNSRecord:
        reply = question.reply()
        known = ALIASES.get(name, name)
        addresses = self._addresses(known)
        if addresses is None:
            reply.header.rcode = RCODE.NXDOMAIN
            return reply
        if known != name:
            reply.add_answer(RR(question.q.qname, QTYPE.CNAME, rdata=CNAME(known), ttl=0))
        for address in addresses:
            six = ":" in address
            if kind == ("AAAA" if six else "A"):
                rdata = AAAA(address) if six else A(address)
                reply.add_answer(RR(known, getattr(QTYPE, kind), rdata=rdata, ttl=0))
        return reply

    def _addresses(self, name: str) -> Sequence[str] | None:
        if name.startswith(REBINDS):
            return [PUBLIC] if self.asked[name] <= 1 else [LOOPBACK]
        return ADDRESSES.get(name)
