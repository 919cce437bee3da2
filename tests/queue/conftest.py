from __future__ import annotations

from typing import Any

from deployments.queue.request import NewRequest

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
