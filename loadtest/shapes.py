"""Load shapes: how many users there are at which time, as stages one after the other.

    users   ramp   ┌──────     spike    ┌─┐        soak ────────────     mixed  ─A──┬──B──┬──C──┬─all─
               ┌───┘                    │ │
            ───┘                     ───┘ └─────

Every shape ends by itself and never exceeds the number of users it was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_USERS = 2000
"""One process of locust makes no more of them do something at once."""

LONGEST_SECONDS = 24 * 3600.0
RAMP_STEPS = 10


@dataclass(frozen=True)
class Stage:
    """A time with the same number of users.

    Attributes:
        seconds: How long it is.
        users: How many there are.
        favourite: The place of the endpoint that most of the orders go to; None for the weights that were given.
    """

    seconds: float
    users: int
    favourite: int | None = None


def ramp(users: int, seconds: float, endpoints: int) -> list[Stage]:
    """Up in equal steps for two thirds of the time; there for the last third."""
    steps = min(users, RAMP_STEPS)
    climb = [Stage(seconds * 2 / 3 / steps, math.ceil(users * (step + 1) / steps)) for step in range(steps)]
    return [*climb[:-1], Stage(climb[-1].seconds + seconds / 3, users)]


def spike(users: int, seconds: float, endpoints: int) -> list[Stage]:
    """A fifth of the users, then all for a sixth of the time, then a fifth again until what has queued up is gone."""
    few = max(1, users // 5)
    return [Stage(seconds / 3, few), Stage(seconds / 6, users), Stage(seconds / 2, few)]


def soak(users: int, seconds: float, endpoints: int) -> list[Stage]:
    """The same load all the time."""
    return [Stage(seconds, users)]


def mixed(users: int, seconds: float, endpoints: int) -> list[Stage]:
    """The same number of users, each endpoint in turn getting most of the orders, and last all by their weights."""
    share = seconds / (endpoints + 1)
    return [*(Stage(share, users, turn) for turn in range(endpoints)), Stage(share, users)]


SHAPES: dict[str, Callable[[int, float, int], list[Stage]]] = {
    "ramp": ramp,
    "spike": spike,
    "soak": soak,
    "mixed": mixed,
}


def stages(shape: str, users: int, seconds: float, endpoints: int) -> list[Stage]:
    """The stages of a shape by its name.

    Raises:
        ValueError: There is no such shape, or it would be larger or longer than is allowed.
    """
    if shape not in SHAPES:
        raise ValueError(f"{shape} is none of {', '.join(SHAPES)}")
    if not 1 <= users <= MOST_USERS or not 1 <= seconds <= LONGEST_SECONDS:
        raise ValueError(f"a load has 1 to {MOST_USERS} users and lasts 1 to {LONGEST_SECONDS:.0f} seconds")
    return SHAPES[shape](users, seconds, endpoints)


def stage_at(planned: Sequence[Stage], second: float) -> Stage | None:
    """The stage of a moment; None after the last one."""
    for stage in planned:
        if second < stage.seconds:
            return stage
        second -= stage.seconds
    return None
