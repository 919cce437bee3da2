"""Rows 1 to 22, 81 to 84: what stands in the body and the headers of a request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.hostile.table import (
    FAST,
    GOOD,
    IMAGE_URL,
    JSON,
    STABLE,
    SVD,
    TEXT,
    Call,
    Caller,
    Case,
    Expected,
    Input,
    Loc,
    Reply,
    Script,
    made,
    model_error,
    model_errors,
    refused,
)

NO_JSON = model_error("json_invalid")
NO_STEPS = model_error("greater_than_equal", "steps")
"""The answer to ``steps`` of 0 alone: all else in the body was taken."""

DEEP = 100_000


def good(**more: Any) -> dict[str, Any]:
    """An input that makes a clip, in one step."""
    return {"image_url": GOOD, "steps": 1, **more}


def taken(row: int, name: str, endpoint: str = FAST, **more: Any) -> Input:
    """A line whose value is taken: nothing but ``steps``, which is wrong on purpose, is refused. It makes no clip."""
    return Input(row=row, name=name, endpoint=endpoint, body=good(**more) | {"steps": 0}, expected=NO_STEPS)


def wrong(row: int, name: str, field: str, kind: str | None, endpoint: str = FAST, **more: Any) -> Input:
    """A line whose one value is refused."""
    return Input(row=row, name=name, endpoint=endpoint, body=good(**more), expected=model_error(kind, field))


def with_limit(kind: str, field: str, **ctx: float) -> Expected:
    """A refusal that names the limit."""

    def check(reply: Reply) -> None:
        assert reply.json["detail"][0]["ctx"] == ctx, reply.short

    return Expected((422,), errors=((kind, ("body", field)),), check=check)


def raw_json(field: str, value: str, **more: Any) -> bytes:
    """An input in which one value is written as no library would."""
    return json.dumps(good(**more) | {field: "@"}).replace('"@"', value).encode()


def _first_rows() -> Iterator[Case]:
    for text in (
        b'{"image_url":',
        b"{",
        b"{'a': 1}",
        b'{"a": 1,}',
        b"nope",
        b"{} {}",
        b'{"a": 1} x',
        b"\x00",
        b"//\n{}",
    ):
        yield Input(row=1, name=text.decode(), body=text, expected=NO_JSON)
    for text in (b"", b"  \r\n\t "):
        yield Input(row=2, name=repr(text), body=text, expected=model_error("missing"))
    for value in ([], "x", None, 1, 1.5, True, [{"image_url": GOOD}]):
        yield Input(row=3, name=json.dumps(value)[:20], body=value, expected=model_error("model_type"))
    yield from _content_types()
    text = json.dumps(good())
    spoilt = (text.encode("utf-16"), text.encode("utf-32"), b"\xef\xbb\xbf" + text.encode(), b'{"image_url": "\xff"}')
    for name, body in zip(("UTF-16", "UTF-32", "a BOM", "no UTF-8"), spoilt, strict=True):
        yield Input(row=5, name=name, body=body, expected=NO_JSON)
    yield Input(row=5, name="Latin-1", body=b'{"image_url": "caf\xe9"}', expected=NO_JSON)
    nests = {"lists": b"[" * DEEP, "objects": b'{"a":' * DEEP, "closed": b"[" * DEEP + b"]" * DEEP}
    for name, body in nests.items():
        yield Input(row=6, name=name, body=body, expected=NO_JSON)
    yield Input(row=6, name="in a field", body=raw_json("seed", "[" * DEEP + "]" * DEEP), expected=NO_JSON)
    twice = json.dumps(good())[:-1]  # the last one counts, as in JavaScript and in Python
    yield Input(row=7, name="the last is bad", body=f'{twice}, "steps": 0}}'.encode(), expected=NO_STEPS)
    yield Input(row=7, name="the first is bad", body=f'{{"steps": 0, {twice[1:]}}}'.encode(), expected=made())
    yield Input(row=8, name="an empty object", body={}, expected=model_error("missing", "image_url"))
    yield Input(row=8, name="other fields", body={"steps": 1, "seed": 1}, expected=model_error("missing", "image_url"))
    for value in (None, 5, {}, [], True, 1.5, [GOOD]):
        yield wrong(9, json.dumps(value)[:20], "image_url", "string_type", image_url=value)
    yield wrong(10, "empty", "image_url", "string_too_short", image_url="")
    for value in (" ", "\n", "\u3000"):  # pinned: a text like any other, and no URL
        yield wrong(10, repr(value), "image_url", "file_download_error", image_url=value)
    for name, value in {
        "3 MB": "x" * 3_000_000,
        "a URL of 3 MB": "http://public.example/" + "x" * 3_000_000,
        "a URL of 9 KB": "http://public.example/picture?" + "x" * 9_000,
    }.items():
        yield wrong(11, name, "image_url", "string_too_long", image_url=value)
    yield Input(row=12, name="extra fields", body=good(x=1, extra={"a": [None]}, model="y"), expected=made())


def _content_types() -> Iterator[Case]:
    """Pinned: JSON, and text, nothing or a form (``curl -d``) that is said of it, are read as JSON; nothing else is."""
    body = json.dumps(good() | {"steps": 0}).encode()
    form = "application/x-www-form-urlencoded"
    for kind in (
        "text/plain",
        "text/plain;charset=UTF-8",
        "application/json; charset=utf-8",
        "application/x+json",
        form,
    ):
        yield Input(row=4, name=kind, body=body, headers={"content-type": kind}, expected=NO_STEPS)
    yield Input(row=4, name="none", body=body, headers={"content-type": ""}, expected=NO_STEPS)
    for kind in ("multipart/form-data; boundary=x", "application/octet-stream", "x"):
        expected = model_error("model_attributes_type")
        yield Input(row=4, name=kind, body=body, headers={"content-type": kind}, expected=expected)


def _numbers() -> Iterator[Case]:
    low = with_limit("greater_than_equal", "motion_bucket_id", ge=1)
    high = with_limit("less_than_equal", "motion_bucket_id", le=255)
    yield Input(row=13, name="0", body=good(motion_bucket_id=0), expected=low)
    yield Input(row=13, name="256", body=good(motion_bucket_id=256), expected=high)
    for value in ("127", 127.0, True):  # pinned: true is 1, as pydantic has it
        yield taken(14, json.dumps(value), motion_bucket_id=value)
    yield wrong(14, "127.5", "motion_bucket_id", "int_from_float", motion_bucket_id=127.5)
    yield wrong(14, "text", "motion_bucket_id", "int_parsing", motion_bucket_id="127x")
    for name, value in {"1e400": "1e400", "10**400": "1" + "0" * 400, "5,000 digits": "9" * 5000}.items():
        for field in ("motion_bucket_id", "cond_aug", "seed"):
            body = raw_json(field, value)
            expected = Expected((422,), check=_names(field))
            yield Input(row=15, name=f"{field} {name}", body=body, expected=expected)
    yield Input(
        row=15,
        name="a million digits",
        body=raw_json("seed", "9" * 1_000_000),
        expected=Expected((422,), check=_names("seed")),
    )
    for value in ("NaN", "Infinity", "-Infinity"):
        yield Input(row=16, name=value, body=raw_json("cond_aug", value), expected=NO_JSON)
        yield wrong(16, f"the text {value}", "cond_aug", "finite_number", cond_aug=value)
    yield wrong(17, "-0.0001", "cond_aug", "greater_than_equal", cond_aug=-0.0001)
    yield wrong(17, "10.0001", "cond_aug", "less_than_equal", cond_aug=10.0001)
    for endpoint, values in ((STABLE, (9, 101, 0, -1)), (FAST, (0, 26, -1))):
        for value in values:
            kind = "less_than_equal" if value > 20 else "greater_than_equal"
            yield wrong(18, f"fps {value} of {endpoint}", "fps", kind, endpoint, fps=value)
    for endpoint, values in ((SVD, (0, 101)), (FAST, (0, 21))):
        for value in values:
            kind = "less_than_equal" if value else "greater_than_equal"
            yield wrong(19, f"{value} of {endpoint}", "steps", kind, endpoint, steps=value)
    yield from _seeds()


def _names(field: str) -> Any:
    """The answer is about one field, or says that the body is no JSON."""

    def check(reply: Reply) -> None:
        (detail,) = reply.json["detail"]
        assert detail["loc"] == ["body", field] or detail["type"] == "json_invalid", reply.short

    return check


def _seeds() -> Iterator[Case]:
    """Pinned: 0 to 2**63 - 1. Those that we draw stay below 2**32, which JavaScript keeps exact."""
    for value, kind in ((-1, "greater_than_equal"), (2**63, "less_than_equal"), (2**64, "less_than_equal")):
        yield wrong(20, str(value), "seed", kind, seed=value)
    yield wrong(20, "abc", "seed", "int_parsing", seed="abc")
    yield wrong(20, "1.5", "seed", "int_from_float", seed=1.5)
    yield taken(20, "2**32", seed=2**32)

    def exactly(reply: Reply) -> None:
        assert reply.json["seed"] == 2**63 - 1 and str(2**63 - 1).encode() in reply.body, reply.short

    yield Input(row=20, name="2**63-1", body=good(seed=2**63 - 1), expected=Expected((200,), check=exactly))


def _prompts() -> Iterator[Case]:
    prompt = partial(Input, row=21, endpoint=TEXT)
    yield prompt(name="missing", body={"steps": 1}, expected=model_error("missing", "prompt"))
    yield prompt(name="empty", body={"prompt": ""}, expected=model_error("string_too_short", "prompt"))
    yield prompt(name="100 KB", body={"prompt": "x" * 100_000}, expected=model_error("string_too_long", "prompt"))
    for name, text in {
        "emoji": "🐈\u200d⬛🔥",
        "RTL": "\u202e\u0633\u0644\u0627\u0645\u200f",
        "template": "{{7*7}}${jndi:ldap://x}",
    }.items():
        yield prompt(name=name, body={"prompt": text, "steps": 1}, expected=made(), modes=("queue",))
    yield prompt(name="NUL", body={"prompt": "a\0b", "steps": 1}, expected=model_error(None, "prompt"))
    yield prompt(name="half a pair", body=b'{"prompt": "\\ud800"}', expected=NO_JSON)
    for name, value in {"NUL": "http://public.example/\0", "half a pair": "\\ud800"}.items():
        body = raw_json("image_url", json.dumps(value) if name == "NUL" else f'"{value}"')
        yield Input(row=21, name=f"{name} in a URL", body=body, expected=Expected((422,)))


def _sizes() -> Iterator[Case]:
    size = partial(Input, row=22, endpoint=TEXT)

    def about(*fields: str) -> Expected:
        def check(reply: Reply) -> None:
            places = {tuple(each["loc"][:2]) for each in reply.json["detail"]}
            assert places == {("body", "video_size")}, reply.short
            told = {each["loc"][-1] for each in reply.json["detail"]}
            assert set(fields) <= told, reply.short

        return Expected((422,), check=check)

    for name, value, fields in (
        ("nope", "nope", ()),
        ("width 0", {"width": 0}, ("width",)),
        ("100000x100000", {"width": 100_000, "height": 100_000}, ("width", "height")),
        ("-1", {"width": -1, "height": -1}, ("width", "height")),
        ("a list", [512, 512], ()),
        ("a number", 512, ()),
        ("1e400", {"width": 1e300}, ("width",)),
    ):
        yield size(name=name, body={"prompt": "x", "video_size": value}, expected=about(*fields))
    odd = {"prompt": "x", "steps": 1, "video_size": {"width": 513, "height": 513}}
    yield size(name="513x513", body=odd, expected=made(), modes=("queue",))  # pinned: rounded


# ---------------------------------------------------------------- headers of a submit, and what is data


def _headers() -> Iterator[Case]:
    for value in ("0", "-1", "abc", "NaN", "1e9", "0.05", "inf", "", "1" * 300):
        expected = refused(400, "bad_request")
        body, name = good() | {"steps": 0}, f"X-Fal-Request-Timeout: {value[:20]}"
        yield Input(row=81, name=name, body=body, headers={"x-fal-request-timeout": value}, expected=expected)
    for header, value, expected in (
        ("x-fal-queue-priority", "bogus", NO_STEPS),  # pinned: any but `low` is normal
        ("x-fal-object-lifecycle-preference", "not JSON", refused(400, "bad_request")),
        ("x-fal-object-lifecycle-preference", '{"expiration_duration_seconds": -1}', refused(400, "bad_request")),
        ("x-fal-object-lifecycle-preference", "[" * 5000, refused(400, "bad_request")),
        ("x-fal-runner-hint", "x" * 300, refused(400, "bad_request")),
        ("idempotency-key", "x" * 300, refused(400, "bad_request")),
    ):
        name, body = f"{header}: {value[:40]}", good() | {"steps": 0}
        yield Input(row=82, name=name, body=body, headers={header: value}, expected=expected)
    for path, name in ((f"/queue/{FAST}?fal_max_queue_length=x", "length"), (f"/queue/{FAST}?previews=-1", "previews")):
        options = {"json": good()}
        yield Call(row=82, name=name, method="POST", path=path, options=options, expected=refused(400, "bad_request"))
    yield Script(row=83, name="another body", steps=_same_key_another_body)


async def _same_key_another_body(caller: Caller) -> None:
    """The second is refused, and the first goes on as if nothing had been."""
    headers = JSON | {"idempotency-key": "once"}
    submit = partial(caller.call, "POST", f"/queue/{FAST}", headers=headers)
    first = await submit(json=good(seed=1))
    again = await submit(json=good(seed=1))
    assert again.json["request_id"] == first.json["request_id"]
    other = await submit(json=good(seed=2))
    assert other.status in (409, 422), other.short
    ended = await caller.result(FAST, first.json["request_id"])
    assert ended.status == 200 and ended.json["seed"] == 1, ended.short


def _data() -> Iterator[Case]:
    for name, body, expected in (
        ("__proto__", good(__proto__={"steps": 5}, constructor={"prototype": {"x": 1}}), made()),
        ("$ref", good() | {"$ref": "file:///etc/passwd"}, made()),
        ("an operator", {"image_url": {"$gt": ""}}, model_error("string_type", "image_url")),
        ("a template", good(image_url="{{7*7}}"), model_error("file_download_error", "image_url")),
        ("log4j", good(image_url="${jndi:ldap://private.example/x}"), model_error("file_download_error", "image_url")),
        ("ANSI", good(image_url="\x1b[31mhttp://x\x07"), model_error("file_download_error", "image_url")),
        ("lines", good(image_url='http://x\n{"level": "INFO"}'), model_error("file_download_error", "image_url")),
        ("SQL", good(image_url="'; DROP TABLE requests; --"), model_error("file_download_error", "image_url")),
    ):
        yield Input(row=84, name=name, body=body, expected=expected)
    several: tuple[tuple[str | None, Loc], ...] = (("string_type", IMAGE_URL[1:]), ("int_parsing", ("seed",)))
    body = {"image_url": {"a": "${x}"}, "seed": "\x1b[0m"}
    yield Input(row=84, name="echoed", body=body, expected=model_errors(several[1], several[0]))


CASES = [*_first_rows(), *_numbers(), *_prompts(), *_sizes(), *_headers(), *_data()]
