"""What locust runs: ``python -m locust --headless -f loadtest/locustfile.py --host http://127.0.0.1:8000 …``.

    options ──▶ host allowed? ──▶ users (``users``), orders (``wire.Book``), stages (``shapes``)

The key comes from ``FAL_KEY``, for a command line can be read by everybody on the machine. ``python -m loadtest.load``
starts all of this, watches the service meanwhile, and writes the report.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent
from locust import LoadTestShape, events
from locust.stats import CSV_STATS_INTERVAL_SEC

from loadtest.shapes import SHAPES, Stage, stage_at, stages
from loadtest.users import Fal
from loadtest.wire import Book, add_options, check_ways, is_loopback, weights

AT_ONCE = 100.0
"""Users that may start in a second: a stage begins with all of its users."""


@events.init_command_line_parser.add_listener
def take_options(parser: Any) -> None:
    """The options that are ours; ``--users`` and ``--run-time`` are locust's."""
    parser.add_argument("--shape", choices=list(SHAPES), default="ramp")
    add_options(parser)


@events.init.add_listener
def prepare(environment: Any, **ignored: Any) -> None:
    """Read the options into the users, or end with a sentence that says what is wrong with them."""
    options = environment.parsed_options
    try:
        _prepare(options, environment.host or "")
    except (OSError, ValueError) as error:
        sys.exit(f"load: {error}")


def _prepare(options: Any, host: str) -> None:
    if not options.allow_remote and not is_loopback(host):
        raise ValueError(f"{host or 'no host'} is not this machine; --allow-remote lets it be another one")
    endpoints, ways = weights(options.endpoints), weights(options.ways)
    check_ways(ways)
    if not os.environ.get("FAL_KEY"):
        raise ValueError("FAL_KEY is not set")
    Planned.stages = stages(options.shape, options.num_users or 1, float(options.run_time or 60), len(endpoints))
    Caller.key = os.environ["FAL_KEY"]
    Caller.picture = Path(options.picture).read_bytes()
    Caller.picture_uri = f"data:image/jpeg;base64,{base64.b64encode(Caller.picture).decode()}"
    Caller.idle_seconds = options.idle
    Caller.may_leave = options.allow_remote
    Caller.book = Planned.book = Book(ways, endpoints, options.clips, options.seed)


class Caller(Fal):
    """The users, as the options want them."""


class Planned(LoadTestShape):
    """The shape that the options name. It ends early when every order has been dealt."""

    use_common_options = True
    stages: Sequence[Stage] = ()
    book: Book

    def tick(self) -> tuple[int, float] | None:
        """Locust asks once a second how many users there are to be."""
        stage = self.now()
        return (stage.users, AT_ONCE) if stage and not self.book.is_empty else None

    def now(self) -> Stage | None:
        """The stage of this moment."""
        return stage_at(self.stages, self.get_run_time())


@events.test_start.add_listener
def tell_users(environment: Any, **ignored: Any) -> None:
    """Let the users see the stage: in a mixed load it says which endpoint is most asked for."""
    Caller.stage = environment.shape_class.now


@events.quitting.add_listener
def write_the_rest(**ignored: Any) -> None:
    """Stay until the CSV files hold the last clips: locust writes them once a second, and not again at its end."""
    gevent.sleep(2 * CSV_STATS_INTERVAL_SEC)
