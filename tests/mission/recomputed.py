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


# --- networks, in evaluation ------------------------------------------------------------------------------------------


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def map_linear(layer: nn.Linear, values: np.ndarray) -> np.ndarray:
    """A linear map with its bias, if it has one."""
    return values @ _numbers(layer.weight).T + (0.0 if layer.bias is None else _numbers(layer.bias))


def _normalise(norm: Any, values: np.ndarray) -> np.ndarray:
    deviation = np.sqrt(_numbers(norm.running_var) + norm.eps)
    return (values - _numbers(norm.running_mean)) / deviation * _numbers(norm.weight) + _numbers(norm.bias)


def _rectify(values: np.ndarray, slope: float = 0.0) -> np.ndarray:
    return np.where(values > 0, values, slope * values)


def map_layer(layer: Any, values: np.ndarray, slope: float = 0.0) -> np.ndarray:
    """A linear map, its norm, and a rectifier with a slope below 0: of 1 for none."""
    return _rectify(_normalise(layer.norm, map_linear(layer.linear, values)), slope)


def find_nearest(queries: np.ndarray, points: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the points (N, 3) that are nearest to each query (M, 3), and their distances: (M, K) each."""
    distances = np.linalg.norm(queries[:, None] - points, axis=-1)
    order = distances.argsort(axis=1)[:, :number]
    return order, np.take_along_axis(distances, order, axis=1)


def sample_farthest(points: np.ndarray, number: int) -> list[int]:
    """Indices of farthest-point samples, from the first point on."""
    chosen, distances = [0], np.full(len(points), np.inf)
    while len(chosen) < number:
        distances = np.minimum(distances, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(distances.argmax()))
    return chosen


def attend_offsets(layer: Any, values: np.ndarray) -> np.ndarray:
    """Offset attention of points (N, C). Source: Guo et al. 2021 (PCT), equations 6 to 9."""
    query = map_linear(layer.query, values)
    weights = softmax(query @ query.T, axis=0)
    weights /= weights.sum(axis=1, keepdims=True)
    return values + map_layer(layer.change, values - weights @ map_linear(layer.value, values))


def run_pct(model: Any, points: np.ndarray, num_centres: Sequence[int], num_neighbours: int) -> np.ndarray:
    """Logits of PCT for a cloud (N, 3). Source: Guo et al. 2021, figure 2, equations 6 to 12."""
    values = points
    for layer in model.embed:
        values = map_layer(layer, values)
    for group, number in zip(model.groups, num_centres, strict=True):
        chosen = sample_farthest(points, number)
        near, _ = find_nearest(points[chosen], points, num_neighbours)
        own = np.repeat(values[chosen][:, None], num_neighbours, axis=1)
        edges = np.concatenate([values[near] - own, own], axis=-1)
        for layer in group.network.layers:
            edges = map_layer(layer, edges)
        points, values = points[chosen], edges.max(axis=1)
    attended = values
    for layer in model.prepare:
        attended = map_layer(layer, attended)
    results = [attended := attend_offsets(layer, attended) for layer in model.attend.layers]
    pooled = map_layer(model.fuse, np.concatenate([*results, values], axis=-1), slope=0.2).max(axis=0)
    for layer in (model.head[0], model.head[2]):
        pooled = map_layer(layer, pooled, slope=0.2)
    return map_linear(model.head[4], pooled)


def attend_vectors(layer: Any, values: np.ndarray, points: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Vector attention of a cloud's points (N, 3) with values (N, C), each among its nearest.

    Source: Zhao et al. 2021, equations 3 and 4; in their code eight channels share a weight.
    """
    near, _ = find_nearest(points, points, num_neighbours)
    query, key, value = (map_linear(linear, values) for linear in (layer.query, layer.key, layer.value))
    code = map_linear(layer.code, map_layer(layer.position, points[near] - points[:, None]))
    relation = _rectify(_normalise(layer.norm, key[near] - query[:, None] + code))
    weights = softmax(map_linear(layer.score, map_layer(layer.reduce, relation)), axis=1)  # (N, K, C / 8)
    return ((value[near] + code) * np.tile(weights, 8)).sum(axis=1)


def _run_block(block: Any, values: np.ndarray, points: np.ndarray, num_neighbours: int) -> np.ndarray:
    attended = attend_vectors(block.attention, map_layer(block.before, values), points, num_neighbours)
    return _rectify(values + map_layer(block.after, _rectify(_normalise(block.norm, attended)), slope=1.0))


def run_point_transformer(model: Any, points: np.ndarray, features: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Logits of a Point Transformer of two levels, each with a block, for a cloud; the coarse one has a quarter.

    Source: Zhao et al. 2021, figures 3 and 4, section 3.4.
    """
    first, second = model.stages
    fine = map_layer(first.down.edge, np.concatenate([points, features], axis=1))
    fine = _run_block(first.blocks[0], fine, points, num_neighbours)
    centres = points[sample_farthest(points, len(points) // 4)]
    near, _ = find_nearest(centres, points, num_neighbours)
    members = np.concatenate([points[near] - centres[:, None], fine[near]], axis=-1)
    coarse = map_layer(second.down.edge, members).max(axis=1)
    coarse = _run_block(second.blocks[0], coarse, centres, num_neighbours)
    decoder = model.decoder
    mean = np.tile(_rectify(map_linear(decoder.context.mean, coarse.mean(axis=0))), (len(coarse), 1))
    coarse = map_layer(decoder.context.mix, np.concatenate([coarse, mean], axis=1))
    coarse = _run_block(decoder.blocks[1], coarse, centres, num_neighbours)
    near, distances = find_nearest(points, centres, 3)
    shares = 1 / (distances + 1e-8)
    shares /= shares.sum(axis=1, keepdims=True)
    carried = (map_layer(decoder.ups[0].coarse, coarse)[near] * shares[..., None]).sum(axis=1)
    fine = _run_block(decoder.blocks[0], map_layer(decoder.ups[0].skip, fine) + carried, points, num_neighbours)
    return map_linear(model.head[2], map_layer(model.head[0], fine))


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
