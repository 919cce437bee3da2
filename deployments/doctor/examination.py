"""All checks, one by one, and how their findings are told."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from deployments.doctor.findings import Check, Finding, Level, Silence, fail
from deployments.doctor.service import check_service
from deployments.doctor.store import Clock, check_database, check_file, check_queue, reading_seconds
from deployments.doctor.surroundings import (
    check_configuration,
    check_ffmpeg,
    check_keys,
    check_space,
    check_storage,
    check_weights,
    kept_key,
    read_configuration,
)
from deployments.errors import BadRequest
from deployments.queue.diagnosis import secrets_of, sqlite_file
from deployments.settings import Settings
from deployments.words import many, printable

IMPORT_SECONDS = 60.0
"""Ray is large, and so is torch; on a busy machine they take a while to load."""

WEIGHTS_SECONDS = 120.0
SHORTEST_SECRET = 6
_QUIET = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
"""The libraries that read weights download nothing, and draw no progress bars. They ask when they are loaded."""

_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")


def examine(config: Path, as_json: bool, clock: Clock = time.time) -> int:
    """Look at everything, and print what is found. The exit status: 1 where anything is at fault."""
    os.environ.update(_QUIET)
    findings = []
    for finding in look(config, clock):
        findings.append(finding)
        print(_as_json(finding) if as_json else _for_people(finding), flush=True)
    faults = sum(finding.level == Level.FAIL for finding in findings)
    warnings = sum(finding.level == Level.WARN for finding in findings)
    if not as_json:
        print(f"\n{many(faults, 'fault')}, {many(warnings, 'warning')}.", flush=True)
    if any(isinstance(finding, Silence) for finding in findings):
        os._exit(bool(faults))  # what hangs in a library would keep the process from ending
    return int(bool(faults))


def look(config: Path, clock: Clock = time.time) -> Iterator[Finding]:
    """Every finding, as it comes, without anything secret."""
    try:
        settings = Settings()
        hidden = _secrets(settings)
    except ValidationError as error:
        yield from _wrong_settings(error)
        return
    except BadRequest as error:
        yield fail(
            "settings", error.message, "write it as sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER@HOST/NAME"
        )
        return
    for check in _checks(settings, config, clock):
        for finding in check.findings():
            yield type(finding)(finding.check, finding.level, *_hide(hidden, finding.says, finding.advice))


def _wrong_settings(error: ValidationError) -> Iterator[Finding]:
    for each in error.errors(include_input=False, include_url=False, include_context=False):
        variable = f"SVD_{str(each['loc'][0]).upper()}: " if each["loc"] else ""
        yield fail("settings", f"{variable}{each['msg']}", "correct the variable; nothing starts as it is")


def _checks(settings: Settings, config: Path, clock: Clock) -> Iterator[Check]:
    """What is looked at, in the order in which a fault explains those after it."""
    url, file = settings.database_url, sqlite_file(settings.database_url)
    away = "something hangs: look at the server or the disk of SVD_DATABASE_URL"

    def queue() -> AsyncIterator[Finding]:
        return check_queue(url, _served(config))

    yield Check("configuration", lambda: check_configuration(config), "the machine is very busy", IMPORT_SECONDS)
    yield Check("admin key", lambda: check_keys(settings), "the disk of SVD_DATA_DIR hangs: is it a network mount?")
    yield Check("database", lambda: check_database(url, clock), away)
    slow = f"look at it in a quiet hour: sqlite3 {file} 'PRAGMA quick_check' reads all of it"
    yield Check("SQLite", lambda: check_file(url), slow, reading_seconds(file), Level.WARN)
    yield Check("queue", queue, away)
    yield Check("file storage", lambda: check_storage(settings), "the storage of SVD_STORAGE_URL hangs", 8.0)
    yield Check("disk space", lambda: check_space(settings, file), "a disk hangs: is it a network mount?")
    yield Check("weights", lambda: check_weights(config), "a disk with weights hangs, or is very slow", WEIGHTS_SECONDS)
    yield Check("ffmpeg", check_ffmpeg, "the machine is very busy", IMPORT_SECONDS)
    yield Check(
        "service", lambda: check_service(settings.public_url, kept_key(settings), clock), "see SVD_PUBLIC_URL", 8.0
    )


def _served(config: Path) -> set[str]:
    """The models of the configuration; none where it cannot be read."""
    try:
        return {endpoint.model for endpoint in read_configuration(config)[1].build().values()}
    except (OSError, ValueError):
        return set()


def _secrets(settings: Settings) -> list[str]:
    """What must be in no line, though nothing should have put it there."""
    key = kept_key(settings)
    found = [*secrets_of(settings.database_url), key, key.partition(":")[2]]
    found += [os.environ.get(name, "") for name in _SECRET_VARIABLES]
    return sorted((each for each in found if len(each) >= SHORTEST_SECRET), key=len, reverse=True)


def _hide(hidden: list[str], *texts: str) -> Iterator[str]:
    for text in texts:
        for secret in hidden:
            text = text.replace(secret, "…")
        yield text


def _as_json(finding: Finding) -> str:
    return json.dumps(asdict(finding))


def _for_people(finding: Finding) -> str:
    line = f"{finding.level.value:4}  {finding.check:15}  {printable(finding.says)}"
    return f"{line}\n      {'':15}  → {printable(finding.advice)}" if finding.advice else line
