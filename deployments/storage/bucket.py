"""How an S3 service is reached, and what is made of obstore's errors."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from datetime import timedelta

from obstore.exceptions import BaseError
from obstore.store import S3Store

from deployments.errors import StorageUnavailable

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 3
ANSWER_SECONDS = 10
"""How long an S3 service may be silent. It is asked again twice where that can help, but not once so long is over."""

STORE_AWAY = (BaseError, OSError)
_PLACE = re.compile(r"(https?:/)?/\S+")
_NO_SUCH_PATH = (errno.ENOTDIR, errno.ENAMETOOLONG)


def open_bucket(bucket: str, prefix: str) -> S3Store:
    """A bucket, with credentials, region and endpoint from the usual ``AWS_…`` variables.

    Plain HTTP is spoken only where the endpoint says so.
    """
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=ANSWER_SECONDS),
            "timeout": timedelta(minutes=5),
        },
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=ANSWER_SECONDS / 2)},
    )


@contextlib.contextmanager
def told_as_unavailable(*but: type[Exception]) -> Iterator[None]:
    """Name what obstore raises, but for these.

    Its words hold keys and paths: only the first line goes to the log, without them.

    Raises:
        StorageUnavailable: obstore raised anything else.
    """
    try:
        yield
    except but:
        raise
    except STORE_AWAY as error:
        if FileNotFoundError in but and any(f"(os error {number})" in str(error) for number in _NO_SUCH_PATH):
            raise FileNotFoundError from None
        reason = _PLACE.sub("…", str(error).split("\n")[0]) or type(error).__name__
        logger.warning("the file storage failed: %s", reason)
        raise StorageUnavailable("The file storage is not available at the moment") from None
