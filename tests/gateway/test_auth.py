from __future__ import annotations

import pytest

from tests.gateway.conftest import INPUT, SVD, Gateway

FORMAT = "Invalid Authorization header format. Expected 'Key <key_id>:<key_secret>'."
NOBODY = "No user found for Key ID and Secret"

ROUTES = [
    ("POST", f"/queue/{SVD}"),
    ("POST", "/queue/fal-ai/unknown"),
    ("GET", f"/queue/{SVD}/requests/1"),
    ("GET", f"/queue/{SVD}/requests/1/response"),
    ("GET", f"/queue/{SVD}/requests/1/status"),
    ("GET", f"/queue/{SVD}/requests/1/status/stream"),
    ("PUT", f"/queue/{SVD}/requests/1/cancel"),
    ("POST", f"/{SVD}"),
    ("GET", f"/{SVD}"),
    ("POST", "/fal-ai/unknown"),
]


async def submit(gateway: Gateway, *authorization: str | bytes) -> tuple[int, str]:
    """The status and detail of a submit with these Authorization headers alone."""
    request = gateway.client.build_request("POST", f"/queue/{SVD}", json=INPUT)
    others = [(name, value) for name, value in request.headers.raw if name.lower() != b"authorization"]
    given = [(b"Authorization", value.encode() if isinstance(value, str) else value) for value in authorization]
    request.headers = type(request.headers)([*others, *given])
    reply = await gateway.client.send(request)
    if reply.status_code == 401:
        assert reply.headers["www-authenticate"] == "Key"
        assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "unauthorized"
    return reply.status_code, reply.json().get("detail", "")


@pytest.mark.parametrize("header", ["Key id:secret", "key id:secret", "KEY id:secret", "Bearer id:secret"])
async def test_the_key_is_taken_under_either_scheme(gateway: Gateway, header: str) -> None:
    assert await submit(gateway, header) == (200, "")


async def test_a_caller_without_a_key_is_told_so(gateway: Gateway) -> None:
    assert await submit(gateway) == (401, "Authorization header is required")


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Key",
        "Key ",
        "Key a",
        "Key id:",
        "Key :secret",
        "Key :",
        "id:secret",
        "Basic id:secret",
        "Keyid:secret",
    ],
)
async def test_a_header_of_another_form_is_told_the_form(gateway: Gateway, header: str) -> None:
    assert await submit(gateway, header) == (401, FORMAT)


@pytest.mark.parametrize(
    "header",
    [
        "Key id:wrong",
        "Key other:secret",
        "Key id:secre",
        "Key id:secrets",
        "Key ID:secret",
        "Key id:secret:",
        "Key  id:secret",
        "Key id:%",
        "Key %:%",
        "Key id:' OR '1'='1",
        "Key id:*",
        "Key id:sécret",
        "Key íd:secret",
        b"Key id:\xff\xfe",
        b"Key id:secret\x00",
        b"Key id:\x00secret",
        pytest.param("Key id:" + "s" * 100_000, id="100 KB"),
    ],
)
async def test_another_key_is_nobodys(gateway: Gateway, header: str | bytes) -> None:
    assert await submit(gateway, header) == (401, NOBODY)


@pytest.mark.parametrize(
    "headers",
    [("Key id:secret", "Key id:wrong"), ("Key id:wrong", "Key id:secret"), ("Key id:secret", "Key id:secret")],
)
async def test_two_authorization_headers_are_refused(gateway: Gateway, headers: tuple[str, str]) -> None:
    assert (await submit(gateway, *headers))[0] == 401


@pytest.mark.parametrize("name", ["key", "api_key", "authorization", "fal_key", "fal_jwt_token"])
async def test_a_key_in_the_query_is_no_key(gateway: Gateway, name: str) -> None:
    reply = await gateway.client.post(
        f"/queue/{SVD}", params={name: "id:secret"}, json=INPUT, headers={"authorization": ""}
    )

    assert reply.status_code == 401


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_of_a_request_wants_the_key_before_it_says_anything(
    gateway: Gateway, method: str, path: str
) -> None:
    reply = await gateway.client.request(method, path, json=INPUT, headers={"authorization": "Key id:wrong"})

    assert (reply.status_code, reply.json()["detail"]) == (401, NOBODY)


async def test_a_refused_caller_leaves_nothing_in_the_queue(gateway: Gateway) -> None:
    await submit(gateway, "Key id:wrong")

    assert await gateway.waiting() == 0


async def test_a_wrong_key_is_never_logged(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    await submit(gateway, "Key id:swordfish")

    assert "swordfish" not in caplog.text
