"""``svd-serve keys``: what an operator does with the keys of callers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments import cli, keyring, logs
from deployments.errors import Unauthenticated
from deployments.gateway.auth import Authenticator, Caller
from deployments.queue.database import Database
from deployments.queue.keys import Keys, Limits, Scope
from tests.conftest import ROOT, Server

ADMIN = "boss:swordfish"


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command says where its process logs to; this process goes on."""
    logger = logging.getLogger(logs.AUDIT)
    before = list(logger.handlers), logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


class Desk:
    """The commands from the operator's side, and what a running service makes of the keys."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.url, self.capsys = url, capsys

    def do(self, use: Any) -> Any:
        async def run() -> Any:
            database = await Database.open(self.url)
            try:
                return await use(database)
            finally:
                await database.close()

        return asyncio.run(run())

    def caller(self, credentials: str) -> Caller | None:
        """Who a service that starts now takes this for."""

        async def ask(database: Database) -> Caller | None:
            try:
                return await Authenticator(ADMIN, Keys(database)).caller(credentials)
            except Unauthenticated:
                return None

        return self.do(ask)

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """What a command prints, which ends with a status; what it says of an error for another status than 0."""
        said = self.both(*arguments, status=status)
        return said[1] if status else said[0]

    def both(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        logging.getLogger(logs.AUDIT).handlers.clear()  # each command is a process of its own
        self.capsys.readouterr()
        assert cli.main(["keys", *arguments]) == status, self.capsys.readouterr()
        return self.capsys.readouterr()

    def object(self, *arguments: str) -> dict[str, Any]:
        (line,) = self(*arguments, "--json").splitlines()
        return json.loads(line)


@pytest.fixture
def desk(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Desk:
    monkeypatch.setenv("SVD_DATABASE_URL", database_url)
    monkeypatch.setenv("SVD_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SVD_ADMIN_KEY", ADMIN)

    async def make() -> None:
        await (await Database.open(database_url)).close()

    asyncio.run(make())
    return Desk(database_url, capsys)


def audited(text: str) -> list[str]:
    """The messages of the audit lines in what a command wrote to standard error."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert {line["logger"] for line in lines} <= {"svd_serve.audit"}
    return [line["message"] for line in lines]


# ---------------------------------------------------------------- create


def test_a_key_is_printed_once_and_alone_and_works(desk: Desk) -> None:
    out, err = desk.both("create", " production ")
    key = out.strip()

    assert out == f"{key}\n" and re.fullmatch("[0-9a-f-]{36}:[0-9a-f]{64}", key)
    assert desk.caller(key) == Caller(key.partition(":")[0])
    assert "the only time that production's key is shown" in err
    assert key.partition(":")[2] not in err + desk("list") + desk("list", "--json") + desk("list", "--all", "--json")


def test_a_key_is_made_with_scope_end_and_limits(desk: Desk) -> None:
    made = desk.object(
        "create", "ops", "--scope", "ADMIN", "--expires", "30d", "--max-waiting", "5", "--usd-per-day", "1.5"
    )

    assert made["key"] == f"{made['key_id']}:{made['key_secret']}"
    limits = Limits(max_waiting=5, usd_per_day=1.5)
    assert desk.caller(made["key"]) == Caller(made["key_id"], Scope.ADMIN, limits)
    (key,) = desk.do(lambda database: Keys(database).valid())
    assert key.expires_at - key.created_at == pytest.approx(30 * 86400, abs=10)
    assert made["limits"] == asdict(limits) and made["expires_at"] is not None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([" "], "printable"),
        (["a" * 256], "printable"),
        (["a\x1b[2J"], "printable"),
        (["a\udcff"], "printable"),
        (["a", "--scope", "GOD"], "GOD"),
        (["a", "--expires", "soon"], "30m"),
        (["a", "--expires", "0s"], "0s"),
        (["a", "--expires", "36501d"], "36500d"),
        (["a", "--expires", "9" * 400 + "d"], "36500d"),
    ],
)
def test_what_makes_no_key_is_told(desk: Desk, options: list[str], complaint: str) -> None:
    with pytest.raises(SystemExit):
        desk("create", *options)
    assert complaint in desk.capsys.readouterr().err
    assert desk("list").startswith("no keys in the database\n")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--requests-per-second", "0"),
        ("--requests-per-second", "nan"),
        ("--requests-per-second", "-1"),
        ("--max-waiting", "0"),
        ("--max-waiting", "1.5"),
        ("--max-running", str(2**31)),
        ("--max-running", "many"),
        ("--usd-per-day", "-0.1"),
        ("--usd-per-day", "inf"),
        ("--upload-bytes-per-day", str(2**60)),
        ("--upload-bytes-per-day", ""),
    ],
)
def test_what_is_no_limit_is_told_and_changes_nothing(desk: Desk, option: str, value: str) -> None:
    key_id = desk.object("create", "a")["key_id"]

    for command in (["create", "b"], ["limit", key_id]):
        assert desk(*command, f"{option}={value}", status=1).startswith(f"svd-serve: {option}: Input should be")
    (key,) = desk.do(lambda database: Keys(database).all())
    assert key.limits == Limits()


def test_every_limit_can_be_said(desk: Desk) -> None:
    assert list(keyring.LIMITS) == [each.name for each in fields(Limits)]


# ---------------------------------------------------------------- list


def test_keys_are_listed_the_oldest_first_with_what_they_may_and_when_they_were_used(desk: Desk) -> None:
    first = desk("create", "one", "--max-running", "2", "--upload-bytes-per-day", "1048576").strip()
    second = desk.object("create", "two", "--scope", "ADMIN")["key_id"]

    async def use(database: Database) -> None:
        await Keys(database).note_use([second])

    desk.do(use)
    head, one, two, ours = desk("list").splitlines()
    assert re.split("  +", head) == ["ID", "ALIAS", "SCOPE", "STATE", "CREATED", "EXPIRES", "LAST USED", "LIMITS"]
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\dZ"
    pattern = (
        rf"{first.partition(':')[0]} +one +API +valid +{moment} +- +- +max_running 2, upload_bytes_per_day 1.0 MiB"
    )
    assert re.fullmatch(pattern, one)
    assert re.fullmatch(rf"{second} +two +ADMIN +valid +{moment} +- +{moment} +none", two)
    assert ours.startswith("and boss, ADMIN: the key of the environment (SVD_ADMIN_KEY")
    assert "swordfish" not in ours


def test_keys_that_have_ended_are_listed_where_they_are_asked_for(desk: Desk) -> None:
    valid = desk.object("create", "valid")["key_id"]
    revoked = desk.object("create", "revoked")["key_id"]
    desk("revoke", revoked)
    expired, _ = desk.do(lambda database: Keys(database).create("expired", expires_at=1e9))

    assert [json.loads(line)["key_id"] for line in desk("list", "--json").splitlines()] == [valid]
    everything = [json.loads(line) for line in desk("list", "--all", "--json").splitlines()]
    assert {each["key_id"]: each["state"] for each in everything} == {
        valid: "valid",
        revoked: "revoked",
        expired.id: "expired",
    }
    assert all("secret" not in each and "hash" not in each for each in everything)


def test_without_a_key_of_the_environment_none_is_made_or_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SVD_ADMIN_KEY")

    assert desk("list") == "no keys in the database\n"
    assert not Path(os.environ["SVD_DATA_DIR"]).exists()


# ---------------------------------------------------------------- rotate


def test_both_secrets_work_after_a_rotation_until_the_former_ones_time_is_up(desk: Desk) -> None:
    old = desk("create", "a").strip()
    key_id = old.partition(":")[0]
    new, err = desk.both("rotate", key_id)

    assert "Its former secret works until 20" in err
    assert [desk.caller(key) for key in (old, new.strip())] == [Caller(key_id)] * 2
    newer = desk.object("rotate", key_id, "--keep", "0")
    assert newer["former_until"] is None
    assert [desk.caller(key) for key in (old, new.strip(), newer["key"])] == [None, None, Caller(key_id)]


@pytest.mark.parametrize("keep", ["1", "-1h", "31d", "9" * 400 + "d", "for ever"])
def test_a_time_to_keep_a_secret_that_makes_no_sense_is_told(desk: Desk, keep: str) -> None:
    key = desk("create", "a").strip()
    with pytest.raises(SystemExit):
        desk("rotate", key.partition(":")[0], f"--keep={keep}")
    assert desk.caller(key)


# ---------------------------------------------------------------- revoke, limit


def test_a_revoked_key_works_no_more_and_cannot_be_revoked_again(desk: Desk) -> None:
    key = desk("create", "a").strip()
    key_id = key.partition(":")[0]

    assert desk("revoke", key_id) == f"{key_id} is revoked; running services refuse it within five seconds\n"
    assert desk.caller(key) is None
    assert "revoked already" in desk("revoke", key_id, status=1)


def test_limits_are_changed_one_by_one_and_lifted(desk: Desk) -> None:
    key = desk("create", "a", "--max-waiting", "5", "--max-running", "1").strip()
    key_id = key.partition(":")[0]

    said = desk("limit", key_id, "--max-waiting", "none", "--requests-per-second", "0.5")
    assert said == f"{key_id}: requests_per_second 0.5, max_running 1\n"
    caller = desk.caller(key)
    assert caller and caller.limits == Limits(requests_per_second=0.5, max_running=1)
    assert "--upload-bytes-per-day" in desk("limit", key_id, status=1)


@pytest.mark.parametrize("action", [["rotate"], ["revoke"], ["limit", "--max-running=1"]])
@pytest.mark.parametrize("key_id", ["nobody", "\udcff", "a\x1b[2J"])
def test_an_unknown_key_is_told_in_a_sentence(desk: Desk, action: list[str], key_id: str) -> None:
    err = desk(*action, key_id, status=1)

    assert err.startswith("svd-serve: There is no ") and err.count("\n") == 1
    assert audited(err) == []


@pytest.mark.parametrize("action", [["rotate"], ["revoke"], ["limit", "--max-running=1"]])
def test_the_key_of_the_environment_is_changed_there(desk: Desk, action: list[str]) -> None:
    err = desk(*action, "boss", status=1)

    assert err.startswith("svd-serve: boss is the key of the environment (SVD_ADMIN_KEY")
    assert "swordfish" not in err


# ---------------------------------------------------------------- the audit log


def test_everything_that_is_done_to_a_key_is_a_line_of_the_audit_log_without_a_secret(desk: Desk) -> None:
    out, created = desk.both("create", "a", "--scope", "ADMIN")
    key_id, _, secret = out.strip().partition(":")
    new, rotated = desk.both("rotate", key_id)
    limited, revoked = desk.both("limit", key_id, "--max-waiting", "3")[1], desk.both("revoke", key_id)[1]

    who = f"user {os.getuid()} of this machine"
    assert [audited(each) for each in (created, rotated, limited, revoked)] == [
        [f"{who}: create key {key_id}, scope=ADMIN"],
        [f"{who}: rotate key {key_id}, scope=ADMIN"],
        [f"{who}: change key {key_id}, max_waiting=3"],
        [f"{who}: revoke key {key_id}"],
    ]
    for each in (secret, new.strip().partition(":")[2]):
        assert each not in created + rotated + limited + revoked
    assert audited(desk.both("list")[1]) == []


def test_a_database_that_is_not_there_is_told(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVD_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/none.db")

    assert "there is no database at" in desk("create", "a", status=1)
    assert not (tmp_path / "none.db").exists()


# ---------------------------------------------------------------- a service that runs


def test_what_is_done_here_holds_for_a_service_that_runs(server: Server) -> None:
    def command(*arguments: str) -> str:
        line = [sys.executable, "-m", "deployments.cli", "keys", *arguments]
        environment = {**os.environ, "SVD_DATA_DIR": str(server.data_dir)}
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def status(key: str) -> int:
        headers = {"authorization": f"Key {key}"}
        return httpx.get(f"{server.url}/v1/models/pricing", headers=headers, trust_env=False, timeout=60).status_code

    def holds_after(seconds: float, key: str, wanted: int) -> bool:
        """Whether a key is answered so by then, at the latest by a call that begins then."""
        then = time.monotonic() + seconds
        while (is_last := time.monotonic() > then) or status(key) != wanted:
            if is_last:
                return status(key) == wanted
            time.sleep(0.1)
        return True

    old = command("create", "program")
    assert holds_after(1, old, 200)
    new = command("rotate", old.partition(":")[0], "--keep", "0")
    assert holds_after(1, new, 200)
    assert holds_after(5, old, 401)
    command("revoke", new.partition(":")[0])
    assert holds_after(5, new, 401)
    assert status(server.key) == 200

    admin = {"authorization": f"Key {server.key}"}
    made = httpx.post(f"{server.url}/v1/keys", json={"alias": "a"}, headers=admin, trust_env=False, timeout=60).json()
    said = f"key {server.key.partition(':')[0]}: create key {made['key_id']}, scope=API"
    give_up = time.monotonic() + 30
    while said not in server.log.read_text() and time.monotonic() < give_up:
        time.sleep(0.1)
    (line,) = [line for line in server.log.read_text().splitlines() if said in line]
    assert '"logger": "svd_serve.audit"' in line
    for key in (old, new, made["key"]):
        assert key.partition(":")[2] not in server.log.read_text()
