"""All targets: whoever imports this has them registered.

media.py      what is fetched: data URIs, archives, pictures
addresses.py  URLs, our own files' among them; file names; webhooks
headers.py    keys, tokens, ranges, lifetimes, fal's hosts
bodies.py     inputs, frames, cursors, windows of time
"""

from tests.fuzz import addresses, bodies, headers, media, wires

__all__ = ["addresses", "bodies", "headers", "media", "wires"]
