"""State dicts of published layouts in our names and shapes, and the layouts that a file's names belong to."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.contract.errors import CheckpointError, escape_to_one_line
from sightline.published.rows import list_layouts, read_layout

_OUR_EPSILON = 1e-5


def convert_state_dict(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Convert published weights to our names and shapes; the input is unchanged, most tensors are shared.

    Convolutions of size 1 become matrices, except those that are convolutions here too, as all over volumes are; a
    leading `module.` on every name, from DataParallel, is removed, and so are the layout's unused names; then its
    changes are made. Raises CheckpointError for an unknown layout, for names that the layout does not have, and for a
    module stored under two names with different values, or with shapes that a change does not allow.
    """
    row = read_layout(layout)
    used = dict(zip(_without_wrapper(state), state.values(), strict=True))
    for key in unused_names(used, layout):
        del used[key]
    names = {key: translate_key(key, layout) for key in used}
    unknown = [key for key, ours in names.items() if ours is None]
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} of {len(names)} names do not belong to the layout '{layout}': "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}; choose the layout of the file"
        )
    translated: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, tensor in used.items():
        ours = names[key]
        assert ours is not None
        is_map = tensor.ndim in (3, 4) and tensor.shape[2:].numel() == 1 and not ours.endswith(".conv.weight")
        value = tensor.flatten(1) if is_map else tensor
        if ours in translated and not torch.equal(translated[ours], value):
            raise CheckpointError(
                f"'{origin[ours]}' and '{key}' are one tensor in the layout '{layout}' but hold different values; "
                "the file is damaged or was edited by hand"
            )
        translated[ours], origin[ours] = value, key
    for change, argument in row.changes.items():
        try:
            changed = {**translated, **CHANGES[change](translated, argument)}
        except (RuntimeError, IndexError) as error:
            raise CheckpointError(
                f"the shapes of its tensors do not allow '{change}', which the layout '{layout}' needs "
                f"({escape_to_one_line(str(error))[:160]}); is it a variant of it?"
            ) from None
        translated = {name: value for name, value in changed.items() if value is not None}
    return translated


def unused_names(names: Iterable[str], layout: str) -> dict[str, str]:
    """Return the published names that a model of this layout does not use, each with its pattern."""
    patterns = read_layout(layout).unused
    return {name: pattern for name in names for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}


def translate_key(key: str, layout: str) -> str | None:
    """Return our name of a published name, None if the layout has none.

    Raises CheckpointError for an unknown layout.
    """
    names = read_layout(layout).names
    if key in names:
        return names[key]
    module, _, leaf = key.rpartition(".")
    ours = names.get(module)
    return f"{ours}.{leaf}" if ours is not None else None


def published_name(ours: str, layout: str) -> str:
    """Return the layout's name of one of our tensors; the first if there are several."""
    module, _, leaf = ours.rpartition(".")
    for theirs, name in read_layout(layout).names.items():
        if name == ours:
            return theirs
        if name == module:
            return f"{theirs}.{leaf}"
    raise AssertionError(f"the layout '{layout}' has no name for '{ours}'")


def find_layouts(names: Iterable[str]) -> list[str]:
    """List the layouts with exactly these published names, except optional and unused ones."""
    published = [str(name) for name in names]
    return [layout.name for layout in list_layouts() if _has_layout(published, layout.name)]


def _has_layout(names: Sequence[str], layout: str) -> bool:
    row = read_layout(layout)
    unused = unused_names(names, layout)
    ours = [translate_key(name, layout) for name in names if name not in unused]
    if not ours or None in ours:
        return False
    needed = {name for name in row.names.values() if row.optional is None or not name.startswith(f"{row.optional}.")}
    modules = {name if name in needed else str(name).rpartition(".")[0] for name in ours}
    return needed <= modules


def _without_wrapper(state: Mapping[str, Tensor]) -> list[str]:
    if state and all(key.startswith("module.") for key in state):
        return [key.removeprefix("module.") for key in state]
    return list(state)


# --- changes of tensors under our names, each with the argument of its row: absent tensors are skipped, None is dropped


def _add_norm_counts(weights: Mapping[str, Tensor], _: bool) -> dict[str, Tensor]:
    """Add a count of 0 to batch norms without one, as frozen ones and those of Darknet."""
    counts = {
        f"{name.removesuffix('running_var')}num_batches_tracked" for name in weights if name.endswith(".running_var")
    }
    return {name: torch.tensor(0) for name in sorted(counts - weights.keys())}


def _set_epsilon(weights: Mapping[str, Tensor], epsilon: float) -> dict[str, Tensor]:
    """Reduce variances by as much as our batch norms add more to them than those of the file, which add `epsilon`."""
    difference = _OUR_EPSILON - epsilon
    return {name: value - difference for name, value in weights.items() if name.endswith(".running_var")}


def _swap_groups(weights: Mapping[str, Tensor], groups: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Reorder rows that count n groups of m rows to m groups of n."""
    return {
        name: weights[name].unflatten(0, (*sizes, -1)).transpose(0, 1).flatten(0, 2)
        for name, sizes in groups.items()
        if name in weights
    }


def _reverse_colours(weights: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Convert convolutions of BGR images to RGB."""
    return {name: weights[name].unflatten(1, (-1, 3)).flip(2).flatten(1, 2) for name in names if name in weights}


def _reverse_axes(weights: Mapping[str, Tensor], _: bool) -> dict[str, Tensor]:
    """Convert kernels over volumes between the orders z, y, x and x, y, z of their axes."""
    return {name: value.transpose(-1, -3).contiguous() for name, value in weights.items() if value.ndim == 5}


def _roll_inputs(weights: Mapping[str, Tensor], counts: Mapping[str, str | int]) -> dict[str, Tensor]:
    """Move the first input channels of a layer to the end, or the last to the front if their number is negative.

    A name stands for the number of outputs of that layer.
    """
    return {
        name: weights[name].roll(-count if isinstance(count, int) else -len(weights[count]), dims=1)
        for name, count in counts.items()
        if name in weights
    }


def _swap_halves(weights: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Exchange the first and the second half of the input channels of layers."""
    return {name: torch.cat(weights[name].chunk(2, dim=1)[::-1], dim=1) for name in names if name in weights}


def _fold_biases(weights: Mapping[str, Tensor], means: Sequence[str]) -> dict[str, Tensor | None]:
    """Subtract the biases of layers from the running means of the norms behind them, and drop the biases.

    In training a norm removes the bias anyway.
    """
    bias_of = {mean: mean.replace("norm.running_mean", "linear.bias") for mean in means}
    folded = {mean: weights[mean] - weights[bias] for mean, bias in bias_of.items() if bias in weights}
    return {**folded, **dict.fromkeys(bias_of.values())}


def _add_identity(weights: Mapping[str, Tensor], biases: Sequence[str]) -> dict[str, Tensor]:
    """Add the identity to biases that are the numbers of a square matrix, which the file's code adds to the output."""
    return {
        name: weights[name] + torch.eye(math.isqrt(len(weights[name])), dtype=weights[name].dtype).flatten()
        for name in biases
        if name in weights
    }


def _drop_zero_biases(weights: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, None]:
    """Drop the biases of layers that have none here. Raises CheckpointError for one that is not zero."""
    biases = [name.replace("weight", "bias") for name in names]
    for bias in biases:
        if bias in weights and weights[bias].any():
            raise CheckpointError(
                f"the bias '{bias}', which our model does not have, is not zero; is it a variant of the layout?"
            )
    return dict.fromkeys(biases)


def _arrange_kernels(weights: Mapping[str, Tensor], library: str) -> dict[str, Tensor | None]:
    """Bring the kernels of a library of sparse convolutions to (places, in, out), places with z fastest.

    spconv has (out, x, y, z, in), and reads the memory of a kernel of size 1 as (in, out); before 2.2 it had
    (x, y, z, in, out). MinkowskiEngine and torchsparse have (places, in, out) with x fastest, the latter for odd sizes
    alone, and (in, out) for size 1. Beside torchsparse, a linear layer's (out, in) becomes a kernel of size 1. Raises
    CheckpointError for kernels of other axes.
    """
    arranged: dict[str, Tensor | None] = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "kernel":
            arranged[name] = None
            arranged[f"{module}.weight"] = _arrange_places(value, library) if value.ndim == 3 else value[None]
        elif leaf == "weight" and value.ndim == 5:
            arranged[name] = _arrange_axes(name, value)
        elif leaf == "weight" and value.ndim == 2 and library == "torchsparse":
            arranged[name] = value.T[None].contiguous()
        elif leaf == "bias" and value.ndim == 2:
            arranged[name] = value.flatten()
    return arranged


def _arrange_axes(name: str, weight: Tensor) -> Tensor:
    """Bring a kernel of spconv with five axes to (places, in, out)."""
    out_channels, *sizes, in_channels = weight.shape
    if sizes == [1, 1, 1]:
        return weight.reshape(1, in_channels, out_channels)
    if len(set(sizes)) == 1:
        return weight.reshape(out_channels, -1, in_channels).permute(1, 2, 0).contiguous()
    if len(set(weight.shape[:3])) == 1:
        return weight.flatten(0, 2).contiguous()
    raise CheckpointError(
        f"'{name}' has the shape {tuple(weight.shape)}, which is no kernel of spconv: (out, x, y, z, in), before 2.2 "
        "(x, y, z, in, out)"
    )


def _arrange_places(kernel: Tensor, library: str) -> Tensor:
    """Order the places (K, in, out) of a kernel with z fastest instead of x."""
    size = round(len(kernel) ** (1 / 3))
    if library == "torchsparse" and size % 2 == 0:
        return kernel
    return kernel.unflatten(0, (size, size, size)).transpose(0, 2).flatten(0, 2).contiguous()


def _ignored_class_first(weights: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Move the last row of heads, of what is ignored, to the front."""
    return {name: weights[name].roll(1, dims=0) for name in names if name in weights}


CHANGES: Mapping[str, Callable[[Mapping[str, Tensor], Any], Mapping[str, Tensor | None]]] = {
    "add_norm_counts": _add_norm_counts,
    "arrange_kernels": _arrange_kernels,
    "epsilon": _set_epsilon,
    "swap_groups": _swap_groups,
    "reverse_colours": _reverse_colours,
    "reverse_axes": _reverse_axes,
    "roll_inputs": _roll_inputs,
    "swap_halves": _swap_halves,
    "fold_biases": _fold_biases,
    "drop_zero_biases": _drop_zero_biases,
    "ignored_class_first": _ignored_class_first,
    "add_identity": _add_identity,
}
