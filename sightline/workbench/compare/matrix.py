"""Matrix of one recipe over number formats, devices and kernels: first diverging layer, losses, time and memory."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sightline.config.run_config import Cudnn
from sightline.contract.errors import RunError, summarise_error
from sightline.instrument.formats import get_tf32_switch
from sightline.instrument.memory import measure_peak
from sightline.workbench.compare.layerwise import LayerComparison, compare_layerwise
from sightline.workbench.compare.steps import iterate_losses, losses_over_steps
from sightline.workbench.compare.subject import ComparisonSubject
from sightline.workbench.compare.variants import ModelVariant, make_variant, record_step

SHOWN_STEPS = (0, 1, 10, 50)
"""Optimiser steps, counted from 0, whose losses are shown."""
MAX_SECONDS = 120.0
"""Seconds after which a cell takes no further step."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class MatrixCell:
    """Cell of the matrix: number format, device, and on a GPU its kernels and, in float32, the TF32 switch."""

    precision: str
    device: str
    cudnn: Cudnn | None = None
    tf32: bool | None = None

    def __str__(self) -> str:
        cudnn = "" if self.cudnn is None else f", cuDNN {self.cudnn.replace('_', ' ')}"
        return f"{self.precision} on {self.device}{cudnn}{', TF32' if self.tf32 else ''}"


@dataclass(frozen=True)
class CellResult:
    """Result of a cell, or why it did not run.

    `first` is the first layer that rounding in the cell's format does not explain, against float64 on the CPU.
    `losses` are those before each step, NaN from a gradient that is not finite on. `peak_bytes` are the tensors that
    training allocates at most: weights, gradients, the optimiser's state, activations.
    """

    cell: MatrixCell
    first: LayerComparison | None = None
    losses: tuple[float, ...] = ()
    step_s: float | None = None
    peak_bytes: int | None = None
    why_not: str = ""

    @property
    def shown_losses(self) -> dict[int, float]:
        """The losses before those of the steps `SHOWN_STEPS` that were reached."""
        return {step: self.losses[step] for step in SHOWN_STEPS if step < len(self.losses)}

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; `status` is `ran` or `not available`."""
        return {
            **dataclasses.asdict(self.cell),
            "status": "not available" if self.why_not else "ran",
            "why_not": self.why_not,
            "first": None if self.first is None else self.first.to_dict(),
            "losses": {str(step): loss for step, loss in self.shown_losses.items()},
            "num_steps": len(self.losses),
            "step_s": self.step_s,
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True)
class Matrix:
    """Results of all cells; `notes` name the cells that ended before the last step."""

    results: Sequence[CellResult]
    notes: Sequence[str] = field(default=())

    @property
    def is_equal(self) -> bool:
        """True if rounding explains every layer of the cells that ran."""
        return all(result.first is None for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "equal": self.is_equal,
            "reference": "float64 on cpu",
            "matrix": [result.to_dict() for result in self.results],
            "notes": list(self.notes),
        }


def list_cells() -> list[MatrixCell]:
    """List all cells: 3 of a CPU and 12 of a GPU, whatever this machine has."""
    cells = [MatrixCell(precision, "cpu") for precision in ("float64", "float32", "bf16")]
    kernels: tuple[Cudnn, ...] = ("on", "off", "all_but_batch_norm")
    for precision in ("float64", "float32", "bf16"):
        for cudnn in kernels:
            for tf32 in (False, True) if precision == "float32" else (None,):
                cells.append(MatrixCell(precision, "cuda", cudnn, tf32))
    return cells


def run_matrix(
    subject: ComparisonSubject,
    *,
    num_steps: int = SHOWN_STEPS[-1] + 1,
    max_seconds: float = MAX_SECONDS,
    report: Callable[[str], object] = lambda line: None,
) -> Matrix:
    """Run the recipe on one batch in every cell that this machine has, from the same weights.

    A cell trains for `num_steps` steps, or `max_seconds`. `report` gets a line before each cell.
    """
    results, notes = [], []
    available = [cell for cell in list_cells() if cell.device == "cpu" or torch.cuda.is_available()]
    for cell in list_cells():
        if cell not in available:
            results.append(CellResult(cell, why_not="no GPU here"))
            continue
        report(f"cell {len(results) + 1} of {len(available)}: {cell}")
        result = run_cell(subject, cell, num_steps=num_steps, max_seconds=max_seconds)
        results.append(result)
        if 0 < len(result.losses) < num_steps:
            notes.append(f"{cell}: {len(result.losses)} of {num_steps} steps in {max_seconds:g} s, then it was stopped")
    return Matrix(results, notes)


def run_cell(
    subject: ComparisonSubject, cell: MatrixCell, *, num_steps: int, max_seconds: float = MAX_SECONDS
) -> CellResult:
    """Compare the layers of a cell's variant with float64 on the CPU, then train it on the subject's single batch."""
    job, device = subject.built.job, torch.device(cell.device)
    with _set_tf32(cell.tf32):
        variant = make_variant(job.model, cell.precision, device, cudnn=cell.cudnn or "on")
        batch = variant.batch(subject.batch)
        try:
            first = _first_diverging(subject, variant)
            peak_bytes = measure_peak(
                lambda: losses_over_steps(variant, job, subject.recipe, batch, num_steps=min(2, num_steps)), device
            )
            losses, seconds = _train(subject, variant, num_steps, max_seconds)
        except (RunError, RuntimeError, NotImplementedError) as error:  # an operation without a kernel of this format
            return CellResult(cell, why_not=summarise_error(error, max_length=120))
    num_run = max(1, sum(map(math.isfinite, losses)))  # training ends at a gradient that is not finite
    return CellResult(cell, first, losses, seconds / num_run if losses else None, peak_bytes)


def _first_diverging(subject: ComparisonSubject, variant: ModelVariant) -> LayerComparison | None:
    job, batch = subject.built.job, variant.batch(subject.batch)
    reference = make_variant(job.model, "float64", _CPU)
    rows = compare_layerwise(record_step(job, variant, batch), reference, job, reference.batch(batch))
    return next((row for row in rows if row.is_guilty), None)


def _train(
    subject: ComparisonSubject, variant: ModelVariant, num_steps: int, max_seconds: float
) -> tuple[tuple[float, ...], float]:
    """Return the losses before each step until the time is over, and the seconds that the steps took."""
    batch, losses, started = variant.batch(subject.batch), [], time.perf_counter()
    steps = iterate_losses(variant, subject.built.job, subject.recipe, batch, num_steps=num_steps)
    with contextlib.closing(steps):
        for loss in steps:
            losses.append(loss)
            if time.perf_counter() - started > max_seconds:
                return tuple(losses), time.perf_counter() - started
    seconds = time.perf_counter() - started
    return (*losses, *[math.nan] * (num_steps - len(losses))), seconds


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
