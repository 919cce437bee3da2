"""svd-serve: Stable Video Diffusion behind the fal.ai model API, on Ray Serve.

The rooms are processes, because under Ray the real walls are actors:

    gateway/     HTTP in fal's dialect: authenticate, parse, one INSERT, answer
    queue/       rows, claims and leases; the dispatcher that takes requests from the queue to a replica
    inference/   what runs on a GPU whichever the model: picture in, sampler, video out
    models/      one file per served endpoint, and the SVD sampler they share

Around them stand ``app`` (the only file that knows every deployment), ``cli``, ``settings``, and the leaves
``storage``, ``logs`` and ``errors``. Imports go down only; import-linter keeps it so.

One request: ``gateway.queue_routes.submit`` → ``queue.store.submit`` → ``queue.dispatcher`` claims it for a reserved
replica → ``inference.replica.generate`` → ``queue.store.complete`` → ``gateway.queue_routes.result``.
"""
