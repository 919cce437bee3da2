"""``svd-serve keys``: make keys for those who call, see them, give them another secret, limit and revoke them.

    options ──▶ in_database ──▶ Keys ──▶ the new key, once, or aligned columns, or JSON
                                  └────▶ a line of the audit log, on standard error

The key of the environment (``SVD_ADMIN_KEY``, or the one kept in the data directory) is in no database, so nothing here
changes it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from deployments import logs
from deployments.errors import BadRequest, NotFound
from deployments.operating import in_database, seconds, told
from deployments.settings import Settings
from deployments.words import in_bytes, moment, print_table, printable

if TYPE_CHECKING:
    from deployments.queue.keys import Key, LimitChanges

LIMITS = {
    "requests_per_second": "calls a second that make work",
    "max_waiting": "requests in the queue",
    "max_running": "requests that run",
    "usd_per_day": "what its requests of a day (UTC) are billed",
    "upload_bytes_per_day": "bytes that it uploads in a day (UTC)",
}
LONGEST_ALIAS = 255
LONGEST_LIFE_SECONDS = 100 * 365 * 24 * 3600.0


def add_commands(commands: Any) -> None:
    """Add them to the parser of ``svd-serve``."""
    keys = commands.add_parser("keys", help="make, list, rotate, limit and revoke the keys of callers")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key; it is printed once, and can be had from nowhere after")
    create.add_argument("alias", type=_alias, metavar="ALIAS", help="what it is called")
    create.add_argument("--scope", choices=("API", "ADMIN"), default="API", help="ADMIN sees everybody's requests")
    create.add_argument("--expires", type=_life, metavar="30d", help="when it stops working; else never")
    listing = actions.add_parser("list", help="the keys that work, with their last use; never a secret")
    listing.add_argument("--all", action="store_true", help="also those that were revoked or have expired")
    rotate = actions.add_parser("rotate", help="give a key another secret, which is printed once")
    rotate.add_argument("--keep", type=_keep, metavar="24h", help="how long the one it has now works on; 0: not at all")
    revoke = actions.add_parser("revoke", help="end a key; running services refuse it within five seconds")
    limit = actions.add_parser("limit", help="change what a key may use; none lifts a limit")
    for action in (rotate, revoke, limit):
        action.add_argument("key_id", metavar="KEY_ID")
    for action in (create, limit):
        _add_limits(action)
    for action in (create, listing, rotate):
        action.add_argument("--json", action="store_true", help="for programs: one object a line")
    for action, run in ((create, _create), (listing, _list), (rotate, _rotate), (revoke, _revoke), (limit, _limit)):
        action.set_defaults(run=told(run))


def _add_limits(action: Any) -> None:
    for name, what in LIMITS.items():
        action.add_argument(f"--{name.replace('_', '-')}", metavar="N|none", help=what)


# ---------------------------------------------------------------- what is asked


def _alias(text: str) -> str:
    text = text.strip()
    if not text.isprintable() or not 0 < len(text) <= LONGEST_ALIAS:
        raise argparse.ArgumentTypeError(f"write 1 to {LONGEST_ALIAS} printable characters")
    return text


def _life(text: str) -> float:
    asked = seconds(text)
    if not 0 < asked <= LONGEST_LIFE_SECONDS:
        raise argparse.ArgumentTypeError("write more than 0s, and no more than 36500d")
    return asked


def _keep(text: str) -> float:
    from deployments.queue.keys import LONGEST_KEEP_SECONDS

    asked = 0.0 if text == "0" else seconds(text)
    if asked > LONGEST_KEEP_SECONDS:
        raise argparse.ArgumentTypeError(f"write no more than {LONGEST_KEEP_SECONDS / 86400:.0f}d")
    return asked


def _limits(options: argparse.Namespace) -> LimitChanges:
    """The limits that are named.

    Raises:
        BadRequest: One has no such value.
    """
    from deployments.queue.keys import LimitChanges

    asked = {name: text for name in LIMITS if (text := getattr(options, name)) is not None}
    try:
        return LimitChanges.model_validate({name: None if text == "none" else text for name, text in asked.items()})
    except ValidationError as error:
        wrong = error.errors()[0]
        raise BadRequest(f"--{str(wrong['loc'][0]).replace('_', '-')}: {wrong['msg']}, or none") from None


def _kept(key_id: str) -> str:
    """The id of a key that may be in the database.

    Raises:
        BadRequest: It is the environment's.
        NotFound: It can be no key's.
    """
    if key_id == _configured_id():
        raise BadRequest(f"{key_id} is {_OURS}: it ends when that is changed and the service restarted")
    if not key_id.isprintable():  # what no terminal shows, no database need be asked for
        raise NotFound("There is no valid key with this id")
    return key_id


_OURS = "the key of the environment (SVD_ADMIN_KEY, or admin.key in SVD_DATA_DIR), which is in no database"


def _configured_id() -> str:
    from deployments.doctor.surroundings import kept_key

    return kept_key(Settings()).partition(":")[0]


# ---------------------------------------------------------------- what is done


def _create(options: argparse.Namespace) -> int:
    from deployments.queue.database import Database
    from deployments.queue.keys import Keys, Scope

    limits = _limits(options).limits()

    async def create(database: Database) -> tuple[Key, str]:
        keys = Keys(database)
        expires_at = None if options.expires is None else await keys.now() + options.expires
        return await keys.create(options.alias, Scope(options.scope), limits, expires_at)

    key, secret = in_database(create)
    return _tell_once("create", key, secret, options.json)


def _rotate(options: argparse.Namespace) -> int:
    from deployments.queue.keys import KEEP_SECONDS, Keys

    key_id, keep = _kept(options.key_id), KEEP_SECONDS if options.keep is None else options.keep
    key, secret = in_database(lambda database: Keys(database).rotate(key_id, keep))
    return _tell_once("rotate", key, secret, options.json)


def _revoke(options: argparse.Namespace) -> int:
    from deployments.queue.keys import Keys

    key_id = _kept(options.key_id)
    if not in_database(lambda database: Keys(database).revoke(key_id)):
        raise NotFound(f"There is no key {key_id}, or it has been revoked already")
    _audit("revoke", key_id)
    print(f"{key_id} is revoked; running services refuse it within five seconds")
    return 0


def _limit(options: argparse.Namespace) -> int:
    from deployments.queue.keys import Keys

    key_id, limits = _kept(options.key_id), _limits(options).named()
    if not limits:
        raise BadRequest(f"say which limit: {', '.join(f'--{name}' for name in LIMITS)}".replace("_", "-"))
    key = in_database(lambda database: Keys(database).change(key_id, limits))
    _audit("change", key_id, **limits)
    print(f"{key_id}: {_limits_of(key)}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from deployments.queue.keys import Keys

    keys = in_database(lambda database: Keys(database).all() if options.all else Keys(database).valid())
    if options.json:
        for key in keys:
            print(json.dumps(_as_json(key)))
        return 0
    if keys:
        print_table(("ID", "ALIAS", "SCOPE", "STATE", "CREATED", "EXPIRES", "LAST USED", "LIMITS"), map(_line, keys))
    else:
        print("no keys in the database")
    if configured := _configured_id():
        print(f"and {printable(configured)}, ADMIN: {_OURS}")
    return 0


def _tell_once(action: str, key: Key, secret: str, as_json: bool) -> int:
    """Print a new key: alone on standard output, so that a shell can take it from there."""
    whole = f"{key.id}:{secret}"
    _audit(action, key.id, scope=key.scope)
    print(json.dumps(_as_json(key) | {"key_secret": secret, "key": whole}) if as_json else whole)
    if not as_json:
        former = f" Its former secret works until {moment(key.former_until)}." if key.former_until else ""
        print(f"This is the only time that {printable(key.alias)}'s key is shown.{former}", file=sys.stderr)
    return 0


def _audit(action: str, key_id: str, **details: object) -> None:
    logs.configure(names=(logs.AUDIT,))
    logs.audit(f"user {os.getuid()} of this machine", action, key_id, **details)


# ---------------------------------------------------------------- how a key reads


def _line(key: Key) -> Sequence[str]:
    moments = (f"{moment(at)[:16]}Z" if at else "-" for at in (key.created_at, key.expires_at, key.last_used_at))
    return key.id, key.alias, key.scope, key.state(key.as_of), *moments, _limits_of(key)


def _limits_of(key: Key) -> str:
    limits = {name: value for name, value in asdict(key.limits).items() if value is not None}
    return ", ".join(f"{name} {_shown(name, value)}" for name, value in limits.items()) or "none"


def _shown(name: str, value: float) -> str:
    return in_bytes(value) if "bytes" in name else f"{value:g}"


def _as_json(key: Key) -> dict[str, Any]:
    moments = ("created_at", "expires_at", "last_used_at", "revoked_at", "former_until")
    return {
        "key_id": key.id,
        "alias": key.alias,
        "scope": key.scope,
        "state": key.state(key.as_of),
        **{name: moment(at) if (at := getattr(key, name)) is not None else None for name in moments},
        "limits": asdict(key.limits),
    }
