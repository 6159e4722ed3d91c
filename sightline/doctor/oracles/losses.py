"""Comparison of a run's losses, on the outputs of the first step, with NumPy and first and second differences."""

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
from sightline.doctor.oracles.derivatives import (
    describe_uncompared,
    gradient_errors,
    make_gradient_function,
    worst_error,
)
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

_MAX_ELEMENTS = 200_000
"""Maximum number of outputs whose squares are added one by one in NumPy."""


def examine_losses(
    job: TrainState, config: RunConfig, facts: Mapping[str, Any], batch: Batch, outputs: Mapping[str, Any]
) -> Iterator[OracleResult]:
    """Yield a result for each loss; a loss without a reference, by name or as squared error, is half-checked."""
    float64_outputs = {name: _to_float64(value) for name, value in outputs.items()}
    batch = {name: _to_float64(value) for name, value in batch.items()}
    if not any(isinstance(value, Tensor) and value.is_floating_point() for value in float64_outputs.values()):
        return
    for component in config.losses:
        row = OracleResult(component.name, component.name, is_loss=True)
        try:
            yield _examine_loss(row, component, _LossInputs(job, facts, batch, float64_outputs))
        except Exception as error:  # noqa: BLE001 - a plugin's loss may raise any error
            yield dataclasses.replace(row, note=summarise_error(error, max_length=100))


@dataclasses.dataclass(frozen=True)
class _LossInputs:
    """Batch and outputs of a step in float64, with which losses are evaluated."""

    job: TrainState
    facts: Mapping[str, Any]
    batch: Batch
    outputs: Mapping[str, Any]

    def mean(self, name: str, outputs: Mapping[str, Any] | None = None) -> float:
        evaluated = self.outputs if outputs is None else outputs
        torch.manual_seed(0)  # repeats the random draws of the loss
        with torch.no_grad(), Float32Draws():
            return (
                float(loss_sums(self.job, self.batch, evaluated)[name])
                / loss_counts(self.job, self.batch, evaluated)[name]
            )


def _examine_loss(row: OracleResult, component: ComponentConfig, inputs: _LossInputs) -> OracleResult:
    name = component.name
    tensors = _perturb_outputs(inputs, name)
    with note_surrogates() as declared:
        total = loss_sums(inputs.job, inputs.batch, {**inputs.outputs, **tensors})[name]
    declared |= find_surrogates([total])
    if name in registry.losses.names():
        declared |= find_surrogates([], [registry.losses.entry(component).builder])
    gradients = torch.autograd.grad(total, list(tensors.values()), allow_unused=True) if total.requires_grad else ()
    read = {
        key: tensor for (key, tensor), gradient in zip(tensors.items(), gradients, strict=False) if gradient is not None
    }
    groups = {key: [tensor] for key, tensor in read.items()}

    def evaluate() -> list[Tensor]:
        torch.manual_seed(0)
        return [loss_sums(inputs.job, inputs.batch, {**inputs.outputs, **tensors})[name]]

    errors = {} if declared else gradient_errors(evaluate, groups)
    weakest, gradient_error = worst_error(errors)
    second_error, note = (None, "") if declared else _compute_second_error(evaluate, groups)
    forward, form = _compute_forward_error(component, inputs)
    value = inputs.mean(name)
    missing = "" if declared else describe_uncompared(groups, errors)
    float32_outputs = {
        k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.outputs.items()
    }
    drift = abs(inputs.mean(name, float32_outputs) - value) / max(abs(value), 1e-30)
    return dataclasses.replace(
        row,
        gradient_error=gradient_error,
        second=second_error,
        forward=forward,
        drift=drift if math.isfinite(drift) else None,
        weakest=weakest,
        tolerance=EXACT_GRADIENT,
        declared=tuple(sorted(declared)),
        note="; ".join(filter(None, (form, missing, note if read else "it depends on no output"))),
    )


def _perturb_outputs(inputs: _LossInputs, name: str) -> dict[str, Tensor]:
    """Add noise of size 1 to the outputs if the loss accepts them: errors are hidden near 0, where networks start."""
    generator = torch.Generator().manual_seed(0)
    floats = {k: v for k, v in inputs.outputs.items() if isinstance(v, Tensor) and v.is_floating_point()}
    perturbed = {k: v + torch.randn(v.shape, generator=generator, dtype=torch.float64) for k, v in floats.items()}
    chosen = perturbed if math.isfinite(inputs.mean(name, {**inputs.outputs, **perturbed})) else floats
    return {key: value.detach().clone().requires_grad_(True) for key, value in chosen.items()}


def _compute_second_error(evaluate: Callable[[], list[Tensor]], groups: Mapping[str, Any]) -> tuple[float | None, str]:
    """Compute the largest relative error of second derivatives, with a note; None if the loss has none."""
    tensors = [tensor for group in groups.values() for tensor in group]
    if not tensors:
        return None, ""
    try:
        gradients = make_gradient_function(evaluate, tensors)
        if not any(gradient.requires_grad for gradient in gradients()):
            return None, ""
        return worst_error(gradient_errors(gradients, groups))[1], ""
    except RuntimeError:
        return None, "it is differentiable once"


def _compute_forward_error(component: ComponentConfig, inputs: _LossInputs) -> tuple[float | None, str]:
    """Compute the relative error of the loss against its reference, and describe a squared error; None if unknown."""
    measured = inputs.mean(component.name)
    reference = _REFERENCES.get(component.name)
    if reference is not None:
        expected = reference(component, inputs)
        return abs(measured - expected) / max(1.0, abs(expected)), ""
    squares = find_squared_error(inputs.job, inputs.batch, inputs.outputs, component.name)
    if squares is None:
        return None, ""
    form = f"a mean square of {squares.output_key} - {squares.target_key or 'a target that is not a key of the batch'}"
    if expected_factor(squares) is None:
        form += f", times {squares.factor:.4g}"
    if squares.target_key is None and expected_factor(squares):
        return None, form
    return abs(measured - _compute_mean_square(squares, inputs)), form


def _compute_mean_square(squares: SquaredErrorLoss, inputs: _LossInputs) -> float:
    """Compute the mean squared error with the batch's target, times the expected factor."""
    target = squares.target if squares.target_key is None else inputs.batch[squares.target_key].double()
    factor = expected_factor(squares) or 1.0
    if squares.weight.numel() > _MAX_ELEMENTS:
        mean_error = (squares.weight * (squares.output - target).square()).sum() / squares.weight.sum()
        return factor * float(mean_error)
    return factor * mean_square(
        to_float64_array(squares.output), to_float64_array(target), to_float64_array(squares.weight)
    )


def _cross_entropy_reference(component: ComponentConfig, inputs: _LossInputs) -> float:
    arguments = _get_arguments(component)
    logits, label = to_float64_array(inputs.outputs["logits"]), to_float64_array(inputs.batch["label"]).astype(int)
    return cross_entropy(
        logits.reshape(-1, logits.shape[-1]),
        label.ravel(),
        smoothing=arguments["label_smoothing"],
        over_others=arguments["smoothing_over"] == "others",
        weights=_resolve_weights(component, arguments, inputs),
        ignore_index=inputs.facts.get("ignore_index"),
    )


def _focal_reference(component: ComponentConfig, inputs: _LossInputs) -> float:
    arguments = _get_arguments(component)
    logits, label = to_float64_array(inputs.outputs["logits"]), to_float64_array(inputs.batch["label"]).astype(int)
    return focal(
        logits.reshape(-1, logits.shape[-1]),
        label.ravel(),
        gamma=arguments["gamma"],
        weights=_resolve_weights(component, arguments, inputs),
        by_weights=arguments["divide_by"] == "weights",
        ignore_index=inputs.facts.get("ignore_index"),
    )


def _lovasz_reference(component: ComponentConfig, inputs: _LossInputs) -> float:
    logits, label = to_float64_array(inputs.outputs["logits"]), to_float64_array(inputs.batch["label"]).astype(int)
    boundaries = np.array([*inputs.batch["offsets"].tolist()])[1:-1] if label.ndim == 1 else None
    images = list(logits) if boundaries is None else np.split(logits, boundaries)
    labels = list(label) if boundaries is None else np.split(label, boundaries)
    rows = [image.reshape(-1, logits.shape[-1]) for image in images]
    return lovasz(
        rows, [image_labels.ravel() for image_labels in labels], ignore_index=inputs.facts.get("ignore_index")
    )


def _resolve_weights(
    component: ComponentConfig, arguments: Mapping[str, Any], inputs: _LossInputs
) -> list[float] | None:
    weights = resolve_class_weights(
        arguments["class_weights"],
        loss=component.name,
        num_classes=inputs.facts["num_classes"],
        class_counts=inputs.facts.get("class_counts"),
        ignore_index=inputs.facts.get("ignore_index"),
    )
    return None if weights is None else weights.tolist()


def _intra_modal_reference(component: ComponentConfig, inputs: _LossInputs) -> float:
    rows = inputs.outputs
    return nt_xent(
        to_float64_array(rows["first"]),
        to_float64_array(rows["second"]),
        temperature=_get_arguments(component)["temperature"],
    )


def _cross_modal_reference(component: ComponentConfig, inputs: _LossInputs) -> float:
    rows = {name: to_float64_array(value) for name, value in inputs.outputs.items() if isinstance(value, Tensor)}
    mean_rows = (rows["first"] + rows["second"]) / 2
    return nt_xent(mean_rows, rows["pictured"], temperature=_get_arguments(component)["temperature"])


_REFERENCES: dict[str, Callable[[ComponentConfig, _LossInputs], float]] = {
    "cross_entropy": _cross_entropy_reference,
    "focal_cross_entropy": _focal_reference,
    "lovasz_softmax": _lovasz_reference,
    "intra_modal": _intra_modal_reference,
    "cross_modal": _cross_modal_reference,
    "feature_transform_penalty": lambda component, inputs: orthogonality(
        to_float64_array(inputs.outputs["feature_transform"])
    ),
}


def _get_arguments(component: ComponentConfig) -> dict[str, Any]:
    """Return all arguments of a loss: those in its config block, and the defaults of the others."""
    parameters = registry.losses.entry(component).arguments
    return {name: component.arguments.get(name, parameter.default) for name, parameter in parameters.items()}


def _to_float64(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value
