"""A server under load on the loopback: every good request is answered, no hostile one stops or fills it."""

from __future__ import annotations

from pathlib import Path

import pytest

import sightline
from benchmarks.serve_load import Server, attack, make_cloud, measure
from benchmarks.serve_siege import BOMBS, bomb, crowd, make_bomb, stop_busy
from tests.endless import write_endless
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


@pytest.mark.long
@pytest.mark.parametrize("num_handles", [None, 256, 100])
def test_two_thousand_requests_beside_silent_connections_are_answered(num_handles: int | None, tmp_path: Path) -> None:
    server = Server(copy_run("classify", tmp_path / "copy"), num_handles=num_handles)
    figures = crowd(server, silent=150, count=2_000, num_clients=50, num_points=32)
    assert server.stop() == 0
    assert figures["statuses"] == {200: 2_000}
    assert figures["closed"] == 150
    assert server.log.count("\n") <= 4, "where it serves, that it stopped, and a line a minute of its connections"


@pytest.mark.long
def test_json_that_takes_many_times_its_text_leaves_memory_and_time_to_others(tmp_path: Path) -> None:
    server = Server(copy_run("classify", tmp_path / "copy"))
    for name, item in BOMBS.items():
        for num_bytes in (31_000_000, 1_400_000):
            figures = bomb(server, [make_bomb(item, num_bytes)] * 8)
            before, peak, after = figures["rss_mb"]
            assert set(figures["statuses"]) <= {413, 422}, name
            assert peak < before + 8 * 32 + 256, name
            assert after < 1.5 * before, name
            assert figures["slowest_s_after"] < 1, name
    assert server.stop() == 0


@pytest.mark.long
def test_a_stop_takes_at_most_thirty_seconds_and_answers_what_it_can(tmp_path: Path) -> None:
    server = Server(copy_run("classify", tmp_path / "copy"))
    figures = stop_busy(server, [make_cloud(2, 1_000_000)] * 12, half=2)
    assert figures["exit_code"] == 0
    assert figures["seconds"] <= 30
    assert figures["half"] == ["503", "503"]
    assert sum(figures["uploads"].values()) == 12
    num_answered = figures["uploads"].get("200", 0)
    assert f"of 14 open requests {num_answered} were answered" in server.log


@pytest.mark.long
def test_a_stop_ends_a_file_of_onnx_that_does_not_end(tmp_path: Path) -> None:
    sightline.export(copy_run("classify", tmp_path / "copy"), out=tmp_path / "net.onnx")
    write_endless(tmp_path / "net.onnx", tmp_path / "endless.onnx")
    server = Server(tmp_path / "endless.onnx", "--max-seconds", "100")
    figures = stop_busy(server, [make_cloud(2, 32)], half=0)
    assert figures["exit_code"] == 0
    assert figures["seconds"] <= 30
    assert figures["uploads"] == {"503": 1}
