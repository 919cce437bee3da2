"""The example for Alertmanager: it is read, and sends each alert where its severity belongs."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import need
from tests.monitoring.reading import MONITORING, alerts

CONFIG = MONITORING / "alertmanager.yaml"


def amtool(*arguments: str) -> str:
    done = subprocess.run([need("amtool"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_alertmanager_reads_the_example() -> None:
    assert "SUCCESS" in amtool("check-config", str(CONFIG))


@pytest.mark.parametrize(("severity", "receiver"), [("page", "pager"), ("ticket", "tickets")])
def test_every_severity_has_its_receiver(severity: str, receiver: str) -> None:
    named = {alert["alert"] for alert in alerts() if alert["labels"]["severity"] == severity}
    assert named
    for name in named:
        labels = (f"alertname={name}", f"severity={severity}")
        assert amtool("config", "routes", "test", f"--config.file={CONFIG}", *labels).split() == [receiver]
