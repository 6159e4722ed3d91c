"""Layers of the package that have fast forms, once more in NumPy and float64, by their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from sightline.doctor.oracles.references import batch_norm, reference_of, to_float64_array
from sightline.layers.edge_conv import EdgeConv, PlainEdgeConv
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.pooling import LinearNormMax, LinearNormPool
from sightline.layers.range_image.columns import CircularPad
from sightline.layers.transformer import MultiHeadAttention

__all__ = ["own_reference"]

Own = Callable[..., np.ndarray]


def own_reference(module: nn.Module) -> Own | None:
    """Of layers of exactly these types; what derives from them is another layer."""
    return _REFERENCES.get(type(module))


def _linear_norm(layer: Any, values: np.ndarray) -> np.ndarray:
    rows = values.reshape(-1, values.shape[-1])
    mapped = _mapped(layer.linear, rows)
    return _active(layer.activation, batch_norm(layer.norm, mapped)).reshape(*values.shape[:-1], -1)


def _joined(layer: Any, whole: np.ndarray, each: np.ndarray) -> np.ndarray:
    repeated = np.stack([np.tile(row, (each.shape[1], 1)) for row in whole]) if whole.ndim < each.ndim else whole
    parts = (repeated, each) if layer.first == "whole" else (each, repeated)
    return _linear_norm(layer, np.concatenate(parts, axis=-1))


def _linear_norm_max(layer: Any, values: np.ndarray) -> np.ndarray:
    return _linear_norm(layer, values).max(axis=1)


def _linear_norm_pool(layer: Any, values: np.ndarray) -> np.ndarray:
    active = _linear_norm(layer, values)
    return np.concatenate([active.max(axis=1), active.mean(axis=1)], axis=-1)


def _edge_conv(layer: Any, features: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Every edge (x_j - x_i, x_i) is mapped, and of each point's edges the largest is kept. Wang et al. 2019, eq. 7."""
    index = index.astype(np.int64)
    edges = np.array(
        [
            [np.concatenate([cloud[j] - cloud[i], cloud[i]]) for i in range(len(cloud)) for j in neighbours[i]]
            for cloud, neighbours in zip(features, index, strict=True)
        ]
    )
    active = _linear_norm(layer.edge, edges)
    return active.reshape(*index.shape, -1).max(axis=2)


def _attention(layer: Any, tokens: np.ndarray) -> np.ndarray:
    """softmax(Q K^T / sqrt(width of a head)) V, head by head. Source: Vaswani et al. 2017, eq. 1."""
    out = np.zeros_like(tokens)
    width = tokens.shape[-1] // layer.num_heads
    for place, sample in enumerate(tokens):
        query, key, value = np.split(_mapped(layer.qkv, sample), 3, axis=-1)
        for head in range(layer.num_heads):
            own = slice(head * width, (head + 1) * width)
            likeness = query[:, own] @ key[:, own].T / np.sqrt(width)
            powers = np.exp(likeness - likeness.max(axis=1, keepdims=True))
            out[place][:, own] = powers / powers.sum(axis=1, keepdims=True) @ value[:, own]
    return _mapped(layer.project, out.reshape(-1, out.shape[-1])).reshape(out.shape)


def _wrapped(layer: Any, values: np.ndarray) -> np.ndarray:
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(layer.columns, layer.columns)], mode="wrap")


def _mapped(linear: Any, rows: np.ndarray) -> np.ndarray:
    weight = to_float64_array(linear.weight)
    mapped = np.array([weight @ row for row in rows])
    return mapped if linear.bias is None else mapped + to_float64_array(linear.bias)


def _active(activation: nn.Module, values: np.ndarray) -> np.ndarray:
    found = reference_of(activation)
    assert found is not None, f"no reference for the activation {type(activation).__name__}"
    return found[1](activation, values)


_REFERENCES: dict[type[nn.Module], Own] = {
    LinearNorm: _linear_norm,
    JoinedLinearNorm: _joined,
    LinearNormMax: _linear_norm_max,
    LinearNormPool: _linear_norm_pool,
    EdgeConv: _edge_conv,
    PlainEdgeConv: _edge_conv,
    MultiHeadAttention: _attention,
    CircularPad: _wrapped,
}
