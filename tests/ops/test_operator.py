"""The mechanism of operators: devices, deferred checks, what is logged, what a first call imports."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sightline import ops
from sightline.ops import numba_kernels, operator, waits
from sightline.ops.gpu_kernels import GpuKernel
from sightline.ops.operator import OPERATORS
from sightline.ops.waits import deferred_checks, pending_checks, read_list, require
from tests.processes import ROOT

# --- devices ----------------------------------------------------------------------------------------------------------


def test_kernels_run_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    current, launched = ["cuda:0"], []

    @contextlib.contextmanager
    def device_of(tensor: Tensor) -> Iterator[None]:
        current.append(str(tensor.device))
        yield
        current.pop()

    class Compiled:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **constants: launched.append(current[-1])

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(GpuKernel, "jitted", Compiled())
    with FakeTensorMode():
        points, first = torch.empty(2, 40, 3, device="cuda:1"), torch.zeros(2, dtype=torch.int64, device="cuda:1")
        for name, arguments in {
            "farthest_points": (points, first, 9, torch.inf, -1.0),
            "nearest_neighbours": (points, None, 4),
            "box_iou": (points.new_empty(9, 4), points.new_empty(5, 4)),
        }.items():
            launch: Any = OPERATORS[name].gpu
            launch(*arguments)
            assert set(launched) == {"cuda:1"}, name
            launched.clear()
        other = points.new_empty(5, 4, device="cuda:0")
        overlap: Any = OPERATORS["box_iou"].gpu
        with pytest.raises(ValueError, match="overlap_tile: found tensors on cuda:1 and cuda:0; move all"):
            overlap(points.new_empty(9, 4), other)


def test_sizes_that_depend_on_values_are_refused_on_meta() -> None:
    points, offsets = torch.empty(5, 3, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    with pytest.raises(NotImplementedError, match="on the device meta, which has no values, and the size"):
        ops.packed_farthest_points(points, offsets[1:], offsets=offsets)


# --- what is logged ---------------------------------------------------------------------------------------------------


def test_a_plain_form_on_a_gpu_is_logged_once_for_each_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(operator, "_REPORTED", set())
    few, overlap = OPERATORS["keep_greedily"], OPERATORS["box_iou"]
    boxes = torch.zeros(3, 4)
    monkeypatch.setattr(operator, "has_triton", lambda: False)
    assert not any(overlap._fits_gpu((boxes, boxes)) for _ in range(2))
    monkeypatch.setattr(operator, "has_triton", lambda: True)
    assert not any(overlap._fits_gpu((boxes.half(), boxes.half())) for _ in range(2))
    monkeypatch.setattr(few, "_takes", lambda *arguments: False)
    assert not any(few._fits_gpu((boxes, boxes[:, 0])) for _ in range(2))
    assert overlap._fits_gpu((boxes, boxes))
    lines = [record.getMessage().removeprefix("sightline: ") for record in caplog.records]
    how = "runs on the GPU in torch: slower, with the same results."
    assert lines == [
        f"box_iou((3, 4), (3, 4)) {how} Triton is not installed; pip install 'sightline[ops]'",
        f"box_iou((3, 4), (3, 4)) {how} Its kernel does not take torch.float16",
        f"keep_greedily((3, 4), (3,)) {how} Its kernel does not take such sizes",
    ]


def test_missing_numba_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    points, find_spec = torch.rand(1, 5, 3), importlib.util.find_spec
    numba_kernels.report_missing_numba.cache_clear()
    ops.farthest_points(points.half(), 2)
    assert not caplog.records
    numba_kernels.report_missing_numba.cache_clear()
    monkeypatch.setattr(numba_kernels, "_has_numba", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find_spec(name))
    for _ in range(2):
        ops.farthest_points(points, 2)
    (record,) = caplog.records
    assert record.getMessage().endswith("with the same results; pip install 'sightline[ops]'")


# --- checks that a GPU does not wait for ------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor is free to read."""
    monkeypatch.setattr(waits, "_FREE_DEVICES", frozenset())
    monkeypatch.setattr(waits, "_pending", [])


NO = torch.tensor([True, False])


@pytest.mark.usefixtures("device")
def test_a_check_of_an_operator_waits_for_the_next_read() -> None:
    for read in (ops.check, lambda: read_list(torch.arange(3)), lambda: waits.fetch(torch.ones(2))):
        with pending_checks():
            require(~NO, LookupError)
            require(NO.any(), LookupError)
            require(NO, lambda: KeyError("the first"))
            require(NO, IndexError)
        with pytest.raises(LookupError):
            read()
        read()  # what was raised is not raised again


@pytest.mark.usefixtures("device")
def test_the_first_fault_is_named_and_few_checks_stay_unread() -> None:
    with pending_checks():
        require(NO.any(), LookupError)
        require(NO, lambda: KeyError("the first"))
        require(NO, IndexError)
    with pytest.raises(KeyError, match="the first"):
        ops.check()
    for _ in range(waits._MAX_PENDING - 1):
        with pending_checks():
            require(NO[0], LookupError)
    with pytest.raises(KeyError, match="the last"), pending_checks():
        require(NO[1], lambda: KeyError("the last"))


@pytest.mark.usefixtures("device")
def test_a_step_reads_its_own_checks_and_a_captured_graph_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with deferred_checks() as checks, pending_checks():
        require(NO, KeyError)
    assert len(checks) == 1
    for state in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, state, lambda: True)
    with pending_checks():
        require(NO, KeyError)
    ops.check()


@pytest.mark.usefixtures("device")
def test_points_that_have_changed_since_are_not_named() -> None:
    points = torch.zeros(2, 5, 3)
    for value, message in ((torch.nan, r"points\[1\]: point 2 is \[nan"), (1.0, "points: held numbers that are not")):
        points[1, 2] = torch.nan
        with pending_checks():
            OPERATORS["nearest_neighbours"]._check(points, None, 2)
        points[1, 2] = value
        with pytest.raises(ValueError, match=message):
            ops.check()


# --- the first call ---------------------------------------------------------------------------------------------------

FIRST_CALLS = """
import sys
import torch
from sightline.ops.operator import OPERATORS
from tests.ops.exam_cases import CASES
for case in CASES:
    OPERATORS[case.operator](*case.make(torch.float32))
print(*sorted({"torch._dynamo", "sympy", "triton"} & sys.modules.keys()))
"""


@pytest.mark.processes
def test_a_first_call_imports_no_compiler_of_torch() -> None:
    """It takes a second, and so a third of the time of `import torch` and of a call."""
    done = subprocess.run([sys.executable, "-c", FIRST_CALLS], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("\n", 0), done.stdout + done.stderr
