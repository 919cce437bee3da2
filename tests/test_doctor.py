"""``svd-serve doctor``: each fault is made for real, and has to be found, named and advised upon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import yaml
from sqlalchemy import text, update

from deployments.doctor.examination import look
from deployments.doctor.findings import Check, Finding, Level, ok
from deployments.doctor.service import check_service
from deployments.doctor.store import check_database, check_file, check_queue, file_system, reading_seconds
from deployments.doctor.surroundings import (
    check_configuration,
    check_ffmpeg,
    check_keys,
    check_space,
    check_storage,
    check_weights,
)
from deployments.errors import RunnerServerError
from deployments.queue.database import Database
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.queue.tables import dispatchers, now, requests, webhooks
from deployments.scaling import POLICY
from deployments.settings import Settings
from loadtest.postgres import Postgres
from tests.conftest import ROOT, Server, free_port, run_postgres
from tests.queue.conftest import MODEL, new_request

CONFIG = ROOT / "serve_config.yaml"
OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL
SERVED = {MODEL}


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SVD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SVD_DATA_DIR", str(tmp_path))
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # the doctor sets them for its process
    monkeypatch.chdir(ROOT)


def found(check: AsyncIterator[Finding]) -> list[Finding]:
    async def collect() -> list[Finding]:
        return [finding async for finding in check]

    findings = asyncio.run(collect())
    for finding in findings:
        assert bool(finding.advice) == (finding.level != OK), finding
        assert "\n" not in finding.says + finding.advice
    return findings


def bad(check: AsyncIterator[Finding]) -> list[tuple[str, Level, str]]:
    """What is not as it should be."""
    return [(finding.check, finding.level, finding.says) for finding in found(check) if finding.level != OK]


def the_bad(check: AsyncIterator[Finding]) -> Finding:
    """The one thing that is not as it should be."""
    (finding,) = [finding for finding in found(check) if finding.level != OK]
    return finding


def first_fault(url: str) -> Finding:
    """Of a database."""
    return next(finding for finding in found(check_database(url)) if finding.level == FAIL)


def migrated(url: str) -> str:
    async def migrate() -> None:
        await (await Database.open(url)).close()

    asyncio.run(migrate())
    return url


def in_store(url: str, use: Callable[[RequestStore], Any]) -> Any:
    async def run() -> Any:
        store = await RequestStore.open(url)
        try:
            return await use(store)
        finally:
            await store.close()

    return asyncio.run(run())


def execute(url: str, *statements: Any) -> None:
    """Run statements as somebody else does."""

    async def run(store: RequestStore) -> None:
        async with store.database.transaction() as connection:
            for statement in statements:
                await connection.execute(text(statement) if isinstance(statement, str) else statement)

    in_store(url, run)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server of these tests' own: the other one forgoes what the doctor insists on, and here it is stopped."""
    with run_postgres() as server:
        migrated(server.create("migrated"))
        yield server


@pytest.fixture
def sqlite(database_url: str) -> str:
    return migrated(database_url)


@pytest.fixture
def postgresql(postgres: Postgres) -> str:
    return postgres.create(f"doctor_{os.urandom(4).hex()}", template="migrated")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def run_doctor(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deployments.cli", "doctor", *options]
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=300)


# ---------------------------------------------------------------- the whole


def test_a_machine_without_faults_has_only_what_is_not_there_yet(tmp_path: Path) -> None:
    done = run_doctor(SVD_DATA_DIR=str(tmp_path / "new"), SVD_PUBLIC_URL=f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "no library says anything of its own"
    lines = done.stdout.splitlines()
    assert lines[-1] == "0 faults, 4 warnings."
    assert {line.split()[0] for line in lines[:-2]} == {"ok", "warn", "→"}
    assert not (tmp_path / "new").exists(), "looking makes nothing"


def test_faults_make_the_exit_status_and_no_secret_is_shown(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("id:hidden-key\n")
    variables = {
        "SVD_DATABASE_URL": f"postgresql+asyncpg://svd:hidden-word@127.0.0.1:{free_port()}/svd?password=hidden-too",
        "SVD_PUBLIC_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_SECRET_ACCESS_KEY": "hidden-credential",
    }
    for options in ([], ["--json"]):
        done = run_doctor("--config", str(tmp_path / "none.yaml"), *options, **variables)
        assert done.returncode == 1
        assert "hidden" not in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    told = {each["check"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert told["configuration"]["level"] == told["database"]["level"] == "FAIL"
    assert told["queue"]["says"] == "not looked at: the database does not answer"
    assert told["weights"]["advice"] == "see configuration, above"


def test_a_secret_that_strays_into_a_line_is_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SVD_ADMIN_KEY", "id:a-long-secret")
    findings = look(tmp_path / "a-long-secret.yaml")
    first = next(findings)
    findings.close()
    assert first.says == f"there is no {tmp_path}/….yaml"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SVD_ADMIN_KEY", "hidden"), ("SVD_POLL_HOLD_SECONDS", "hidden"), ("SVD_DATABASE_URL", "hidden")],
)
def test_a_setting_that_is_wrong_is_the_first_fault(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    (finding,) = look(CONFIG)
    assert (finding.check, finding.level) == ("settings", FAIL)
    assert variable in finding.says and "hidden" not in finding.says + finding.advice


def test_a_check_that_hangs_is_left_behind(postgres: Postgres, postgresql: str, tmp_path: Path) -> None:
    postgres.pause()
    try:
        began = time.monotonic()
        done = run_doctor(
            "--config", str(tmp_path / "none.yaml"), SVD_DATABASE_URL=postgresql, SVD_PUBLIC_URL="http://127.0.0.1:1"
        )
        took = time.monotonic() - began
    finally:
        postgres.resume()
    assert done.returncode == 1
    assert "FAIL  database" in done.stdout
    assert "ffmpeg" in done.stdout, "the others are looked at all the same"
    assert took < 60


def test_a_check_that_blocks_its_thread_is_a_fault_after_its_time() -> None:
    async def block() -> AsyncIterator[Finding]:
        yield ok("disk", "so far")
        time.sleep(60)
        yield ok("disk", "never")

    first, second = Check("disk", block, "a disk hangs", seconds=0.2).findings()
    assert first.says == "so far"
    assert (second.level, second.says, second.advice) == (FAIL, "no answer within 0.2 s", "a disk hangs")


def test_a_check_that_breaks_is_a_fault_and_no_end() -> None:
    async def broken() -> AsyncIterator[Finding]:
        yield ok("disk", "so far")
        raise ZeroDivisionError("two\nlines")

    assert [finding.says for finding in Check("disk", broken, "a").findings()] == [
        "so far",
        "ZeroDivisionError: two lines",
    ]


# ---------------------------------------------------------------- configuration


def configuration(tmp_path: Path, change: Callable[[Any], None]) -> Path:
    document = yaml.safe_load(CONFIG.read_text())
    change(document)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def application(document: Any) -> Any:
    return document["applications"][0]


def test_the_configuration_of_the_repository_is_good() -> None:
    assert [(each.level, each.says) for each in found(check_configuration(Path("serve_config.yaml")))] == [
        (OK, "serve_config.yaml: 4 endpoints")
    ]


WRONG_CONFIGURATIONS: dict[str, Callable[[Any], None]] = {
    "it names no application": lambda document: document.pop("applications"),
    "endpoints": lambda document: application(document)["args"].pop("endpoints"),
    "args.gpus": lambda document: application(document)["args"].update(gpus=1),
    "deployments.models.svd:Missing": lambda document: application(document)["args"]["endpoints"]["fal-ai/svd"].update(
        model="deployments.models.svd:Missing"
    ),
    "names fal-ai--gone, which do": lambda document: application(document)["deployments"].append(
        {"name": "fal-ai--gone"}
    ),
    "names fal-ai--typo, which do": lambda document: application(document)["deployments"][1]["user_config"][
        "batching"
    ].update({"fal-ai--typo": {"max_batch_size": 2}}),
    "batch_size": lambda document: application(document)["deployments"][1]["user_config"]["batching"].update(
        {MODEL: {"batch_size": 2}}
    ),
    "num_replica": lambda document: application(document)["deployments"][2].update(num_replica=2),
    "port": lambda document: document["http_options"].update(port="http"),
    "target_seconds": lambda document: application(document)["deployments"][2].update(
        autoscaling_config={"policy": {"policy_function": POLICY, "policy_kwargs": {"target_seconds": 0}}}
    ),
}


@pytest.mark.parametrize("said", WRONG_CONFIGURATIONS)
def test_what_is_wrong_with_a_configuration_is_named(tmp_path: Path, said: str) -> None:
    finding = the_bad(check_configuration(configuration(tmp_path, WRONG_CONFIGURATIONS[said])))
    assert finding.level == FAIL
    assert said.split(":")[-1] in finding.says


@pytest.mark.parametrize("content", ["a: [1\nb: 2", "", "- 1", "\t"])
def test_a_file_that_is_no_configuration_is_a_fault(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    finding = the_bad(check_configuration(path))
    assert finding.level == FAIL
    assert content[:1] != "a" or "line 2" in finding.says


# ---------------------------------------------------------------- keys


def test_a_kept_key_is_good_if_nobody_else_can_read_it(tmp_path: Path) -> None:
    key = Settings().key()
    (finding,) = found(check_keys(Settings()))
    assert finding.level == OK and key not in finding.says
    (tmp_path / "admin.key").chmod(0o640)
    finding = the_bad(check_keys(Settings()))
    assert (finding.level, finding.advice.split(";")[0]) == (WARN, f"chmod 600 {tmp_path}/admin.key")


@pytest.mark.parametrize("content", ["", "id", "id:", ":secret"])
def test_a_key_of_another_form_is_a_fault(tmp_path: Path, content: str) -> None:
    (tmp_path / "admin.key").write_text(content)
    assert the_bad(check_keys(Settings())).level == FAIL


def test_a_missing_key_is_told_and_none_is_made(tmp_path: Path) -> None:
    assert the_bad(check_keys(Settings())).level == WARN
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the database


def test_a_good_database_has_no_fault(url: str) -> None:
    findings = found(check_database(url))
    assert [finding for finding in findings if finding.level != OK] == []
    checks = [finding.check for finding in findings]
    assert {"database", "database schema", "database clock", "database writes"} <= set(checks)
    assert {"SQLite", "database file"} <= set(checks) or {"PostgreSQL", "vacuum", "transactions"} <= set(checks)


def test_the_probe_of_a_write_leaves_nothing(url: str) -> None:
    found(check_database(url))

    async def rows(store: RequestStore) -> int:
        async with store.database.read() as connection:
            return len((await connection.execute(dispatchers.select())).all())

    assert in_store(url, rows) == 0


def test_a_stopped_postgresql_is_told_with_what_to_do(postgres: Postgres, postgresql: str) -> None:
    postgres.stop()
    try:
        finding = the_bad(check_database(postgresql))
        (unseen,) = found(check_queue(postgresql, SERVED))
    finally:
        postgres.start()
    assert (finding.check, finding.level) == ("database", FAIL)
    assert "start PostgreSQL" in finding.advice
    assert unseen.says == "not looked at: the database does not answer"


def test_a_database_that_is_not_there_is_told(postgres: Postgres, tmp_path: Path) -> None:
    assert "createdb" in the_bad(check_database(postgres.url("nowhere"))).advice
    file = tmp_path / "none" / "queue.db"
    assert the_bad(check_database(f"sqlite+aiosqlite:///{file}")).level == WARN
    assert found(check_queue(f"sqlite+aiosqlite:///{file}", SERVED)) == []
    assert not file.parent.exists()


def test_a_host_that_does_not_exist_is_told() -> None:
    finding = the_bad(check_database("postgresql+asyncpg://svd:hidden@nowhere.invalid/svd"))
    assert finding.level == FAIL and "hidden" not in finding.says
    assert "host" in finding.advice


def test_an_empty_database_wants_its_migrations(url: str, postgres: Postgres, tmp_path: Path) -> None:
    empty = (
        f"sqlite+aiosqlite:///{tmp_path}/empty.db" if "sqlite" in url else postgres.create(f"e{os.urandom(4).hex()}")
    )
    (tmp_path / "empty.db").touch()
    finding = next(each for each in found(check_database(empty)) if each.check == "database schema")
    assert finding.level == WARN and "svd-serve migrate" in finding.advice


@pytest.mark.parametrize(("revision", "word"), [("0002", "older"), ("9999", "newer")])
def test_another_revision_is_told(url: str, revision: str, word: str) -> None:
    execute(url, f"UPDATE alembic_version SET version_num = '{revision}'")
    finding = the_bad(check_database(url))
    assert (finding.check, finding.level) == ("database schema", WARN)
    assert word in finding.says and revision in finding.says
    queue = found(check_queue(url, SERVED))
    assert (queue[0].level == WARN) == (word == "older"), "what newer code has added is in nobody's way"


def test_looking_migrates_nothing(sqlite: str) -> None:
    execute(sqlite, "UPDATE alembic_version SET version_num = '0002'")
    found(check_database(sqlite))
    found(check_queue(sqlite, SERVED))
    with contextlib.closing(sqlite3.connect(sqlite.partition("///")[2])) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)


def test_a_table_that_lacks_a_column_is_a_fault(url: str) -> None:
    execute(url, "ALTER TABLE files DROP COLUMN sha256", "DROP TABLE turns")
    finding = the_bad(check_database(url))
    assert (finding.check, finding.level) == ("database schema", FAIL)
    assert "files.sha256" in finding.says and "turns" in finding.says
    assert bad(check_queue(url, SERVED))[0][1] == WARN


def test_somebody_elses_tables_beside_ours_are_no_fault(url: str) -> None:
    execute(url, "CREATE TABLE theirs (id integer)", "ALTER TABLE files ADD COLUMN theirs integer")
    assert bad(check_database(url)) == []


def test_a_clock_that_differs_is_told(url: str) -> None:
    # The doctor's own clock is moved: nobody may move the machine's, and a difference has no side.
    def is_told(seconds: float) -> tuple[Level, str]:
        finding = the_bad(check_database(url, clock=lambda: time.time() + seconds))
        assert finding.check == "database clock" and "NTP" in finding.advice
        return finding.level, finding.says

    assert is_told(-5) == (WARN, "5.0s ahead of this machine's")
    level, says = is_told(3600)
    assert level == FAIL and says.endswith("behind this machine's")
    assert bad(check_database(url, clock=lambda: time.time() + 1)) == []


# ---------------------------------------------------------------- SQLite


def test_a_damaged_sqlite_file_is_a_fault(sqlite: str) -> None:
    async def fill(store: RequestStore) -> None:
        for _ in range(200):
            await store.submit(new_request(input=json.dumps({"image_url": "x" * 2000})))

    in_store(sqlite, fill)
    file = Path(sqlite.partition("///")[2])
    with file.open("r+b") as raw:
        for page in range(40, 60):
            raw.seek(page * 4096)
            raw.write(os.urandom(4096))
    found_so_far = [*found(check_database(sqlite)), *found(check_file(sqlite))]
    finding = next(finding for finding in found_so_far if finding.level == FAIL)
    assert "restore a backup" in finding.advice


def test_a_large_file_has_its_time_and_is_no_fault_if_it_takes_longer(sqlite: str, tmp_path: Path) -> None:
    (only,) = found(check_file(sqlite))
    assert (only.check, only.level, only.says) == ("SQLite", OK, "the file is whole")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1024**3)
    assert reading_seconds(tmp_path / "large") > 50 > reading_seconds(tmp_path / "none")

    async def slow() -> AsyncIterator[Finding]:
        await asyncio.sleep(60)
        yield ok("SQLite", "never")

    (silence,) = Check("SQLite", slow, "in a quiet hour", 0.1, WARN).findings()
    assert silence.level == WARN


def test_a_file_that_is_no_database_is_a_fault(sqlite: str) -> None:
    file = Path(sqlite.partition("///")[2])
    file.write_bytes(b"no database at all" * 1000)
    finding = first_fault(sqlite)
    assert "not a database" in finding.says and "restore a backup" in finding.advice


def test_a_writer_that_holds_its_lock_is_told(sqlite: str) -> None:
    with contextlib.closing(sqlite3.connect(sqlite.partition("///")[2])) as connection:
        connection.execute("BEGIN IMMEDIATE")
        finding = first_fault(sqlite)
    assert "locked" in finding.says and "fuser" in finding.advice


def test_a_journal_that_is_no_wal_is_told(sqlite: str) -> None:
    with contextlib.closing(sqlite3.connect(sqlite.partition("///")[2])) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    finding = the_bad(check_database(sqlite))
    assert (finding.check, finding.level) == ("SQLite", WARN) and "delete" in finding.says


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))


def test_a_full_disk_is_told_for_database_and_files(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = migrated(f"sqlite+aiosqlite:///{small_disk}/svd-serve.db")
    (small_disk / "files").mkdir()
    monkeypatch.setenv("SVD_DATA_DIR", str(small_disk))
    fill(small_disk)

    assert "full disk" in first_fault(url).advice, "SQLite cannot even open it"
    storage = the_bad(check_storage(Settings()))
    assert storage.level == FAIL and "not full" in storage.advice
    assert the_bad(check_space(Settings(), small_disk / "svd-serve.db")).level == FAIL


def test_a_disk_that_fills_under_a_running_service_is_told(small_disk: Path) -> None:
    url = f"sqlite+aiosqlite:///{small_disk}/svd-serve.db"

    async def look_while_it_runs(store: RequestStore) -> list[Finding]:
        await store.submit(new_request())
        fill(small_disk)
        return [finding async for finding in check_database(url)]

    finding = next(finding for finding in in_store(url, look_while_it_runs) if finding.level == FAIL)
    assert "full" in finding.says and "free some space" in finding.advice


def test_a_disk_without_inodes_left_is_told(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small_disk / "files").mkdir()
    monkeypatch.setenv("SVD_DATA_DIR", str(small_disk))
    subprocess.run(["mount", "-o", "remount,nr_inodes=500", str(small_disk)], check=True)
    assert bad(check_space(Settings(), None))[0][2].endswith(f"free at {small_disk}/files"), "there are still some"
    with contextlib.suppress(OSError):
        for number in range(500):
            (small_disk / f"{number}").touch()
    finding = the_bad(check_space(Settings(), None))
    assert finding.level == FAIL and "inodes" in finding.says


def test_a_disk_that_cannot_be_written_is_told(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = migrated(f"sqlite+aiosqlite:///{small_disk}/svd-serve.db")
    (small_disk / "files").mkdir()
    monkeypatch.setenv("SVD_DATA_DIR", str(small_disk))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    storage = the_bad(check_storage(Settings()))
    assert storage.level == FAIL and "writable" in storage.advice
    database = first_fault(url)
    assert "readable and writable" in database.advice or "make the file and its directory writable" in database.advice


@pytest.mark.parametrize(
    ("file", "level"),
    [("/srv/data/queue.db", FAIL), ("/srv/database/queue.db", OK), ("/srv/data/local/queue.db", OK), ("/q.db", OK)],
)
def test_a_network_file_system_is_a_fault(file: str, level: Level) -> None:
    mounts = [("/", "ext4"), ("/srv", "xfs"), ("/srv/data", "nfs4"), ("/srv/data/local", "tmpfs")]
    assert file_system(Path(file), mounts).level == level


# ---------------------------------------------------------------- PostgreSQL


def test_autovacuum_that_is_off_is_a_fault(postgresql: str) -> None:
    execute(postgresql, "ALTER TABLE requests SET (autovacuum_enabled = false)")
    finding = the_bad(check_database(postgresql))
    assert (finding.check, finding.level) == ("vacuum", FAIL)


def test_settings_that_may_lose_what_was_acknowledged_are_faults(postgresql: str) -> None:
    name = postgresql.rpartition("/")[2]
    execute(postgresql, f"ALTER DATABASE {name} SET synchronous_commit = off")
    finding = the_bad(check_database(postgresql))
    assert (finding.check, finding.level, finding.says) == ("PostgreSQL", FAIL, "synchronous_commit is off")


def test_a_transaction_that_stays_open_is_told(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.doctor.store.LONG_TRANSACTION_SECONDS", 0.2)  # an operator's patience is longer

    async def hold() -> list[Finding]:
        engine = sqlalchemy.ext.asyncio.create_async_engine(postgresql)
        async with engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            await asyncio.sleep(0.3)
            findings = [finding async for finding in check_database(postgresql)]
        await engine.dispose()
        return findings

    (finding,) = [finding for finding in asyncio.run(hold()) if finding.level != OK]
    assert (finding.check, finding.level) == ("transactions", WARN)
    assert "pg_stat_activity" in finding.advice


def test_dead_rows_that_pile_up_are_told(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.doctor.store.MOST_DEAD", 100)
    execute(postgresql, "ALTER TABLE requests SET (autovacuum_vacuum_threshold = 1000000)")

    async def fill(store: RequestStore) -> None:
        await store.submit(new_request())

    in_store(postgresql, fill)
    execute(postgresql, *["UPDATE requests SET pixel_frames = pixel_frames + 1"] * 200)
    give_up = time.monotonic() + 10
    while not (told := bad(check_database(postgresql))) and time.monotonic() < give_up:
        time.sleep(0.2)  # its statistics come when a connection ends
    assert [(name, level) for name, level, _ in told] == [("vacuum", WARN)]


def test_a_server_that_only_reads_is_told(postgresql: str) -> None:
    name = postgresql.rpartition("/")[2]
    execute(postgresql, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    finding = the_bad(check_database(postgresql))
    assert finding.level == FAIL and "standby" in finding.advice


# ---------------------------------------------------------------- the queue


async def dispatcher(store: RequestStore) -> None:
    await store.heartbeat("a", 60)


def test_an_idle_queue_has_no_fault(url: str) -> None:
    assert bad(check_queue(url, SERVED)) == []


def test_work_without_a_dispatcher_is_a_fault(url: str) -> None:
    async def fill(store: RequestStore) -> None:
        await store.submit(new_request())

    in_store(url, fill)
    finding = the_bad(check_queue(url, SERVED))
    assert finding.level == FAIL and finding.says.startswith("1 waiting, 0 running, 0 dispatchers")
    in_store(url, dispatcher)
    assert bad(check_queue(url, SERVED)) == []


def test_what_runs_under_a_dispatcher_that_is_gone_is_told(url: str) -> None:
    async def orphan(store: RequestStore) -> None:
        await store.submit(new_request())
        assert await store.claim(MODEL, "gone", BatchLimits())
        await dispatcher(store)

    in_store(url, orphan)
    assert bad(check_queue(url, SERVED)) == [("queue", WARN, "1 request run under a dispatcher that is gone")]


def test_a_long_wait_is_told_with_its_model(url: str) -> None:
    async def fill(store: RequestStore) -> None:
        await dispatcher(store)
        for _ in range(2):
            await store.submit(new_request())

    in_store(url, fill)
    execute(url, update(requests).values(created_at=now() - 7260))
    ((_, level, says),) = bad(check_queue(url, SERVED))
    assert (level, says) == (WARN, f"{MODEL}: 2 waiting, the oldest for 2h 1m")


def test_a_model_that_nothing_serves_is_a_fault(url: str) -> None:
    async def fill(store: RequestStore) -> None:
        await dispatcher(store)
        await store.submit(new_request(model="gone"))

    in_store(url, fill)
    ((_, level, says),) = bad(check_queue(url, SERVED))
    assert level == FAIL and says.startswith("gone: 1 waiting") and says.endswith("nothing serves it")
    assert bad(check_queue(url, set())) == [], "a configuration that cannot be read says nothing of models"


def test_pauses_and_suspects_are_told(url: str) -> None:
    async def crash(store: RequestStore) -> str:
        await dispatcher(store)
        await store.submit(new_request())
        (attempt,) = await store.claim(MODEL, "a", BatchLimits())
        assert await store.lose(attempt, "a", "the replica died", crashed=True, retry_seconds=60.0)
        return attempt.request_id

    request_id = in_store(url, crash)
    told = found(check_queue(url, SERVED))
    assert any("1 of them lost and paused" in each.says and each.level == WARN for each in told)
    (suspect,) = [each for each in told if each.says.startswith("replicas have died under")]
    assert request_id in suspect.says and f"svd-serve requests show {request_id}" in suspect.advice


def test_a_run_that_does_not_end_is_told(url: str) -> None:
    async def run(store: RequestStore) -> None:
        await dispatcher(store)
        await store.submit(new_request())
        assert await store.claim(MODEL, "a", BatchLimits())

    in_store(url, run)
    execute(url, update(requests).values(started_at=now() - 7200))
    assert bad(check_queue(url, SERVED)) == [("queue", WARN, "a request has been running for 2h 0m")]


def test_failures_and_webhooks_of_the_last_hour_are_told(url: str) -> None:
    async def fail_all(store: RequestStore) -> None:
        await dispatcher(store)
        for webhook in ("https://example.com/a", "https://example.com/b", None):
            await store.submit(new_request(webhook=webhook))
            (attempt,) = await store.claim(MODEL, "a", BatchLimits())
            ended = Outcome.of(RunnerServerError("The model failed").failure()) if webhook else Outcome(200, {})
            assert await store.complete(attempt, "a", ended)

    in_store(url, fail_all)
    execute(
        url,
        update(webhooks).where(webhooks.c.url.endswith("/a")).values(due_at=now() - 600),
        update(webhooks).where(webhooks.c.url.endswith("/b")).values(state="UNDELIVERED", due_at=None),
    )
    assert [says for _, level, says in bad(check_queue(url, SERVED)) if level == WARN] == [
        "1 webhook overdue, the first by 10m 0s",
        "1 webhook of the last hour could not be delivered",
        "2 of 3 requests failed in the last hour (2 runner_server_error)",
    ]
    execute(url, update(requests).values(finished_at=now() - 7200), webhooks.delete())
    assert bad(check_queue(url, SERVED)) == []


# ---------------------------------------------------------------- files, weights, ffmpeg


def test_a_good_storage_has_no_fault(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    assert bad(check_storage(Settings())) == []
    assert bad(check_space(Settings(), tmp_path / "svd-serve.db")) == []
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


def test_a_missing_storage_is_told_and_not_made(tmp_path: Path) -> None:
    finding = the_bad(check_storage(Settings()))
    assert finding.level == WARN and "not mounted" in finding.advice
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize("url", ["ftp://example.com/x", "s3://"])
def test_a_storage_of_another_kind_is_a_fault(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVD_STORAGE_URL", url)
    assert the_bad(check_storage(Settings())).advice == "correct SVD_STORAGE_URL"


def test_an_object_store_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "SVD_STORAGE_URL": "s3://clips/here",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "hidden-secret",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    finding = the_bad(check_storage(Settings()))
    assert finding.level == FAIL and "AWS_ENDPOINT_URL" in finding.advice
    assert "hidden" not in finding.says


def test_weights_that_are_missing_or_cut_off_are_faults(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(ROOT / "deployments/models/weights/svd", weights)
    (tensors,) = (weights / "vae").glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-100])

    def change(document: Any) -> None:
        endpoints = application(document)["args"]["endpoints"]
        endpoints["fal-ai/svd"]["weights"] = str(weights)
        endpoints["fal-ai/stable-video"]["weights"] = str(tmp_path / "nowhere")

    told = {each.says.partition(":")[0]: each for each in found(check_weights(configuration(tmp_path, change)))}
    assert told["fal-ai/fast-svd-lcm"].level == OK
    assert told["fal-ai/svd"].level == FAIL and "vae" in told["fal-ai/svd"].says
    assert told["fal-ai/stable-video"].level == FAIL and "nowhere" in told["fal-ai/stable-video"].says
    assert "svd-serve weights check" in told["fal-ai/svd"].advice


FFMPEGS = {
    "has no libx264": "#!/bin/sh\necho ' V..... libvpx  VP8'\n",
    "TimeoutExpired": "#!/bin/sh\nexec sleep 60\n",
    "OSError": "no program",
}


def test_the_ffmpeg_of_this_machine_is_good() -> None:
    assert bad(check_ffmpeg()) == []


@pytest.mark.parametrize("said", FFMPEGS)
def test_an_ffmpeg_that_cannot_do_it_is_a_fault(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.inference.encode import ffmpeg_binary

    program = tmp_path / "ffmpeg"
    program.write_text(FFMPEGS[said])
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("deployments.doctor.surroundings.FFMPEG_SECONDS", 0.3)
    ffmpeg_binary.cache_clear()
    try:
        finding = the_bad(check_ffmpeg())
    finally:
        ffmpeg_binary.cache_clear()
    assert finding.level == FAIL and said in finding.says and str(program) in finding.says


# ---------------------------------------------------------------- the service


@contextlib.contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """Somebody else's server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            for name, value in {"Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_running_service_has_no_fault_and_tells_its_replicas(server: Server) -> None:
    findings = found(check_service(server.url, server.key))
    assert [finding for finding in findings if finding.level != OK] == []
    assert {"fal-ai/svd: 1 idle, 0 running, 0 pending"} <= {each.says for each in findings}
    assert "service clock" in {finding.check for finding in findings}


def test_another_key_than_the_services_is_a_fault(server: Server) -> None:
    finding = the_bad(check_service(server.url, "id:another"))
    assert (finding.check, finding.level) == ("admin key", FAIL)
    assert "another" not in finding.says


def test_a_service_with_another_clock_is_told(server: Server) -> None:
    finding = the_bad(check_service(server.url, server.key, clock=lambda: time.time() - 3600))
    assert (finding.check, finding.level) == ("service clock", FAIL) and "ahead of" in finding.says


def test_the_doctor_finds_nothing_wrong_with_a_running_service(server: Server) -> None:
    done = run_doctor("--json", SVD_DATA_DIR=str(server.data_dir), SVD_PUBLIC_URL=server.url)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout
    wrong = [each for each in told if each["level"] != "ok" and each["check"] not in ("failures", "webhooks")]
    assert wrong == [], "other tests let requests and webhooks fail"


def test_a_service_that_is_not_ready_is_a_fault_with_its_reason() -> None:
    with answering(503, '{"status": "fal-ai--svd is UPDATING"}') as url:
        finding = the_bad(check_service(url, ""))
    assert finding.level == FAIL and "fal-ai--svd is UPDATING" in finding.says


@pytest.mark.parametrize("status", [200, 404])
def test_somebody_elses_server_is_a_fault(status: int) -> None:
    with answering(status, "<html>It works!</html>") as url:
        finding = the_bad(check_service(url, "id:secret"))
    assert finding.level == FAIL and "something else answers" in finding.says


def test_a_port_that_is_free_is_told() -> None:
    port = free_port()
    finding = the_bad(check_service(f"http://127.0.0.1:{port}", ""))
    assert finding.level == WARN and finding.says.endswith(f"port {port} is free")


def test_a_program_that_takes_connections_and_is_silent_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.doctor.service.ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        finding = the_bad(check_service(f"http://127.0.0.1:{silent.getsockname()[1]}", ""))
    assert finding.level == FAIL and "does not answer" in finding.says


def test_a_server_that_speaks_no_tls_is_told_so() -> None:
    with answering(200, "{}") as url:
        finding = the_bad(check_service(url.replace("http:", "https:"), ""))
    assert finding.level == FAIL and "TLS" in finding.says and "http://" in finding.advice


def test_an_address_to_which_no_connection_comes_about_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.doctor.service.ANSWER_SECONDS", 0.5)
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # whose queue of connections is full
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(busy.getsockname())
        finding = the_bad(check_service(f"http://127.0.0.1:{busy.getsockname()[1]}", ""))
    assert finding.level == FAIL and "cannot be reached: no connection within" in finding.says


def test_a_port_that_is_taken_and_refuses_is_a_fault() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        finding = the_bad(check_service(f"http://127.0.0.1:{taken.getsockname()[1]}", ""))
    assert finding.level == FAIL and "is taken" in finding.says


def test_an_address_that_is_nobodys_is_a_fault() -> None:
    assert the_bad(check_service("http://nowhere.invalid", "")).level == FAIL
