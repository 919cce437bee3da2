"""``svd-serve connect``: run a program that was written for fal so that its official client reaches our server.

The client inside insists on https and on fal's own host names. So we stand in for those hosts, on this machine, for
this one program:

    program ── CONNECT fal.run:443 ──▶ endpoint.py ──▶ TLS ends here ── the same bytes, decrypted ──▶ our server
    (Python: HTTPS_PROXY)              (loopback)  ▲                                                  (goes by Host)
    (Node: preload.cjs) ───────── TLS at once ─────┘

``certificates.py`` makes the authority that the program trusts, ``environment.py`` says what its environment must hold,
``program.py`` runs it, and ``command.py`` puts them together.
"""
