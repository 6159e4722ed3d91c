"""Check of an exported file against the network in float64, by the judge of `sightline compare`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sightline.contract.errors import RunError
from sightline.contract.types import Batch
from sightline.instrument import ModuleCall
from sightline.instrument.formats import FORMATS
from sightline.instrument.judge import MAX_ROUNDING_UNITS, Deviation, judge
from sightline.instrument.replay import LayerUnit, replay
from sightline.workbench.compare.variants import deterministic_copy
from sightline.workbench.export.graph import GraphNetwork, get_parts

NUM_CHECKED = 20
"""Inputs on which a file is compared."""
_SAME_PARTS = 1e-9
"""Largest difference of a network's parts from the whole, in float64, as a share of the largest value."""
_BATCHES = (1, 2, 3, 7, 7)
"""Sizes of the batches of these inputs where a file takes any, so that sizes it was not recorded with are tried."""


@dataclass(frozen=True)
class ExportCheck:
    """Result of a check: the largest deviation of each output, in units of explained rounding, and what was compared.

    `undefined` counts entries that depend on a decision, such as the nearest neighbour, that rounding changes.
    """

    num_inputs: int
    source: str
    ratios: dict[str, float]
    relative_errors: dict[str, float]
    undefined: int

    @property
    def is_equal(self) -> bool:
        """True if rounding explains all deviations."""
        return all(ratio <= MAX_ROUNDING_UNITS for ratio in self.ratios.values())

    def describe(self) -> str:
        """Describe the result in one line."""
        name, ratio = max(self.ratios.items(), key=lambda item: item[1])
        verdict = "within rounding" if self.is_equal else "NOT within rounding"
        jumps = f", {self.undefined} entries hang on decisions that rounding changes" if self.undefined else ""
        return (
            f"{verdict} of torch on {self.num_inputs} inputs ({self.source}): {name} is off by {ratio:.1f} units of "
            f"rounding, {self.relative_errors[name]:.1e} of the largest value{jumps}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "equal": self.is_equal,
            "inputs": self.num_inputs,
            "source": self.source,
            "rounding_units": {name: _finite(ratio) for name, ratio in self.ratios.items()},
            "limit_units": MAX_ROUNDING_UNITS,
            "relative_errors": {name: _finite(error) for name, error in self.relative_errors.items()},
            "undefined_entries": self.undefined,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) and value < 1e90 else None


def check_parts(network: GraphNetwork, batch: Batch) -> None:
    """Compare the parts of a network that gathers points with the whole, in float64, on the first samples of a batch.

    Raises RunError unless their outputs are equal but for the last digits.
    """
    given = network.read_whole(batch)
    if given is None:
        return
    model = deterministic_copy(network.model, dtype=torch.float64, device=torch.device("cpu"))
    given = {name: value.double() if value.is_floating_point() else value for name, value in given.items()}
    parts = get_parts(model)
    assert parts is not None
    with torch.no_grad():
        whole, divided = model(**given), parts.compute(**parts.gather(**given))
    for name, expected in whole.items():
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        off = float((divided[name] - expected).abs().max()) if expected.numel() else 0.0
        if not off <= _SAME_PARTS * max(scale, 1e-300):
            raise RunError(
                f"export: {type(model).__name__}.split_for_graph: its parts compute another '{name}' than `forward`, "
                f"off by {off / scale:.1e} of the largest value; nothing was written"
            )


def check_file(
    call: Callable[..., dict[str, Tensor]],
    network: GraphNetwork,
    inputs: Sequence[tuple[Tensor, ...]],
    *,
    is_batch_free: bool,
    source: str,
) -> ExportCheck:
    """Compare the outputs of a file with the network's own layers in float64, on each of the inputs."""
    reference = deterministic_copy(network, dtype=torch.float64, device=torch.device("cpu"))
    deviations: dict[str, list[Deviation]] = {}
    num_inputs = 0
    for seed, values in enumerate(_rebatch(inputs, _BATCHES if is_batch_free else (1,))):
        num_inputs += values[0].shape[0]
        for name, deviation in _judge_call(reference, values, call(*values), seed).items():
            deviations.setdefault(name, []).append(deviation)
    worst = {name: max(measured, key=lambda deviation: deviation.ratio) for name, measured in deviations.items()}
    return ExportCheck(
        num_inputs,
        source,
        {name: deviation.ratio for name, deviation in worst.items()},
        {name: deviation.relative_error for name, deviation in worst.items()},
        sum(deviation.undefined for measured in deviations.values() for deviation in measured),
    )


def _rebatch(inputs: Sequence[tuple[Tensor, ...]], sizes: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
    """Divide batches into smaller ones, of these sizes in turn."""
    for values in inputs:
        first, rows, turn = 0, values[0].shape[0], itertools.cycle(sizes)
        while first < rows:
            last = min(first + next(turn), rows)
            yield tuple(value[first:last] for value in values)
            first = last


def _judge_call(
    reference: torch.nn.Module, values: tuple[Tensor, ...], outputs: dict[str, Tensor], seed: int
) -> dict[str, Deviation]:
    """Judge the outputs of one call; whole numbers, which are sizes, must be equal."""
    call = ModuleCall("", 0, type(reference).__name__, None, (values, {}), outputs, format=FORMATS[torch.float32])
    unit = LayerUnit(call, (), reference, (), reference, "", torch.device("cpu"))
    clean = replay(unit)
    actual = {f"out.{name}": value for name, value in outputs.items()}
    judged = judge(unit, actual, clean, lambda perturbation: replay(unit, perturbation), seed=seed)
    return {name.removeprefix("out."): deviation for name, deviation in judged.deviations.items()}
