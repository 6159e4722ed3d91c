"""NumPy references, in float64, of the package's layers that have optimised forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from sightline.doctor.oracles.references import batch_norm, find_reference, to_float64_array
from sightline.layers.edge_conv import EdgeConv, PlainEdgeConv
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.pooling import LinearNormMax, LinearNormPool
from sightline.layers.range_image.columns import CircularPad
from sightline.layers.transformer import MultiHeadAttention

__all__ = ["find_own_reference"]

LayerReference = Callable[..., np.ndarray]


def find_own_reference(module: nn.Module) -> LayerReference | None:
    """Return the reference of a layer of exactly these types, not of derived classes; None without one."""
    return _REFERENCES.get(type(module))


def _linear_norm(layer: Any, values: np.ndarray) -> np.ndarray:
    rows = values.reshape(-1, values.shape[-1])
    mapped = _apply_linear(layer.linear, rows)
    return _apply_activation(layer.activation, batch_norm(layer.norm, mapped)).reshape(*values.shape[:-1], -1)


def _joined_linear_norm(layer: Any, cloud_features: np.ndarray, point_features: np.ndarray) -> np.ndarray:
    repeated = (
        np.stack([np.tile(row, (point_features.shape[1], 1)) for row in cloud_features])
        if cloud_features.ndim < point_features.ndim
        else cloud_features
    )
    parts = (repeated, point_features) if layer.first == "whole" else (point_features, repeated)
    return _linear_norm(layer, np.concatenate(parts, axis=-1))


def _linear_norm_max(layer: Any, values: np.ndarray) -> np.ndarray:
    return _linear_norm(layer, values).max(axis=1)


def _linear_norm_pool(layer: Any, values: np.ndarray) -> np.ndarray:
    active = _linear_norm(layer, values)
    return np.concatenate([active.max(axis=1), active.mean(axis=1)], axis=-1)


def _edge_conv(layer: Any, features: np.ndarray, index: np.ndarray) -> np.ndarray:
    """EdgeConv: maximum over each point's edges of the mapped (x_j - x_i, x_i). Source: Wang et al. 2019, eq. 7."""
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
    """Multi-head attention: softmax(Q K^T / sqrt(head width)) V per head. Source: Vaswani et al. 2017, eq. 1."""
    out = np.zeros_like(tokens)
    width = tokens.shape[-1] // layer.num_heads
    for index, sample in enumerate(tokens):
        query, key, value = np.split(_apply_linear(layer.qkv, sample), 3, axis=-1)
        for head in range(layer.num_heads):
            columns = slice(head * width, (head + 1) * width)
            scores = query[:, columns] @ key[:, columns].T / np.sqrt(width)
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[index][:, columns] = powers / powers.sum(axis=1, keepdims=True) @ value[:, columns]
    return _apply_linear(layer.project, out.reshape(-1, out.shape[-1])).reshape(out.shape)


def _circular_pad(layer: Any, values: np.ndarray) -> np.ndarray:
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(layer.columns, layer.columns)], mode="wrap")


def _apply_linear(linear: Any, rows: np.ndarray) -> np.ndarray:
    weight = to_float64_array(linear.weight)
    mapped = np.array([weight @ row for row in rows])
    return mapped if linear.bias is None else mapped + to_float64_array(linear.bias)


def _apply_activation(activation: nn.Module, values: np.ndarray) -> np.ndarray:
    match = find_reference(activation)
    assert match is not None, f"no reference for the activation {type(activation).__name__}"
    return match[1](activation, values)


_REFERENCES: dict[type[nn.Module], LayerReference] = {
    LinearNorm: _linear_norm,
    JoinedLinearNorm: _joined_linear_norm,
    LinearNormMax: _linear_norm_max,
    LinearNormPool: _linear_norm_pool,
    EdgeConv: _edge_conv,
    PlainEdgeConv: _edge_conv,
    MultiHeadAttention: _attention,
    CircularPad: _circular_pad,
}
