"""The fault campaign: a small Jepsen for the whole service.

    plan (seed) ──▶ nemesis ──────────── kills, stops, fills ─────────────┐
                                                                          ▼
    clients ── HTTP ──▶ gateway ─▶ PostgreSQL ─▶ dispatcher ─▶ replicas (a model of ours) ─▶ file storage
       │                               │                           │                              │
       └─ journals                     └─ rows, an audit trail     └─ the engine's log            └─ clips
                                       └──────────── webhooks ──▶ receiver's log
    all of it ──▶ History ──▶ checker (I1 to I12) ──▶ report, exit status

Everything that is served is production code, but for the model: ``engine.Clock`` paints a number into its frames and
takes its time. Its clips go through the real replica, encoder and storage.
"""
