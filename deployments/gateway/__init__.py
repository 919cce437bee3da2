"""HTTP in fal's dialect. It authenticates, parses, inserts and answers; it never holds a GPU.

What fal's documents leave open, or say in two ways, and what this server does:

| open question                                | our answer                                       | where           |
|----------------------------------------------|--------------------------------------------------|-----------------|
| HTTP status of a status that is not final    | 200, as of one that is                           | queue_routes    |
| result asked for too early                   | 400 bad_request: clients would retry 409 and 5xx | errors          |
| result after a cancel                        | 499 client_cancelled                             | queue.store     |
| a bad input on submit                        | accepted; its 422 is the result                  | submission      |
| malformed JSON on submit                     | 422 at once, nothing stored                      | submission      |
| a queue longer than ``fal_max_queue_length`` | 429 queue_full, nothing stored                   | queue_routes    |
| an unknown priority                          | normal                                           | submission      |
| start deadline passed                        | 504 startup_timeout, time-out type ``user``      | wire            |
| ``/stream`` and ``/realtime`` of these apps  | offered by all of them                           | stream_routes   |
| an error in the middle of a stream           | its body and a field ``error``, as last event    | stream_routes   |
| reply of ``/tokens/``, of ``/tokens/realtime`` | a string with 201, ``{"token": …}``            | tokens          |
| webhook retries                              | ten within two hours, 15 s each                  | queue.webhooks  |
| ``/v1/models/requests/search``               | a text search over what the history keeps        | report_routes   |
| what was cancelled, in counts and searches   | ``cancelled``: no ``user_error``                 | queue.reports   |
| the history of what still runs               | not shown: it lists what has ended               | report_routes   |
| deleting a key                               | ``DELETE /v1/keys/{id}``                         | key_routes      |
"""
