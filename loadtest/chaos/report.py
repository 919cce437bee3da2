"""The figures of a campaign, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest

from loadtest.chaos.history import COMPLETED, IN_PROGRESS, IN_QUEUE, History, Strike


def report(history: History, strikes: Sequence[Strike], violations: Mapping[str, Sequence[str]]) -> str:
    """Everything that is told at the end."""
    return "\n".join([*_counts(history), *_recoveries(history, strikes), *_violations(violations)])


def _counts(history: History) -> Iterator[str]:
    acknowledged = [history.rows[id] for id in history.accepted if id in history.rows]
    ended = [row for row in acknowledged if row.status == COMPLETED]
    twice = sum(sum(each.new == COMPLETED for each in path) > 1 for path in history.path.values())
    tries = [each for submit in history.submits for each in submit.tries]
    unknown = [submit for submit in history.submits if not submit.acknowledged]
    stored = sum(submit.payload.digest in history.rows_of for submit in unknown)
    unanswered = sum(each.outcome == "unknown" for each in tries)
    most = max((row.attempt for row in history.rows.values()), default=0)
    claims = sum(each.new == IN_PROGRESS for each in history.transitions)
    yield f"submitted        {len(history.submits):6d}  ({len(tries)} tries, {unanswered} of them unknown)"
    yield f"acknowledged     {len(history.accepted):6d}  (of {len(unknown)} others, {stored} are there)"
    yield f"ended            {len(ended):6d}  ({_by_status(Counter(row.status_code for row in ended))})"
    yield f"ended twice      {twice:6d}"
    yield f"attempts         {claims:6d}  (at most {most} for one request)"
    yield f"webhooks         {len(history.webhooks):6d}  ({len(history.posts)} POSTs)"
    yield f"looks            {len(history.seen):6d}"


def _by_status(counted: Counter[int | None]) -> str:
    return ", ".join(f"{count} with {status}" for status, count in counted.most_common())


def _recoveries(history: History, strikes: Sequence[Strike]) -> Iterator[str]:
    yield "recovery, in seconds from the beginning of the fault:"
    yield "  first, last: until the first and the last of the requests that it affected had ended;"
    yield "  pause: the longest time without a result while something waited, up to the next fault"
    yield f"  {'fault':6}{'first':>7}{'last':>7}{'pause':>7}  affected"
    ordered = sorted(strikes, key=lambda each: each.at)
    for strike, following in zip_longest(ordered, ordered[1:]):
        times = recovery(history, strike) or [0.0]
        paused = pause(history, strike.at, following.at if following else float("inf"))
        count = len(recovery(history, strike))
        yield f"  {strike.fault:6}{times[0]:7.1f}{times[-1]:7.1f}{paused:7.1f}  {count:8}  {strike.what}"


def pause(history: History, since: float, until: float) -> float:
    """The longest time in a span in which nothing succeeded though something waited all the while."""
    accepted = {each.request_id: each.at for each in history.transitions if each.old is None}
    ends = sorted((each.at, each.request_id) for each in history.transitions if each.new == COMPLETED)
    waited = [(accepted[id], at) for at, id in ends if id in accepted and history.rows[id].status_code == 200]
    longest, last = 0.0, since
    for _, end in waited:
        if end <= since:
            continue
        waiting_since = min(began for began, ended in waited if ended >= end)
        longest = max(longest, min(end, until) - max(last, waiting_since))
        last = end
        if end > until:
            break
    return longest


def recovery(history: History, strike: Strike) -> list[float]:
    """Seconds from a fault's beginning to the end of each request that it affected, in order.

    It affects what was running when it began and lost its attempt before the fault was healed, or within a lease after.
    Where no attempt was lost, it affects what was running.
    """
    running, lost = set(), set()
    for request_id, path in history.path.items():
        before = [each for each in path if each.at <= strike.at]
        if before and before[-1].new == IN_PROGRESS:
            running.add(request_id)
            after = next((each for each in path if each.at > strike.at), None)
            if after and after.new == IN_QUEUE and after.at < strike.healed + 15:
                lost.add(request_id)
    ends = {each.request_id: each.at for each in history.transitions if each.new == COMPLETED}
    return sorted(ends[id] - strike.at for id in lost or running if id in ends)


def _violations(violations: Mapping[str, Sequence[str]]) -> Iterator[str]:
    total = sum(map(len, violations.values()))
    yield f"violations       {total:6d}"
    for name, found in violations.items():
        for sentence in found[:10]:
            yield f"  {name}: {sentence}"
        if len(found) > 10:
            yield f"  {name}: and {len(found) - 10} more"
