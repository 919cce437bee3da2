"""reliability.md §2.3 (c): 88 kinds of bad input, through the real service in a network of its own."""

from __future__ import annotations

import re

import pytest

from tests.hostile.campaign import ROWS, cases
from tests.hostile.conftest import Runner
from tests.hostile.rows_of_keys import SECRET
from tests.hostile.rows_of_urls import PASSWORD
from tests.hostile.table import GOOD, Case

LINES = cases()


def test_every_row_of_the_table_is_here() -> None:
    assert {line.row for line in LINES} == set(ROWS)
    tried = {line.row for line in LINES if not line.name.startswith(("a good request", "nothing private"))}
    assert tried == set(ROWS)


@pytest.mark.parametrize("line", LINES, ids=str)
def test_bad_input(runner: Runner, line: Case) -> None:
    runner.row(line.row)
    outcome = runner.campaign.outcomes[line]
    assert outcome is None, outcome


def test_nothing_that_callers_sent_is_in_a_log(runner: Runner) -> None:
    """After the table: no key, no password, no data URI, no traceback of ours, and no line that a caller wrote."""
    folder = runner.campaign.world.folder
    forbidden = [PASSWORD, SECRET, runner.campaign.world.key.partition(":")[2], GOOD[-60:], "\x1b[31m"]
    logs = [folder / "server.log", *folder.glob("svd-serve-*/ray/session_*/logs/**/*.*")]
    assert len(logs) > 5, "the logs are elsewhere"
    for log in logs:
        if log.is_file() and not log.is_symlink():
            text = _after_the_banner(log.read_text(errors="replace"))
            assert [each for each in forbidden if each in text] == [], log.name
            assert not re.search(r'(?m)^\{"level": "INFO"\}', text), log.name


def _after_the_banner(text: str) -> str:
    """Without what ``svd-serve serve`` tells whoever has started it: the key, for one."""
    return re.sub(r"(?s)svd-serve is ready\..*?\n  curl [^\n]*\n", "", text)


def test_the_service_is_the_one_that_was_started(runner: Runner) -> None:
    """No process died of the table but decoders, which are there to."""
    state = runner.campaign.world.state()
    assert state["alive"]
    assert {role: len(peaks) for role, peaks in state["peaks"].items() if role in ("gateway", "proxy")} == {
        "gateway": 1,
        "proxy": 1,
    }
