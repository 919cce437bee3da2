"""Pictures, masks and archives are opened in a process of their own: what breaks there breaks for one input only.

    replica (GPU, storage, keys)                     child (one of ``CHILDREN``; Pillow and numpy, nothing else)
    Decoder.picture(bytes, sizes) ── header, bytes ──▶ its fork, made before it is needed; one for each input
            ▲                                             │ walls: memory, time, no files, no network, no processes
            └──────────── header, pixels ─────────────────┘ opens, crops, answers, ends

The child itself never reads a byte that a caller sent; its fork does, and ends with its answer, so that nothing which
an input does to a decoder outlasts that input. Nothing is pickled: headers are JSON, and pixels are counted by the
replica, which knows how many there must be.

What an input is blamed for is what it has done for sure: its fork had all memory or computing time that it may have,
crashed, raised, or answered nonsense; or it was late and had computed for a good part of its time. Whatever else ends a
decoder (Linux kills it where memory runs out for all, somebody kills it, the machine is too busy for it) is no fault of
the input: a child that was lost is replaced once, and then, as with one that is late, the attempt is run again.

A replica needs memory for its decoders beside its own: at most ``CHILDREN`` times ``Limits.memory_bytes``, 6 GiB.

    pool.py      ``Decoder``: the replica's side, children to take turns with, and what their failures are called
    process.py   ``Child``: one process and its pipes
    messages.py  what goes through the pipes, for both sides
    child.py     the child's side
    walls.py     what the child may not do
"""
