"""A key that calls too fast: the official clients come again by themselves, and nobody who uses them sees it."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

from tests.conformance.conftest import Programs

SLOW = {"requests_per_second": 0.25}
"""One call, and the next four seconds later: both clients go on trying for longer."""


@pytest.fixture
def slowly(programs: Programs, tmp_path: Path) -> Programs:
    """Programs with a key that may not call often."""
    made = programs.curl("POST", "/v1/keys", json={"alias": "slow", "limits": SLOW}).json()
    return Programs(replace(programs.server, key=made["key"]), tmp_path)


def test_the_python_client_comes_again_until_it_is_let_in(slowly: Programs) -> None:
    answered, result = slowly.python("""
        import logging
        answered = []
        class Tally(logging.Handler):
            def emit(self, record):
                if "POST" in record.getMessage(): answered.append(record.args[3])
        logging.getLogger("httpx").addHandler(Tally())
        logging.getLogger("httpx").setLevel(logging.INFO)
        for _ in range(2):
            handle = fal_client.submit('fal-ai/svd', arguments={'image_url': picture, 'steps': 1})
        tell([answered, handle.get()])""")
    assert "image" in result
    assert [status for status, _ in groupby(answered)] == [200, 429, 200]


def test_the_javascript_client_comes_again_until_it_is_let_in(slowly: Programs) -> None:
    answered, result = slowly.javascript("""
        const answered = [];
        fal.config({ credentials: process.env.FAL_KEY, fetch: async (...call) => {
          const reply = await fetch(...call);
          if (call[1].method.toUpperCase() === "POST") answered.push(reply.status);
          return reply;
        } });
        const input = { image_url: picture, steps: 1 };
        await fal.queue.submit("fal-ai/svd", { input });
        const { data } = await fal.subscribe("fal-ai/svd", { input });
        tell([answered, data]);""")
    assert "image" in result
    assert [status for status, _ in groupby(answered)] == [200, 429, 200]
