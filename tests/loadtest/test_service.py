"""A service of a measurement's own: that nothing of it is left, however it went."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from loadtest import service
from loadtest.service import run_server


def test_a_service_that_does_not_start_is_told(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    with pytest.raises(OSError, match="did not start: see"), run_server(tmp_path, tmp_path / "none.yaml", log):
        pass
    assert "none.yaml" in log.read_text()


def test_a_service_that_does_not_get_ready_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "READY_SECONDS", 0.0)
    before = psutil.Process().children()
    with pytest.raises(OSError, match="did not start"), run_server(tmp_path):
        pass
    assert psutil.Process().children() == before
