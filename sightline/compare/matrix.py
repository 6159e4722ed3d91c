"""Matrix of one recipe over number formats, devices and kernels: loss, time and memory."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sightline.compare.comparison import ComparisonSubject
from sightline.compare.steps import losses_over_steps
from sightline.compare.variants import ModelVariant, deterministic_copy
from sightline.config.run_config import Cudnn
from sightline.engine.precision import Precision
from sightline.layers.native_batch_norm import disable_cudnn_batch_norm

__all__ = ["STEPS", "CellResult", "MatrixCell", "cells", "run_cell"]

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
        cell = self.cell
        return {
            "precision": cell.precision,
            "device": cell.device,
            "cudnn": cell.cudnn,
            "tf32": cell.tf32,
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
    previous = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if is_on is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = previous
