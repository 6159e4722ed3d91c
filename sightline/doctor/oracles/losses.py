"""The losses of a run on the outputs of a first step: against NumPy, and first and second finite differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline import registry
from sightline.compare.formats import Float32Draws
from sightline.config import RunConfig
from sightline.doctor.oracles.derivatives import gradient_errors, gradients_of, uncompared, worst_error
from sightline.doctor.oracles.loss_references import cross_entropy, focal, lovasz, mean_square, nt_xent, orthogonality
from sightline.doctor.oracles.references import to_float64_array
from sightline.doctor.oracles.replay import loss_counts, loss_sums
from sightline.doctor.oracles.results import EXACT_GRADIENT, OracleResult
from sightline.doctor.oracles.squares import SquaredErrorLoss, expected_factor, find_squared_error
from sightline.engine.train import TrainState
from sightline.errors import summarise_error
from sightline.losses.class_weights import resolve_class_weights
from sightline.surrogates import find_surrogates, note_surrogates
from sightline.types import Batch, ComponentConfig

__all__ = ["examine_losses"]

_MOST_ELEMENTS = 200_000
"""Of outputs whose squares are added one by one."""


def examine_losses(
    job: TrainState, config: RunConfig, facts: Mapping[str, Any], batch: Batch, outputs: Mapping[str, Any]
) -> Iterator[OracleResult]:
    """A row for each loss; one that is neither a sum of squares nor known by its name is half-checked."""
    wide = {name: _double(value) for name, value in outputs.items()}
    batch = {name: _double(value) for name, value in batch.items()}
    if not any(isinstance(value, Tensor) and value.is_floating_point() for value in wide.values()):
        return
    for component in config.losses:
        row = OracleResult(component.name, component.name, is_loss=True)
        try:
            yield _examine(row, component, _Given(job, facts, batch, wide))
        except Exception as error:  # noqa: BLE001 - losses of others may raise anything
            yield dataclasses.replace(row, note=summarise_error(error, max_length=100))


@dataclasses.dataclass(frozen=True)
class _Given:
    """A step's batch and outputs in float64, and what the losses make of them."""

    job: TrainState
    facts: Mapping[str, Any]
    batch: Batch
    outputs: Mapping[str, Any]

    def mean(self, name: str, outputs: Mapping[str, Any] | None = None) -> float:
        given = self.outputs if outputs is None else outputs
        torch.manual_seed(0)  # what a loss draws is drawn again
        with torch.no_grad(), Float32Draws():
            return float(loss_sums(self.job, self.batch, given)[name]) / loss_counts(self.job, self.batch, given)[name]


def _examine(row: OracleResult, component: ComponentConfig, given: _Given) -> OracleResult:
    name = component.name
    tensors = _moved(given, name)
    with note_surrogates() as declared:
        total = loss_sums(given.job, given.batch, {**given.outputs, **tensors})[name]
    declared |= find_surrogates([total])
    if name in registry.losses.names():
        declared |= find_surrogates([], [registry.losses.entry(component).builder])
    found = torch.autograd.grad(total, list(tensors.values()), allow_unused=True) if total.requires_grad else ()
    read = {key: tensor for (key, tensor), slope in zip(tensors.items(), found, strict=False) if slope is not None}
    groups = {key: [tensor] for key, tensor in read.items()}

    def evaluate() -> list[Tensor]:
        torch.manual_seed(0)
        return [loss_sums(given.job, given.batch, {**given.outputs, **tensors})[name]]

    errors = {} if declared else gradient_errors(evaluate, groups)
    weakest, slope = worst_error(errors)
    second, note = (None, "") if declared else _second(evaluate, groups)
    forward, form = _forward(component, given)
    value = given.mean(name)
    missing = "" if declared else uncompared(groups, errors)
    narrow = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in given.outputs.items()}
    drift = abs(given.mean(name, narrow) - value) / max(abs(value), 1e-30)
    return dataclasses.replace(
        row,
        gradient_error=slope,
        second=second,
        forward=forward,
        drift=drift if math.isfinite(drift) else None,
        weakest=weakest,
        tolerance=EXACT_GRADIENT,
        declared=tuple(sorted(declared)),
        note="; ".join(filter(None, (form, missing, note if read else "it depends on no output"))),
    )


def _moved(given: _Given, name: str) -> dict[str, Tensor]:
    """The outputs as numbers of size 1, where the loss takes these: near 0, where networks begin, slips hide."""
    generator = torch.Generator().manual_seed(0)
    floats = {k: v for k, v in given.outputs.items() if isinstance(v, Tensor) and v.is_floating_point()}
    moved = {k: v + torch.randn(v.shape, generator=generator, dtype=torch.float64) for k, v in floats.items()}
    chosen = moved if math.isfinite(given.mean(name, {**given.outputs, **moved})) else floats
    return {key: value.detach().clone().requires_grad_(True) for key, value in chosen.items()}


def _second(evaluate: Callable[[], list[Tensor]], groups: Mapping[str, Any]) -> tuple[float | None, str]:
    """Of the gradients' own gradients, for a loss that has them."""
    tensors = [tensor for group in groups.values() for tensor in group]
    if not tensors:
        return None, ""
    try:
        slopes = gradients_of(evaluate, tensors)
        if not any(slope.requires_grad for slope in slopes()):
            return None, ""
        return worst_error(gradient_errors(slopes, groups))[1], ""
    except RuntimeError:
        return None, "it is differentiable once"


def _forward(component: ComponentConfig, given: _Given) -> tuple[float | None, str]:
    """By how much the loss misses its reference, and what that reference is."""
    measured = given.mean(component.name)
    named = _REFERENCES.get(component.name)
    if named is not None:
        expected = named(component, given)
        return abs(measured - expected) / max(1.0, abs(expected)), ""
    squares = find_squared_error(given.job, given.batch, given.outputs, component.name)
    if squares is None:
        return None, ""
    form = f"a mean square of {squares.output_key} - {squares.target_key or 'a target that is not a key of the batch'}"
    if expected_factor(squares) is None:
        form += f", times {squares.factor:.4g}"
    if squares.target_key is None and expected_factor(squares):
        return None, form
    return abs(measured - _mean_square(squares, given)), form


def _mean_square(squares: SquaredErrorLoss, given: _Given) -> float:
    """With the batch's own target, and the factor that a sum over the count gives where both count the same."""
    target = squares.target if squares.target_key is None else given.batch[squares.target_key].double()
    factor = expected_factor(squares) or 1.0
    if squares.weight.numel() > _MOST_ELEMENTS:
        off = (squares.weight * (squares.output - target).square()).sum() / squares.weight.sum()
        return factor * float(off)
    return factor * mean_square(
        to_float64_array(squares.output), to_float64_array(target), to_float64_array(squares.weight)
    )


def _of_classes(component: ComponentConfig, given: _Given) -> float:
    arguments = _arguments(component)
    logits, label = to_float64_array(given.outputs["logits"]), to_float64_array(given.batch["label"]).astype(int)
    return cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        label.ravel(),
        smoothing=arguments["label_smoothing"],
        over_others=arguments["smoothing_over"] == "others",
        weights=_weights(component, arguments, given),
        ignore_index=given.facts.get("ignore_index"),
    )


def _of_easy_classes(component: ComponentConfig, given: _Given) -> float:
    arguments = _arguments(component)
    logits, label = to_float64_array(given.outputs["logits"]), to_float64_array(given.batch["label"]).astype(int)
    return focal(
        logits.reshape(-1, logits.shape[-1]),
        label.ravel(),
        gamma=arguments["gamma"],
        weights=_weights(component, arguments, given),
        by_weights=arguments["divide_by"] == "weights",
        ignore_index=given.facts.get("ignore_index"),
    )


def _of_unions(component: ComponentConfig, given: _Given) -> float:
    logits, label = to_float64_array(given.outputs["logits"]), to_float64_array(given.batch["label"]).astype(int)
    places = np.array([*given.batch["offsets"].tolist()])[1:-1] if label.ndim == 1 else None
    images = list(logits) if places is None else np.split(logits, places)
    labels = list(label) if places is None else np.split(label, places)
    rows = [image.reshape(-1, logits.shape[-1]) for image in images]
    return lovasz(rows, [each.ravel() for each in labels], ignore_index=given.facts.get("ignore_index"))


def _weights(component: ComponentConfig, arguments: Mapping[str, Any], given: _Given) -> list[float] | None:
    made = resolve_class_weights(
        arguments["class_weights"],
        loss=component.name,
        num_classes=given.facts["num_classes"],
        class_counts=given.facts.get("class_counts"),
        ignore_index=given.facts.get("ignore_index"),
    )
    return None if made is None else made.tolist()


def _of_clouds(component: ComponentConfig, given: _Given) -> float:
    rows = given.outputs
    return nt_xent(
        to_float64_array(rows["first"]),
        to_float64_array(rows["second"]),
        temperature=_arguments(component)["temperature"],
    )


def _of_pictures(component: ComponentConfig, given: _Given) -> float:
    rows = {name: to_float64_array(value) for name, value in given.outputs.items() if isinstance(value, Tensor)}
    middle = (rows["first"] + rows["second"]) / 2
    return nt_xent(middle, rows["pictured"], temperature=_arguments(component)["temperature"])


_REFERENCES: dict[str, Callable[[ComponentConfig, _Given], float]] = {
    "cross_entropy": _of_classes,
    "focal_cross_entropy": _of_easy_classes,
    "lovasz_softmax": _of_unions,
    "intra_modal": _of_clouds,
    "cross_modal": _of_pictures,
    "feature_transform_penalty": lambda component, given: orthogonality(
        to_float64_array(given.outputs["feature_transform"])
    ),
}


def _arguments(component: ComponentConfig) -> dict[str, Any]:
    """The arguments of the block, and the defaults of the others."""
    known = registry.losses.entry(component).arguments
    return {name: component.arguments.get(name, parameter.default) for name, parameter in known.items()}


def _double(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value
