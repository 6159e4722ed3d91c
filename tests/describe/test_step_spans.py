"""Traces written by hand, with times and bytes worked out by hand: a CPU's and a GPU's."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.contract.errors import RunError
from sightline.workbench.describe.profiler_trace import (
    HOST,
    MODULE,
    WAITING,
    StepCosts,
    classify_kernel,
    compute_step_costs,
)
from tests.cases import run_each

PRODUCTS = "matrix products, convolutions"


def span(
    name: str, start: float, end: float, *, tid: int = 1, sequence: int | None = None, **more: Any
) -> dict[str, Any]:
    cat = "user_annotation" if name.startswith((MODULE, "end of", "ProfilerStep", "Optimizer")) else "cpu_op"
    args = {} if sequence is None else {"Sequence number": sequence}
    return {"ph": "X", "cat": cat, "name": name, "tid": tid, "ts": start, "dur": end - start, "args": args | more}


def memory(at: float, change: int, place: int, *, device: int = 0, total: int = 0, tid: int = 1) -> dict[str, Any]:
    args = {"Bytes": change, "Addr": place, "Device Type": device, "Total Allocated": total}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "tid": tid, "ts": at, "args": args}


NODE = "autograd::engine::evaluate_function: "
ONE_STEP = [
    span("ProfilerStep#1", 0, 1000),
    span("aten::stack", 10, 60),
    span("end of data", 99, 100),
    span(MODULE, 110, 300),
    span(MODULE + "a", 120, 220),
    span("aten::linear", 130, 200, sequence=5),
    span("aten::addmm", 140, 190, sequence=5),
    span(MODULE + "b", 230, 280),
    span("numba::ops.trees._search", 240, 270),
    span("aten::relu", 290, 295, sequence=6),
    span("end of forward", 349, 350),
    span(NODE + "ReluBackward0", 400, 430, sequence=6),
    span(NODE + "AddmmBackward0", 440, 540, sequence=5),
    span("aten::mm", 450, 530),
    span(NODE + "torch::autograd::AccumulateGrad", 550, 560),
    span("end of backward", 599, 600),
    span("Optimizer.step#SGD.step", 650, 750),
    span("aten::add_", 660, 700),
    span("end of optimise", 799, 800),
]


def seconds(costs: StepCosts, part: str | None = None, path: str | None = "*", kind: str | None = None) -> float:
    return 1e6 * sum(
        cost.seconds
        for key, cost in costs.costs.items()
        if part in (None, key[0]) and path in ("*", key[1]) and kind in (None, key[2])
    )


def test_times_of_a_step_on_the_cpu() -> None:
    costs = compute_step_costs(ONE_STEP)
    assert costs.step_s == pytest.approx(1000e-6)
    assert seconds(costs) == pytest.approx(1000)
    parts = {part: seconds(costs, part) for part in ("data", "forward", "backward", "optimise", "between steps")}
    assert parts == pytest.approx({"data": 100, "forward": 250, "backward": 250, "optimise": 200, "between steps": 200})
    assert seconds(costs, "forward", "a") == pytest.approx(100)
    assert seconds(costs, "forward", "b") == pytest.approx(50)
    assert seconds(costs, "forward", "") == pytest.approx(190 - 150)
    assert seconds(costs, "forward", None) == pytest.approx(250 - 190)
    assert seconds(costs, "backward", "a") == pytest.approx(100 + 10)  # and its gradient, added up right after
    assert seconds(costs, "backward", "") == pytest.approx(30)
    assert seconds(costs, kind=PRODUCTS) == pytest.approx(70 + 80)
    assert seconds(costs, kind="search, gather") == pytest.approx(30)
    assert seconds(costs, kind="data loading") == pytest.approx(100)
    assert seconds(costs, kind="optimiser") == pytest.approx(200)
    assert costs.calls == {"": 1, "a": 1, "b": 1}


def test_times_are_means_over_steps() -> None:
    second = [{**event, "ts": event["ts"] + 1000} for event in ONE_STEP]
    second[0] = span("ProfilerStep#2", 1000, 2200)  # ends 200 later
    costs = compute_step_costs([*ONE_STEP, *second])
    assert costs.num_steps == 2
    assert costs.step_s == pytest.approx(1100e-6)
    assert seconds(costs) == pytest.approx(1100)
    assert seconds(costs, "between steps") == pytest.approx(300)
    assert seconds(costs, "forward", "a") == pytest.approx(100)


def test_memory_by_who_made_what_lived_at_the_peak() -> None:
    changes = [
        memory(20, 100, 1),  # the batch
        memory(150, 40, 2),  # by a, freed before the peak
        memory(155, 500, 3),  # by a, saved
        memory(245, 70, 4),  # by b
        memory(275, -40, 2),
        memory(460, 300, 5),  # the gradient, in a's backward pass: the peak
        memory(545, -500, 3),
        memory(690, 200, 6),  # the optimiser's, below the peak
    ]
    costs = compute_step_costs([*ONE_STEP, *changes], resident_bytes=1000)
    made = {key[:2]: cost.bytes_at_peak for key, cost in costs.costs.items() if cost.bytes_at_peak}
    assert costs.peak_bytes == 1000 + 100 + 500 + 70 + 300
    assert made == {("data", None): 100, ("forward", "a"): 500, ("forward", "b"): 70, ("backward", "a"): 300}
    assert costs.peaks == {"": costs.peak_bytes, "a": costs.peak_bytes, "b": 1000 + 100 + 40 + 500 + 70}
    assert costs.kind_peaks["optimiser"] == 1000 + 100 + 70 + 300 + 200
    assert costs.kind_peaks["data loading"] == 1100


def test_times_of_a_gpu_are_those_of_its_kernels() -> None:
    def kernel(external: int, start: float, end: float, cat: str = "kernel") -> dict[str, Any]:
        args = {"External id": external, "correlation": 7}
        return {"ph": "X", "cat": cat, "name": "k", "tid": "stream 7", "ts": start, "dur": end - start, "args": args}

    events = [
        span("ProfilerStep#1", 0, 1000),
        span("end of data", 99, 100),
        span("aten::copy_", 105, 110, **{"External id": 1}),
        span("end of transfer", 119, 120),
        span(MODULE + "a", 130, 180),
        span("aten::addmm", 140, 150, sequence=3, **{"External id": 2}),
        span("end of forward", 199, 200),
        span(NODE + "AddmmBackward0", 210, 240, tid=2, sequence=3),
        span("aten::mm", 220, 230, tid=2, **{"External id": 3}),
        span("end of backward", 899, 900),
        kernel(1, 110, 130, "gpu_memcpy"),
        kernel(2, 300, 500),
        kernel(3, 500, 850),
        memory(145, 64, 1, device=1, total=1064),
        memory(225, 32, 2, device=1, total=1096, tid=2),
        memory(145, 999, 3),  # the host's
    ]
    costs = compute_step_costs(events, resident_bytes=5)
    assert seconds(costs) == pytest.approx(1000)
    assert seconds(costs, "data") == pytest.approx(100)
    assert seconds(costs, "transfer") == pytest.approx(20)
    assert seconds(costs, "forward", "a", PRODUCTS) == pytest.approx(200)
    assert seconds(costs, "backward", "a", PRODUCTS) == pytest.approx(350)
    assert seconds(costs, WAITING) == pytest.approx(1000 - 100 - 20 - 200 - 350)
    assert (costs.resident_bytes, costs.peak_bytes) == (1000, 1096)


def test_a_trace_without_a_step_is_refused() -> None:
    with pytest.raises(RunError, match="no complete step"):
        compute_step_costs(ONE_STEP[1:])


@run_each(
    "name, kind",
    [
        *((f"aten::{name}", PRODUCTS) for name in ("mm", "bmm", "addmm", "baddbmm", "mkldnn_convolution", "linear")),
        ("aten::convolution_backward", PRODUCTS),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", PRODUCTS),
        *((f"aten::{name}", "search, gather") for name in ("gather", "index_select", "topk", "scatter_add_", "index")),
        ("aten::index_put_", "search, gather"),
        ("numba::ops.neighbour_kernels._search", "search, gather"),
        ("numba::ops.edge_convolution._reduce_edges", "fused layers"),
        ("numba::parts.metrics.part_counts._count", "other kernels"),
        ("aten::native_batch_norm_backward", "normalisation"),
        ("aten::layer_norm", "normalisation"),
        *((f"aten::{name}", "reductions, pooling") for name in ("sum", "amax", "_softmax", "max_pool2d", "mean")),
        ("aten::max_pool2d_with_indices_backward", "reductions, pooling"),
        *((f"aten::{name}", "memory, layout") for name in ("copy_", "empty_strided", "cat", "view", "t", "zero_")),
        *((f"aten::{name}", "element by element") for name in ("add", "mul_", "relu", "threshold_backward", "where")),
        ("autograd::engine::evaluate_function: AddmmBackward0", HOST),
        ("module: head", HOST),
        ("Torch-Compiled Region: 0/0", "compiled by torch"),
        ("## Call CompiledFxGraph fdly7gm4oe3q", "compiled by torch"),
    ],
)
def test_kinds_of_known_operators(name: str, kind: str) -> None:
    assert classify_kernel(name) == kind
