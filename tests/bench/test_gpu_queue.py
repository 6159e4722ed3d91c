"""The queue of a GPU: whole on a CPU at tiny sizes, its lines, where a second run goes on, and its tables."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_page
from benchmarks.gpu_jobs import Bench, Figures, Job, agree, compare, plain_forms
from benchmarks.gpu_operators import SHAPES
from benchmarks.gpu_steps import RECIPE_STEPS
from sightline.contract.errors import RunError
from sightline.ops.operator import OPERATORS

HERE = {"commit": "abc", "card": "H100", "torch": "2.11", "triton": "3.6"}


def _bench(folder: Path, minutes: float = 1.0) -> Bench:
    return Bench(torch.device("cpu"), False, folder, time.monotonic() + 60 * minutes)


def _jobs(calls: list[str], broken: tuple[str, ...] = (), seconds: float = 1.0) -> list[Job]:
    def make(name: str) -> Any:
        def run(bench: Bench) -> Figures:
            calls.append(name)
            if name in broken:
                raise RunError(f"{name} is\nbroken")
            return {"ms": 1.5}

        return run

    return [Job(name, seconds, make(name)) for name in "abc"]


def test_the_whole_queue_runs_on_a_cpu(tmp_path: Path) -> None:
    """Jobs that need a GPU or files say so; all others have figures, and the page takes none of them for a GPU's."""
    words = ["--minutes", "5", "--out", str(tmp_path), "--device", "cpu", "--tiny", "--commit", "abc"]
    assert gpu.main(words) == 0
    results = gpu.read_results(tmp_path / "results.jsonl")
    errors = {result["job"].partition(" ")[0]: result["error"] for result in results if "error" in result}
    assert {kind: error.split(":")[1] for kind, error in errors.items() if kind != "training"} == {
        "waits": " needs a GPU",
        "strict": " needs a GPU",
    }
    assert "modelnet40_packed.npz is absent" in errors["training"]
    measured = {result["job"]: result for result in results if "error" not in result}
    assert {job.partition(" ")[0] for job in measured} == {"host", "step", "operator", "textbook", "boxes3d"}
    assert all(result["figures"].get("equal_bits", True) for result in measured.values())
    assert all(result.keys() >= {*HERE, "unit", "date", "seconds"} for result in measured.values())
    assert gpu.main(words) == 0
    again = gpu.read_results(tmp_path / "results.jsonl")[len(results) :]
    assert {result["job"] for result in again} == {result["job"] for result in results} - measured.keys()
    assert list(gpu_page.list_rows(again)) == list(gpu_page.list_rows([]))


def test_a_job_that_fails_is_a_line_and_comes_last_in_the_next_run(tmp_path: Path) -> None:
    calls: list[str] = []
    results = gpu.run_queue(_jobs(calls, broken=("a",)), _bench(tmp_path), HERE)
    assert [result.get("error", "") for result in results] == ["RunError: a is broken", "", ""]
    assert gpu.read_results(tmp_path / "results.jsonl") == results
    calls.clear()
    gpu.run_queue(_jobs(calls), _bench(tmp_path), HERE)
    assert calls == ["a"]
    gpu.run_queue(_jobs(calls), _bench(tmp_path), HERE)
    assert calls == ["a"]
    for key, value in (("commit", "abd"), ("card", "H200"), ("commit", "abc-changed")):
        calls.clear()
        for _ in range(2):
            gpu.run_queue(_jobs(calls), _bench(tmp_path), HERE | {key: value})
        assert calls == [*"abc"] * (2 if "changed" in value else 1)


def test_what_does_not_fit_into_the_minutes_is_left(tmp_path: Path) -> None:
    calls: list[str] = []
    long, *short = _jobs(calls)
    jobs = [Job(long.name, 100, long.run), *short]
    assert [result["job"] for result in gpu.run_queue(jobs, _bench(tmp_path), HERE)] == ["b", "c"]
    assert [result["job"] for result in gpu.run_queue(jobs, _bench(tmp_path, minutes=3), HERE)] == ["a"]


@pytest.mark.parametrize("torn", [b'{"job": "a", "fig', b'{"job": "a"}\n{"jo', b"\xff\xfe", b"\n"])
def test_a_torn_line_is_no_result(torn: bytes, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_bytes(torn)
    before = gpu.read_results(file)
    for number in range(2):
        gpu.append_result(file, {"job": "b", "number": number})
    assert gpu.read_results(file) == [*before, {"job": "b", "number": 0}, {"job": "b", "number": 1}]


def test_the_tables_are_those_of_the_page() -> None:
    """`python -m benchmarks.gpu --page` writes them."""
    table = gpu_page.PAGE.read_text().split(gpu_page.BEGIN)[1].split(gpu_page.END)[0].strip()
    assert table == "\n".join(gpu_page.list_rows(gpu.read_results(gpu_page.RESULTS)))


def test_the_tables_have_the_last_figures_of_a_gpu() -> None:
    def line(job: str, card: str = "H100", **outcome: Any) -> dict[str, Any]:
        return {"job": job, **HERE, "card": card, **outcome}

    step, shape = f"step {RECIPE_STEPS[0].name}", f"operator {SHAPES[0].name}"
    lines = [
        line(step, figures={"ms": 41.25, "launches": 1600.0, "data_share": 0.021}),
        line(step, figures={"ms": 39.04, "launches": 1532.0, "data_share": 0.02}),
        line(step, error="RunError: out of memory"),
        line(step, card="cpu", figures={"ms": 1.0, "launches": None, "data_share": 0.0}),
        line(shape, error="RuntimeError: a | b"),
        line("strict a", figures={"equal_bits": True}),
        line("strict b", figures={"equal_bits": False}),
    ]
    rows = "\n".join(gpu_page.list_rows(lines))
    assert "4 x 4,096 | 39 |  | 40 | 1,532 | 1,550 | 0.02 | abc |" in rows
    assert "24 x 1,024 to 512 | RuntimeError: a / b | 2.6 |  |  |" in rows
    assert "| 1 of 2 |" in rows
    assert "H100, abc, torch 2.11" in rows


def test_plain_forms_take_the_place_of_all_kernels() -> None:
    points = torch.zeros(2, 8, 3)
    arguments = points, torch.zeros(2, dtype=torch.int64), 4, torch.inf, -1.0
    operator = OPERATORS["farthest_points"]
    assert operator.takes(*arguments)
    with plain_forms():
        assert not operator.takes(*arguments)
    assert operator.takes(*arguments)


def test_results_are_compared_by_bits_and_by_their_largest_number() -> None:
    numbers = torch.tensor([1.0, -4.0])
    assert compare((numbers, None), (numbers, None)) == {"equal_bits": True, "difference": 0.0}
    assert compare(numbers, numbers + torch.tensor([0.0, 2.0])) == {"equal_bits": False, "difference": 1.0}


def test_tables_agree_in_all_bits_and_numbers_to_a_ten_thousandth() -> None:
    """Of 3D boxes; a number that is none is off, too."""
    expected = {"kept": torch.tensor([2, 0]), "overlaps": torch.tensor([0.5, 1.0]), "none": torch.zeros(0)}
    assert agree({**expected, "overlaps": torch.tensor([0.5, 1.00005])}, expected)["difference"] < 1e-4
    far = {**expected, "overlaps": torch.tensor([0.5, 1.0002])}
    for found, said in (
        ({**expected, "kept": torch.tensor([0, 2])}, "CPU: kept are others"),
        (far, "CPU: overlaps are off by 2.0e-04 of the largest"),
        ({**expected, "overlaps": torch.tensor([0.5, torch.nan])}, "overlaps are off by nan"),
        ({**far, "kept": torch.tensor([2])}, "kept are others, overlaps are off"),
    ):
        with pytest.raises(RunError, match=said):
            agree(found, expected)
