"""Rows that another suite shows better: through the official client, with statistics, or where weights are read."""

from __future__ import annotations

from tests.hostile.table import Elsewhere

NODES = {
    74: ["tests/gateway/test_auth.py::test_the_same_is_done_before_a_key_is_refused_whatever_is_wrong_with_it"],
    80: [
        "tests/queue/test_webhooks.py::test_what_was_tampered_with_does_not_verify",
        "tests/gateway/test_webhook_routes.py::test_the_newest_key_comes_first_and_the_old_ones_stay",
    ],
    86: [
        "tests/gateway/test_run_routes.py::test_a_caller_who_goes_away_stops_a_running_run",
        "tests/gateway/test_run_routes.py::test_a_caller_who_goes_away_cancels_a_queued_run",
    ],
    88: [
        "tests/models/test_checkpoints.py::test_a_harmful_file_of_tensors_is_refused_by_its_name",
        "tests/models/test_checkpoints.py::test_no_pickle_is_read_whatever_it_is_called",
    ],
}

CASES = [Elsewhere(row=row, name=node.rpartition("::")[2], node=node) for row, nodes in NODES.items() for node in nodes]
