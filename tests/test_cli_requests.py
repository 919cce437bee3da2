"""``svd-serve requests``: what an operator sees and does of requests."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from sqlalchemy import update

from deployments import cli
from deployments.errors import InvalidInput, RunnerServerError, StartTimeout
from deployments.queue.files import Lifecycle
from deployments.queue.outbox import Outbox
from deployments.queue.request import InferenceRequest, LogLine, Priority
from deployments.queue.store import BatchLimits, Outcome, RequestStore
from deployments.queue.tables import request_io, requests
from deployments.words import duration, presentable, printable
from tests.conftest import ROOT, add_file
from tests.queue.conftest import MODEL, new_request

T = TypeVar("T")
PICTURE = "data:image/png;base64," + "A" * 5000


@pytest.fixture(autouse=True)
def database_of_the_commands(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVD_DATABASE_URL", database_url)


class Desk:
    """The queue from a test's side, and the commands from the operator's."""

    def __init__(self, url: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.url, self.capsys = url, capsys

    @asynccontextmanager
    async def store(self) -> Any:
        store = await RequestStore.open(self.url)
        yield store
        await store.close()

    def submit(self, **changes: Any) -> InferenceRequest:
        async def submit() -> InferenceRequest:
            async with self.store() as store:
                return await store.submit(new_request(**changes))

        return asyncio.run(submit())

    def run(self, outcome: Outcome | None = None) -> str:
        """Claim the next request, and end it with an outcome; answer its id."""

        async def work() -> str:
            async with self.store() as store:
                await store.heartbeat("a", 60)
                (attempt,) = await store.claim(MODEL, "a", BatchLimits())
                if outcome:
                    assert await store.complete(attempt, "a", outcome)
                return attempt.request_id

        return asyncio.run(work())

    def failed(self, **changes: Any) -> str:
        self.submit(**changes)
        return self.run(Outcome.of(RunnerServerError("The model failed").failure()))

    def get(self, request_id: str) -> InferenceRequest:
        async def get() -> InferenceRequest:
            async with self.store() as store:
                return await store.get(request_id)

        return asyncio.run(get())

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """What a command prints, which ends with a status; what it says of an error for another status than 0."""
        self.capsys.readouterr()
        assert cli.main(["requests", *arguments]) == status, self.capsys.readouterr()
        said = self.capsys.readouterr()
        return said.err if status else said.out

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self(*arguments, "--json").splitlines()]


def in_store(desk: Desk, use: Any) -> Any:
    async def run() -> Any:
        async with desk.store() as store:
            return await use(store)

    return asyncio.run(run())


@pytest.fixture
def desk(database_url: str, capsys: pytest.CaptureFixture[str]) -> Desk:
    async def make() -> None:
        await (await RequestStore.open(database_url)).close()

    asyncio.run(make())
    return Desk(database_url, capsys)


# ---------------------------------------------------------------- list


def test_requests_are_listed_the_newest_first_in_aligned_columns(desk: Desk) -> None:
    failed = desk.failed()
    waiting = desk.submit(key_id="bob", endpoint="fal-ai/stable-video", model="other").id

    head, first, second = desk("list").splitlines()

    assert head.split() == ["ID", "ENDPOINT", "STATUS", "TRIES", "AGE", "WAITED", "RAN", "KEY", "ERROR"]
    assert first.startswith(waiting) and second.startswith(failed)
    for line, status, key in ((first, "IN_QUEUE", "bob"), (second, "COMPLETED", "alice")):
        assert line.index(status) == head.index("STATUS")
        assert line.index(key) == head.index("KEY")
    assert second.endswith("runner_server_error: The model failed")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["waiting", "running", "failed", "done"]),
        (["--status", "IN_QUEUE"], ["waiting"]),
        (["--status", "COMPLETED"], ["failed", "done"]),
        (["--endpoint", "fal-ai/stable-video"], ["waiting"]),
        (["--key", "alice"], ["running", "failed", "done"]),
        (["--failed"], ["failed"]),
        (["--error", "runner_server_error"], ["failed"]),
        (["--error", "startup_timeout"], []),
        (["--failed", "--since", "1h"], ["failed"]),
        (["--limit", "2"], ["waiting", "running"]),
        (["--status", "COMPLETED", "--key", "bob"], []),
    ],
)
def test_what_is_listed_can_be_chosen(desk: Desk, options: list[str], found: list[str]) -> None:
    desk.submit()
    ids = {desk.run(Outcome(200, {"seed": 1})): "done", desk.failed(): "failed"}
    desk.submit()
    ids[desk.run()] = "running"
    ids[desk.submit(key_id="bob", endpoint="fal-ai/stable-video", model="other").id] = "waiting"
    assert [ids[each["id"]] for each in desk.objects("list", *options)] == found


def test_since_counts_from_the_end_of_what_failed(desk: Desk) -> None:
    old, new = desk.failed(), desk.failed()

    async def age(store: RequestStore) -> None:
        async with store.database.transaction() as connection:
            values = {"created_at": requests.c.created_at - 7200, "finished_at": requests.c.finished_at - 7200}
            await connection.execute(update(requests).where(requests.c.id == old).values(values))
            late = update(requests).where(requests.c.id == new)
            await connection.execute(late.values(created_at=requests.c.created_at - 7200))

    in_store(desk, age)
    assert [each["id"] for each in desk.objects("list", "--failed", "--since", "1h")] == [new]
    assert desk.objects("list", "--since", "1h") == [], "without a failure it is the moment of arrival"


def test_an_empty_list_says_so(desk: Desk) -> None:
    assert desk("list") == "no such requests\n"
    assert desk("list", "--json") == ""


def test_json_tells_times_in_isos_form(desk: Desk) -> None:
    desk.failed()
    (told,) = desk.objects("list")
    moments = (told["created_at"], told["started_at"], told["finished_at"])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment) for moment in moments)
    assert list(moments) == sorted(moments)
    assert told["not_before"] is None
    assert told.keys() >= {column.name for column in requests.c}
    assert 0 <= told["ran_seconds"] <= told["age_seconds"] < 60


# ---------------------------------------------------------------- show


def test_a_request_is_shown_with_what_it_cost_and_is_billed(desk: Desk) -> None:
    desk.submit()
    done = desk.run(Outcome(200, {}, gpu_seconds=2.5, cost_nano_usd=2_083_333, price_nano_usd=75_000_000))
    shown = desk("show", done)

    for line in (r"gpu_seconds +2\.5", r"cost_usd +0\.002083333", r"price_usd +0\.075000000"):
        assert re.search(rf"^{line}", shown, re.MULTILINE), line
    (told,) = desk.objects("show", done)
    assert (told["cost_usd"], told["price_usd"]) == (0.002083333, 0.075)


def test_a_request_is_shown_with_all_that_belongs_to_it(desk: Desk) -> None:
    failed = desk.failed(webhook="https://user:hidden1@example.com/hook?token=hidden2")

    async def add(store: RequestStore) -> None:
        await store.log([LogLine(failed, "Step 1/20", 1_700_000_000.0, "WARN")])
        await add_file(store.database, "b/1/clip.mp4", "alice", "video/mp4", 1234, Lifecycle(), failed)

    in_store(desk, add)
    shown = desk("show", failed)

    for name in (column.name for column in requests.c):
        assert re.search(rf"^{name}  ", shown, re.MULTILINE), name
    for part in ("2023-11-14T22:13:20.000Z", "Step 1/20", "b/1/clip.mp4", "example.com", '"state": "DUE"', "alice"):
        assert part in shown
    assert "hidden" not in shown
    (told,) = desk.objects("show", failed)
    assert told["output"]["error_type"] == "runner_server_error"
    assert told["files"][0]["size"] == 1234
    assert "hidden" not in json.dumps(told)


def test_secrets_and_pictures_of_a_payload_are_cut(desk: Desk) -> None:
    payload = {
        "image_url": PICTURE,
        "control_maps_data_url": "https://me:hidden1@example.com/a.zip?X-Amz-Signature=hidden2#hidden3",
        "api_key": "hidden4",
        "prompt": "long " * 100,
        "numbers": list(range(50)),
    }
    request_id = desk.submit(input=json.dumps(payload)).id
    for shown in (desk("show", request_id), desk("show", request_id, "--json")):
        assert "hidden" not in shown and "AAAA" not in shown
        assert "data:image/png;base64," in shown and "5022 characters" in shown
        assert "@example.com/a.zip" in shown
        assert "500 characters" in shown and "50 in all" in shown


def test_a_terminal_obeys_nothing_that_a_caller_sent(desk: Desk) -> None:
    request_id = desk.submit(input=json.dumps({"prompt": "\x1b]0;owned\x07 \u202e \x9b31m", "b\x1bad": 1})).id

    async def log(store: RequestStore) -> None:
        await store.log([LogLine(request_id, "a\x1b[2Jb\rc", 1.0)])

    in_store(desk, log)
    for shown in (desk("show", request_id), desk("list")):
        assert all(each.isprintable() for line in shown.splitlines() for each in line)
    assert r"a\x1b[2Jb\rc" in desk("show", request_id)


def test_what_is_no_longer_kept_is_none(desk: Desk) -> None:
    desk.submit(store_io=False)
    request_id = desk.run(Outcome(200, {"seed": 1}))
    (told,) = desk.objects("show", request_id)
    assert told["input"] is None


@pytest.mark.parametrize("action", ["show", "retry", "cancel"])
def test_an_unknown_request_is_told_in_a_sentence(desk: Desk, action: str) -> None:
    assert desk(action, "nobody", status=1) == "svd-serve: There is no request nobody\n"


# ---------------------------------------------------------------- retry


def test_a_retry_is_a_new_request_with_the_same_input(desk: Desk) -> None:
    old = desk.failed(
        input='{"seed": 7}',
        webhook="https://example.com/hook",
        priority=Priority.LOW,
        lifecycle='{"expiration_duration_seconds": 60}',
        idempotency_key="mine",
        start_timeout=60.0,
        previews=5,
    )
    new = desk("retry", old).strip()

    assert desk.get(old).status == "COMPLETED", "a final state is never left"
    first, second = desk.objects("show", old)[0], desk.objects("show", new)[0]
    assert (second["status"], second["attempt"], second["start_deadline"]) == ("IN_QUEUE", 0, None)
    same = ["endpoint", "model", "key_id", "batch_key", "pixel_frames", "priority", "lifecycle", "previews", "input"]
    assert [first[name] for name in same] == [second[name] for name in same]
    hooks = in_store(desk, lambda store: Outbox(store.database).rows(None, 10))
    assert {hook.request_id: (hook.host, hook.state) for hook in hooks}[new] == ("example.com", "WAITING")
    assert desk.run(Outcome(200, {"seed": 7})) == new


def test_a_request_is_retried_once_however_often_it_is_asked_for(desk: Desk) -> None:
    old = desk.failed()
    new = desk("retry", old).strip()
    assert f"was retried already, as {new}" in desk("retry", old, status=1)
    assert len(desk.objects("list")) == 2
    desk.run(Outcome.of(RunnerServerError("The model failed").failure()))
    assert desk("retry", new).strip() not in (old, new), "the retry that failed may be retried"


def refused(desk: Desk) -> str:
    failure = InvalidInput([{"loc": ("fps",), "msg": "too big", "type": "less_than_equal"}]).failure()
    request = in_store(desk, lambda store: store.submit(new_request(), failure))
    return str(request.id)


def forgotten(desk: Desk) -> str:
    desk.submit(store_io=False)
    return desk.run(Outcome.of(RunnerServerError("The model failed").failure()))


def erased(desk: Desk) -> str:
    request_id = desk.failed()

    async def erase(store: RequestStore) -> None:
        async with store.database.transaction() as connection:
            await connection.execute(request_io.delete())

    in_store(desk, erase)
    return request_id


CANNOT_BE_RETRIED = {
    "has not ended: it is IN_QUEUE": lambda desk: desk.submit().id,
    "its input has been deleted": erased,
    "its caller asked that its input be forgotten": forgotten,
    "was refused as it came in (value_error), and would be again": refused,
}


@pytest.mark.parametrize("reason", CANNOT_BE_RETRIED)
def test_what_cannot_be_retried_is_refused_in_a_sentence(desk: Desk, reason: str) -> None:
    request_id = CANNOT_BE_RETRIED[reason](desk)
    said = desk("retry", request_id, status=1)
    assert reason in said and request_id in said and said.count("\n") == 1
    assert len(desk.objects("list")) == 1


def test_what_did_not_start_in_time_or_was_cancelled_can_be_retried(desk: Desk) -> None:
    late = in_store(desk, lambda store: store.submit(new_request(), StartTimeout("too late").failure()))
    cancelled = desk.submit().id
    desk("cancel", cancelled)
    for request_id in (late.id, cancelled):
        assert desk.get(desk("retry", request_id).strip()).status == "IN_QUEUE"


def test_many_are_counted_first_and_retried_when_it_is_said(desk: Desk) -> None:
    failed = [desk.failed() for _ in range(3)]
    desk.failed(endpoint="fal-ai/stable-video")
    forgotten(desk)
    desk.submit()
    desk.run(Outcome(200, {"seed": 1}))

    counted = desk("retry", "--failed", "--since", "1h", "--endpoint", "fal-ai/svd")
    assert re.search(r"^3 +fal-ai/svd +runner_server_error$", counted, re.MULTILINE)
    assert "3 would be retried; nothing was done" in counted
    assert desk.objects("list", "--status", "IN_QUEUE") == []

    done = desk("retry", "--failed", "--since", "1h", "--endpoint", "fal-ai/svd", "--yes").splitlines()
    assert done[-1] == "3 of 3 retried"
    assert [line.split(" -> ")[0] for line in done[:-1]] == failed
    assert len(desk.objects("list", "--status", "IN_QUEUE")) == 3

    again = desk("retry", "--failed", "--since", "1h", "--endpoint", "fal-ai/svd", "--yes")
    assert again == "0 of 0 retried\n", "nothing twice"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a request, or say which with --failed or --error"),
        (["some-id", "--failed", "--since", "1h"], "name a request, or say which"),
        (["--failed"], "--since 1h"),
    ],
)
def test_a_retry_must_say_what_it_means(desk: Desk, arguments: list[str], said: str) -> None:
    assert said in desk("retry", *arguments, status=1)


@pytest.mark.parametrize("since", ["1", "h", "-1h", "1w", ""])
def test_a_span_of_another_form_is_refused(desk: Desk, since: str) -> None:
    with pytest.raises(SystemExit):
        desk("list", f"--since={since}")
    assert "90s, 30m, 1h or 2d" in desk.capsys.readouterr().err


# ---------------------------------------------------------------- cancel


def test_a_request_is_cancelled_as_by_its_caller(desk: Desk) -> None:
    waiting = desk.submit().id
    assert desk("cancel", waiting) == "cancelled\n"
    assert desk.get(waiting).error_type == "client_cancelled"
    assert desk("cancel", waiting, status=1) == f"svd-serve: Request {waiting} has ended already\n"

    desk.submit()
    running = desk.run()
    assert desk("cancel", running) == "it runs; its replica has been told to stop\n"
    assert desk.get(running).cancel_requested


# ---------------------------------------------------------------- the database


def test_no_database_is_made_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SVD_DATABASE_URL", f"sqlite+aiosqlite:///{tmp_path}/elsewhere/queue.db")
    assert cli.main(["requests", "list"]) == 1
    assert f"there is no database at {tmp_path}/elsewhere/queue.db" in capsys.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_empty_database_is_told_and_stays_empty(
    kind: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/empty.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres").create(f"test_{uuid4().hex}")
    else:
        (tmp_path / "empty.db").touch()
    monkeypatch.setenv("SVD_DATABASE_URL", url)
    for _ in range(2):
        assert cli.main(["requests", "list"]) == 1
        assert "is no database of svd-serve" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1.5", ""])
def test_a_limit_is_above_nought(desk: Desk, limit: str) -> None:
    for command in ("requests", "webhooks"):
        with pytest.raises(SystemExit):
            cli.main([command, "list", f"--limit={limit}"])
        assert "write a number above 0" in desk.capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql+asyncpg://svd:hidden@127.0.0.1:1/svd", "Connect"),
        ("hidden", "SVD_DATABASE_URL is no URL of a database"),
    ],
)
def test_a_database_that_cannot_be_had_is_told_in_a_line(
    url: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SVD_DATABASE_URL", url)
    assert cli.main(["requests", "list"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("svd-serve: ") and told.count("\n") == 1
    assert said in told and "hidden" not in told


def test_a_setting_that_is_wrong_is_named_without_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SVD_MAX_UPLOAD_BYTES", "hidden")
    assert cli.main(["requests", "list"]) == 1
    said = capsys.readouterr().err
    assert "SVD_MAX_UPLOAD_BYTES" in said and "hidden" not in said


def test_a_reader_that_goes_away_is_borne(desk: Desk, tmp_path: Path) -> None:
    desk.submit()

    async def fill(store: RequestStore) -> None:
        async with store.database.transaction() as connection:
            row = (await connection.execute(requests.select())).one()._asdict()
            rows = [row | {"seq": row["seq"] + n, "id": f"{n:036}"} for n in range(1, 600)]  # more than a pipe holds
            await connection.execute(requests.insert(), rows)

    in_store(desk, fill)
    command = f"{sys.executable} -m deployments.cli requests list --limit 600 | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("ID") and done.stderr == ""


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "-"), (0.04, "0.0s"), (59.94, "59.9s"), (61, "1m 1s"), (3600, "1h 0m"), (2 * 86400 + 3601, "2d 1h")],
)
def test_a_span_is_said_in_two_units(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hid@den@example.com/x",
        "https://user:hid/den@example.com/x",
        "https://user:hid?den#hidden@example.com/x",
        "https://hidden@example.com/x",
        "the receiver said token=hidden",
        "https://example.com/a;token=hidden",
        'it answered {"access_token": "hid den"}',
        "it answered {'password' : 'hidden'}",
        "api_key: hidden",
        "Authorization: Key id:hidden",
        "authorization: Basic hidden and hidden",
        "Cookie: a=hidden; b=hidden",
        "tried with Bearer hidden, in vain",
        "tried with Key id:hidden",
    ],
)
def test_a_secret_within_a_text_is_left_out(text: str) -> None:
    shown = presentable(text)
    assert "…" in shown and not re.search("hid|den", shown)


def test_long_texts_are_looked_through_in_no_time() -> None:
    began = time.monotonic()
    for piece in ("://:", "token=", "authorization:", "key a", "a:", "://a@b", '"', " "):
        presentable(piece * 50_000)
    assert time.monotonic() - began < 5


def test_plain_values_are_shown_as_they_are() -> None:
    value = {"seed": 7, "fps": 2.5, "loop": None, "url": "https://example.com/a.png", "name": "Zoë"}
    assert presentable(value) == value
    assert printable("Zoë 猫") == "Zoë 猫"
