from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from deployments.errors import BadRequest, NotFound, StorageUnavailable
from deployments.queue import files as files_module
from deployments.queue.files import Acl, AclRule, Files, Lifecycle, Ownership, Sweeper, sweep
from deployments.queue.store import RequestStore
from deployments.queue.tables import files as table
from deployments.queue.tables import now, secrets
from deployments.storage import FileStorage
from deployments.storage.keys import MARK
from tests.conftest import add_file

SHA256 = hashlib.sha256(b"x" * 7).hexdigest()
FORBID = Acl(default="forbid", rules=(AclRule(user="bob", decision="allow"), AclRule(user="eve", decision="hide")))


@pytest.fixture
def files(store: RequestStore) -> Files:
    return Files(store.database)


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path / "files", "http://127.0.0.1:8000")


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def test_a_lifecycle_is_read_in_fals_form() -> None:
    text = json.dumps(
        {
            "expiration_duration_seconds": 3600,
            "initial_acl": {
                "default": "forbid",
                "rules": [{"user": "bob", "decision": "allow"}, {"user": "eve", "decision": "hide"}],
            },
        }
    )
    lifecycle = Lifecycle.parse(text)
    assert (lifecycle.seconds, lifecycle.acl) == (3600, FORBID)
    assert json.loads(lifecycle.dump()) == json.loads(text)


@pytest.mark.parametrize("text", ["{}", '{"expiration_duration_seconds": null}', '{"expiration_duration_seconds": 0}'])
def test_none_and_nought_are_for_ever(text: str) -> None:
    assert Lifecycle.parse(text).seconds is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3600",
        "[]",
        "{",
        '{"expiration_duration_seconds": -1}',
        '{"expiration_duration_seconds": "60"}',
        '{"expiration_duration_seconds": 1.5}',
        '{"expiration_duration_seconds": true}',
        '{"expiration_duration_seconds": 1e99}',
        '{"expiration_duration_seconds": 99999999999999999999}',
        '{"initial_acl": "forbid"}',
        '{"initial_acl": {"default": "deny"}}',
        '{"initial_acl": {"rules": [{"user": "bob"}]}}',
        '{"initial_acl": {"rules": [{"decision": "allow"}]}}',
        json.dumps({"initial_acl": {"rules": [{"user": "bob", "decision": "allow"}] * 101}}),
    ],
)
def test_a_malformed_lifecycle_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="lifecycle is malformed"):
        Lifecycle.parse(text)


def test_what_a_lifecycle_does_not_say_comes_from_the_default() -> None:
    default = Lifecycle(seconds=60, acl=FORBID)
    assert Lifecycle.parse("{}").over(default) == default
    assert Lifecycle.parse('{"expiration_duration_seconds": 5}').over(default) == Lifecycle(seconds=5, acl=FORBID)
    assert Lifecycle.parse('{"expiration_duration_seconds": null}').over(default) == Lifecycle(seconds=None, acl=FORBID)
    assert Lifecycle.parse('{"initial_acl": {"default": "allow"}}').over(default) == Lifecycle(seconds=60, acl=Acl())


async def test_readers_meet_what_the_acl_decides(files: Files) -> None:
    await add_file(files.database, "b/1/clip.mp4", "alice", "video/mp4", 5, Lifecycle(acl=FORBID), "request-1")
    file = await files.get("b/1/clip.mp4")

    assert file
    assert {user: file.decide(user) for user in ("alice", "bob", "eve", "carol", None)} == {
        "alice": "allow",
        "bob": "allow",
        "eve": "hide",
        "carol": "forbid",
        None: "forbid",
    }
    await files.set_acl("b/1/clip.mp4", Acl(default="hide"))
    changed = await files.get("b/1/clip.mp4")
    assert changed and [changed.decide(user) for user in ("alice", "bob", None)] == ["allow", "hide", "hide"]


async def test_a_file_is_registered_with_what_made_it(files: Files) -> None:
    await add_file(files.database, "b/1/clip.mp4", "alice", "video/mp4", 5, Lifecycle(), "request-1")
    await add_file(files.database, "b/2/clip.mp4", "alice", "video/mp4", 6, Lifecycle(), "request-2")

    (file,) = await files.of_request("request-1")
    assert (file.key, file.key_id, file.content_type, file.size) == ("b/1/clip.mp4", "alice", "video/mp4", 5)
    assert (file.expires_at, file.acl, file.expired) == (None, None, False)
    assert await files.get("b/3/clip.mp4") is None


async def test_nobody_sees_an_upload_before_it_is_finished(files: Files) -> None:
    await files.begin("b/1/a.png", "alice", "image/png", Lifecycle(seconds=60))
    begun = await files.get("b/1/a.png")
    assert begun and [begun.decide(user) for user in ("alice", None)] == ["hide", "hide"]
    assert begun.expires_at == pytest.approx(begun.created_at + files_module.UPLOAD_SECONDS, abs=1)

    assert await files.finish("b/1/a.png", 7, SHA256)
    done = await files.get("b/1/a.png")
    assert done and (done.size, done.decide(None)) == (7, "allow")
    assert done.expires_at == pytest.approx(done.created_at + 60, abs=1)
    assert not await files.finish("b/2/a.png", 7, SHA256)


async def test_one_call_at_a_time_writes_an_upload(files: Files) -> None:
    await files.begin("b/1/a.png", "alice", "image/png", Lifecycle())
    assert await files.claim("b/1/a.png", "one", 60)
    assert await files.claim("b/1/a.png", "one", 60), "it goes on"
    assert not await files.claim("b/1/a.png", "two", 60)
    await files.release("b/1/a.png", "two")
    assert not await files.claim("b/1/a.png", "two", 60)
    await files.release("b/1/a.png", "one")
    assert await files.claim("b/1/a.png", "two", 0), "and dies at once"
    assert await files.claim("b/1/a.png", "three", 60)

    for writer in ("two", None):
        assert not await files.finish("b/1/a.png", 8, SHA256, writer)
    assert await files.finish("b/1/a.png", 7, SHA256, "three")
    assert not await files.claim("b/1/a.png", "four", 60), "it is whole"
    for writer in ("three", None):
        assert not await files.finish("b/1/a.png", 8, SHA256, writer)
    done = await files.get("b/1/a.png")
    assert done and done.size == 7


async def test_an_upload_without_a_lifetime_is_kept_once_it_is_finished(files: Files) -> None:
    await files.begin("b/1/a.png", "alice", "image/png", Lifecycle())
    await files.finish("b/1/a.png", 7, SHA256)
    done = await files.get("b/1/a.png")
    assert done and done.expires_at is None


async def expired(files: Files, key: str) -> None:
    async with asyncio.timeout(10):
        while key not in await files.expired():
            await asyncio.sleep(0.05)


async def test_an_expired_file_is_gone_at_once_and_swept_later(files: Files, storage: FileStorage) -> None:
    for key, seconds in (("b/1/a.png", 1), ("b/2/b.png", 3600), ("b/3/c.png", None)):
        await storage.write(key, pieces(b"12345"), 10)
        await add_file(files.database, key, "alice", "image/png", 5, Lifecycle(seconds=seconds))
    await expired(files, "b/1/a.png")
    file = await files.get("b/1/a.png")
    assert file and file.expired and [file.decide(user) for user in ("alice", None)] == ["hide", "hide"]

    assert await sweep(files, storage) == 1
    assert await files.get("b/1/a.png") is None
    with pytest.raises(NotFound):
        await storage.stat("b/1/a.png")
    for key in ("b/2/b.png", "b/3/c.png"):
        assert await files.get(key) and (await storage.stat(key)).size == 5
    assert await sweep(files, storage) == 0


async def test_an_upload_that_was_given_up_is_swept_with_its_parts(
    files: Files, storage: FileStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "UPLOAD_SECONDS", 0.5)
    await files.begin("b/1/a.png", "alice", "image/png", Lifecycle())
    await storage.write_part("1", 1, pieces(b"12345"), 10)
    await expired(files, "b/1/a.png")

    assert await sweep(files, storage) == 1
    assert await files.get("b/1/a.png") is None
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


async def test_an_upload_that_has_expired_is_not_finished(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "UPLOAD_SECONDS", 0.5)
    await files.begin("b/1/a.png", "alice", "image/png", Lifecycle())
    await expired(files, "b/1/a.png")

    assert not await files.finish("b/1/a.png", 7, SHA256)
    file = await files.get("b/1/a.png")
    assert file and file.size is None and file.expired


async def test_an_upload_that_is_just_being_finished_is_not_swept(
    files: Files, store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "UPLOAD_SECONDS", 0.5)
    await files.begin("b/1/a.png", "alice", "image/png", Lifecycle())
    async with store.database.transaction() as connection:
        await connection.execute(update(table).values(size=7, expires_at=None))
        async with asyncio.timeout(10):
            while not ((file := await files.get("b/1/a.png")) and file.expired):
                await asyncio.sleep(0.05)
        looking = asyncio.create_task(files.expired())
        await asyncio.wait([looking], timeout=0.3)
    assert await looking == []


async def test_a_batch_is_bounded(files: Files, storage: FileStorage) -> None:
    for number in range(3):
        await add_file(files.database, f"b/{number}/a", "alice", "image/png", 5, Lifecycle(seconds=1))
    async with asyncio.timeout(10):
        while len(await files.expired()) < 3:
            await asyncio.sleep(0.05)
    assert len(await files.expired(2)) == 2
    assert await sweep(files, storage) == 3  # though no bytes were there


async def test_files_without_a_lifetime_are_kept_as_long_as_the_operator_says(
    files: Files, storage: FileStorage, store: RequestStore
) -> None:
    await files.begin("b/0/coming.png", "alice", "image/png", Lifecycle())
    for key, seconds, age in (("b/1/a.png", None, 100), ("b/2/b.png", None, 10), ("b/3/c.png", 3600, 100)):
        await storage.write(key, pieces(b"12345"), 10)
        await add_file(store.database, key, "alice", "image/png", 5, Lifecycle(seconds=seconds))
        async with store.database.transaction() as connection:
            await connection.execute(update(table).where(table.c.key == key).values(created_at=now() - age))
    kept = ["b/0/coming.png", "b/2/b.png", "b/3/c.png"]

    await Sweeper(files, storage).sweep()
    assert await files.get("b/1/a.png")
    await Sweeper(files, storage, keep_seconds=50).sweep()
    assert await files.get("b/1/a.png") is None
    assert [bool(await files.get(key)) for key in kept] == [True] * 3
    with pytest.raises(NotFound):
        await storage.stat("b/1/a.png")


async def test_what_is_too_old_goes_a_batch_at_a_time(files: Files, storage: FileStorage) -> None:
    for number in range(5):
        await add_file(files.database, f"b/{number}/a", "alice", "image/png", 5, Lifecycle())
    await files.expire_older_than(-1, limit=3)
    assert len(await files.expired()) == 3


@pytest.fixture(params=["directory", "bucket"])
def any_storage(request: pytest.FixtureRequest, storage: FileStorage) -> FileStorage:
    if request.param == "directory":
        return storage
    return FileStorage.open(request.getfixturevalue("bucket_url"), "http://127.0.0.1:8000")


async def there(storage: FileStorage) -> set[str]:
    return {key async for keys in storage.older_than(-3600) for key in keys}


async def test_files_and_parts_that_are_nobodys_go(
    files: Files, any_storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.storage.files._LISTED_AT_ONCE", 2)
    whatever_there_is_is_old(monkeypatch)
    assert not await Ownership(files.database, any_storage).confirm()  # it had no mark
    for number in range(5):
        await any_storage.write(f"b/{number}/clip.mp4", pieces(b"12345"), 10)
    await any_storage.write("samples/cat.png", pieces(b"12345"), 10)
    await any_storage.write_part("7", 1, pieces(b"12345"), 10)
    for number in (1, 3):
        await add_file(files.database, f"b/{number}/clip.mp4", "alice", "video/mp4", 5, Lifecycle())

    sweeper = Sweeper(files, any_storage)
    before = await there(any_storage)
    await sweeper.sweep()
    assert len(before - await there(any_storage)) <= 2, "it takes little at a time"
    for _ in range(10):
        await sweeper.sweep()
    assert await there(any_storage) == {"b/1/clip.mp4", "b/3/clip.mp4"}
    await any_storage.stat("samples/cat.png")

    await any_storage.write("b/8/clip.mp4", pieces(b"12345"), 10)
    await sweeper.sweep()
    await any_storage.stat("b/8/clip.mp4")  # the list begins anew some hours later


def whatever_there_is_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "ORPHAN_SECONDS", -3600)
    monkeypatch.setattr(files_module, "CAREFUL_SECONDS", 0)


async def test_files_without_a_row_have_an_hour_from_the_start(
    files: Files, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "ORPHAN_SECONDS", -3600)
    await Ownership(files.database, storage).confirm()
    await storage.write("b/1/clip.mp4", pieces(b"12345"), 10)
    sweeper = Sweeper(files, storage)
    for _ in range(5):
        await sweeper.sweep()
    await storage.stat("b/1/clip.mp4")
    monkeypatch.setattr("time.monotonic", lambda real=time.monotonic: real() + 3601)
    await sweeper.sweep()
    assert await there(storage) == set()


async def swept(files: Files, storage: FileStorage) -> set[str]:
    """What is left after the whole list has been looked at twice, by processes that have just started."""
    for _ in range(2):
        sweeper = Sweeper(files, storage)
        for _ in range(5):
            await sweeper.sweep()
    return await there(storage)


async def test_beside_a_wrong_database_nothing_is_deleted(
    files: Files,
    any_storage: FileStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whatever_there_is_is_old(monkeypatch)
    await Ownership(files.database, any_storage).confirm()
    await any_storage.write("b/1/clip.mp4", pieces(b"12345"), 10)
    empty = await RequestStore.open(f"sqlite+aiosqlite:///{tmp_path}/empty.db")

    assert await swept(Files(empty.database), any_storage) == {"b/1/clip.mp4"}
    assert "belongs to another database" in caplog.text and "README" in caplog.text

    await any_storage.delete(MARK)  # as the README says
    assert await swept(Files(empty.database), any_storage) == set()
    await empty.close()


async def test_beside_a_restored_database_nothing_is_deleted(
    files: Files, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whatever_there_is_is_old(monkeypatch)
    ownership = Ownership(files.database, storage)
    await ownership.confirm()
    copied = await storage.mark()
    assert copied and await ownership.confirm() and await storage.mark() != copied
    async with files.database.transaction() as connection:  # as it was when it was copied
        await connection.execute(delete(secrets).where(secrets.c.number > 1))
    await storage.write("b/1/clip.mp4", pieces(b"12345"), 10)
    assert await swept(files, storage) == {"b/1/clip.mp4"}

    await storage.set_mark(copied)  # an older copy of the storage is no danger
    assert await swept(files, storage) == set()


async def test_a_file_that_cannot_be_deleted_stops_no_others(
    files: Files, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await add_file(files.database, f"b/{number}/a", "alice", "image/png", 5, Lifecycle())
        await files.expire([f"b/{number}/a"])
    real = storage.delete

    async def stuck(key: str) -> None:
        if key == "b/0/a":
            raise StorageUnavailable("not this one")
        await real(key)

    monkeypatch.setattr(storage, "delete", stuck)
    assert await sweep(files, storage) == 2
    assert await files.expired() == ["b/0/a"]
    await add_file(files.database, "b/3/a", "alice", "image/png", 5, Lifecycle())
    await files.expire(["b/3/a"])
    assert set(await files.expired()) == {"b/0/a", "b/3/a"}
    await sweep(files, storage)
    assert await files.get("b/3/a") is None and await files.get("b/0/a")


async def test_a_storage_that_is_away_is_soon_given_up(
    files: Files, storage: FileStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    async def away(key: str) -> None:
        tried.append(key)
        raise StorageUnavailable("away")

    monkeypatch.setattr(storage, "delete", away)
    keys = [f"b/{number}/a" for number in range(9)]
    for key in keys:
        await add_file(files.database, key, "alice", "image/png", 5, Lifecycle())
        await files.expire([key])
    assert await sweep(files, storage) == 0
    assert len(tried) == files_module.MOST_FAILURES
    assert set(await files.expired(6)) == set(keys[3:]), "those that were tried come last"


async def test_young_files_without_a_row_stay(files: Files, any_storage: FileStorage) -> None:
    await any_storage.write("b/1/clip.mp4", pieces(b"12345"), 10)
    await any_storage.write_part("7", 1, pieces(b"12345"), 10)
    sweeper = Sweeper(files, any_storage)
    for _ in range(10):
        await sweeper.sweep()
    assert await there(any_storage) == {"b/1/clip.mp4", ".parts/7/1"}


async def test_defaults_are_a_keys_own(files: Files) -> None:
    assert await files.defaults("alice") == Lifecycle()
    await files.set_defaults("alice", Lifecycle(seconds=60))
    await files.set_defaults("alice", Lifecycle(acl=FORBID))

    assert await files.defaults("alice") == Lifecycle(acl=FORBID)
    assert await files.defaults("bob") == Lifecycle()
    asked = await files.lifecycle("alice", '{"expiration_duration_seconds": 5}')
    assert (asked.seconds, asked.acl) == (5, FORBID)
    assert await files.lifecycle("alice", None) == Lifecycle(acl=FORBID)
    with pytest.raises(BadRequest):
        await files.lifecycle("alice", "")
