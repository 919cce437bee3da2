"""The picture that newcomers try first: it is stored as the gateway starts, wherever it runs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from deployments.errors import StorageUnavailable
from deployments.storage import FileStorage

logger = logging.getLogger(__name__)

SAMPLE = Path(__file__).parent / "playground" / "sample.jpg"
SAMPLE_KEY = "samples/landscape.jpg"
SAMPLE_SECONDS = 10.0
"""How long a start may wait for the storage to take it."""


async def keep_sample(storage: FileStorage) -> None:
    """Store the picture. It is not worth a start: of a storage that takes nothing, readiness tells."""
    try:
        async with asyncio.timeout(SAMPLE_SECONDS):
            await storage.put(SAMPLE, SAMPLE_KEY)
    except (StorageUnavailable, TimeoutError) as error:
        logger.warning("the sample picture could not be stored: %s", error)
