"""Comparison of a run's losses, on the outputs of the first step, with NumPy and first and second differences.

Reference implementations of losses by their definitions, row by row in float64.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.config import RunConfig
from sightline.contract import registry
from sightline.contract.errors import summarise_error
from sightline.contract.pytree import is_float
from sightline.contract.types import Batch, ComponentConfig
from sightline.engine.device import seed_torch
from sightline.engine.train import TrainState
from sightline.instrument.float64 import Float32Draws
from sightline.layers.surrogates import find_surrogates, note_surrogates
from sightline.parts.losses.classification import resolve_class_weights
from sightline.workbench.check.oracles.derivatives import (
    SquaredErrorLoss,
    describe_uncompared,
    expected_factor,
    find_squared_error,
    gradient_errors,
    make_gradient_function,
    worst_error,
)
from sightline.workbench.check.oracles.references import to_float64_array
from sightline.workbench.check.oracles.results import EXACT_GRADIENT, OracleResult, loss_counts, loss_sums


def nt_xent(anchors: np.ndarray, partners: np.ndarray, *, temperature: float) -> float:
    """Compute NT-Xent of anchors (M, D) and partners (M, D): the mean over 2M rows. Source: Chen et al. 2020, eq. 1."""
    rows = np.concatenate([anchors, partners])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(lengths > 0, lengths, 1.0)
    total = 0.0
    for index, row in enumerate(rows):
        similarity = rows @ row / temperature
        others = np.delete(similarity, index)
        highest = others.max()
        partner = similarity[(index + len(anchors)) % len(rows)]
        total += highest + math.log(np.exp(others - highest).sum()) - partner
    return total / len(rows)


def cross_entropy(
    logits: np.ndarray,
    label: np.ndarray,
    *,
    smoothing: float = 0.0,
    over_others: bool = True,
    weights: Sequence[float] | None = None,
    ignore_index: int | None = None,
) -> float:
    """Compute the weighted mean cross entropy of logits (N, C) and labels (N,) that are not ignored.

    The share `smoothing` is divided evenly among the other classes, or among all classes. Source: Szegedy et al. 2016,
    section 7.
    """
    num_classes = logits.shape[1]
    by_class = [1.0] * num_classes if weights is None else list(weights)
    total, count = 0.0, 0.0
    for row, target in zip(logits, label, strict=True):
        if ignore_index is not None and target == ignore_index:
            continue
        highest = max(row)
        normaliser = highest + math.log(math.fsum(math.exp(z - highest) for z in row))
        for c in range(num_classes):
            share = smoothing / (num_classes - 1 if over_others else num_classes) if smoothing else 0.0
            probability = 1.0 - smoothing + (0.0 if over_others else share) if c == target else share
            total += probability * by_class[c] * (normaliser - row[c])
        count += by_class[target]
    return total / count if count else 0.0


def focal(
    logits: np.ndarray,
    label: np.ndarray,
    *,
    gamma: float,
    weights: Sequence[float] | None,
    by_weights: bool,
    ignore_index: int | None,
) -> float:
    """Compute the focal loss of logits (N, C) and labels (N,): the mean of -w (1 - p)^gamma log p.

    The sum is divided by the weights or by the number of targets. Source: Lin et al. 2017, eq. 5.
    """
    by_class = [1.0] * logits.shape[1] if weights is None else list(weights)
    total, count = 0.0, 0.0
    for row, target in zip(logits, label, strict=True):
        if target != ignore_index:
            log_p = -math.log(math.fsum(math.exp(z - row[target]) for z in row))
            total += -by_class[target] * (1 - math.exp(log_p)) ** gamma * log_p
            count += by_class[target] if by_weights else 1.0
    return total / count if count else 0.0


def lovasz(images: Sequence[np.ndarray], labels: Sequence[np.ndarray], *, ignore_index: int | None) -> float:
    """Compute Lovász-softmax: the mean over images of the Lovász extension of 1 - IoU, an integral over error levels.

    `images` are logits (P, C), `labels` (P,). Source: Berman et al. 2018, eq. 8; Choquet's integral.
    """
    image_losses = []
    for logits, label in zip(images, labels, strict=True):
        is_counted = np.ones(len(label), dtype=bool) if ignore_index is None else label != ignore_index
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        p, counted_labels = (shifted / shifted.sum(axis=1, keepdims=True))[is_counted], label[is_counted]
        losses = []
        for number in np.unique(counted_labels):
            is_class = counted_labels == number
            errors = np.abs(is_class - p[:, number])
            order = np.argsort(-errors, kind="stable")
            missed = np.cumsum(is_class[order])
            added = np.cumsum(~is_class[order])
            level_loss = 1 - (is_class.sum() - missed) / (is_class.sum() + added)
            steps = errors[order] - np.append(errors[order][1:], 0.0)
            losses.append(math.fsum(steps * level_loss))
        image_losses += [math.fsum(losses) / len(losses)] if losses else []
    return math.fsum(image_losses) / len(image_losses) if image_losses else 0.0


def mean_square(output: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Compute the weighted mean squared error, sum w (o - t)^2 / sum w, of arrays of one shape."""
    total = math.fsum(w * (o - t) ** 2 for o, t, w in zip(output.ravel(), target.ravel(), weight.ravel(), strict=True))
    return total / math.fsum(weight.ravel())


def orthogonality(matrices: np.ndarray) -> float:
    """Compute the mean Frobenius norm of A A^T - I over matrices (B, K, K). Source: Qi et al. 2017, eq. 2, its root."""
    total = 0.0
    for matrix in matrices:
        size = len(matrix)
        squares = [
            (math.fsum(matrix[i] * matrix[j]) - (1.0 if i == j else 0.0)) ** 2 for i in range(size) for j in range(size)
        ]
        total += math.sqrt(math.fsum(squares))
    return total / len(matrices)


_MAX_ELEMENTS = 200_000
"""Maximum number of outputs whose squares are added one by one in NumPy."""


def examine_losses(
    job: TrainState, config: RunConfig, facts: Mapping[str, Any], batch: Batch, outputs: Mapping[str, Any]
) -> Iterator[OracleResult]:
    """Yield a result for each loss; a loss without a reference, by name or as squared error, is half-checked."""
    float64_outputs = {name: _to_float64(value) for name, value in outputs.items()}
    batch = {name: _to_float64(value) for name, value in batch.items()}
    if not any(is_float(value) for value in float64_outputs.values()):
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
        seed_torch(0)  # repeats the random draws of the loss
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
        seed_torch(0)
        return [loss_sums(inputs.job, inputs.batch, {**inputs.outputs, **tensors})[name]]

    errors = {} if declared else gradient_errors(evaluate, groups)
    weakest, gradient_error = worst_error(errors)
    second_error, note = (None, "") if declared else _compute_second_error(evaluate, groups)
    forward, form = _compute_forward_error(component, inputs)
    value = inputs.mean(name)
    missing = "" if declared else describe_uncompared(groups, errors)
    float32_outputs = {k: v.float() if is_float(v) else v for k, v in inputs.outputs.items()}
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
    floats = {k: v for k, v in inputs.outputs.items() if is_float(v)}
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
    return value.detach().double() if is_float(value) else value
