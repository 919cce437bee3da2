"""What callers' URLs reach, in a network where every address answers: one test for each URL and each road to it."""

from __future__ import annotations

import json
import subprocess
import sys
from ipaddress import ip_address
from typing import Any

import pytest

from tests.conftest import ROOT, missing
from tests.netns.urls import CASES, PUBLIC, READ, WEBHOOKS, WITH_ALLOWED, Case

SECONDS = 400
USUAL = (80, 443, 8080, 8443)

World = dict[str, Any]


@pytest.fixture(scope="module")
def world() -> World:
    """What came of everything that was tried."""
    inside = ("unshare", "--net", "--mount")
    if subprocess.run([*inside, "ip", "link", "set", "lo", "up"], capture_output=True).returncode:
        missing("the right to make a network")
    command = [*inside, sys.executable, "-m", "tests.netns.world"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stderr
    assert "swordfish" not in ran.stderr  # the log
    result: World = json.loads(ran.stdout)
    return result


def trespasses(result: dict[str, Any]) -> list[tuple[str, int]]:
    """Who was reached that nobody may reach."""
    return [(host, port) for host, port in result["came"] if not (_is_public(host) and port in USUAL)]


def _is_public(host: str) -> bool:
    return str(getattr(ip_address(host), "ipv4_mapped", None) or host) in PUBLIC


@pytest.mark.parametrize("road", ["picture", "archive"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_is_had_from_the_public_web_alone(world: World, case: Case, road: str) -> None:
    result = world[road][case.name]

    assert trespasses(result) == []
    assert result["had"] == case.had
    assert result["error"] == (None if case.had else "file_download_error")
    assert "swordfish" not in result["body"]
    if case.had:
        assert result["came"]
    elif not case.redirects:
        assert result["came"] == []


@pytest.mark.parametrize("case", WEBHOOKS, ids=lambda case: case.name)
def test_a_webhook_is_delivered_to_the_public_web_alone(world: World, case: Case) -> None:
    result = world["webhook"][case.name]

    assert trespasses(result) == []
    assert result["had"] == (case.had and not case.redirects)
    if case.redirects:  # not followed, wherever it leads
        assert result["status"] in (301, 302, 303, 307, 308)
        assert len(result["came"]) == 1
    elif not case.had:
        assert (result["came"], result["error"] is None) == ([], False)


@pytest.mark.parametrize("url", READ)
def test_a_file_of_ours_is_read_and_not_called_for(world: World, url: str) -> None:
    assert world["read"][url] == {"had": True, "error": None, "body": "", "came": []}


@pytest.mark.parametrize("case", WITH_ALLOWED, ids=lambda case: case.name)
def test_what_an_operator_allows_is_had_and_no_more(world: World, case: Case) -> None:
    result = world["allowed"][case.name]

    assert (result["had"], bool(result["came"])) == (case.had, case.had or case.redirects)
    if not case.had:
        assert trespasses(result) == []


@pytest.mark.parametrize("case", WITH_ALLOWED, ids=lambda case: case.name)
def test_a_webhook_reaches_what_an_operator_allows_and_no_more(world: World, case: Case) -> None:
    result = world["allowed webhook"][case.name]

    assert result["had"] == (case.had and not case.redirects)
    if not case.had:
        assert trespasses(result) == []


def test_a_name_is_looked_up_once_and_what_was_checked_is_called(world: World) -> None:
    assert world["rebinding"]["first"]
    assert world["rebinding"]["asked"] == 1
    assert world["rebinding"]["second"] == "this address is not allowed"
    assert trespasses(world["rebinding"]) == []


def test_a_name_server_that_never_answers_holds_up_no_call(world: World) -> None:
    assert world["silent"]["error"] == "it took too long"
    assert world["silent"]["seconds"] < 2.5


def test_the_honeypots_would_have_been_reached(world: World) -> None:
    hosts = [host for host, _ in world["knocked"]]

    assert hosts[:4] == ["127.0.0.1", "169.254.169.254", "10.0.0.1", "::1"]
    assert len(trespasses({"came": world["knocked"]})) == len(hosts) == 7


def test_how_much_was_tried_is_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    roads = {road: world[road] for road in ("picture", "archive", "webhook")}
    wrong = sum(len(trespasses(result)) for results in roads.values() for result in results.values())
    with capsys.disabled():
        tried = ", ".join(f"{len(results)} URLs as {road}" for road, results in roads.items())
        print(f"\nnetns: {tried}; connections to honeypots: {wrong}")
    assert wrong == 0
