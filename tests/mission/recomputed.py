"""Results of runs computed anew with NumPy, from the papers' formulas: scores, losses, attention, sizes of weights."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sightline


def softmax(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Exponentials of values, as shares of their sum along an axis."""
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def distilled(student: np.ndarray, teacher: np.ndarray, *, temperature: float) -> float:
    """Mean over rows of T^2 KL(teacher || student), of logits (B, C). Source: Hinton et al. 2015, section 2."""
    ours, theirs = softmax(student / temperature), softmax(teacher / temperature)
    return float((theirs * (np.log(theirs) - np.log(ours))).sum(axis=1).mean() * temperature**2)


def entropy_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross entropy (B,) of logits (B, C) with labels (B,)."""
    return -np.log(softmax(logits)[np.arange(len(labels)), labels])


def lovasz(probabilities: np.ndarray, labels: np.ndarray, *, ignored: int) -> float:
    """Mean over the classes of labels (P,) of the Lovász extension of 1 - IoU, for probabilities (P, C).

    The errors of a class, the largest first, each weigh what 1 - IoU grows by if its pixel is wrong as well.
    Source: Berman et al. 2018, definition 2.
    """
    probabilities, labels = probabilities[labels != ignored], labels[labels != ignored]
    losses = []
    for label in np.unique(labels):
        is_class = labels == label
        errors = np.abs(is_class - probabilities[:, label])
        order = errors.argsort(kind="stable")[::-1]
        num_wrong = np.arange(1, len(labels) + 1)
        missed = num_wrong / (is_class.sum() + np.cumsum(~is_class[order]))  # wrong pixels of the union with the class
        losses.append((errors[order] * np.diff(missed, prepend=0.0)).sum())
    return float(np.mean(losses))


# --- classes ----------------------------------------------------------------------------------------------------------


def answer_clouds(run: Path, *, plugins: Sequence[Path] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, C) of a run for each test cloud, given alone, and the labels (B,)."""
    loaded, data = sightline.load_run(run, plugins=plugins), sightline.load_data(run, "test", plugins=plugins)
    rows = []
    for sample in data:
        given = {"points": sample["points"][None]}
        if "features" in sample:
            given["features"] = sample["features"][None]
        with torch.no_grad():
            rows.append(loaded.model(**given)["logits"][0].double().numpy())
    return np.stack(rows), np.array([int(sample["label"]) for sample in data])


def score_classes(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy over clouds, and the mean over the classes that occur."""
    is_right = logits.argmax(axis=1) == labels
    means = [is_right[labels == label].mean() for label in np.unique(labels)]
    return {"overall_accuracy": float(is_right.mean()), "mean_class_accuracy": float(np.mean(means))}


def score_parts(run: Path, *, data: Path | None = None, plugins: Sequence[Path] = ()) -> dict[str, float]:
    """The three figures of a segmentation of parts, from the logits of each test shape. Source: Yi et al. 2016."""
    loaded = sightline.load_run(run, plugins=plugins)
    ious: dict[int, list[float]] = {}
    is_right = []
    for sample in sightline.load_data(data or run, "test", plugins=plugins):
        with torch.no_grad():
            logits = loaded.model(points=sample["points"][None], features=sample["features"][None])["logits"][0]
        category, label = int(sample["category"]), sample["label"].numpy()
        parts = np.array(loaded.facts["parts_of_category"][category])
        found = parts[logits[:, parts].numpy().argmax(axis=1)]
        both = [((found == part) & (label == part), (found == part) | (label == part)) for part in parts]
        ious.setdefault(category, []).append(np.mean([i.sum() / u.sum() if u.any() else 1.0 for i, u in both]))
        is_right.append(found == label)
    return {
        "instance_miou": float(np.mean([iou for shapes in ious.values() for iou in shapes])),
        "class_miou": float(np.mean([np.mean(shapes) for shapes in ious.values()])),
        "point_accuracy": float(np.concatenate(is_right).mean()),
    }


# --- attention --------------------------------------------------------------------------------------------------------


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def map_linear(layer: nn.Linear, values: np.ndarray) -> np.ndarray:
    """A linear map with its bias, if it has one."""
    return values @ _numbers(layer.weight).T + (0.0 if layer.bias is None else _numbers(layer.bias))


def _normalise(norm: Any, values: np.ndarray) -> np.ndarray:
    deviation = np.sqrt(_numbers(norm.running_var) + norm.eps)
    return (values - _numbers(norm.running_mean)) / deviation * _numbers(norm.weight) + _numbers(norm.bias)


def _rectify(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0.0)


def attend_offsets(layer: Any, values: np.ndarray) -> np.ndarray:
    """Offset attention of points (N, C), in evaluation. Source: Guo et al. 2021 (PCT), equations 6 to 9."""
    query = map_linear(layer.query, values)
    weights = softmax(query @ query.T, axis=0)
    weights /= weights.sum(axis=1, keepdims=True)
    offset = values - weights @ map_linear(layer.value, values)
    return values + _rectify(_normalise(layer.change.norm, map_linear(layer.change.linear, offset)))


def attend_vectors(layer: Any, values: np.ndarray, points: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Vector attention of a cloud's points (N, 3) with values (N, C), in evaluation, among the nearest neighbours.

    Source: Zhao et al. 2021, equations 3 and 4; an eighth of the channels have weights of their own in their code.
    """
    near = np.linalg.norm(points[:, None] - points, axis=-1).argsort(axis=1)[:, :num_neighbours]
    query, key, value = (map_linear(linear, values) for linear in (layer.query, layer.key, layer.value))
    position = layer.position
    places = _rectify(_normalise(position.norm, map_linear(position.linear, points[near] - points[:, None])))
    code = map_linear(layer.code, places)
    relation = _rectify(_normalise(layer.norm, key[near] - query[:, None] + code))
    reduced = _rectify(_normalise(layer.reduce.norm, map_linear(layer.reduce.linear, relation)))
    weights = softmax(map_linear(layer.score, reduced), axis=1)  # (N, K, C / 8)
    return ((value[near] + code) * np.tile(weights, 8)).sum(axis=1)


# --- weights ----------------------------------------------------------------------------------------------------------


def read_weights(run: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The named weights of a run as its model multiplies by them, quantised or not."""
    model = sightline.load_run(run).model
    with torch.no_grad():
        return {name: operator.attrgetter(name)(model).numpy().copy() for name in names}


def count_values(weights: dict[str, np.ndarray]) -> dict[str, int]:
    """How many different numbers each weight has."""
    return {name: len(np.unique(weight)) for name, weight in weights.items()}


def means_of_clusters(floats: np.ndarray, quantised: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a quantised weight, and the means of the float weights that became each."""
    values = np.unique(quantised)
    return values, np.array([floats[quantised == value].mean() for value in values])


def are_in_order(floats: np.ndarray, quantised: np.ndarray) -> bool:
    """Whether no float weight that is larger than another became a smaller value."""
    return bool((np.diff(quantised.ravel()[floats.ravel().argsort(kind="stable")]) >= 0).all())
