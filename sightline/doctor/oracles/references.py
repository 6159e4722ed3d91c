"""NumPy references of torch's layers in float64, by their definitions: plain loops over the outputs.

Each function takes the layer's module, for its arguments and weights, and the input, and returns the output. They are
slow and share nothing with torch's kernels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from sightline.doctor.oracles.pools import adaptive_pooling, pooling

__all__ = [
    "REFERENCES",
    "Reference",
    "batch_norm",
    "find_reference",
    "relative_error",
    "running_after",
    "to_float64_array",
]

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
"""Reference of each known layer type; subclasses are compared with the reference of their base class."""


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
