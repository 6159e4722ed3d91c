"""NumPy references of torch's layers in float64, by their definitions: plain loops over the outputs.

Each function takes the layer's module, for its arguments and weights, and the input, and returns the output. They are
slow and share nothing with torch's kernels.

NumPy references of pooling in float64, window by window; part of `references.py`.

NumPy references, in float64, of the package's layers that have optimised forms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from sightline.layers.edge_conv import EdgeConv, PlainEdgeConv
from sightline.layers.mlp import JoinedLinearNorm, LinearNorm
from sightline.layers.pooling import LinearNormMax, LinearNormPool
from sightline.layers.range_image import CircularPad
from sightline.layers.transformer import MultiHeadAttention


def pooling(module: Any, values: np.ndarray) -> np.ndarray:
    """Compute max or mean pooling (B, C, ...); padding is never the maximum, and counts in means if configured."""
    is_max = isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.MaxPool3d)
    axes = values.ndim - 2
    kernel, stride, padding = (
        _expand(value, axes) for value in (module.kernel_size, module.stride or module.kernel_size, module.padding)
    )
    dilation = _expand(module.dilation, axes) if is_max else (1,) * axes
    borders = [
        (0, 0),
        (0, 0),
        *((p, p + s - 1 if module.ceil_mode else p) for p, s in zip(padding, stride, strict=True)),
    ]
    padded = np.pad(values, borders, constant_values=math.nan)
    sizes = [
        _pooled_size(module, *arguments)
        for arguments in zip(values.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    out = np.zeros((*values.shape[:2], *sizes))
    for n, c, *position in np.ndindex(out.shape):
        window = tuple(
            slice(a * s, a * s + d * (k - 1) + 1, d)
            for a, s, k, d in zip(position, stride, kernel, dilation, strict=True)
        )
        window_values = padded[(n, c, *window)]
        if is_max:
            out[(n, c, *position)] = np.nanmax(window_values)
        else:
            out[(n, c, *position)] = np.nansum(window_values) / _count_averaged(
                module, position, values.shape[2:], kernel, stride, padding
            )
    return out


def adaptive_pooling(module: Any, values: np.ndarray) -> np.ndarray:
    """Compute adaptive pooling (B, C, ...): windows floor(i n / m) to ceil((i + 1) n / m) for n inputs, m outputs."""
    is_max = isinstance(module, nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d | nn.AdaptiveMaxPool3d)
    sizes = [
        n if requested is None else requested
        for requested, n in zip(_expand(module.output_size, values.ndim - 2), values.shape[2:], strict=True)
    ]
    out = np.zeros((*values.shape[:2], *sizes))
    for n, c, *position in np.ndindex(out.shape):
        window = tuple(
            slice(a * size // m, -(-(a + 1) * size // m))
            for a, m, size in zip(position, sizes, values.shape[2:], strict=True)
        )
        window_values = values[(n, c, *window)]
        out[(n, c, *position)] = (
            window_values.max() if is_max else math.fsum(window_values.ravel()) / window_values.size
        )
    return out


def _expand(value: int | Sequence[int], axes: int) -> Sequence[Any]:
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _pooled_size(module: Any, size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    num_steps = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-num_steps // stride) if module.ceil_mode else num_steps // stride) + 1
    if module.ceil_mode and (count - 1) * stride >= size + padding:  # no window begins in the padding
        count -= 1
    return count


def _count_averaged(module: Any, position: Sequence[int], sizes: Any, kernel: Any, stride: Any, padding: Any) -> float:
    """Return the divisor of the mean over a window."""
    if getattr(module, "divisor_override", None):
        return float(module.divisor_override)
    count = 1
    for a, size, k, s, p in zip(position, sizes, kernel, stride, padding, strict=True):
        start = a * s - p
        end = min(start + k, size + p)
        count *= end - start if module.count_include_pad else min(end, size) - max(start, 0)
    return float(count)


Reference = Callable[[Any, np.ndarray], np.ndarray]
_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def to_float64_array(value: Any) -> np.ndarray:
    """Convert a tensor or array to a float64 array."""
    return value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype=np.float64)


def relative_error(found: Any, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest expected value or 1; infinite for other shapes or NaN."""
    values = to_float64_array(found)
    if values.shape != expected.shape or not np.isfinite(values).all():
        return float("inf")
    return float(np.abs(values - expected).max() / max(1.0, np.abs(expected).max())) if expected.size else 0.0


def linear(module: Any, values: np.ndarray) -> np.ndarray:
    """Linear layer: (..., in) -> (..., out), the sum of inputs times a row of weights, plus the bias."""
    weight, bias = to_float64_array(module.weight), None if module.bias is None else to_float64_array(module.bias)
    rows = values.reshape(-1, values.shape[-1])
    out = np.zeros((len(rows), len(weight)))
    for n, row in enumerate(rows):
        for o in range(len(weight)):
            out[n, o] = math.fsum(weight[o] * row) + (0.0 if bias is None else bias[o])
    return out.reshape(*values.shape[:-1], len(weight))


def convolution(module: Any, values: np.ndarray) -> np.ndarray:
    """Convolution (B, C, ...): the sum over the window and the channels of the group (a correlation, as in torch)."""
    weight, groups = to_float64_array(module.weight), module.groups
    stride, dilation = module.stride, module.dilation
    padded = np.pad(values, [(0, 0), (0, 0), *_iter_padding(module)], mode=_PADDING[module.padding_mode])  # type: ignore[call-overload]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    sizes = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, stride, strict=True)]
    out = np.zeros((len(values), len(weight), *sizes))
    per_group, outputs_per_group = weight.shape[1], len(weight) // groups
    for n, o, *position in np.ndindex(out.shape):
        first = o // outputs_per_group * per_group
        window = tuple(slice(a * s, a * s + r, d) for a, s, r, d in zip(position, stride, reach, dilation, strict=True))
        out[(n, o, *position)] = (padded[(n, slice(first, first + per_group), *window)] * weight[o]).sum()
    return out + _channel_bias(module.bias, out)


def transposed_convolution(module: Any, values: np.ndarray) -> np.ndarray:
    """Transposed convolution (B, C, ...): each input adds the kernel to its output window; padding is then cut off."""
    weight, groups = to_float64_array(module.weight), module.groups
    kernel, axes = weight.shape[2:], range(values.ndim - 2)
    stride, dilation = module.stride, module.dilation
    full_sizes = [(values.shape[2 + a] - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1 for a in axes]
    output_padding = [module.output_padding[a] for a in axes]
    outputs_per_group, inputs_per_group = weight.shape[1], values.shape[1] // groups
    out = np.zeros(
        (len(values), outputs_per_group * groups, *(w + e for w, e in zip(full_sizes, output_padding, strict=True)))
    )
    for n, c, *position in np.ndindex(values.shape):
        group = c // inputs_per_group
        window = tuple(
            slice(position[a] * stride[a], position[a] * stride[a] + dilation[a] * (kernel[a] - 1) + 1, dilation[a])
            for a in axes
        )
        out[(n, slice(group * outputs_per_group, (group + 1) * outputs_per_group), *window)] += (
            values[(n, c, *position)] * weight[c]
        )
    crop = tuple(slice(p, size - p) for p, size in zip(module.padding, out.shape[2:], strict=True))
    out = out[(slice(None), slice(None), *crop)]
    return out + _channel_bias(module.bias, out)


def batch_norm(module: Any, values: np.ndarray) -> np.ndarray:
    """Batch norm (B, C, ...): by the batch's mean and biased variance in training, else by the running statistics.

    Source: Ioffe and Szegedy 2015, algorithms 1 and 2.
    """
    out = np.zeros_like(values)
    for c in range(values.shape[1]):
        channel = values[:, c]
        if module.training or module.running_mean is None:
            mean = math.fsum(channel.ravel()) / channel.size
            variance = math.fsum((channel.ravel() - mean) ** 2) / channel.size
        else:
            mean, variance = to_float64_array(module.running_mean)[c], to_float64_array(module.running_var)[c]
        out[:, c] = (channel - mean) / math.sqrt(variance + module.eps)
    out = out if module.weight is None else out * _reshape_channels(to_float64_array(module.weight), out)
    return out + _channel_bias(module.bias, out)


def running_after(module: Any, values: np.ndarray, *, mean: np.ndarray, variance: np.ndarray) -> tuple[Any, Any]:
    """Compute running mean (C,) and variance (C,) after a batch: moved by `momentum` to mean and UNBIASED variance."""
    share = 1.0 if module.momentum is None else module.momentum
    new_mean, new_variance = mean.copy(), variance.copy()
    for c in range(values.shape[1]):
        channel = values[:, c].ravel()
        batch_mean = math.fsum(channel) / channel.size
        unbiased = math.fsum((channel - batch_mean) ** 2) / (channel.size - 1)
        new_mean[c] = (1 - share) * mean[c] + share * batch_mean
        new_variance[c] = (1 - share) * variance[c] + share * unbiased
    return new_mean, new_variance


def layer_norm(module: Any, values: np.ndarray) -> np.ndarray:
    """Layer norm: each sample by its mean and biased variance. Source: Ba, Kiros and Hinton 2016, section 3."""
    size = math.prod(module.normalized_shape)
    rows = values.reshape(-1, size)
    out = np.zeros_like(rows)
    for n, row in enumerate(rows):
        mean = math.fsum(row) / size
        variance = math.fsum((row - mean) ** 2) / size
        out[n] = (row - mean) / math.sqrt(variance + module.eps)
    out = out.reshape(values.shape)
    out = out if module.weight is None else out * to_float64_array(module.weight)
    return out if module.bias is None else out + to_float64_array(module.bias)


def group_norm(module: Any, values: np.ndarray) -> np.ndarray:
    """Group norm (B, C, ...): each sample and group by its mean and biased variance. Source: Wu and He 2018, eq. 1."""
    out = np.zeros_like(values)
    channels_per_group = values.shape[1] // module.num_groups
    for n, g in itertools.product(range(len(values)), range(module.num_groups)):
        channels = slice(g * channels_per_group, (g + 1) * channels_per_group)
        group = values[n, channels]
        mean = math.fsum(group.ravel()) / group.size
        variance = math.fsum((group.ravel() - mean) ** 2) / group.size
        out[n, channels] = (group - mean) / math.sqrt(variance + module.eps)
    out = out if module.weight is None else out * _reshape_channels(to_float64_array(module.weight), out)
    return out + _channel_bias(module.bias, out)


def softmax(module: Any, values: np.ndarray) -> np.ndarray:
    """Softmax, exp(z_i) / sum_j exp(z_j), along the module's axis; its logarithm for LogSoftmax."""
    rows = np.moveaxis(values, module.dim, -1)
    out = np.zeros_like(rows)
    for index in np.ndindex(rows.shape[:-1]):
        powers = [math.exp(z - rows[index].max()) for z in rows[index]]
        out[index] = [power / math.fsum(powers) for power in powers]
    out = np.log(out) if isinstance(module, nn.LogSoftmax) else out
    return np.moveaxis(out, -1, module.dim)


def _gelu(module: Any, z: float) -> float:
    if module.approximate == "tanh":
        return 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    return 0.5 * z * (1 + math.erf(z / math.sqrt(2)))


_ELEMENTWISE: dict[type[nn.Module], Callable[[Any, float], float]] = {
    nn.ReLU: lambda module, z: max(z, 0.0),
    nn.ReLU6: lambda module, z: min(max(z, 0.0), 6.0),
    nn.LeakyReLU: lambda module, z: z if z > 0 else module.negative_slope * z,
    nn.ELU: lambda module, z: z if z > 0 else module.alpha * math.expm1(z),
    nn.GELU: _gelu,
    nn.SiLU: lambda module, z: z / (1 + math.exp(-z)),
    nn.Sigmoid: lambda module, z: 1 / (1 + math.exp(-z)),
    nn.Tanh: lambda module, z: math.tanh(z),
    nn.Softplus: lambda module, z: math.log1p(math.exp(module.beta * z)) / module.beta,
    nn.Identity: lambda module, z: z,
    # identity in evaluation mode, which is compared
    nn.modules.dropout._DropoutNd: lambda module, z: z,
}


def _make_elementwise(rule: Callable[[Any, float], float]) -> Reference:
    def apply(module: Any, values: np.ndarray) -> np.ndarray:
        return np.array([rule(module, float(z)) for z in values.ravel()]).reshape(values.shape)

    return apply


REFERENCES: dict[type[nn.Module], Reference] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.ConvTranspose1d: transposed_convolution,
    nn.ConvTranspose2d: transposed_convolution,
    nn.ConvTranspose3d: transposed_convolution,
    nn.modules.batchnorm._BatchNorm: batch_norm,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), pooling),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), pooling),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), adaptive_pooling),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), adaptive_pooling),
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax), softmax),
    **{kind: _make_elementwise(rule) for kind, rule in _ELEMENTWISE.items()},
}
"""Compute the reference of each known layer type; subclasses are compared with the reference of their base class."""


def find_reference(module: nn.Module) -> tuple[type[nn.Module], Reference] | None:
    """Return the nearest known type of a layer, or base class of it, with its reference; None for an unknown layer."""
    for kind in type(module).__mro__:
        if kind in REFERENCES:
            return kind, REFERENCES[kind]
    return None


def _iter_padding(module: Any) -> Iterator[tuple[int, int]]:
    """Yield the padding before and after each spatial axis."""
    for size, dilation, padding in zip(
        module.kernel_size,
        module.dilation,
        module.padding if not isinstance(module.padding, str) else [module.padding] * len(module.kernel_size),
        strict=True,
    ):
        total = dilation * (size - 1)
        leading, trailing = {"same": (total // 2, total - total // 2), "valid": (0, 0)}.get(padding, (padding, padding))
        yield leading, trailing


def _channel_bias(bias: Tensor | None, out: np.ndarray) -> Any:
    return 0.0 if bias is None else _reshape_channels(to_float64_array(bias), out)


def _reshape_channels(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    return values.reshape(1, -1, *(1,) * (out.ndim - 2))


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
