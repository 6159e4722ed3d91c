"""A server under load on the loopback: every good request is answered, no malformed one stops it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serve_load import Server, attack, measure
from tests.trained import copy_run


@pytest.mark.long
def test_ten_thousand_malformed_requests_leave_a_server_that_answers(tmp_path: Path) -> None:
    server = Server(copy_run("classify", tmp_path / "copy"))
    before = measure(server, count=200, num_clients=8, num_points=32)
    attacked = attack(server, count=10_000)
    after = measure(server, count=50, num_clients=8, num_points=32)
    code = server.stop()
    assert before["statuses"] == {200: 200}
    assert after["statuses"] == {200: 50}
    assert not attacked["odd"]
    assert code == 0
    assert "Traceback" not in server.log
