"""The operator's commands: requests, webhooks, doctor, migrate. Those about keys are in ``keyring``.

They work on the database that the environment names, whether the service runs or not.

    options ──▶ in_database ──▶ Admin, Outbox, … ──▶ aligned columns for people, or one JSON object a line
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from deployments.costs import NANO
from deployments.errors import ServingError
from deployments.settings import Settings
from deployments.words import duration, moment, presentable, print_table, printable

if TYPE_CHECKING:
    from deployments.queue.admin import Dossier, Filter, Record
    from deployments.queue.database import Database

T = TypeVar("T")

STATUSES = ("IN_QUEUE", "IN_PROGRESS", "COMPLETED")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MOMENTS = re.compile("(_at|_deadline|_until|not_before)$")


def add_commands(commands: Any) -> None:
    """Add them to the parser of ``svd-serve``."""
    _add_requests(commands)
    _add_webhooks(commands)
    _add_doctor(commands)
    migrate = commands.add_parser("migrate", help="bring the database to the newest schema")
    migrate.set_defaults(run=told(_migrate))


def _add_requests(commands: Any) -> None:
    requests = commands.add_parser("requests", help="see what became of requests, try again, cancel")
    actions = requests.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the newest requests")
    listing.add_argument("--status", choices=STATUSES)
    listing.add_argument("--limit", type=_count, default=50)
    show = actions.add_parser("show", help="all that is known of a request")
    retry = actions.add_parser("retry", help="submit the input of a request again, as a new request")
    cancel = actions.add_parser("cancel", help="cancel a request, as its caller could")
    for action in (show, cancel):
        action.add_argument("request_id", metavar="REQUEST_ID")
    retry.add_argument("request_id", metavar="REQUEST_ID", nargs="?")
    retry.add_argument("--yes", action="store_true", help="do it for the many; without it they are only counted")
    for action in (listing, retry):
        action.add_argument("--failed", action="store_true", help="that ended by a failure of the service (5xx)")
        action.add_argument("--endpoint", help="of one endpoint")
        action.add_argument("--key", help="of the key with this id")
        action.add_argument("--error", metavar="TYPE", help="that ended with this error type")
        action.add_argument("--since", type=seconds, metavar="1h", help="of the last so many s, m, h or d")
    for action in (listing, show):
        action.add_argument("--json", action="store_true", help="for programs: one object a line")
    for action, run in ((listing, _list), (show, _show), (retry, _retry), (cancel, _cancel)):
        action.set_defaults(run=told(run))


def _add_webhooks(commands: Any) -> None:
    webhooks = commands.add_parser("webhooks", help="see what became of webhooks, deliver again, change the key")
    actions = webhooks.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the webhooks of the newest requests")
    listing.add_argument("--state", choices=("WAITING", "DUE", "DELIVERED", "UNDELIVERED"))
    listing.add_argument("--limit", type=_count, default=100)
    listing.set_defaults(run=told(_list_webhooks))
    again = actions.add_parser("redeliver", help="deliver once more, with all its attempts, whatever came of it before")
    which = again.add_mutually_exclusive_group(required=True)
    which.add_argument("request_id", nargs="?", metavar="REQUEST_ID")
    which.add_argument("--undelivered", action="store_true", help="all that could not be delivered")
    again.set_defaults(run=told(_redeliver_webhooks))
    rotate = actions.add_parser("rotate-key", help="sign with a new key; the old ones stay in the JWKS")
    rotate.set_defaults(run=told(_rotate_webhook_key))


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="look for faults, each with what to do about it")
    doctor.add_argument("--config", type=Path, default=Path("serve_config.yaml"))
    doctor.add_argument("--json", action="store_true", help="for programs: one object a line")
    doctor.set_defaults(run=told(_doctor))


def told(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The command with its failures in a sentence, and a reader that has gone away (``| head``) borne in silence."""

    def command(options: argparse.Namespace) -> int:
        try:
            status = run(options)
            sys.stdout.flush()
            return status
        except ServingError as error:
            return complain(error.message)
        except ValidationError as error:
            return complain(misset(error))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1

    return command


def misset(error: ValidationError) -> str:
    """Which settings are wrong, and why; not what was set, for that may be a secret."""
    return "; ".join(_variable(each) + each["msg"].removeprefix("Value error, ") for each in error.errors())


def _variable(error: Any) -> str:
    return f"SVD_{str(error['loc'][0]).upper()}: " if error["loc"] else ""


def in_database(use: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    """What ``use`` answers, given the database that the environment names.

    Raises:
        ServingError: The database is not there, does not answer, or ``use`` says why not.
    """
    from deployments.queue.diagnosis import open_existing

    async def run() -> T:
        database = await open_existing(Settings().database_url)
        try:
            return await use(database)
        finally:
            await database.close()

    return asyncio.run(run())


# ---------------------------------------------------------------- requests


def _list(options: argparse.Namespace) -> int:
    from deployments.queue.admin import Admin

    records = in_database(lambda database: Admin(database).rows(_filter(options), options.limit))
    if options.json:
        for record in records:
            print(json.dumps(_as_json(record)))
    elif records:
        print_table(("ID", "ENDPOINT", "STATUS", "TRIES", "AGE", "WAITED", "RAN", "KEY", "ERROR"), map(_line, records))
    else:
        print("no such requests")
    return 0


def _show(options: argparse.Namespace) -> int:
    from deployments.queue.admin import Admin

    dossier = in_database(lambda database: Admin(database).show(options.request_id))
    if options.json:
        print(json.dumps(_dossier_as_json(dossier)))
    else:
        _print_dossier(dossier)
    return 0


def _retry(options: argparse.Namespace) -> int:
    from deployments.queue.admin import Admin

    many = options.failed or options.error
    if bool(options.request_id) == bool(many):
        return complain("name a request, or say which with --failed or --error")
    if many:
        return _retry_many(options)
    new = in_database(lambda database: Admin(database).retry(options.request_id))
    print(new)
    return 0


def _retry_many(options: argparse.Namespace) -> int:
    if options.since is None:
        return complain("say how far back, for instance --since 1h")
    return in_database(lambda database: _retry_all(database, _filter(options), options.yes))


async def _retry_all(database: Database, filter: Filter, sure: bool) -> int:
    from deployments.queue.admin import Admin

    admin, done = Admin(database), 0
    found = await admin.retryable(filter)
    if not sure:
        kinds = Counter((record.columns["endpoint"], record.columns["error_type"] or "-") for record in found)
        print_table(("REQUESTS", "ENDPOINT", "ERROR"), ((str(n), *kind) for kind, n in kinds.most_common()))
        print(f"{len(found)} would be retried; nothing was done. Say --yes to do it.")
        return 0
    for record in found:
        old = record.columns["id"]
        try:
            print(old, "->", await admin.retry(old), flush=True)
            done += 1
        except ServingError as error:
            complain(error.message)
    print(f"{done} of {len(found)} retried")
    return 0 if done == len(found) else 1


def _cancel(options: argparse.Namespace) -> int:
    from deployments.queue.admin import Admin

    status = in_database(lambda database: Admin(database).cancel(options.request_id))
    print("cancelled" if status == "COMPLETED" else "it runs; its replica has been told to stop")
    return 0


def _filter(options: argparse.Namespace) -> Filter:
    from deployments.queue.admin import Filter
    from deployments.queue.request import RequestStatus

    status = getattr(options, "status", None)
    return Filter(
        endpoint=options.endpoint,
        key_id=options.key,
        status=RequestStatus(status) if status else None,
        error=options.error,
        failed=options.failed,
        since=options.since,
    )


def _count(text: str) -> int:
    """A number of things to show."""
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError("write a number above 0")
    return int(text)


def seconds(text: str) -> float:
    """``90s``, ``30m``, ``1h``, ``2d``."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not parts:
        raise argparse.ArgumentTypeError("write for instance 90s, 30m, 1h or 2d")
    return float(parts[1]) * _UNITS[parts[2]]


# ---------------------------------------------------------------- how a request reads


def _spans(record: Record) -> dict[str, float | None]:
    """How long it is since a request came, how long it waited for its last start, and how long that attempt ran."""
    columns, now = record.columns, record.now
    ended, started = columns["finished_at"], columns["started_at"]
    begun = started is not None and columns["status"] != "IN_QUEUE"
    return {
        "age_seconds": now - columns["created_at"],
        "waited_seconds": (started if begun else ended or now) - columns["created_at"],
        "ran_seconds": (ended or now) - started if begun else None,
    }


def _line(record: Record) -> Sequence[str]:
    columns, (age, waited, ran) = record.columns, map(duration, _spans(record).values())
    error = f"{columns['error_type']}: {columns['error']}" if columns["error_type"] else ""
    tries = f"{columns['attempt']}" + (f" ({columns['crashes']} crashed)" if columns["crashes"] else "")
    who = (columns["id"], columns["endpoint"], columns["status"], tries)
    return *who, age, waited, ran, columns["key_id"], presentable(error)


def _as_json(record: Record) -> dict[str, Any]:
    """All columns, times in ISO's form, and the spans; money also in dollars."""
    columns = {
        name: moment(value) if _MOMENTS.search(name) and value else presentable(value)
        for name, value in record.columns.items()
    }
    money = {
        name.replace("nano_usd", "usd"): None if value is None else value / NANO
        for name, value in record.columns.items()
        if name.endswith("nano_usd")
    }
    return columns | money | {name: span and round(span, 3) for name, span in _spans(record).items()}


def _dossier_as_json(dossier: Dossier) -> dict[str, Any]:
    return {
        **_as_json(dossier.record),
        "input": _payload(dossier.input),
        "output": _payload(dossier.output),
        "log": [
            {"at": moment(line.at), "level": line.level, "message": presentable(line.message)} for line in dossier.lines
        ],
        "files": [_named(file, "key", "content_type", "size", "created_at", "expires_at") for file in dossier.files],
        "webhook": dossier.webhook
        and _named(dossier.webhook, "host", "state", "attempts", "status_code", "error", "due_at", "delivered_at"),
    }


def _named(thing: Any, *names: str) -> dict[str, Any]:
    values = {name: getattr(thing, name) for name in names}
    return {
        name: moment(value) if _MOMENTS.search(name) and value else presentable(value) for name, value in values.items()
    }


def _print_dossier(dossier: Dossier) -> None:
    told = _dossier_as_json(dossier)
    log, files = told.pop("log"), told.pop("files")
    print_table((), ((name, _in_words(name, value)) for name, value in told.items()))
    for title, lines in (("log", [list(line.values()) for line in log]), ("files", [list(f.values()) for f in files])):
        print(f"{title}{'' if lines else '  none'}")
        print_table((), ((f"  {first}", *map(_plain, rest)) for first, *rest in lines))


def _in_words(name: str, value: Any) -> str:
    if name.endswith("_usd") and isinstance(value, float):
        return f"{value:.9f}"
    return duration(value) if name.endswith("_seconds") and value is not None else _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _payload(text: str | None) -> Any:
    return presentable(json.loads(text)) if text else None


# ---------------------------------------------------------------- webhooks


def _list_webhooks(options: argparse.Namespace) -> int:
    from deployments.queue.outbox import Outbox, WebhookState

    state = WebhookState(options.state) if options.state else None
    for row in in_database(lambda database: Outbox(database).rows(state, options.limit)):
        said = row.error or (f"the receiver answered {row.status_code}" if row.status_code else "not tried yet")
        print(f"{row.request_id}  {row.state:11}  attempts: {row.attempts:2}  {row.host}  {said}")
    return 0


def _redeliver_webhooks(options: argparse.Namespace) -> int:
    from deployments.queue.outbox import Outbox

    if options.undelivered:
        count = in_database(lambda database: Outbox(database).redeliver_undelivered())
    elif not (count := in_database(lambda database: Outbox(database).redeliver(options.request_id))):
        return complain(f"there is no webhook of a request {options.request_id} that has ended")
    print(f"{count:d} to be delivered again")
    return 0


def _rotate_webhook_key(options: argparse.Namespace) -> int:
    from deployments.queue.outbox import WEBHOOK_KEYS
    from deployments.queue.secrets import Secrets

    secret = in_database(lambda database: Secrets(database).rotate(WEBHOOK_KEYS))
    print(f"{secret.id} signs from now on. Receivers that keep the keys must fetch them again:")
    print(f"{Settings().public_url}/.well-known/jwks.json")
    return 0


# ---------------------------------------------------------------- doctor, migrate


def _doctor(options: argparse.Namespace) -> int:
    from deployments.doctor import examine

    return examine(options.config, options.json)


def _migrate(options: argparse.Namespace) -> int:
    from deployments.queue.database import Database

    async def migrate() -> None:
        await (await Database.open(Settings().database_url)).close()

    asyncio.run(migrate())
    return 0


def complain(problem: str) -> int:
    """Say what is wrong; answer the exit status."""
    print(f"svd-serve: {printable(problem)}", file=sys.stderr)
    return 1
