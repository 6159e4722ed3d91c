"""Operations of the autograd graph of a loss whose axes do not fit: views that exchange axes, softmaxes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sightline.doctor.attempts import MissingError, attempt
from sightline.doctor.autograd_graph import get_node_name, iter_nodes
from sightline.doctor.evidence import measure
from sightline.doctor.subject import Batch, Pass, Subject, count_samples, take_rows

_FEW = 2
_VIEWS = ("View", "UnsafeView", "ReshapeAlias")
_KEEPS = (*_VIEWS, "Expand", "NativeDropout", "Mul", "Clone", "ToCopy", "MaskedFill")
_MAX_CHAIN = 8


class Reshape(NamedTuple):
    """Sizes before and after a view that only an exchange of axes explains; `layer` is called with it, "" in the graph.

    A view of what needs no gradient, as of the model's inputs, is in no graph: a loop shows it where it enters a layer.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    layer: str = ""


@measure()
def reshapes(subject: Subject, passed: Pass) -> list[Reshape]:
    """List the views of the loss's graph whose sizes are those before in another order, merged or split.

    Sizes may be equal by chance, as the samples of a batch and the width of a head are: where a batch of one sample
    less, or of one more if there are few, has no such view, there is none.
    """
    found, size = list_reshapes(passed.value), count_samples(passed.batch)
    if not found or not size:
        return found
    rows = range(size - 1) if size > _FEW else [*range(size), 0]
    other = Batch(*take_rows(tuple(passed.batch), rows))
    again = attempt("other samples", subject.run, {"model": subject.copy("train"), "batch": other})
    return found if isinstance(again, MissingError) or list_reshapes(again.value) else []


def list_reshapes(value: Tensor) -> list[Reshape]:
    """List the views of a graph whose sizes are those before in another order, merged or split."""
    nodes = list(iter_nodes([value.grad_fn]))
    turned = {
        parent
        for node in nodes
        if get_node_name(node) == "Transpose" and {node._saved_dim0, node._saved_dim1} == {0, 1}
        for parent, _ in node.next_functions
    }
    exchanged, undone = dict[Any, Reshape](), set[Any]()
    for node in nodes:
        if get_node_name(node) in _VIEWS and hasattr(node, "_saved_self_sym_sizes"):
            before = tuple(map(int, node._saved_self_sym_sizes))
            after = tuple(map(int, node._input_metadata[0].shape))
            if exchanges_axes(before, after) and not (node in turned and _divides_heads(before, after)):
                exchanged[node] = Reshape(before, after)
    for node in exchanged:
        other = _find_end_of_linear(node)
        if other in exchanged and _are_inverse(exchanged[other], exchanged[node]):
            undone |= {node, other}
    return list(dict.fromkeys(found for node, found in exchanged.items() if node not in undone))


def _find_end_of_linear(node: Any) -> Any:
    """Return the view from which a view comes by a linear map of channels alone, a convolution of single pixels."""
    for _ in range(_MAX_CHAIN):
        node = next((parent for parent, _ in node.next_functions if parent is not None), None)
        name = "" if node is None else get_node_name(node)
        if name in _VIEWS:
            return node
        is_pixelwise = name == "Convolution" and set(node._saved_weight.shape[2:]) == {1}
        if not is_pixelwise and name != "Permute":
            return None
    return None


def _are_inverse(first: Reshape, last: Reshape) -> bool:
    """Return True for views of which the last undoes the first, the channels aside, which are their last axis."""
    return first.before[:-1] == last.after[:-1] and first.after[:-1] == last.before[:-1]


def _divides_heads(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Return True for (T, B, E) read as (T, B heads, E / heads), as torch's attention does before it transposes."""
    is_like = len(before) == len(after) == 3 and before[0] == after[0]
    return is_like and before[2] % after[2] == 0 and after[1] == before[1] * (before[2] // after[2])


def exchanges_axes(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Return True if the sizes after a view are those before in another order, and in order they cannot be."""
    old, new = ([size for size in sizes if size != 1] for sizes in (before, after))
    while old and new and old[0] == new[0]:
        old, new = old[1:], new[1:]
    if len(old) < len(new):
        old, new = new, old
    if len(new) < 2 or len(old) > 5:
        return False
    if sorted(old) == sorted(new):
        return True
    ends_old, ends_new = _list_ends(old), _list_ends(new)
    if set(ends_new) <= set(ends_old):
        return False  # neighbours are merged, in order
    ends = sorted({*ends_old, *ends_new})
    is_split = all(later % earlier == 0 for earlier, later in itertools.pairwise(ends))
    is_of_heads = len(old) == 3 and new == [old[1], old[0] * old[2]]
    return _is_merged(old, new) and (not is_split or is_of_heads)


def _list_ends(sizes: list[int]) -> list[int]:
    return list(itertools.accumulate(sizes, lambda a, b: a * b))


def _is_merged(old: list[int], new: list[int]) -> bool:
    """Return True if groups of the old axes, at least one of them a single axis, have the new sizes."""
    if len(new) == 1:
        return math.prod(old) == new[0]
    for count in range(1, len(old)):
        for places in itertools.combinations(range(len(old)), count):
            if math.prod(old[place] for place in places) == new[0]:
                rest = [size for place, size in enumerate(old) if place not in places]
                if _is_merged(rest, new[1:]):
                    return True
    return False


class Softmax(NamedTuple):
    """Softmax along an axis (from the end) of a tensor that is multiplied along another one."""

    shape: tuple[int, ...]
    axis: int
    multiplied: int


@measure()
def softmaxes(passed: Pass) -> list[Softmax]:
    """List the softmaxes whose result is the operand of a matrix product along another axis."""
    return list_softmaxes(list(iter_nodes([passed.value.grad_fn])))


def list_softmaxes(nodes: Sequence[Any]) -> list[Softmax]:
    """List the softmaxes among the nodes of a graph whose result is multiplied along another axis."""
    readers: dict[Any, list[tuple[Any, int]]] = {}
    for node in nodes:
        for place, (parent, _) in enumerate(node.next_functions):
            readers.setdefault(parent, []).append((node, place))
    found = []
    for node in nodes:
        if get_node_name(node) == "Softmax" and _is_of_pairs(node):
            shape = tuple(node._saved_result.shape)
            axis = int(node._saved_dim)
            axis = axis - 2**64 if axis >= 2**63 else axis
            axis = axis - len(shape) if axis >= 0 else axis
            found += [Softmax(shape, axis, other) for other in _follow(node, shape, readers) if other != axis]
    return found


def _is_of_pairs(node: Any) -> bool:
    """Return True for scores of queries and keys: numbers of one product, scaled and masked; others are clusters.

    A product of two matrices is one of scores if none of them is a weight.
    """
    for _ in range(_MAX_CHAIN):
        name, parents = get_node_name(node), [parent for parent, _ in node.next_functions if parent is not None]
        if name in ("Bmm", "Baddbmm") or not parents or name in ("Addmm", "Mm"):
            are_computed = not {"AccumulateGrad", "T"} & {*map(get_node_name, parents)}
            return name in ("Bmm", "Baddbmm") or (name == "Mm" and len(parents) == 2 and are_computed)
        node = parents[0]
    return False


def _follow(node: Any, shape: tuple[int, ...], readers: dict[Any, list[tuple[Any, int]]]) -> Iterator[int]:
    """Yield the axis, from the end, along which a product reads the result of a node."""
    is_turned = False
    for _ in range(_MAX_CHAIN):
        following = readers.get(node, [])
        if len(following) != 1:
            return
        node, place = following[0]
        name = get_node_name(node)
        last_two = tuple(node._input_metadata[0].shape)[-2:]
        if name in ("Bmm", "Mm"):
            yield -1 if (place == 0) != is_turned else -2
            return
        if name == "Transpose" and sorted(_from_end(node, len(shape))) == [-2, -1]:
            is_turned = not is_turned
        elif name not in _KEEPS or last_two != (shape[-2:][::-1] if is_turned else shape[-2:]):
            return


def _from_end(node: Any, ndim: int) -> tuple[int, int]:
    first, second = (int(axis) for axis in (node._saved_dim0, node._saved_dim1))
    first, second = (axis - 2**64 if axis >= 2**63 else axis for axis in (first, second))
    return tuple(axis - ndim if axis >= 0 else axis for axis in (first, second))  # type: ignore[return-value]
