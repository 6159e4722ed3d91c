"""`python -m benchmarks` as it is typed; memory in processes of its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks import runner
from benchmarks.__main__ import main
from benchmarks.memory import MemoryMeter
from sightline.contract.errors import RunError
from tests.command import Outcome, run_here

CASE = "knn_8x1024x64*"  # its only peer is faiss


def run_bench(*words: object) -> Outcome:
    """Run `python -m benchmarks <words>`."""
    return run_here(*words, main=main)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Any:
    threads = torch.get_num_threads()
    monkeypatch.setattr(runner, "keep_freed_memory", lambda: True)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def _without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryMeter, "peak_bytes", lambda self, case, variant, is_quick: 1000)


def test_the_list_names_cases_and_their_forms() -> None:
    code, out, err = run_bench("geometry", "--list", "--case", "fps_32*")
    assert (code, err) == (0, "")
    assert out == "geometry/fps_32x1024_to_512  (masked_loop, sightline, fpsample, fpsample_buckets)\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["geometri"], "did you mean 'geometry'"),
        (
            ["--case", "nothing*"],
            "no case of geometry, models, data, metrics, train, compress fits --case nothing*; --list shows",
        ),
        (["--grow", "colour"], "--grow: found 'colour', allowed are points, neighbours, batch, all"),
        (["train", "--grow", "batch"], "--grow is for geometry, models; found train"),
        (["--svg", "a.svg"], "--svg draws what --grow measures"),
        (["--grow", "batch", "--case", "knn*"], "leave out one of them"),
        (["--repeats", "0"], "--repeats"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_slip_gets_one_line(words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_bench(*words)
    assert (code, out) == (2, ""), err
    assert expected in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.processes
def test_a_quick_run_from_the_command_to_the_document(tmp_path: Path) -> None:
    """Everything is real, down to the processes that memory is measured in."""
    target = tmp_path / "bench.json"
    code, out, _ = run_bench("geometry", "--case", CASE, "--quick", "--repeats", 2, "--json", target)
    assert code == 0
    document = json.loads(target.read_text())
    assert document.keys() == {"cases", "environment"}
    ours = document["cases"][0]
    assert ours["name"] == "geometry/knn_8x1024x64_k20/sightline"
    assert ours["baseline"] == "matmul_topk"
    assert ours["ratio_low"] <= ours["ratio"] <= ours["ratio_high"]
    assert min(ours["cpu_s"], ours["baseline_cpu_s"]) > 0
    # The distances alone are 2 x 128 x 128 float32, 128 KiB.
    assert MemoryMeter(num_threads=1).is_possible is False or ours["baseline_peak_bytes"] >= 2 * 128 * 128 * 4
    environment = document["environment"]
    assert environment["num_threads"] == 1
    assert environment["is_complete"] is True
    assert environment["quick_sizes"][ours["name"]] == {"batch": 2, "points": 128, "channels": 64, "neighbours": 20}
    assert environment["mismatches"] == []
    assert "geometry/knn_8x1024x64_k20/sightline" in out
    assert "at tiny sizes instead of those in the names" in out


@pytest.mark.usefixtures("_without_memory")
def test_other_numbers_end_with_code_1(tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    with mock.patch("sightline.ops.nearest_neighbours", return_value=torch.zeros(2, 128, 20).long()):
        code, _, err = run_bench("geometry", "--case", CASE, "--quick", "--repeats", 1, "--json", target)
    assert code == 1
    assert "FAILED geometry/knn_8x1024x64_k20/sightline: other numbers than matmul_topk" in err
    document = json.loads(target.read_text())
    assert "geometry/knn_8x1024x64_k20/sightline" not in [row["name"] for row in document["cases"]]
    assert len(document["environment"]["mismatches"]) == 1


@pytest.mark.usefixtures("_without_memory")
def test_an_interrupted_run_saves_what_it_has(tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    asked: list[str] = []

    def peak(self: MemoryMeter, case: str, variant: str, *, is_quick: bool) -> int:
        asked.append(case)
        if len(set(asked)) == 2:
            raise KeyboardInterrupt
        return 1000

    with mock.patch.object(MemoryMeter, "peak_bytes", peak):
        code, out, err = run_bench("geometry", "--case", "*_to_*", "--quick", "--repeats", 1, "--json", target)
    assert code == 130
    document = json.loads(target.read_text())
    assert {row["name"].split("/")[1] for row in document["cases"]} == {"fps_32x1024_to_512"}
    assert document["environment"]["is_complete"] is False
    assert err.endswith(f"interrupted after {len(document['cases'])} rows; they are in {target}\n")
    assert "fps_32x1024_to_512/sightline" in out
    assert "1.0 KiB" in out


@pytest.mark.usefixtures("_without_memory")
def test_growth_is_told_and_drawn(tmp_path: Path) -> None:
    target, drawing = tmp_path / "bench.json", tmp_path / "made" / "growth.svg"
    words = ["--grow", "neighbours", "--quick", "--repeats", 1, "--json", target, "--svg", drawing]
    code, out, _ = run_bench("geometry", *words)
    assert code == 0
    names = [row["name"] for row in json.loads(target.read_text())["cases"]]
    assert [name for name in names if "knn" in name] == [f"geometry/knn_4x1024x3_k{k}/sightline" for k in (5, 10)]
    assert "nearest neighbours: CPU seconds" in out
    assert drawing.read_text().startswith("<svg ")


@pytest.mark.processes
@pytest.mark.skipif(not MemoryMeter(num_threads=1).is_possible, reason="the high-water mark is Linux's")
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    """The textbook holds three matrices of all distances at once, 4 x 512 x 512 float32 each, and little more."""
    matrix = 4 * 512 * 512 * 4
    with MemoryMeter(num_threads=1) as meter:
        size = meter.peak_bytes("geometry/knn_4x512x3_k20", "matmul_topk", is_quick=False)
        again = meter.peak_bytes("geometry/knn_4x512x3_k20", "matmul_topk", is_quick=False)
        assert size is not None
        assert again is not None
        assert 2 * matrix < size < 4 * matrix + 2**20
        assert math.isclose(size, again, rel_tol=0.1)
        with pytest.raises(RunError, match="its memory could not be measured: StopIteration"):
            meter.peak_bytes("geometry/no_such_case", "matmul_topk", is_quick=False)
