"""Each invariant finds the history that breaks it, and none complains of one that is as it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from loadtest.chaos.checker import INVARIANTS, WEBHOOK_ATTEMPTS, check
from loadtest.chaos.history import (
    BILLING,
    DATABASE,
    Answer,
    History,
    Peek,
    Post,
    Row,
    Run,
    Seen,
    Stored,
    Submit,
    Transition,
    Try,
    WebhookRow,
)
from loadtest.chaos.payload import FAILS, INVALID, Payload

Break = Callable[[History], History]


def payload(number: int, motion: int = 2) -> Payload:
    return Payload(number, motion, 0.02, (number, 0, 0))


def submit(number: int, **more: object) -> Submit:
    """Request a<number>, acknowledged a tenth of a second after it was sent."""
    accepted = Try(float(number), "ok", number + 0.1, f"a{number}")
    values = {"client": "c", "key_id": "alice", "payload": payload(number), "tries": (accepted,)}
    return Submit(**{**values, **more})  # type: ignore[arg-type]


def row(number: int, **more: object) -> Row:
    values = {"model": "m", "key_id": "alice", "priority": 0, "batch_key": "", "status": "COMPLETED", "attempt": 1}
    values |= {"status_code": 200, "error_type": None, "payload": payload(number), "seed": number}
    values |= {"url": f"http://x/files/b/{number}/clip.mp4"}
    return Row(f"a{number}", number, **{**values, **more})  # type: ignore[arg-type]


def stored(number: int, **more: object) -> Stored:
    values = {"size": 9, "sha256": "ab", "found_size": 9, "found_sha256": "ab", "digest": payload(number).digest}
    return Stored(f"b/{number}/clip.mp4", **{"request_id": f"a{number}", **values, **more})  # type: ignore[arg-type]


def path(number: int, *changes: tuple[float, str, int]) -> list[Transition]:
    """The changes of a request: when, to what, which attempt."""
    states = [None, *(state for _, state, _ in changes)]
    return [
        Transition(number * 1000 + 10 * n, at, f"a{number}", states[n], state, attempt, "d")
        for n, (at, state, attempt) in enumerate(changes)
    ]


def straight(number: int, claimed: float, ended: float) -> list[Transition]:
    return path(number, (number, "IN_QUEUE", 0), (claimed, "IN_PROGRESS", 1), (ended, "COMPLETED", 1))


def good() -> History:
    """Three requests of alice: a1 went straight, a2 was lost once and has a webhook, a3 was cancelled as it waited."""
    return History(
        submits=[submit(1), submit(2, webhook=True), submit(3)],
        seen=[
            Seen("a2", 2.2, 2.3, "IN_QUEUE", 1),
            Seen("a2", 2.4, 2.5, "IN_QUEUE", 0),
            Seen("a2", 9.0, 9.1, "COMPLETED"),
        ],
        peeks=[Peek("bob", "a1", 404)],
        answers=[Answer("a1", 200, 1, "http://x/files/b/1/clip.mp4")],
        cancelled=frozenset({"a3"}),
        rows={
            "a1": row(1),
            "a2": row(2, attempt=2),
            "a3": row(3, status_code=499, error_type="client_cancelled", seed=None, url=None),
        },
        transitions=[
            *straight(1, 4, 5),
            *path(
                2,
                (2, "IN_QUEUE", 0),
                (4.5, "IN_PROGRESS", 1),
                (6, "IN_QUEUE", 1),
                (7, "IN_PROGRESS", 2),
                (8, "COMPLETED", 2),
            ),
            *path(3, (3, "IN_QUEUE", 0), (3.5, "COMPLETED", 0)),
        ],
        outputs={"a1": 1, "a2": 1, "a3": 1},
        webhooks={"a2": WebhookRow("a2", "DELIVERED", 2)},
        posts=[Post(8.1, "a2", "OK", True, 500), Post(13.1, "a2", "OK", True, 200)],
        files=[stored(1), stored(2)],
        runs=[
            Run(payload(1).digest, 10, 4.1, 4.9),
            Run(payload(2).digest, 10, 4.6, None),
            Run(payload(2).digest, 11, 7.1, 7.9),
        ],
        billed=["a1", "a2"],
    )


def test_nothing_is_wrong_with_a_good_history() -> None:
    assert not any(check(good()).values())


def with_rows(*rows: Row) -> Break:
    return lambda history: replace(history, rows={**history.rows, **{each.id: each for each in rows}})


def without_row(history: History) -> History:
    return replace(history, rows={id: each for id, each in history.rows.items() if id != "a1"})


def unknown_to_its_caller(history: History) -> History:
    return replace(history, seen=[*history.seen, Seen("a1", 2, 2.1, None)])


def with_files(*files: Stored) -> Break:
    return lambda history: replace(
        history, files=[*(each for each in history.files if each.key not in {new.key for new in files}), *files]
    )


def with_path(number: int, *changes: tuple[float, str, int]) -> Break:
    def change(history: History) -> History:
        others = [each for each in history.transitions if each.request_id != f"a{number}"]
        return replace(history, transitions=[*others, *path(number, *changes)])

    return change


def taken_while_running(history: History) -> History:
    stolen = [Transition(1015, 4.2, "a1", "IN_PROGRESS", "IN_PROGRESS", 2, "e")]
    return replace(history, transitions=[*history.transitions[:2], *stolen, *history.transitions[2:]])


def runs(*more: Run) -> Break:
    return lambda history: replace(history, runs=[*history.runs, *more])


def overtaken(history: History) -> History:
    """a10 waits from 10.1 on, and five that came after it are claimed before it."""
    numbers = range(10, 16)
    return replace(
        history,
        submits=[*history.submits, *(submit(number) for number in numbers)],
        rows={**history.rows, **{f"a{number}": row(number) for number in numbers}},
        transitions=[
            *history.transitions,
            *straight(10, 30, 31),
            *(change for number in numbers[1:] for change in straight(number, number + 10, number + 10.5)),
        ],
        outputs={**history.outputs, **{f"a{number}": 1 for number in numbers}},
        files=[*history.files, *(stored(number) for number in numbers)],
        billed=[*history.billed, *(f"a{number}" for number in numbers)],
    )


def behind_low_ones(history: History) -> History:
    """As ``overtaken``, but the five are of low priority, and so of another lane."""
    broken = overtaken(history)
    low = {f"a{number}": row(number, priority=1) for number in range(11, 16)}
    return replace(broken, rows={**broken.rows, **low})


def posts(*more: Post) -> Break:
    return lambda history: replace(history, posts=[*history.posts, *more])


def webhook(state: str, attempts: int = 2) -> Break:
    return lambda history: replace(history, webhooks={"a2": WebhookRow("a2", state, attempts)})


def given_up(attempts: int, answered: int) -> Break:
    """The receiver answered so to each of so many POSTs, and the webhook is UNDELIVERED."""
    refused = [Post(8.1 + n, "a2", "OK", True, answered) for n in range(attempts)]
    return lambda history: replace(webhook("UNDELIVERED", attempts)(history), posts=refused)


def risen(history: History) -> History:
    return replace(history, seen=[*history.seen, Seen("a2", 2.6, 2.7, "IN_QUEUE", 3)])


def accepted_twice(history: History) -> History:
    """A client asked again with its idempotency key, and got another request."""
    twice = replace(history.submits[0], idempotency="k", tries=(*submit(1).tries, Try(1.2, "ok", 1.3, "a4")))
    return replace(history, submits=[twice, *history.submits[1:]])


def refused_and_there(history: History) -> History:
    refused = submit(1, tries=(Try(1.0, "fail", 1.1, why="400"),))
    return replace(history, submits=[refused, *history.submits[1:]])


BROKEN: list[tuple[str, Break]] = [
    ("I1", with_rows(row(1, status="IN_PROGRESS", status_code=None))),
    ("I1", with_rows(row(1, status_code=503, error_type="runner_disconnected"))),
    ("I1", with_rows(row(1, status_code=499, error_type="client_cancelled"))),
    ("I1", without_row),
    ("I1", unknown_to_its_caller),
    ("I2", with_rows(row(1, seed=2))),
    ("I2", with_files(stored(1, digest=payload(2).digest))),
    ("I2", lambda history: replace(history, answers=[Answer("a1", 200, 1, "http://x/files/b/2/clip.mp4")])),
    ("I3", with_path(1, (1, "IN_QUEUE", 0), (4, "IN_PROGRESS", 1), (5, "COMPLETED", 1), (5.1, "COMPLETED", 1))),
    ("I3", lambda history: replace(history, outputs={**history.outputs, "a1": 2})),
    ("I3", lambda history: replace(history, webhooks={**history.webhooks, "a1": WebhookRow("a1", "UNDELIVERED", 11)})),
    ("I4", with_path(1, (1, "IN_QUEUE", 0), (4, "IN_PROGRESS", 1), (5, "COMPLETED", 1), (6, "IN_QUEUE", 1))),
    ("I4", with_path(3, (3, "IN_PROGRESS", 1), (3.5, "COMPLETED", 1))),
    ("I4", with_path(1, (1, "IN_QUEUE", 0), (2, "IN_PROGRESS", 1), (3, "IN_QUEUE", 1), (4, "IN_PROGRESS", 1))),
    ("I5", taken_while_running),
    ("I5", runs(Run(payload(1).digest, 11, 5.1, 5.2))),
    (
        "I5",
        lambda history: replace(
            history, runs=[*history.runs[:1], Run(payload(2).digest, 10, 6.5, 7.5), history.runs[2]]
        ),
    ),
    ("I6", overtaken),
    ("I6", behind_low_ones),
    ("I7", webhook("DUE")),
    ("I7", webhook("UNDELIVERED", WEBHOOK_ATTEMPTS)),
    ("I7", given_up(3, 500)),
    ("I7", lambda history: replace(history, posts=history.posts[:1])),
    ("I7", posts(Post(14, "a2", "OK", False, 200))),
    ("I7", posts(Post(7.5, "a2", "OK", True, 500))),
    ("I7", posts(Post(14, "a2", "ERROR", True, 200))),
    ("I8", lambda history: replace(history, peeks=[Peek("bob", "a1", 200)])),
    ("I8", lambda history: replace(history, peeks=[Peek("bob", "a1", 202)])),
    ("I8", lambda history: replace(history, peeks=[Peek("bob", "a1", 403)])),
    ("I8", with_rows(row(1, key_id="bob"))),
    ("I9", lambda history: replace(history, billed=["a1"])),
    ("I9", lambda history: replace(history, billed=["a1", "a2", "a2"])),
    ("I9", lambda history: replace(history, billed=["a1", "a2", "a3"])),
    ("I10", risen),
    ("I11", with_files(stored(1, found_size=None, found_sha256=None, digest=None))),
    ("I11", with_files(stored(1, found_size=4))),
    ("I11", with_files(stored(1, found_sha256="cd"))),
    ("I11", with_files(stored(1, digest=None))),
    ("I11", with_files(stored(1, request_id=None))),
    ("I11", with_files(*(stored(number, request_id=None) for number in (7, 8)))),
    ("evidence", lambda history: replace(history, missing={DATABASE: "ConnectionRefusedError"})),
    ("evidence", lambda history: replace(history, missing={BILLING: "ConnectError"}, billed=[])),
    ("I12", accepted_twice),
    ("I12", refused_and_there),
    ("I12", with_rows(row(1, has_io=False))),
    ("I12", with_rows(replace(row(1), id="a9"))),
]


@pytest.mark.parametrize(("invariant", "change"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_invariant_finds_what_breaks_it(invariant: str, change: Break) -> None:
    assert check(change(good()))[invariant]


def test_no_invariant_is_decoration() -> None:
    assert {invariant for invariant, _ in BROKEN} == set(INVARIANTS)


def test_only_the_broken_invariant_complains_of_an_overtaken_request() -> None:
    assert [name for name, found in check(overtaken(good())).items() if found] == ["I6"]


def test_position_may_rise_when_somebody_comes_in_front() -> None:
    history = risen(good())
    visitors = {f"a{number}": row(number, key_id="bob") for number in (21, 22, 23)}
    arrivals = [Transition(n, 2.55, id, None, "IN_QUEUE", 0) for n, id in enumerate(visitors, 21000)]
    explained = replace(history, rows={**history.rows, **visitors}, transitions=[*history.transitions, *arrivals])
    assert check(history)["I10"] and not check(explained)["I10"]


def test_a_request_may_end_as_it_was_told_to() -> None:
    history = replace(
        good(),
        submits=[
            submit(1, payload=payload(1, FAILS)),
            submit(2, payload=payload(2, INVALID)),
            submit(3, no_retry=True),
        ],
        rows={
            "a1": row(1, payload=payload(1, FAILS), status_code=500),
            "a2": row(2, payload=payload(2, INVALID), status_code=422),
            "a3": row(3, status_code=503),
        },
    )
    assert not check(history)["I1"]


def test_a_lost_attempt_may_leave_a_file_behind() -> None:
    assert not check(with_files(stored(7, request_id=None))(good()))["I11"]


def test_two_runs_may_overlap_once_the_first_was_lost() -> None:
    late = [Run(payload(1).digest, 10, 4.1, 4.9), Run(payload(2).digest, 10, 4.6, 7.5), good().runs[2]]
    assert not check(replace(good(), runs=late))["I5"]


@pytest.mark.parametrize(("attempts", "answered"), [(WEBHOOK_ATTEMPTS, 500), (1, 410)])
def test_a_webhook_may_be_given_up_when_nobody_takes_it(attempts: int, answered: int) -> None:
    assert not check(given_up(attempts, answered)(good()))["I7"]


def test_a_service_that_cannot_answer_shows_nothing() -> None:
    assert not check(replace(good(), peeks=[Peek("bob", "a1", 503)]))["I8"]


def test_what_could_not_be_read_is_told_once_and_not_for_each_request() -> None:
    dead = replace(good(), rows={}, transitions=(), files=(), missing={DATABASE: "TimeoutError"})
    assert check(dead) == {"evidence": ["the database could not be read: TimeoutError"]}
    unbilled = check(replace(good(), billed=[], missing={BILLING: "ConnectError"}))
    assert [name for name, found in unbilled.items() if found] == ["evidence"] and "I9" not in unbilled
