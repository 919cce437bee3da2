"""Whatever callers send: every input at its bounds and far beyond, every header that is read, every query and path.

hypothesis makes the requests, always the same ones; the gateway is real, and so is all behind it but the replica.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

from deployments.gateway.submission import LONGEST_HEADER, LONGEST_START_TIMEOUT, SHORTEST_START_TIMEOUT
from deployments.models.base import MAX_SEED
from tests.gateway.conftest import STABLE_VIDEO, SVD, TEXT_TO_VIDEO, URL, served_endpoints
from tests.gateway.played import Answer, Played, operations, playing

ENDPOINTS = served_endpoints()
IDS = sorted(ENDPOINTS)
SCHEMAS = {id: endpoint.Input.model_json_schema() for id, endpoint in ENDPOINTS.items()}
PICTURE = {"image_url": "https://example.com/cat.png"}
NEEDED = {id: {"prompt": "a lake"} if id == TEXT_TO_VIDEO else PICTURE for id in IDS}
BODY = json.dumps(PICTURE | {"seed": 5}).encode()
CONTENT = bytes(range(256))
AFTER = base64.urlsafe_b64encode(b"[1.5,9223372036854775808]").decode()
"""A cursor that leads to a number which no database has."""


def fuzz(examples: int) -> settings:
    """So many inputs, always the same ones, however long each takes."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with playing(tmp_path_factory.mktemp("played")) as played:
        yield played
        print(f"requests tried by hypothesis: {played.tried} {dict(sorted(played.statuses.items()))}")


# ---------------------------------------------------------------- inputs: what they are made of

huge = st.sampled_from([2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400, -1, -(2**63), -(10**400)])
floats = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 1e308, -0.0, 5e-324, 127.0, 127.5])
texts = st.text(max_size=20) | st.sampled_from(
    [
        *("", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\u202e", "😀", "127", "1e3", "0x10", "true", "null"),
        *(
            "{{7*7}}",
            "${jndi:ldap://x}",
            "\x1b[31m",
            "a\r\nb",
            "x" * 11_000,
            "data:,",
            "http://127.0.0.1/",
            "file:///x",
        ),
    ]
)
leaves = st.none() | st.booleans() | st.integers() | huge | floats | texts
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)


def choices(id: str, name: str) -> list[dict[str, Any]]:
    """The schemas of which a field takes any, without references."""
    schema = SCHEMAS[id]["properties"][name]
    found = schema.get("anyOf", [schema])
    return [SCHEMAS[id]["$defs"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each for each in found]


def good(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a field of this schema takes, its bounds above all."""
    match schema:
        case {"enum": values}:
            return st.sampled_from(values)
        case {"type": "integer"}:
            low, high = bounds(schema)
            return st.sampled_from([low, high]) | st.integers(low, high)
        case {"type": "number", "minimum": low, "maximum": high}:
            return st.sampled_from([low, high, float(low), float(high)]) | st.floats(low, high)
        case {"type": "string"}:
            letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
            longest = schema.get("maxLength", 50)
            short = st.text(letters, min_size=max(1, schema.get("minLength", 1)), max_size=min(50, longest))
            return short | st.sampled_from(["x" * longest, "é" * longest])
        case {"type": "null"}:
            return st.none()
        case {"type": "object", "properties": properties}:
            return st.fixed_dictionaries({}, optional={name: good(each) for name, each in properties.items()})
    raise AssertionError(f"no strategy for {schema}")


def bad(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a field of this schema does not take, whatever else it may be: just beyond a bound, or of another type."""
    match schema:
        case {"enum": values}:
            return st.sampled_from([*(f"{value}x" for value in values), "", 5, [], {"width": 0}, {"height": 14143}])
        case {"type": "integer"}:
            low, high = bounds(schema)
            beyond = [low - 1, high + 1, low + 0.5, 10**400, -(10**400), math.nan, math.inf, None, "x", [], {}, "\0"]
            return st.sampled_from(beyond) | st.integers(max_value=low - 1) | st.integers(min_value=high + 1)
        case {"type": "number", "minimum": low, "maximum": high}:
            beyond = [
                math.nextafter(low, -math.inf),
                math.nextafter(high, math.inf),
                math.nan,
                math.inf,
                -math.inf,
                None,
                "x",
            ]
            return st.sampled_from(beyond) | st.floats(min_value=high, exclude_min=True)
        case {"type": "string"}:
            return st.sampled_from([5, 5.5, True, [], {}, ["x"], {"$gt": ""}, "\ud800", "a\0b"])
        case {"type": "object"}:
            return st.sampled_from([5, [], {"width": 0}, {"height": -1}, {"width": "x"}, {"width": 1.5}])
    raise AssertionError(f"no strategy for {schema}")


def bounds(schema: dict[str, Any]) -> tuple[int, int]:
    return (
        schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1),
        schema.get("maximum", schema.get("exclusiveMaximum", 2**63) - 1),
    )


@st.composite
def inputs(draw: st.DrawFn, id: str) -> dict[str, Any]:
    """A good input: what is needed, and any of the rest."""
    fields = {name: st.one_of([good(each) for each in choices(id, name)]) for name in SCHEMAS[id]["properties"]}
    needed = {name: fields.pop(name) for name in SCHEMAS[id]["required"]}
    return draw(st.fixed_dictionaries(needed, optional=fields))


@st.composite
def spoilt(draw: st.DrawFn, id: str) -> tuple[str, dict[str, Any]]:
    """An input with one bad field, and its name."""
    name = draw(st.sampled_from(sorted(SCHEMAS[id]["properties"])))
    value = draw(bad(next(each for each in choices(id, name) if each.get("type") != "null")))
    return name, NEEDED[id] | {name: value}


def written(value: Any) -> bytes:
    """JSON that may hold NaN, halves of characters and any number: what a careless caller sends."""
    return json.dumps(value).encode()


def reason(answer: Answer) -> list[dict[str, Any]]:
    """The details of a refusal."""
    assert answer.status == 422, answer
    detail = answer.json["detail"]
    assert detail and all(each["loc"][0] == "body" for each in detail), detail
    return list(detail)


def result(played: Played, endpoint: str, request_id: str) -> Answer:
    """How a queued request ended."""
    while (answer := played.send("GET", f"/queue/{endpoint}/requests/{request_id}")).status == 400:
        assert "still in progress" in answer.json["detail"]
    return answer


# ---------------------------------------------------------------- inputs: what becomes of them


@pytest.mark.parametrize("id", IDS)
def test_a_good_input_is_run_with_its_seed(played: Played, id: str) -> None:
    @fuzz(15)
    @given(input=inputs(id), queued=st.booleans())
    def check(input: dict[str, Any], queued: bool) -> None:
        assume(not input.get("control_maps_data_url") or id != SVD)  # which depends on the server's networks
        if queued:
            submitted = played.send("POST", f"/queue/{id}", body=written(input))
            assert submitted.status == 200, submitted
            answer = result(played, id, submitted.json["request_id"])
        else:
            answer = played.send("POST", f"/{id}", body=written(input))
        assert answer.status == 200, answer
        assert answer.json["seed"] == input.get("seed", answer.json["seed"]) <= MAX_SEED

    check()


@pytest.mark.parametrize("id", IDS)
def test_an_input_with_one_bad_field_is_refused_by_its_name(played: Played, id: str) -> None:
    @fuzz(60)
    @given(case=spoilt(id), queued=st.booleans())
    def check(case: tuple[str, dict[str, Any]], queued: bool) -> None:
        name, input = case
        answer = played.send("POST", f"/queue/{id}" if queued else f"/{id}", body=written(input))
        if answer.status == 200:
            answer = result(played, id, answer.json["request_id"])
        if reason(answer)[0]["type"] != "json_invalid":  # NaN and halves of characters are no JSON at all
            assert any(each["loc"][1] == name for each in reason(answer)), answer.json

    check()


@pytest.mark.parametrize("id", IDS)
def test_anything_is_an_input_or_is_refused(played: Played, id: str) -> None:
    names = st.sampled_from(sorted(SCHEMAS[id]["properties"]))
    bodies = (st.dictionaries(names, anything, max_size=4).map(lambda some: NEEDED[id] | some) | anything).map(written)

    @fuzz(60)
    @given(body=bodies | st.binary(max_size=40))
    @example(body=b"")
    @example(body=b'{"image_url":')
    @example(body=b"[" * 100_000)
    @example(body=b'{"seed":' + b"9" * 5000 + b"}")
    @example(body="{}".encode("utf-16"))
    @example(body=b"\xef\xbb\xbf{}")
    @example(body=b'{"image_url":"\xff"}')
    def check(body: bytes) -> None:
        answer = played.send("POST", f"/queue/{id}", body=body)
        if answer.status == 200:
            answer = result(played, id, answer.json["request_id"])
        if answer.status != 200:
            reason(answer)

    check()


# ---------------------------------------------------------------- headers

visible = st.binary(max_size=60).map(lambda data: re.sub(rb"[\0\r\n\v\f]", b"", data).strip())
numbers = (
    st.floats() | st.integers() | st.sampled_from([0.1, 0.05, 1e9, LONGEST_START_TIMEOUT, "inf", "nan", "1_0", "٣"])
)


def submit(played: Played, *headers: tuple[str, bytes], body: bytes = BODY, query: bytes = b"") -> Answer:
    return played.send("POST", f"/queue/{SVD}", query, body, headers)


@fuzz(60)
@given(value=numbers.map(lambda number: str(number).encode()) | visible)
def test_a_time_to_start_is_a_number_of_seconds_or_refused(played: Played, value: bytes) -> None:
    answer = submit(played, ("x-fal-request-timeout", value))
    try:
        seconds = float(value.decode("latin-1"))
    except ValueError:
        seconds = math.nan
    assert answer.status == (200 if SHORTEST_START_TIMEOUT < seconds <= LONGEST_START_TIMEOUT else 400)


@fuzz(30)
@given(
    name=st.sampled_from(
        ["x-fal-queue-priority", "x-fal-no-retry", "x-fal-store-io", "cookie", "accept", "origin", "x-fal-x"]
    ),
    value=visible,
)
def test_a_header_that_means_nothing_is_passed_over(played: Played, name: str, value: bytes) -> None:
    assert submit(played, (name, value)).status == 200


@fuzz(30)
@given(value=visible)
@example(value=b'{"expiration_duration_seconds": 60}')
@example(value=b'{"expiration_duration_seconds": 1e400}')
@example(value=b'{"initial_acl": {"default": "forbid", "rules": [{"user": "\\u0000", "decision": "allow"}]}}')
@example(value=b"[" * 5000)
def test_a_lifetime_is_read_or_refused(played: Played, value: bytes) -> None:
    for name in ("x-fal-object-lifecycle-preference", "x-fal-object-lifecycle"):
        assert submit(played, (name, value)).status in (200, 400)
        named = [(name, value), ("x-fal-file-name", b"a.txt"), ("content-type", b"text/plain")]
        assert played.send("POST", "/files/upload", body=b"x", headers=named).status in (200, 400)


@fuzz(40)
@given(value=visible | st.just(b"x" * LONGEST_HEADER) | st.just(b"x" * (LONGEST_HEADER + 1)))
def test_one_idempotency_key_is_one_request(played: Played, value: bytes) -> None:
    first, second = (submit(played, ("idempotency-key", value)) for _ in range(2))
    assert first.status == second.status == (400 if len(value) > LONGEST_HEADER else 200)
    if first.status == 200 and value:
        assert first.json["request_id"] == second.json["request_id"]


@fuzz(80)
@given(
    value=visible
    | st.builds(lambda scheme, rest: scheme + rest, st.sampled_from([b"Key ", b"Bearer ", b"key\t"]), visible)
)
@example(value=b"Key")
@example(value=b"Key id:")
@example(value=b"Key :secret")
@example(value=b"Key %:%")
@example(value=b"Key id\xff:secret")
@example(value=b"Key id:secret, Key id:secret")
@example(value=b"Key " + b"x" * 100_000)
def test_whoever_has_no_key_of_ours_is_told_to_bring_one(played: Played, value: bytes) -> None:
    assume(not value.endswith(b"id:secret"))
    for method, path in (
        ("POST", f"/queue/{SVD}"),
        ("POST", f"/{SVD}"),
        ("GET", "/v1/keys"),
        ("POST", "/files/upload"),
    ):
        answer = played.send(method, path, body=BODY, headers=[("authorization", value)], key=None)
        assert answer.status == 401 and answer.headers["www-authenticate"]
        assert len(value) < 8 or value not in answer.body


def test_any_part_of_a_file_is_that_part(played: Played) -> None:
    sent = played.send("POST", "/files/upload", body=CONTENT, headers=[("content-type", b"video/mp4")])
    path = sent.json["access_url"].partition("8000")[2]
    etag = played.send("GET", path).headers["etag"].encode()
    ends = st.integers(0, 300).map(str) | st.just("") | st.sampled_from(["9" * 18, "9" * 40, "-1", " 1", "٣"])
    ranges = st.builds(
        lambda unit, first, last: f"{unit}={first}-{last}".encode(),
        st.sampled_from(["bytes", "bytes", "x"]),
        ends,
        ends,
    )

    plain = st.builds(lambda first, last: f"bytes={first}-{last}".encode(), st.integers(0, 99), st.integers(90, 300))

    @fuzz(120)
    @given(
        wanted=plain | ranges | visible,
        unless=st.none()
        | st.none()
        | st.none()
        | visible
        | st.sampled_from([etag, b"W/" + etag, b"*", b'"x", ' + etag]),
        only=st.none() | st.none() | visible | st.just(etag),
        method=st.sampled_from(["GET", "GET", "HEAD"]),
    )
    def check(wanted: bytes, unless: bytes | None, only: bytes | None, method: str) -> None:
        asked = [("range", wanted), ("if-none-match", unless), ("if-range", only)]
        answer = played.send(method, path, headers=[(name, value) for name, value in asked if value is not None])
        assert answer.status in (200, 206, 304, 416)
        assert answer.headers["etag"].encode() == etag and answer.headers["x-content-type-options"] == "nosniff"
        if answer.status == 206:
            found = re.fullmatch(r"bytes (\d+)-(\d+)/256", answer.headers["content-range"])
            assert found and 0 <= int(found[1]) <= int(found[2]) < 256 and only in (None, etag)
            assert answer.body == CONTENT[int(found[1]) : int(found[2]) + 1]
        elif answer.status == 200:
            assert answer.body == (b"" if method == "HEAD" else CONTENT)
        else:
            assert answer.body == b""

    check()


# ---------------------------------------------------------------- queries and paths

WORDS = [
    *("", "0", "-1", "1", "true", "null", "9" * 30, "\0", "é", "%", "../..", "1e400", "nan", "[]", "{}", "*"),
    *("'--", "2026-01-01", "9999-12-31", "0001-01-01T00:00:00Z", SVD, "MA==", AFTER, f"{URL}/files/b/0/clip.mp4"),
]
ascii_only = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(str.encode)
"""Queries as they may stand in a request line: an HTTP server takes no other letters."""


UNDECLARED = ["token", "fal_webhook", "fal_max_queue_length", "previews", "fal_jwt_token", "logs"]
"""Parameters that routes read themselves."""


def parameters(played: Played) -> dict[tuple[str, str], list[str]]:
    """The query parameters of every method of every route."""
    return {
        each: [parameter["name"] for parameter in said.get("parameters", []) if parameter["in"] == "query"]
        for each, said in operations(played.gateway.app).items()
    }


def ask(played: Played, method: str, path: str, query: bytes) -> Answer:
    path = path.replace("{path}", STABLE_VIDEO).replace("{number}", "1")
    return played.send(method, re.sub(r"\{\w+\}", "x", path), query, BODY)


def test_any_word_in_any_parameter_is_answered(played: Played) -> None:
    known = parameters(played)
    known["POST", "/queue/{path}"] += UNDECLARED
    for (method, path), names in known.items():
        for name in names:
            for word in WORDS:
                ask(played, method, path, f"{quote(name)}={quote(word)}".encode())


def test_any_query_of_any_route_is_answered(played: Played) -> None:
    known = parameters(played)
    text = st.sampled_from(WORDS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)

    @fuzz(150)
    @given(each=st.sampled_from(sorted(known)), data=st.data(), raw=st.none() | ascii_only)
    def check(each: tuple[str, str], data: st.DataObject, raw: bytes | None) -> None:
        pairs = data.draw(st.lists(st.tuples(st.sampled_from(known[each] + UNDECLARED), text), max_size=4))
        query = "&".join(f"{quote(name)}={quote(value)}" for name, value in pairs).encode()
        ask(played, *each, query if raw is None else raw)

    check()


def test_any_path_is_answered_and_leads_to_no_file_of_the_machine(played: Played) -> None:
    pieces = st.sampled_from(
        [
            *("queue", "files", "v1", "models", "storage", "playground", "tokens", "b", "requests", "status", "stream"),
            *("response", "upload", "multipart", "complete", "keys", "sign", "serverless", "api", "fal-ai", "svd", "1"),
            *("..", ".", "", "%2e%2e", "%2f", "%5c", "%00", "%ff", "%0d%0a", "etc", "passwd", ".parts", "~", "a:b"),
            *("é", "x" * 300, "00000000-0000-0000-0000-000000000000", "app.js"),
        ]
    )

    @fuzz(250)
    @given(
        parts=st.lists(pieces, max_size=8),
        method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE"]),
    )
    @example(parts=["files", "..", "..", "etc", "passwd"], method="GET")
    @example(parts=["playground", "%2e%2e", "%2e%2e", "__init__.py"], method="GET")
    @example(parts=["playground", "..%2f..%2fapi.py"], method="GET")
    def check(parts: list[str], method: str) -> None:
        answer = played.send(method, "/" + "/".join(quote(part, safe="%") for part in parts), body=BODY)
        assert b"root:" not in answer.body and b"from __future__" not in answer.body

    check()
