from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from deployments.queue.request import NewRequest
from loadtest.postgres import Postgres

MODEL = "fal-ai--svd"


def new_request(**changes: Any) -> NewRequest:
    """A request for one model, as the gateway would submit it."""
    values: dict[str, Any] = {
        "endpoint": "fal-ai/svd",
        "model": MODEL,
        "key_id": "alice",
        "input": '{"image_url": "data:,"}',
        "batch_key": "steps=20",
        "pixel_frames": 1000,
    }
    return NewRequest(**(values | changes))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Both stores keep the same contract."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/queue.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create(f"test_{uuid4().hex}", template="migrated")
