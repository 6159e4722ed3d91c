"""Layer statistics while the network learns the samples, and the config's expectations of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.config.expectations import Expectation, Quantity, parse_quantity
from sightline.describe.trace import preserve_all_rng_states
from sightline.doctor.overfit.fit_attempt import FitCurve, fit
from sightline.doctor.overfit.fit_one import FitOptions, make_setup
from sightline.doctor.overfit.layers import ModelSnapshot, Statistics, snapshot
from sightline.doctor.overfit.loss_probe import LossProbe, probe_loss
from sightline.doctor.overfit.optimizer_candidates import candidates, own_rate
from sightline.engine.build import TrainingSetup
from sightline.engine.train import TrainState
from sightline.errors import ConfigError
from sightline.schema import suggest

__all__ = [
    "ExpectationResult",
    "LayerTrace",
    "assert_known_quantity",
    "followed_document",
    "measure_quantity",
    "trace_fit",
]


@dataclass(frozen=True)
class ExpectationResult:
    """Result of an `expect` entry: the measured quantity, None if there was nothing to measure."""

    place: int
    expectation: Expectation
    measured: float | None

    @property
    def is_met(self) -> bool:
        if self.measured is None or math.isnan(self.measured):
            return False
        low, high = self.expectation.get("at_least", -math.inf), self.expectation.get("at_most", math.inf)
        return low <= self.measured <= high

    @property
    def line(self) -> str:
        """The entry, its bound and the measured value, in one line."""
        bounds = [f"{w.replace('_', ' ')} {self.expectation[w]:g}" for w in _BOUNDS if w in self.expectation]  # type: ignore[literal-required]
        value = "nothing" if self.measured is None else f"{self.measured:.6g}"
        return (
            f"expect.{self.place}: {self.expectation['quantity']} after {self.expectation['step']} steps is {value}, "
            f"expected {' and '.join(bounds)}"
        )


_BOUNDS = ("at_least", "at_most")


@dataclass(frozen=True)
class LayerTrace:
    """Fit by the recipe's own optimiser and rate: snapshots of the first and last step, and the expectations."""

    first: ModelSnapshot
    last: ModelSnapshot | None
    curve: FitCurve
    met: tuple[ExpectationResult, ...]


def trace_fit(built: TrainingSetup, asked: FitOptions) -> LayerTrace:
    """Fit the samples again with the unchanged recipe, and measure layers and expectations on the way.

    Raises ConfigError for an expectation of an unknown output, layer or loss.
    """
    with preserve_all_rng_states():
        bench, _ = make_setup(built, asked)
        probe = probe_loss(bench)
        indices = [
            index
            for index, expectation in enumerate(built.config.expect)
            if expectation.get("only", "fit_one") == "fit_one"
        ]
        entries = [built.config.expect[index] for index in indices]
        steps = max([asked.steps, *(entry["step"] for entry in entries)])
        bench = dataclasses.replace(bench, floor=probe.floor, steps=steps)
        snapshot_steps = {0, steps, *(entry["step"] for entry in entries)}
        snapshots: dict[int, ModelSnapshot] = {}

        def watch(step: int, job: TrainState) -> None:
            if step in snapshot_steps:
                snapshots[step] = snapshot(bench, job, step)
                if step == 0:
                    assert_known_quantity(built, snapshots[0], probe)

        candidate = candidates(built)[0]
        curve = fit(bench, candidate.name, candidate.make, own_rate(built), bench.precision, clip=True, watch=watch)
        results = [
            ExpectationResult(index, entry, _measure(entry, snapshots, curve, probe))
            for index, entry in zip(indices, entries, strict=True)
        ]
    return LayerTrace(snapshots[0], snapshots.get(steps), curve, tuple(results))


def _measure(
    entry: Expectation, snapshots: Mapping[int, ModelSnapshot], curve: FitCurve, probe: LossProbe
) -> float | None:
    """Return the quantity of an entry; None if the fit did not reach its step, or there was nothing to measure."""
    step_snapshot, quantity = snapshots.get(entry["step"]), parse_quantity(entry["quantity"])
    if step_snapshot is None or quantity is None:
        return None
    if quantity.kind == "share":
        shares = curve.shares
        return shares[entry["step"]] if entry["step"] < len(shares) else None
    return measure_quantity(entry, step_snapshot, probe)


def measure_quantity(entry: Expectation, look: ModelSnapshot, probe: LossProbe) -> float | None:
    """Return the quantity of an entry, other than `share`, in a snapshot; None if there was nothing to measure."""
    quantity = parse_quantity(entry["quantity"])
    assert quantity is not None, "the config was checked"
    if quantity.kind == "loss":
        return look.terms[quantity.name] if quantity.name else look.loss
    if quantity.kind == "grad_norm":
        return look.grad_norm
    return _combine_statistic(_select_statistics(quantity, look, probe), quantity.statistic)


def _select_statistics(
    quantity: Quantity, step_snapshot: ModelSnapshot, probe: LossProbe
) -> list[tuple[Statistics, int]]:
    """Return the statistics that a quantity refers to, each with its number of elements."""
    if quantity.kind == "layer":
        calls = [layer for layer in step_snapshot.layers if layer.path == quantity.name]
        return [(layer.output, math.prod(layer.shape)) for layer in calls[:1]]
    names = [quantity.name] if quantity.name else list(probe.read)
    return [
        (step_snapshot.outputs[name], probe.outputs[name].numel() if name in probe.outputs else 1) for name in names
    ]


def _combine_statistic(tensors: Sequence[tuple[Statistics, int]], name: str) -> float | None:
    """Combine a statistic of several tensors, as of their concatenation."""
    if name in ("min", "max"):
        return (min if name == "min" else max)(getattr(statistics, name) for statistics, _ in tensors)
    if name == "grad_norm":
        norms = [statistics.grad_norm for statistics, _ in tensors if statistics.grad_norm is not None]
        return math.hypot(*norms) if norms else None
    total = sum(size for _, size in tensors)
    if name in ("mean", "zeros"):
        return math.fsum(getattr(statistics, name) * size for statistics, size in tensors) / total
    mean = math.fsum(statistics.mean * size for statistics, size in tensors) / total
    squares = math.fsum((statistics.std**2 + (statistics.mean - mean) ** 2) * size for statistics, size in tensors)
    return math.sqrt(squares / total)


def assert_known_quantity(built: TrainingSetup, look: ModelSnapshot, probe: LossProbe) -> None:
    """Raise ConfigError for an expectation of an unknown output, layer or loss."""
    valid_names = {
        "loss": tuple(look.terms),
        "output": tuple(look.outputs),
        "layer": tuple(dict.fromkeys(layer.path for layer in look.layers if layer.path)),
    }
    faults = []
    for index, entry in enumerate(built.config.expect):
        quantity = parse_quantity(entry["quantity"])
        if quantity is not None and quantity.name and quantity.name not in valid_names[quantity.kind]:
            where = built.config.origins.get("expect", "expect")
            hint = suggest(quantity.name, valid_names[quantity.kind])
            faults.append(f"{where}: entry {index}: the run has no {quantity.kind} '{quantity.name}'{hint}")
    if faults:
        raise ConfigError(*faults)


def followed_document(followed: LayerTrace) -> dict[str, Any]:
    """Convert a trace and its expectations to JSON."""
    snapshots = [model_snapshot for model_snapshot in (followed.first, followed.last) if model_snapshot is not None]
    return {
        "trace": [dataclasses.asdict(model_snapshot) for model_snapshot in snapshots],
        "expect": [
            {**result.expectation, "measured": result.measured, "met": result.is_met, "entry": result.place}
            for result in followed.met
        ],
    }
