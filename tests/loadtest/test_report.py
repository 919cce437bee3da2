"""The figures of a campaign."""

from __future__ import annotations

from typing import Any

from loadtest.chaos.collect import runs_of, submits_of
from loadtest.chaos.history import Run, Strike
from loadtest.chaos.payload import Payload
from loadtest.chaos.report import pause, recovery, report
from tests.loadtest.test_checker import good


def test_recovery_is_told_of_the_requests_that_lost_their_attempt() -> None:
    assert recovery(good(), Strike("F1", "kill", 4.7, 4.7)) == [8 - 4.7]


def test_recovery_without_a_lost_attempt_is_told_of_what_ran() -> None:
    assert recovery(good(), Strike("F27", "scrape", 4.2, 4.3)) == [5 - 4.2]


def test_pause_counts_only_while_something_waits() -> None:
    assert pause(good(), 1.5, 100) == 3.5  # from there to the end of a1; a2 ends three seconds later
    assert pause(good(), 5.5, 7) == 1.5
    assert pause(good(), 20, 100) == 0


def test_report_counts_what_ended_and_what_was_violated() -> None:
    text = report(good(), [Strike("F1", "kill -9", 4.7, 4.7)], {"I1": [f"a{n} is lost" for n in range(12)]})
    assert "ended                 3  (2 with 200, 1 with 499)" in text
    assert "violations           12" in text and "a9 is lost" in text and "I1: and 2 more" in text


def test_submit_that_was_never_answered_is_unknown() -> None:
    meant = {"payload": Payload(1, 2, 0.1, (1, 2, 3)).dump(), "key_id": "k", "low": False}
    meant |= {"webhook": False, "idempotency": "i", "no_retry": False}
    told = {"n": 1, "request_id": None, "why": "503"}
    journal: list[dict[str, Any]] = [
        {"at": 1.0, "op": "submit", "n": 1, **meant},
        {"at": 2.0, "op": "unknown", **told},
        {"at": 3.0, "op": "submit", "n": 1, **meant},
    ]
    (submit,) = submits_of("c", journal)
    assert [(each.invoked, each.outcome) for each in submit.tries] == [(1.0, "unknown"), (3.0, "unknown")]


def test_run_that_did_not_come_to_its_end_has_none() -> None:
    batch = {"batch": "x", "pid": 7, "digests": [1, 2]}
    ended = [{"at": 1.0, "op": "start", **batch}, {"at": 2.0, "op": "end", **batch}]
    assert runs_of(ended) == [Run(1, 7, 1.0, 2.0), Run(2, 7, 1.0, 2.0)]
    assert runs_of(ended[:1]) == [Run(1, 7, 1.0, None), Run(2, 7, 1.0, None)]
