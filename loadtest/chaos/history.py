"""What everybody saw and wrote down in a campaign: the values that the checker judges.

Times are Unix seconds; every clock is this machine's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from loadtest.chaos.payload import Payload

IN_QUEUE, IN_PROGRESS, COMPLETED = "IN_QUEUE", "IN_PROGRESS", "COMPLETED"
DATABASE, BILLING = "the database", "the billing events"


@dataclass(frozen=True)
class Try:
    """One POST of a submit.

    Attributes:
        invoked: When it was sent.
        outcome: ``ok`` (accepted), ``fail`` (refused) or ``unknown`` (nobody can say).
        ended: When the client knew so much.
        request_id: The id in the answer, where it was accepted.
        why: The status or error where it was not.
    """

    invoked: float
    outcome: str
    ended: float
    request_id: str | None = None
    why: str = ""


@dataclass(frozen=True)
class Submit:
    """One request as its client meant it. A payload is submitted once, unless there is an idempotency key."""

    client: str
    key_id: str
    payload: Payload
    low: bool = False
    webhook: bool = False
    idempotency: str | None = None
    no_retry: bool = False
    tries: tuple[Try, ...] = ()

    @property
    def acknowledged(self) -> list[Try]:
        """The answers that promise something."""
        return [each for each in self.tries if each.outcome == "ok"]


@dataclass(frozen=True)
class Seen:
    """A status that a client was told; ``status`` is None where the request was said to be unknown."""

    request_id: str
    sent: float
    at: float
    status: str | None
    position: int | None = None


@dataclass(frozen=True)
class Peek:
    """A client's look at a request that is not its own."""

    key_id: str
    request_id: str
    status_code: int


@dataclass(frozen=True)
class Answer:
    """A result that a client fetched."""

    request_id: str
    status_code: int
    seed: int | None
    url: str | None


@dataclass(frozen=True)
class Row:
    """A request as the database has it in the end."""

    id: str
    seq: int
    model: str
    key_id: str
    priority: int
    batch_key: str
    status: str
    attempt: int
    status_code: int | None
    error_type: str | None
    payload: Payload | None
    seed: int | None = None
    url: str | None = None
    has_io: bool = True


@dataclass(frozen=True)
class Transition:
    """A change of a request's state, as the database's own audit trail has it."""

    n: int
    at: float
    request_id: str
    old: str | None
    new: str
    attempt: int
    owner: str | None = None


@dataclass(frozen=True)
class WebhookRow:
    """A webhook as the database has it in the end."""

    request_id: str
    state: str
    attempts: int


@dataclass(frozen=True)
class Post:
    """A POST that the webhook receiver got, and what it answered."""

    at: float
    request_id: str
    status: str
    verified: bool
    answered: int


@dataclass(frozen=True)
class Stored:
    """A file in the storage: what its row says (None without one), and what is there (None where nothing is)."""

    key: str
    request_id: str | None
    size: int | None
    sha256: str | None
    found_size: int | None
    found_sha256: str | None
    digest: int | None = None

    @property
    def has_row(self) -> bool:
        """Whether the database knows it."""
        return self.request_id is not None


@dataclass(frozen=True)
class Run:
    """One payload's run in the engine; ``end`` is None where it never came to one."""

    digest: int
    pid: int
    start: float
    end: float | None


@dataclass(frozen=True)
class Strike:
    """A fault that the nemesis brought about, from its beginning until it was healed."""

    fault: str
    what: str
    at: float
    healed: float
    affected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What the campaign's configuration allows."""

    max_batch: int = 4
    claimers: int = 1


@dataclass(frozen=True)
class History:
    """All of it; ``missing`` says what could not be read in the end (``DATABASE``, ``BILLING``), and why."""

    submits: Sequence[Submit] = ()
    seen: Sequence[Seen] = ()
    peeks: Sequence[Peek] = ()
    answers: Sequence[Answer] = ()
    cancelled: frozenset[str] = frozenset()
    rows: Mapping[str, Row] = field(default_factory=dict)
    transitions: Sequence[Transition] = ()
    outputs: Mapping[str, int] = field(default_factory=dict)
    webhooks: Mapping[str, WebhookRow] = field(default_factory=dict)
    posts: Sequence[Post] = ()
    files: Sequence[Stored] = ()
    runs: Sequence[Run] = ()
    billed: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = Limits()

    @cached_property
    def accepted(self) -> dict[str, Submit]:
        """Submits by the ids that were promised."""
        return {each.request_id: submit for submit in self.submits for each in submit.acknowledged if each.request_id}

    @cached_property
    def path(self) -> dict[str, list[Transition]]:
        """Each request's changes, in order."""
        paths = defaultdict(list)
        for each in sorted(self.transitions, key=lambda transition: transition.n):
            paths[each.request_id].append(each)
        return dict(paths)

    @cached_property
    def first_claims(self) -> dict[str, Transition]:
        """When each request was claimed for the first time."""
        firsts: dict[str, Transition] = {}
        for each in sorted(self.transitions, key=lambda transition: transition.n):
            if each.new == IN_PROGRESS:
                firsts.setdefault(each.request_id, each)
        return firsts

    @cached_property
    def rows_of(self) -> dict[int, list[Row]]:
        """Rows by the digest of their payload."""
        rows = defaultdict(list)
        for row in self.rows.values():
            if row.payload:
                rows[row.payload.digest].append(row)
        return dict(rows)
