"""A comparison's page, and its matrix of variants.

HTML page of a comparison: one self-contained file.

Matrix of one recipe over number formats, devices and kernels: loss, time and memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sightline.config.run_config import Cudnn
from sightline.draw.charts import ChartPanel, Series
from sightline.draw.page import PageChart, PageTable, PageText, render_page
from sightline.engine.device import Precision
from sightline.instrument.formats import get_tf32_switch
from sightline.instrument.judge import INFINITE_RATIO, MAX_ROUNDING_UNITS
from sightline.layers.batch_norm import disable_cudnn_batch_norm
from sightline.workbench.compare.comparison import ComparisonSubject, VariantComparison
from sightline.workbench.compare.layerwise import LayerComparison
from sightline.workbench.compare.steps import losses_over_steps
from sightline.workbench.compare.variants import ModelVariant, deterministic_copy

_MIN_RATIO = 1e-3
"""Smallest ratio drawn, in units of rounding: a logarithmic axis has no zero."""
_MAX_RATIO = 1e12


def encode_comparison_page(comparison: VariantComparison, *, title: str) -> str:
    """Encode the page: verdict, plot of every layer's ratio in order, losses over steps, and table."""
    head = ("layer", "class", "pass", "tensor", "units of rounding", "error / largest", "tolerated", "")
    marked = [index for index, row in enumerate(comparison.rows) if row.is_guilty]
    return render_page(
        title,
        [
            PageText("strong", [verdict(comparison)]),
            PageText("plain", [f"{comparison.variant}, against {comparison.reference}"]),
            PageChart([_comparison_panels(comparison)]),
            PageText("notes", comparison.notes),
            PageTable(head, [_table_row(row) for row in comparison.rows], marked, is_numeric=False),
        ],
    )


def verdict(comparison: VariantComparison) -> str:
    """Summarise a comparison in one line."""
    step = comparison.parts_at_step
    parted = "" if step is None else f"; the losses diverge at step {step}"
    trace = comparison.trace
    if trace is not None and trace.is_none_from is not None:
        parted += f"; from step {trace.is_none_from} on both have losses or gradients that are NaN or infinite"
    if comparison.guilty_rows:
        return f"they diverge first at {describe_row(comparison.guilty_rows[0])}{parted}"
    return f"every layer agrees{parted}" if parted else "equal: rounding explains every difference"


def describe_row(row: LayerComparison) -> str:
    """Describe a row: layer, pass, tensor and deviation."""
    deviation = row.deviation
    where = f", in the code of {row.inside} after it" if row.inside else ""
    kind = f" ({row.class_name})" if row.class_name else ""
    if deviation.note:
        description = deviation.note
    else:
        description = (
            f"off by {deviation.relative_error:.2g} of its largest value, "
            f"rounding explains {deviation.relative_bound:.2g}"
        )
    return f"{row.layer}{kind}{where}, {row.which} pass, {row.what}: {description}"


def _comparison_panels(comparison: VariantComparison) -> list[ChartPanel]:
    """Make panels: every row's units of rounding with the bound, in order of execution, and losses over steps."""
    panels = []
    for which in ("forward", "backward"):
        rows = [row for row in comparison.rows if row.which == which]
        if rows:
            panels.append(_ratio_panel(which, rows))
    trace = comparison.trace
    if trace is not None and len(trace.losses) > 1:
        steps = range(len(trace.losses))
        differences = [_clamp_for_axis(abs(a - b)) for a, b in zip(trace.losses, trace.expected, strict=True)]
        bound = [_clamp_for_axis(tolerance) for tolerance in trace.tolerated]
        series = (
            Series("difference of the losses", tuple(zip(map(float, steps), differences, strict=True))),
            Series("what rounding explains", tuple(zip(map(float, steps), bound, strict=True))),
        )
        panels.append(ChartPanel("losses over optimiser steps", "step", series, x_scale="linear"))
    return panels


def _ratio_panel(which: str, rows: Sequence[LayerComparison]) -> ChartPanel:
    ratios = tuple(
        (float(index), min(max(row.deviation.ratio, _MIN_RATIO), _MAX_RATIO)) for index, row in enumerate(rows)
    )
    line = ((0.0, MAX_ROUNDING_UNITS), (float(max(1, len(rows) - 1)), MAX_ROUNDING_UNITS))
    series = (Series("units of rounding", ratios), Series("bound", line))
    return ChartPanel(f"{which} pass", "layers in the order of execution", series, x_scale="linear")


def _table_row(row: LayerComparison) -> list[str]:
    deviation = row.deviation
    ratio = "beyond measure" if deviation.ratio >= INFINITE_RATIO else f"{deviation.ratio:.3g}"
    cells = [row.layer, row.class_name, row.which, row.what, ratio, f"{deviation.relative_error:.2e}"]
    return [*cells, f"{deviation.relative_bound:.2e}", _remark(row)]


def _remark(row: LayerComparison) -> str:
    parts = [row.deviation.note, f"in the code of {row.inside}" if row.inside else ""]
    if row.deviation.undefined:
        parts.append(
            f"{row.deviation.undefined} of {row.deviation.entries} entries depend on decisions that rounding changes"
        )
    return "; ".join(filter(None, parts))


def _clamp_for_axis(value: float) -> float:
    """Clamp a value to the range of the logarithmic axis; NaN and infinity to its upper end."""
    return 1e30 if math.isnan(value) else max(min(value, 1e30), 1e-12)


STEPS = (0, 1, 10, 50)
NOT_AVAILABLE = "not available"
Peak = Callable[[Callable[[], Any]], int]


@dataclass(frozen=True)
class MatrixCell:
    """Cell of the matrix: number format, device, and on a GPU its kernels and the TF32 switch."""

    precision: str
    device: str
    cudnn: Cudnn | None = None
    tf32: bool | None = None


@dataclass(frozen=True)
class CellResult:
    """Result of a cell: losses before steps 0, 1, 10 and 50, seconds per step, peak bytes; or why it did not run."""

    cell: MatrixCell
    losses: dict[int, float] | None = None
    step_s: float | None = None
    peak_bytes: int | None = None
    why_not: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; `status` is `ran` or `not available`, never `passed`."""
        return {
            **dataclasses.asdict(self.cell),
            "status": "ran" if self.losses is not None else NOT_AVAILABLE,
            "why_not": self.why_not,
            "losses": None if self.losses is None else {str(step): loss for step, loss in self.losses.items()},
            "step_s": self.step_s,
            "peak_bytes": self.peak_bytes,
        }


def cells() -> Iterator[MatrixCell]:
    """Iterate over all cells, available on this machine or not."""
    for precision in ("float64", "float32", "bf16"):
        yield MatrixCell(precision, "cpu")
    for precision in ("float64", "float32", "bf16"):
        kinds: tuple[Cudnn, ...] = ("on", "off", "all_but_batch_norm")
        for cudnn in kinds:
            for tf32 in (False, True) if precision == "float32" else (None,):
                yield MatrixCell(precision, "cuda", cudnn, tf32)


def run_cell(
    subject: ComparisonSubject, cell: MatrixCell, *, peak: Peak | None, num_steps: int = STEPS[-1] + 1
) -> CellResult:
    """Train on the subject's single batch in the cell's variant, from the run's weights.

    `peak(run)` measures the peak memory of a run on a CPU; without it, no memory is reported.
    """
    if cell.device == "cuda" and not torch.cuda.is_available():
        return CellResult(cell, why_not="no CUDA device")
    device = torch.device(cell.device)
    precision = Precision(cell.precision)
    model = deterministic_copy(subject.built.job.model, dtype=precision.parameter_dtype, device=device)
    if cell.cudnn == "all_but_batch_norm":
        model = disable_cudnn_batch_norm(model)
    variant = ModelVariant(cell.precision, model, precision, device, "off" if cell.cudnn == "off" else "on")
    batch = variant.batch(subject.batch)
    losses: list[float] = []

    def train() -> None:
        losses.extend(losses_over_steps(variant, subject.built.job, subject.recipe, batch, num_steps=num_steps))

    with _set_tf32(cell.tf32):
        losses_over_steps(variant, subject.built.job, subject.recipe, batch, num_steps=1)  # one-time allocations
        started = time.perf_counter()
        peak_bytes = _measure_peak(train, device, peak)
        seconds = time.perf_counter() - started
    selected_losses = {step: losses[step] for step in STEPS if step < len(losses)}
    num_run = max(1, sum(map(math.isfinite, losses)))  # training stops at a gradient that is not finite
    return CellResult(cell, selected_losses, seconds / num_run, peak_bytes)


def _measure_peak(run: Callable[[], None], device: torch.device, peak: Peak | None) -> int | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    if peak is None:
        run()
        return None
    return peak(run)


@contextlib.contextmanager
def _set_tf32(is_on: bool | None) -> Iterator[None]:
    """Set the TF32 switches, and restore them afterwards; None leaves them unchanged."""
    cudnn: Any = torch.backends.cudnn
    owners = [cudnn.conv, cudnn.rnn] if hasattr(cudnn, "conv") else [cudnn]
    switches = [get_tf32_switch(owner) for owner in (torch.backends.cuda.matmul, *owners)]
    previous = [getattr(switch.owner, switch.name) for switch in switches]
    try:
        for switch in switches if is_on is not None else ():
            setattr(switch.owner, switch.name, switch.rounded if is_on else switch.exact)
        yield
    finally:
        for switch, before in zip(switches, previous, strict=True):
            setattr(switch.owner, switch.name, before)
