"""The matrix of formats, devices and kernels: cells, what a machine lacks, and a cell whose numbers overflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline.workbench.compare.matrix import MatrixCell, _set_tf32, list_cells, run_cell
from sightline.workbench.compare.steps import losses_over_steps
from tests.cases import run_each
from tests.compare.steps import variant
from tests.compare.test_command import SMALL, compare
from tests.compare.test_faulty import compare as compare_faulty
from tests.compare.test_steps import make_subject
from tests.devices import rounded_to

NEEDS_NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@NEEDS_NO_GPU
def test_three_cells_of_a_cpu_and_twelve_that_the_machine_lacks(tmp_path: Path) -> None:
    outcome, found = compare(tmp_path, *SMALL, "--matrix", "--steps", 2, "--samples", 2)
    assert outcome.code == 0, outcome.err
    assert "cell 3 of 3: bf16 on cpu" in outcome.err
    cells = found["matrix"]
    assert [(cell["precision"], cell["device"]) for cell in cells[:3]] == [
        (precision, "cpu") for precision in ("float64", "float32", "bf16")
    ]
    assert all(cell["first"] is None and cell["step_s"] > 0 and cell["peak_bytes"] > 1e4 for cell in cells[:3])
    exact, single, half = ([cell["losses"][step] for step in ("0", "1")] for cell in cells[:3])
    assert single == pytest.approx(exact, rel=1e-4)
    assert half == pytest.approx(exact, rel=0.1)
    assert cells[0]["peak_bytes"] > 1.5 * cells[1]["peak_bytes"], "float64 takes twice the bytes"
    lacking = cells[3:]
    assert {(cell["device"], cell["status"], cell["why_not"]) for cell in lacking} == {
        ("cuda", "not available", "no GPU here")
    }
    kernels = {(cell["precision"], cell["cudnn"], cell["tf32"]) for cell in lacking}
    assert len(kernels) == len(lacking) == 12
    assert not any(cell["losses"] for cell in lacking)
    assert outcome.out.count("no GPU here") == 12


@NEEDS_NO_GPU
def test_a_cell_that_overflows_names_its_layer_and_the_others_go_on(tmp_path: Path) -> None:
    outcome, found = compare_faulty(tmp_path, "overflowing_small", "--matrix", "--steps", 2)
    assert outcome.code == 1
    exact, single, half = found["matrix"][:3]
    assert exact["first"] is None
    assert "what head is given" in single["first"]["what"]
    assert (set(exact["losses"].values()) & {None}, set(single["losses"].values())) == (set(), {None})
    assert half["status"] == "ran"


def test_losses_of_a_cell_are_those_of_the_variant_and_stop_with_the_time() -> None:
    subject = make_subject()
    cell = MatrixCell("float32", "cpu")
    found = run_cell(subject, cell, num_steps=3)
    ours = variant(subject.built.job.model)
    batch = ours.batch(subject.batch)
    assert found.losses == losses_over_steps(ours, subject.built.job, subject.recipe, batch, num_steps=3)
    assert list(found.shown_losses) == [0, 1]
    assert len(run_cell(subject, cell, num_steps=3, max_seconds=0).losses) == 1


@run_each("precision", ["ieee", "tf32"])
def test_a_cell_leaves_the_users_switches(precision: str) -> None:
    """The newer ones of TF32: once they are set, torch refuses to read the older ones."""
    switches = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)
    with rounded_to(precision, *switches):
        for is_on, inside in ((True, "tf32"), (False, "ieee"), (None, precision)):
            with _set_tf32(is_on):
                assert [switch.fp32_precision for switch in switches] == [inside, inside]
            assert [switch.fp32_precision for switch in switches] == [precision, precision]


def test_names_of_cells() -> None:
    names = [str(cell) for cell in list_cells()]
    assert len(set(names)) == 15
    assert {"bf16 on cpu", "float32 on cuda, cuDNN all but batch norm, TF32"} <= set(names)
