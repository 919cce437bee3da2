"""The invariants: what must be true of a history whatever has died in it.

    History ──▶ I1 … I12 ──▶ sentences, one for each violation

Pure functions: each reads the history alone, and each sentence names the ids that it is about.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from deployments.queue.webhooks import RETRY_SECONDS
from loadtest.chaos.history import BILLING, COMPLETED, IN_PROGRESS, IN_QUEUE, History, Row, Run, Seen, Submit
from loadtest.chaos.payload import FAILS, HANGS, INVALID, POISON

Check = Callable[[History], Iterator[str]]

LEGAL = {
    (None, IN_QUEUE),
    (IN_QUEUE, IN_PROGRESS),
    (IN_QUEUE, COMPLETED),
    (IN_PROGRESS, IN_QUEUE),
    (IN_PROGRESS, COMPLETED),
}
ENDS = {FAILS: 500, POISON: 500, HANGS: 504, INVALID: 422}
"""How a request ends that asks for it."""

WEBHOOK_ATTEMPTS = len(RETRY_SECONDS) + 1

SNAPSHOT_SECONDS = 1.0
"""How old a position may be when it is told."""


def check(history: History) -> dict[str, list[str]]:
    """Every violation, by invariant. What could not be read is one, and what needs it is not judged."""
    judged = INVARIANTS if not history.missing else {"evidence": evidence_is_whole}
    if set(history.missing) == {BILLING}:
        judged = {name: invariant for name, invariant in INVARIANTS.items() if name != "I9"}
    return {name: list(invariant(history)) for name, invariant in judged.items()}


def evidence_is_whole(history: History) -> Iterator[str]:
    """Everything could be read that the others are judged by."""
    for what, why in history.missing.items():
        yield f"{what} could not be read: {why}"


def acknowledged_requests_end(history: History) -> Iterator[str]:
    """I1: every acknowledged id exists, was never said to be unknown, and has ended in a way that it asked for."""
    for request_id, submit in history.accepted.items():
        row = history.rows.get(request_id)
        if row is None:
            yield f"{request_id} was acknowledged to {submit.client} and is not there"
        elif row.status != COMPLETED:
            yield f"{request_id} was acknowledged and is still {row.status} (attempt {row.attempt})"
        elif row.status_code not in _ends(submit, request_id in history.cancelled):
            yield f"{request_id} ended with {row.status_code} {row.error_type}, for which there is no reason"
    for seen in history.seen:
        if seen.status is None and seen.request_id in history.accepted:
            yield f"{seen.request_id} was said to be unknown after it had been acknowledged"


def _ends(submit: Submit, cancelled: bool) -> set[int]:
    ends = {ENDS.get(submit.payload.motion, 200)}
    return ends | ({499} if cancelled else set()) | ({503} if submit.no_retry else set())


def results_are_of_their_payload(history: History) -> Iterator[str]:
    """I2: what came out is what was asked for: seed, clip, and what the client was given."""
    files = {file.key: file for file in history.files}
    for row in _succeeded(history):
        if row.payload is None or row.seed != row.payload.seed:
            yield f"{row.id} has the seed {row.seed} of another request"
        file = files.get(_key_of(row.url))
        if file and file.digest is not None and row.payload and file.digest != row.payload.digest:
            yield f"{row.id} has the clip {file.digest:016x} of another request"
    for answer in history.answers:
        row_ = history.rows.get(answer.request_id)
        if row_ and (answer.status_code, answer.seed, answer.url) != (row_.status_code, row_.seed, row_.url):
            yield f"{answer.request_id}: its client was given another result than the one that is kept"


def ends_once(history: History) -> Iterator[str]:
    """I3: a request ends once: one COMPLETED, one output written, one webhook if it wanted one."""
    for row in history.rows.values():
        if row.status != COMPLETED:
            continue
        ends = sum(each.new == COMPLETED for each in history.path.get(row.id, ()))
        if ends != 1:
            yield f"{row.id} was completed {ends} times"
        if (written := history.outputs.get(row.id, 0)) != 1:
            yield f"the output of {row.id} was written {written} times"
    for request_id, submit in history.accepted.items():
        if request_id in history.rows and submit.webhook != (request_id in history.webhooks):
            yield f"{request_id} has {'no' if submit.webhook else 'a'} webhook, unlike what its caller wanted"


def states_are_legal(history: History) -> Iterator[str]:
    """I4: states are a path of the automaton, each claim has a higher attempt, and nothing comes after the end."""
    for request_id, path in history.path.items():
        state, attempt = None, 0
        for each in path:
            if each.old != state or (each.old, each.new) not in LEGAL:
                yield f"{request_id} went from {each.old} to {each.new} when it was {state} (change {each.n})"
            if each.new == IN_PROGRESS and each.attempt <= attempt:
                yield f"{request_id} was claimed as attempt {each.attempt} after attempt {attempt}"
            state, attempt = each.new, max(attempt, each.attempt)
        row = history.rows.get(request_id)
        if row and row.status != state:
            yield f"{request_id} is {row.status}, and nobody saw it become so"


def runs_one_at_a_time(history: History) -> Iterator[str]:
    """I5: one attempt at a time as the store sees it; in the engine two overlap only once the first was lost."""
    for request_id, path in history.path.items():
        for before, after in pairwise(path):
            if before.new == after.new == IN_PROGRESS:
                yield f"{request_id} was claimed by {after.owner} while {before.owner} had it"
    runs = defaultdict(list)
    for run in history.runs:
        runs[run.digest].append(run)
    for digest, rows in history.rows_of.items():
        for row in rows[:1]:
            yield from _check_runs(history, row, sorted(runs[digest], key=lambda run: run.start))


def _check_runs(history: History, row: Row, runs: list[Run]) -> Iterator[str]:
    path = history.path.get(row.id, [])
    claims = sum(each.new == IN_PROGRESS for each in path)
    if len(runs) > claims:
        yield f"{row.id} ran {len(runs)} times and was claimed {claims} times"
    lost = [each.at for each in path if (each.old, each.new) == (IN_PROGRESS, IN_QUEUE)]
    for before, after in pairwise(runs):
        overlaps = before.end is not None and before.end > after.start
        if overlaps and not any(before.start <= at <= after.start for at in lost):
            yield f"{row.id} ran in {before.pid} and {after.pid} at once, though its attempt was not lost"


def lanes_are_first_in_first_out(history: History) -> Iterator[str]:
    """I6: inside a lane (model, priority, key, batch key) nobody is overtaken, and normal requests go before low ones.

    As many as may be claimed at once are forgiven. A request counts from its acknowledgement on, because two inserts
    may commit the other way round than they were numbered.
    """
    waiting = {id: min(each.ended for each in submit.acknowledged) for id, submit in history.accepted.items()}
    forgiven = history.limits.max_batch * history.limits.claimers
    lanes: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in history.rows.values():
        lanes[row.model, row.priority, row.key_id, row.batch_key].append(row)
    for rows in lanes.values():
        claims = sorted((history.first_claims[row.id].at, row.seq) for row in rows if row.id in history.first_claims)
        for row in rows:
            claim = history.first_claims.get(row.id)
            if claim is None or row.id not in waiting:
                continue
            overtakers = [seq for at, seq in claims if waiting[row.id] < at < claim.at and seq > row.seq]
            if len(overtakers) > forgiven:
                yield f"{row.id} was overtaken by {len(overtakers)} requests of its own lane"
    yield from _low_goes_last(history, waiting, forgiven)


def _low_goes_last(history: History, waiting: Mapping[str, float], forgiven: int) -> Iterator[str]:
    claims = [(row, claim) for id, claim in history.first_claims.items() if (row := history.rows.get(id))]
    low: dict[str, list[float]] = defaultdict(list)
    for row, claim in claims:
        if row.priority:
            low[row.model].append(claim.at)
    for times in low.values():
        times.sort()
    for row, claim in claims:
        if row.priority == 0 and row.id in waiting:
            times = low[row.model]
            before = bisect_right(times, claim.at) - bisect_right(times, waiting[row.id])
            if before > forgiven:
                yield f"{row.id} waited while {before} requests of low priority were claimed"


def webhooks_are_told(history: History) -> Iterator[str]:
    """I7: who wanted to be told was told, or is known as not told for a reason; signed, and not before the commit."""
    taken = {post.request_id for post in history.posts if 200 <= post.answered < 300}
    gone = {post.request_id for post in history.posts if post.answered == 410}
    for webhook in history.webhooks.values():
        row = history.rows.get(webhook.request_id)
        if row and row.status == COMPLETED and webhook.state not in ("DELIVERED", "UNDELIVERED"):
            yield f"{webhook.request_id} has ended and its webhook is {webhook.state} after {webhook.attempts} attempts"
        if webhook.state == "DELIVERED" and webhook.request_id not in taken:
            yield f"the webhook of {webhook.request_id} is DELIVERED and nobody took it"
        if webhook.state == "UNDELIVERED" and webhook.request_id in taken:
            yield f"the webhook of {webhook.request_id} is UNDELIVERED, and its receiver took it"
        elif webhook.state == "UNDELIVERED" and webhook.attempts < WEBHOOK_ATTEMPTS and webhook.request_id not in gone:
            yield f"the webhook of {webhook.request_id} was given up after {webhook.attempts} attempts"
    ended = {each.request_id: each.at for each in history.transitions if each.new == COMPLETED}
    for post in history.posts:
        row = history.rows.get(post.request_id)
        if not post.verified:
            yield f"a POST for {post.request_id} has a wrong signature"
        if post.at < ended.get(post.request_id, float("inf")):
            yield f"{post.request_id} was told of before it had ended"
        if row and post.status != ("OK" if row.status_code == 200 else "ERROR"):
            yield f"{post.request_id} was told to be {post.status} and ended with {row.status_code}"


def keys_see_their_own(history: History) -> Iterator[str]:
    """I8: what belongs to another key is not there. A service that cannot answer at the moment tells nothing either."""
    for peek in history.peeks:
        if peek.status_code != 404 and peek.status_code < 500:
            yield f"{peek.key_id} was answered {peek.status_code} to {peek.request_id}, which is another key's"
    for request_id, submit in history.accepted.items():
        row = history.rows.get(request_id)
        if row and row.key_id != submit.key_id:
            yield f"{request_id} was acknowledged to {submit.key_id} and belongs to {row.key_id}"


def what_succeeded_is_billed(history: History) -> Iterator[str]:
    """I9: there is one billing event for each success, and none for anything else."""
    billed = Counter(history.billed)
    succeeded = {row.id for row in _succeeded(history)}
    for request_id in succeeded | set(billed):
        if billed[request_id] != (request_id in succeeded):
            ended = "succeeded" if request_id in succeeded else "did not succeed"
            yield f"{request_id} {ended} and is billed {billed[request_id]} times"


def positions_rise_for_a_reason(history: History) -> Iterator[str]:
    """I10: a position rises only by as many as may have come in front.

    Those are requests of other keys or of a higher priority that arrived, and attempts that were lost. Keys take turns,
    so each other key may also move by one.
    """
    came = sorted(
        (each.at, each.request_id, each.old is not None) for each in history.transitions if each.new == IN_QUEUE
    )
    times = [at for at, _, _ in came]
    others = len({row.key_id for row in history.rows.values()}) - 1
    for last, now in _sightings(history):
        mine = history.rows.get(now.request_id)
        if mine is None or last.position is None or now.position is None or now.position <= last.position:
            continue
        window = came[bisect_right(times, last.sent - SNAPSHOT_SECONDS) : bisect_right(times, now.at)]
        reasons = sum(retried or _may_go_before(history.rows.get(id), mine) for _, id, retried in window)
        if now.position - last.position > reasons + others:
            yield f"{mine.id} went from place {last.position} to {now.position} with {reasons} to go before it"


def _may_go_before(row: Row | None, mine: Row) -> bool:
    if row is None or row.model != mine.model:
        return False
    return row.priority < mine.priority or (row.priority == mine.priority and row.key_id != mine.key_id)


def _sightings(history: History) -> Iterator[tuple[Seen, Seen]]:
    """Each two sightings of a request that follow each other."""
    last: dict[str, Seen] = {}
    for seen in sorted(history.seen, key=lambda each: each.at):
        if seen.status != IN_QUEUE:
            last.pop(seen.request_id, None)
            continue
        if seen.request_id in last:
            yield last[seen.request_id], seen
        last[seen.request_id] = seen


def files_are_whole(history: History) -> Iterator[str]:
    """I11: what a result names is there and is what was stored; what nobody names, a lost attempt has left."""
    files = {file.key: file for file in history.files}
    for row in _succeeded(history):
        file = files.get(_key_of(row.url))
        if file is None or file.found_size is None:
            yield f"{row.id} names {row.url}, which is not there"
        elif not file.has_row:
            yield f"{row.id} names {file.key}, of which nothing is recorded"
        elif (file.size, file.sha256 or file.found_sha256) != (file.found_size, file.found_sha256):
            yield f"{file.key} of {row.id} is not what was stored"
        elif file.digest is None:
            yield f"{file.key} of {row.id} is no clip"
    orphans = [file.key for file in history.files if not file.has_row]
    lost = sum(each.old == IN_PROGRESS for each in history.transitions) - len(_succeeded(history))
    if len(orphans) > lost:
        yield f"{len(orphans)} files belong to nobody, and {lost} attempts came to nothing: {', '.join(orphans[:3])}"


def unknown_submits_are_whole_or_absent(history: History) -> Iterator[str]:
    """I12: a submit is wholly there, once, or not at all; a client that asked again got the same request."""
    for submit in history.submits:
        rows = history.rows_of.get(submit.payload.digest, [])
        ids = {each.request_id for each in submit.acknowledged}
        if len(rows) > 1 or len(ids) > 1:
            yield f"one submit of {submit.client} became {sorted({row.id for row in rows} | {id for id in ids if id})}"
        for row in rows:
            if not row.has_io or (submit.webhook and row.id not in history.webhooks) or row.id not in history.path:
                yield f"{row.id} is there, but not all of it"
            if submit.tries and all(each.outcome == "fail" for each in submit.tries):
                yield f"{row.id} is there, though its submit was refused"


def _succeeded(history: History) -> list[Row]:
    return [row for row in history.rows.values() if row.status == COMPLETED and row.status_code == 200]


def _key_of(url: str | None) -> str:
    return (url or "").partition("/files/")[2]


INVARIANTS: dict[str, Check] = {
    "evidence": evidence_is_whole,
    "I1": acknowledged_requests_end,
    "I2": results_are_of_their_payload,
    "I3": ends_once,
    "I4": states_are_legal,
    "I5": runs_one_at_a_time,
    "I6": lanes_are_first_in_first_out,
    "I7": webhooks_are_told,
    "I8": keys_see_their_own,
    "I9": what_succeeded_is_billed,
    "I10": positions_rise_for_a_reason,
    "I11": files_are_whole,
    "I12": unknown_submits_are_whole_or_absent,
}
