"""How the service starts where something that it needs is away."""

from __future__ import annotations

import pytest

from deployments.gateway.sample import keep_sample
from deployments.storage import FileStorage
from tests.conftest import free_port


async def test_bucket_that_is_away_does_not_keep_the_service_from_starting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "1")
    await keep_sample(FileStorage.open("s3://bucket/prefix", "http://127.0.0.1:8000"))
    assert "the sample picture could not be stored" in caplog.text
