"""Policies: the storage format of each quantisable tensor; their documents, protected layers and budgets.

Costs of the layers of a traced model: shapes, multiply-accumulates (MACs), and bit operations.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypeAlias

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from typing_extensions import TypedDict

from sightline.config.yaml_tree import ConfigFaults, LocatedValue, read_yaml
from sightline.contract.arguments import Index, QuantisedKind
from sightline.contract.errors import ConfigError
from sightline.contract.schema import suggest
from sightline.contract.types import SourceLocation
from sightline.parts.quantisation.activations import choice_faults
from sightline.workbench.describe.trace import Node, Trace

_FLOAT_BITS: Mapping[str, int] = {"fp16": 16, "fp32": 32}


class Activation(NamedTuple):
    """Quantisation grid of a layer's input, with the fields of `QuantisedActivation`."""

    bits: int
    range: float
    signed: bool


class WeightFormat(NamedTuple):
    """Storage format of a tensor; `bits` per weight, 16 or 32 if it stays in floating point.

    With `activation` the layer's input is quantised as well.
    """

    kind: QuantisedKind
    bits: int
    per_channel: bool = False
    activation: Activation | None = None

    def __str__(self) -> str:
        inputs = "" if self.activation is None else f", inputs of {self.activation.bits} bits"
        if self.kind in _FLOAT_BITS:
            return f"{self.kind}{inputs}"
        coded = (
            f"{self.bits} bit{'s' if self.bits > 1 else ''}, {self.kind}{' per channel' if self.per_channel else ''}"
        )
        return f"{coded}{inputs}"


FP16, FP32 = WeightFormat("fp16", 16), WeightFormat("fp32", 32)
Policy: TypeAlias = Mapping[str, WeightFormat]
"""Mapping of tensor names, as in `model.named_parameters()`, to storage formats, in the model's order."""


class Protect(TypedDict):
    """Layers that no search lowers: the `first` and `last` ones by number, and `names` by patterns such as `head.*`."""

    first: NotRequired[Index]
    last: NotRequired[Index]
    names: NotRequired[tuple[str, ...]]
    bits: NotRequired[Literal[1, 2, 3, 4, 5, 6, 7, 8, 16, 32]]


def protected_choices(
    protect: Protect, names: Sequence[str], *, kind: QuantisedKind = "codebook"
) -> dict[str, WeightFormat]:
    """Return the format of each protected layer of `names` (in the model's order): 8 bits by default.

    Raises ConfigError for a pattern without a match, with the nearest name.
    """
    bits = protect.get("bits", 8)
    floats = {item.bits: item for item in (FP16, FP32)}
    choice = floats.get(bits, WeightFormat(kind, bits))
    patterns = protect.get("names", ())
    missing = [item for item in patterns if not fnmatch.filter(names, item)]
    if missing:
        raise ConfigError(
            *(f"protect.names: no layer is called '{item}'{suggest(item, names, otherwise='')}" for item in missing)
        )
    last = len(names) - protect.get("last", 0)
    return {
        name: choice
        for index, name in enumerate(names)
        if index < protect.get("first", 0) or index >= last or any(fnmatch.fnmatchcase(name, item) for item in patterns)
    }


def policy_to_dict(policy: Policy) -> dict[str, dict[str, Any]]:
    """Convert a policy to the plain mapping that `read_policy` reads."""
    return {name: _format_to_dict(choice) for name, choice in policy.items()}


def _format_to_dict(choice: WeightFormat) -> dict[str, Any]:
    inputs = {} if choice.activation is None else {"activation": choice.activation._asdict()}
    if choice.kind in _FLOAT_BITS:
        return {"kind": choice.kind, **inputs}
    return {"kind": choice.kind, "bits": choice.bits, "per_channel": choice.per_channel, **inputs}


def activation_policy(policy: Policy) -> dict[str, WeightFormat]:
    """Return the policy restricted to activations: layers with quantised inputs and float weights."""
    return {name: FP32._replace(activation=choice.activation) for name, choice in policy.items() if choice.activation}


def read_policy(path: Path, names: Sequence[str]) -> dict[str, WeightFormat]:
    """Read a policy of some of the tensors `names` from a JSON or YAML file; the others stay in float.

    Raises ConfigError with file and line, as `policy_from_dict`.
    """
    faults = ConfigFaults()
    tree = read_yaml(path, faults)
    faults.raise_any()
    document: Any = tree.plain()
    return policy_from_dict(document, names, origin=str(path), places=_locate_keys(tree), is_whole=False)


def policy_from_dict(
    document: Mapping[str, Any],
    names: Sequence[str],
    *,
    origin: str,
    places: Mapping[str, SourceLocation] | None = None,
    is_whole: bool = True,
) -> dict[str, WeightFormat]:
    """Parse a plain mapping to a policy of all tensors `names` (or of some, unless `is_whole`), in their order.

    Raises ConfigError with all faults by key: an unknown tensor, with the nearest name, a missing tensor, or a kind or
    number of bits that is not allowed.
    """
    faults, places, formats = ConfigFaults(), places or {}, {}
    for name, entry in document.items():
        hint = suggest(name, names, otherwise="; the model has none of a similar name")
        entry_faults = [("", f"no parameter is called so{hint}")] if name not in names else choice_faults(entry)
        for key, text in entry_faults:
            path = f"{name}.{key}".rstrip(".")
            location = places.get(path) or places.get(name)
            faults.add(SourceLocation(origin, location.line if location else None, path), text)
        if not entry_faults:
            kind, inputs = entry["kind"], Activation(**entry["activation"]) if "activation" in entry else None
            formats[name] = WeightFormat(
                kind, entry.get("bits") or _FLOAT_BITS[kind], entry.get("per_channel", False), inputs
            )
    for name in (tensor_name for tensor_name in names if is_whole and tensor_name not in document):
        faults.add(SourceLocation(origin, path=name), "is missing; give its kind, fp32 to leave it unchanged")
    faults.raise_any()
    return {name: formats[name] for name in names if name in formats}


def _locate_keys(tree: LocatedValue) -> dict[str, SourceLocation]:
    """Map every dotted key path to its location in the file."""
    children = tree.value.values() if isinstance(tree.value, dict) else ()
    return {tree.where.path: tree.where} | {
        path: location for child in children for path, location in _locate_keys(child).items()
    }


def actions_to_levels(actions: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """Convert actions (L,) in [0, 1] to indices (L,) int64 into the ascending `bits`, by equal intervals.

    Source: Wang et al. 2019 (HAQ), section 3, and the authors' code, whose rounding, half to even, is kept for ranges
    without gaps. Their result is not clipped: an action of 0 is 0 bits there if the range begins at 1.
    """
    num, first = len(bits), bits[0]
    has_gaps = bits[-1] - first + 1 != num
    indices = np.floor(num * actions) if has_gaps else np.round(num * actions + first - 0.5) - first
    return np.clip(indices, 0, num - 1).astype(np.int64)


def lower_to_budget(
    levels: Sequence[int], holds: Callable[[tuple[int, ...]], bool], *, floors: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Lower levels by one, from the last to the first, in sweeps, until `holds(levels)`; floors are respected.

    `holds` must be monotonic, since the end is found by bisection. If it is never true, the lowest levels are
    returned. Source: Wang et al. 2019 (HAQ), section 3, and the authors' code.
    """
    start, ends = np.asarray(levels), np.zeros(len(levels), np.int64) if floors is None else np.asarray(floors)
    num_lowerings = np.maximum(start - ends, 0)
    steps = [
        layer
        for sweep in range(int(num_lowerings.max(initial=0)))
        for layer in np.flatnonzero(num_lowerings > sweep)[::-1]
    ]

    def levels_after(count: int) -> tuple[int, ...]:
        return tuple((start - np.bincount(steps[:count], minlength=len(start))).tolist())

    low, high = 0, len(steps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(levels_after(middle)) else (middle + 1, high)
    return levels_after(low)


class LayerCost(NamedTuple):
    """Quantisable tensor: its shape, and its cost per sample.

    `positions` is the number of input points or pixels; `stride` is 0 and `kernel` 1 except for convolutions.
    """

    name: str
    num_weights: int
    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 0
    positions: float = 1.0
    is_depthwise: bool = False
    macs: float = 0.0


def layer_costs(model: nn.Module, traced: Trace, names: Sequence[str]) -> tuple[LayerCost, ...]:
    """List the costs of the parameters `names`, in this order, per sample of the trace of `model`.

    A tensor whose module is never called, as in fused layers, gets its share, by the number of weights, of the nearest
    enclosing call: exact if all such tensors multiply the same number of rows. Kernels outside torch count 0, as in the
    trace: `fused: false` shows them.
    """
    calls: dict[str, list[Node]] = {}
    for node in traced.calls:
        calls.setdefault(node.path, []).append(node)
    parameters, modules = dict(model.named_parameters()), dict(model.named_modules())
    owners = {name: _find_owner(name, parameters[name], calls) for name in names}
    sharing: dict[str, int] = {}
    for name, owner in owners.items():
        sharing[owner] = sharing.get(owner, 0) + parameters[name].numel()
    layers = []
    for name, owner in owners.items():
        num_weights, module = parameters[name].numel(), modules[name.rpartition(".")[0]]
        macs = sum(node.macs for node in calls.get(owner, ())) * num_weights / sharing[owner] / traced.num_samples
        layer = _make_layer_cost(name, parameters[name], module)._replace(macs=macs)
        shapes = [node.inputs[0][1] for node in calls.get(owner, ())[:1] if node.inputs]
        if owner == name.rpartition(".")[0] and shapes and isinstance(module, _ConvNd | nn.Linear):
            positions = math.prod(shapes[0]) / layer.in_channels / traced.num_samples
        else:
            positions = macs / num_weights
        layers.append(layer._replace(positions=positions))
    return tuple(layers)


def _find_owner(name: str, parameter: Tensor, calls: Mapping[str, object]) -> str:
    """Find the nearest enclosing module of a parameter that is called; return its path."""
    path = name.rpartition(".")[0]
    while path and path not in calls:
        path = path.rpartition(".")[0]
    return path


def _make_layer_cost(name: str, weight: Tensor, module: nn.Module) -> LayerCost:
    if isinstance(module, _ConvNd):
        is_depthwise = module.groups == module.in_channels > 1
        kernel, stride = module.kernel_size[0], module.stride[0]
        return LayerCost(
            name, weight.numel(), module.in_channels, module.out_channels, kernel, stride, is_depthwise=is_depthwise
        )
    return LayerCost(name, weight.numel(), weight.shape[-1], weight.shape[0])


def bit_operations(layers: Sequence[LayerCost], policy: Policy, *, activation_bits: int = 32) -> float:
    """Sum MACs times weight bits times activation bits over the layers, per sample.

    `activation_bits` is used for inputs that the policy does not quantise. Codebook entries are multiplied in floating
    point: for them the number describes storage, not speed.
    """
    choices = [policy[layer.name] for layer in layers]
    inputs = [activation_bits if item.activation is None else item.activation.bits for item in choices]
    return sum(item.macs * choice.bits * bits for item, choice, bits in zip(layers, choices, inputs, strict=True))


def state_vectors(layers: Sequence[LayerCost]) -> np.ndarray:
    """Compute the HAQ states (L, 8): depthwise, in and out channels, stride, kernel, weights, positions, index.

    Each column is scaled to 0..1 over the layers; a constant column is 0 (the authors keep its raw value).
    Source: Wang et al. 2019 (HAQ), section 3, in the order of the authors' code.
    """
    rows = [
        (
            layer.is_depthwise,
            layer.in_channels,
            layer.out_channels,
            layer.stride,
            layer.kernel,
            layer.num_weights,
            layer.positions,
        )
        for layer in layers
    ]
    table = np.column_stack([np.asarray(rows, dtype=np.float64), np.arange(len(layers))])
    low, high = table.min(axis=0), table.max(axis=0)
    return (table - low) / np.where(high > low, high - low, 1.0)
