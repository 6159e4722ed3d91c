"""The samples followed through the network while it learns them, and what the config expects on the way."""

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

__all__ = ["ExpectationResult", "LayerTrace", "assert_known_quantity", "followed_document", "measured_in", "trace_fit"]


@dataclass(frozen=True)
class ExpectationResult:
    """What became of an `expect` entry: the quantity as it was measured, None where there was nothing to measure."""

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
        """The entry, its bound and what was measured, in one line."""
        bounds = [f"{w.replace('_', ' ')} {self.expectation[w]:g}" for w in _BOUNDS if w in self.expectation]  # type: ignore[literal-required]
        found = "nothing" if self.measured is None else f"{self.measured:.6g}"
        return (
            f"expect.{self.place}: {self.expectation['quantity']} after {self.expectation['step']} steps is {found}, "
            f"expected {' and '.join(bounds)}"
        )


_BOUNDS = ("at_least", "at_most")


@dataclass(frozen=True)
class LayerTrace:
    """The recipe's own optimiser at its own rate on the samples: looks at its first and last step, and what was met."""

    first: ModelSnapshot
    last: ModelSnapshot | None
    curve: FitCurve
    met: tuple[ExpectationResult, ...]


def trace_fit(built: TrainingSetup, asked: FitOptions) -> LayerTrace:
    """Fit the samples once more, by the recipe as it is, and look at layers and expectations on the way.

    Raises ConfigError for an expectation of an output, layer or loss that there is not.
    """
    with preserve_all_rng_states():
        bench, _ = make_setup(built, asked)
        probe = probe_loss(bench)
        places = [place for place, each in enumerate(built.config.expect) if each.get("only", "fit_one") == "fit_one"]
        entries = [built.config.expect[place] for place in places]
        steps = max([asked.steps, *(entry["step"] for entry in entries)])
        bench = dataclasses.replace(bench, floor=probe.floor, steps=steps)
        wanted = {0, steps, *(entry["step"] for entry in entries)}
        seen: dict[int, ModelSnapshot] = {}

        def watch(step: int, job: TrainState) -> None:
            if step in wanted:
                seen[step] = snapshot(bench, job, step)
                if step == 0:
                    assert_known_quantity(built, seen[0], probe)

        own = candidates(built)[0]
        curve = fit(bench, own.name, own.make, own_rate(built), bench.precision, clip=True, watch=watch)
        met = [
            ExpectationResult(place, entry, _measured(entry, seen, curve, probe))
            for place, entry in zip(places, entries, strict=True)
        ]
    return LayerTrace(seen[0], seen.get(steps), curve, tuple(met))


def _measured(entry: Expectation, seen: Mapping[int, ModelSnapshot], curve: FitCurve, probe: LossProbe) -> float | None:
    """The quantity of an entry; None where the fit did not come to its step, or nothing was there."""
    look, quantity = seen.get(entry["step"]), parse_quantity(entry["quantity"])
    if look is None or quantity is None:
        return None
    if quantity.kind == "share":
        shares = curve.shares
        return shares[entry["step"]] if entry["step"] < len(shares) else None
    return measured_in(entry, look, probe)


def measured_in(entry: Expectation, look: ModelSnapshot, probe: LossProbe) -> float | None:
    """The quantity of an entry, other than `share`, by a look at the model; None where nothing was there."""
    quantity = parse_quantity(entry["quantity"])
    assert quantity is not None, "the config was checked"
    if quantity.kind == "loss":
        return look.terms[quantity.name] if quantity.name else look.loss
    if quantity.kind == "grad_norm":
        return look.grad_norm
    return _statistic(_tensors(quantity, look, probe), quantity.statistic)


def _tensors(quantity: Quantity, look: ModelSnapshot, probe: LossProbe) -> list[tuple[Statistics, int]]:
    """The statistics that a quantity is about, each with how many numbers it is of."""
    if quantity.kind == "layer":
        calls = [layer for layer in look.layers if layer.path == quantity.name]
        return [(layer.output, math.prod(layer.shape)) for layer in calls[:1]]
    names = [quantity.name] if quantity.name else list(probe.read)
    return [(look.outputs[name], probe.outputs[name].numel() if name in probe.outputs else 1) for name in names]


def _statistic(found: Sequence[tuple[Statistics, int]], name: str) -> float | None:
    """A statistic of several tensors taken as one."""
    if name in ("min", "max"):
        return (min if name == "min" else max)(getattr(each, name) for each, _ in found)
    if name == "grad_norm":
        norms = [each.grad_norm for each, _ in found if each.grad_norm is not None]
        return math.hypot(*norms) if norms else None
    total = sum(size for _, size in found)
    if name in ("mean", "zeros"):
        return math.fsum(getattr(each, name) * size for each, size in found) / total
    middle = math.fsum(each.mean * size for each, size in found) / total
    squares = math.fsum((each.std**2 + (each.mean - middle) ** 2) * size for each, size in found)
    return math.sqrt(squares / total)


def assert_known_quantity(built: TrainingSetup, look: ModelSnapshot, probe: LossProbe) -> None:
    """Raises ConfigError for an expectation of an output, layer or loss that there is not."""
    known = {
        "loss": tuple(look.terms),
        "output": tuple(look.outputs),
        "layer": tuple(dict.fromkeys(layer.path for layer in look.layers if layer.path)),
    }
    faults = []
    for place, entry in enumerate(built.config.expect):
        quantity = parse_quantity(entry["quantity"])
        if quantity is not None and quantity.name and quantity.name not in known[quantity.kind]:
            where = built.config.origins.get("expect", "expect")
            hint = suggest(quantity.name, known[quantity.kind])
            faults.append(f"{where}: entry {place}: the run has no {quantity.kind} '{quantity.name}'{hint}")
    if faults:
        raise ConfigError(*faults)


def followed_document(followed: LayerTrace) -> dict[str, Any]:
    """The JSON of a trace, and of what was expected."""
    looks = [look for look in (followed.first, followed.last) if look is not None]
    return {
        "trace": [dataclasses.asdict(look) for look in looks],
        "expect": [
            {**each.expectation, "measured": each.measured, "met": each.is_met, "entry": each.place}
            for each in followed.met
        ],
    }
