"""Slips that the autograd graph of a loss shows: operands that do not fit, and operations along a wrong axis."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sightline.doctor.autograd_graph import get_node_name, iter_nodes, skip_shape_operations
from sightline.doctor.evidence.data.reading import ReadClasses
from sightline.doctor.evidence.graph import Reshape, list_softmaxes
from sightline.doctor.evidence.losses import Squashed
from sightline.doctor.rules import find_by
from sightline.doctor.rules.data import sorted_labels
from sightline.doctor.rules.loss import double_softmax
from sightline.doctor.rules.loss_graph import graph_slip
from sightline.doctor.rules.model import exchanged_axes, softmax_axis
from sightline.doctor.watch.loop import CallSite, Found, Loop, Monitor

_VIEWS = frozenset(("View", "UnsafeView", "ReshapeAlias"))
UNBOUNDED = frozenset(("Convolution", "Addmm", "Mm", "Bmm", "NativeBatchNorm", "CudnnBatchNorm", "Linear"))
_MEAN_LOSSES = frozenset(("NllLoss", "NllLoss2D", "BinaryCrossEntropyWithLogits", "BinaryCrossEntropy"))
_PAIRED_LOSSES = frozenset(("MseLoss", "SmoothL1Loss", "HuberLoss", "BinaryCrossEntropyWithLogits"))
_OF_EACH = frozenset(
    "Abs Pow Neg Sqrt Exp Log Log1P Clamp ClampMin ClampMax Relu Softplus Mul Div Add Sub Rsub".split()
)
"""Operations that take each number alone, if their other operand is a single number or the same tensor."""
_MATRIX_PRODUCTS = frozenset(("Mm", "Bmm", "Baddbmm"))
_LINEAR = frozenset(("Addmm", "Mm", "Linear"))
_EVEN, _ODD = frozenset(("Abs", "Pow")), frozenset(("Neg", "Mul", "Div"))
"""Operations of a distance, and those that may stand between it and a difference."""
_BOUNDS, _REDUCED = frozenset(("Clamp", "ClampMin", "ClampMax", "Maximum")), frozenset(("Mean", "Sum"))
_MAX_CHAIN, _MAX_TERMS = 12, 64


class LossGraph:
    """First nodes of the graph of a loss, breadth first, with the nodes that read each of them."""

    def __init__(self, root: Any, limit: int) -> None:
        self.nodes: list[Any] = [root]
        self.readers: dict[Any, list[Any]] = {root: []}
        for node in self.nodes:  # grows while it is read
            for parent in list_parents(node):
                if parent not in self.readers:
                    if len(self.nodes) >= limit:
                        continue
                    self.readers[parent] = []
                    self.nodes.append(parent)
                self.readers[parent].append(node)

    def find_faults(self) -> Iterator[Found]:
        """Yield the slips; each relation holds for every loss that does what its operations are for."""
        for node in self.nodes:
            name = get_node_name(node)
            for judge in _JUDGES.get(name, ()):
                yield from judge(self, node)
            yield from _broadcast_faults(self, node)
        reshapes = [each for node in self.nodes for each in _list_reshapes(self, node)]
        yield from find_by(exchanged_axes, reshapes=reshapes)
        yield from find_by(softmax_axis, softmaxes=list_softmaxes(self.nodes))

    def follow(self, node: Any, names: Iterable[str]) -> Iterator[Any]:
        """Iterate over a node and those that read it alone, as long as their operations are among `names`."""
        yield node
        for _ in range(_MAX_CHAIN):
            readers = set(self.readers[node])
            if len(readers) != 1:
                return
            (node,) = readers
            yield node
            if get_node_name(node) not in names:
                return


def list_parents(node: Any) -> list[Any]:
    """List the nodes that a node of the graph reads."""
    return [parent for parent, _ in node.next_functions if parent is not None]


def list_counted(root: Any) -> set[int] | None:
    """List the parameters, by identity, that a loss reaches by others than terms that give no gradient; None for all.

    A term gives gradients of 0 on purpose if it is multiplied by the number 0, or if a bound holds it, as that of the
    free nats of a divergence.
    """
    first = [*itertools.islice(iter_nodes([root]), _MAX_TERMS)]
    held = {node for node in first if _is_held(node)}
    if not held and not any(map(_is_weighted_zero, first)):
        return None
    zeros = {node for node in iter_nodes([root]) if node is not root and _is_weighted_zero(node)}
    return list_variables(iter_nodes([root], until=held | zeros))


def list_variables(nodes: Iterable[Any]) -> set[int]:
    """List the tensors without history that are among the nodes of a graph, by identity."""
    return {id(node.variable) for node in nodes if hasattr(node, "variable")}


def _is_weighted_zero(node: Any) -> bool:
    """Return True for the product of a number without axes, the term, and a constant number 0.

    Numbers of Python are on the host; one on a GPU, such as the scale of a GradScaler, would have to be waited for.
    """
    if get_node_name(node) != "Mul" or get_shape(node) or len(list_parents(node)) != 1:
        return False
    factors = [get_saved(node, name) for name in ("self", "other")]
    constants = [f for f in factors if isinstance(f, Tensor) and not f.requires_grad and not f.ndim]
    return any(constant.device.type == "cpu" and float(constant) == 0 for constant in constants)


def _is_held(node: Any) -> bool:
    """Return True for a bound on means or sums, all of which are beyond it; of numbers on the host alone, too."""
    if get_node_name(node) not in _BOUNDS or not any(get_node_name(p) in _REDUCED for p in list_parents(node)):
        return False
    value, low, high = (get_saved(node, name) for name in ("self", "min", "max"))
    low = get_saved(node, "other") if low is None else low  # of `maximum`
    if not isinstance(value, Tensor) or any(isinstance(t, Tensor) and t.device.type != "cpu" for t in (value, low)):
        return False
    is_beyond = torch.zeros_like(value, dtype=torch.bool)
    is_beyond = is_beyond if low is None else is_beyond | (value < low)
    return bool((is_beyond if high is None else is_beyond | (value > high)).all())


def is_reordered(before: Iterable[int], after: Iterable[int]) -> bool:
    """Return True for equal sizes in another order, sizes of 1 aside: memory that is read as of exchanged axes."""
    old, new = ([int(size) for size in sizes if size != 1] for sizes in (before, after))
    return old != new and sorted(old) == sorted(new)


def is_misread(before: Sequence[int], after: Sequence[int]) -> bool:
    """Return True if memory of maps (B, C, H, W) is read as rows (B, H W, C), or of rows as maps or heads (B, h, N, d).

    No axis of one is a group of axes of the other, so the values of a row are of several places or channels.
    """
    if not before or not after or before[0] != after[0] or before[-1] == after[-1]:
        return False
    rows, maps = (before, after) if len(before) == 3 else (after, before)
    if len(rows) != 3 or len(maps) != 4 or 1 in (*rows[1:], *maps[1:]) or rows[1] == rows[2]:
        return False
    num, width = rows[1:]
    is_group = width in (*maps[2:], maps[2] * maps[3])  # the last axes of the maps, as they are
    num_maps = maps[1] // width if maps[1] % width == 0 and not is_group else 0  # (B, A K, H, W) of A anchors
    is_map = max(num_maps, maps[1] == width) * maps[2] * maps[3] == num and num != width
    is_head = maps[2] == num and maps[1] * maps[3] == width and maps[1] != num
    return is_map or is_head


def get_shape(node: Any) -> tuple[int, ...]:
    """Return the shape of what a node of the graph has computed; () if it is not known, or that of a nested tensor."""
    metadata = getattr(node, "_input_metadata", ())
    shape = tuple(metadata[0].shape) if metadata and not metadata[0].is_nested_tensor else ()
    return shape if all(isinstance(size, int) for size in shape) else ()


def get_saved(node: Any, name: str) -> Any:
    """Return what a node of autograd saved under a name; None without it."""
    return getattr(node, f"_saved_{name}", None)


def _list_reshapes(graph: LossGraph, node: Any) -> Iterator[Reshape]:
    """Yield a view that is told from all others by its sizes alone, which no batch of another size confirms."""
    if get_node_name(node) not in _VIEWS:
        return
    before, after = get_saved(node, "self_sym_sizes") or (), get_shape(node)
    is_exchanged = len(before) == len(after) and is_reordered(before, after) and not _is_of_heads(graph, node)
    if is_exchanged or is_misread(before, after):
        yield Reshape(tuple(before), after)


def _is_of_heads(graph: LossGraph, node: Any) -> bool:
    """Return True for (T, B, E) read as (T, B * heads, E / heads) and then transposed, as torch's attention does."""
    users = [user for user in graph.nodes if any(parent is node for parent in list_parents(user))]
    dims = ({get_saved(user, "dim0"), get_saved(user, "dim1")} for user in users if get_node_name(user) == "Transpose")
    return any(pair == {0, 1} for pair in dims)


def _broadcast_faults(graph: LossGraph, node: Any) -> Iterator[Found]:
    """(B, 1) against (B,): each output is compared with the targets of all samples, and the mean hides it.

    A ranking compares scores on purpose, by a hinge or a logistic function of differences, and so does a distance of
    two distributions, which has the differences of the outputs among themselves, too.
    """
    shape, name = get_shape(node), get_node_name(node)
    if name in _PAIRED_LOSSES:
        shape = tuple(getattr(get_saved(node, "self"), "shape", ()))
        is_mean = get_saved(node, "reduction") != 0
    else:
        chain = [*_follow_each(graph, node)] if name == "Sub" else []
        is_mean = _is_distance(chain) and any(
            get_node_name(reader) in ("Mean", "Sum") and not get_shape(reader) for reader in chain
        )
    parents = list_parents(node)
    if not is_mean or len(parents) != 1 or len(shape) < 2 or shape[0] < 2 or shape[0] != shape[1]:
        return
    before = get_saved(parents[0], "self_sym_sizes") if get_node_name(parents[0]) == "Expand" else get_shape(parents[0])
    if tuple(before or ()) in ((shape[0], 1, *shape[2:]), shape[1:]) and not _is_compared_with_itself(graph, node):
        words = {"before": tuple(before), "shape": shape, "rows": shape[0], "columns": shape[1]}
        yield from find_by(graph_slip, slip="broadcast", numbers=words)


def _is_distance(chain: Sequence[Any]) -> bool:
    """Return True if a difference enters an even function first, an absolute value or a square: it is to be zero."""
    names = [*map(get_node_name, chain[1:])]
    place = next((place for place, name in enumerate(names) if name not in _ODD or _is_square(chain[place + 1])), 0)
    return bool(names) and (names[place] in _EVEN or _is_square(chain[place + 1]))


def _is_square(node: Any) -> bool:
    parents = list_parents(node)
    return get_node_name(node) == "Mul" and len(parents) == 2 and parents[0] is parents[1]


def _is_compared_with_itself(graph: LossGraph, node: Any) -> bool:
    """Return True if the loss has the differences of all pairs of the outputs, beside those of `node` with others."""
    output = skip_shape_operations(list_parents(node)[0])
    return any(
        get_node_name(other) == "Sub"
        and get_shape(other) == get_shape(node)
        and [skip_shape_operations(parent) for parent in list_parents(other)] == [output, output]
        for other in graph.nodes
    )


def _follow_each(graph: LossGraph, node: Any) -> Iterator[Any]:
    for reader in graph.follow(node, _OF_EACH):
        yield reader
        if len(set(list_parents(reader))) > 1 and reader is not node:
            return
        others = (get_saved(reader, name) for name in ("self", "other"))
        is_alone = len(list_parents(reader)) == 2 or all(not isinstance(o, Tensor) or o.ndim == 0 for o in others)
        if get_node_name(reader) in ("Mul", "Div") and not is_alone:
            return


def _focal_faults(graph: LossGraph, node: Any) -> Iterator[Found]:
    """exp(-mean) times the mean: one factor for the whole batch, where focal loss has one for each element."""
    scores = get_saved(node, "self")
    if not isinstance(scores, Tensor) or get_shape(node) or not get_saved(node, "reduction") or len(scores) < 2:
        return
    readers = graph.readers[node]
    exponentials = [e for n in readers if get_node_name(n) == "Neg" for e in graph.readers[n]]
    if len(readers) > 1 and any(get_node_name(e) == "Exp" for e in exponentials):
        yield from find_by(graph_slip, slip="focal", numbers={"shape": tuple(get_saved(node, "target").shape)})


def _pair_faults(graph: LossGraph, node: Any) -> Iterator[Found]:
    """Cross entropy over the products of all rows with all rows: a row's product with itself is no negative."""
    if get_node_name(softmax := node.next_functions[0][0]) != "LogSoftmax":
        return
    product = softmax.next_functions[0][0]
    while get_node_name(product) in ("Div", "Mul") and len(list_parents(product)) == 1:
        product = list_parents(product)[0]
    if get_node_name(product) != "Mm":
        return
    left, right = get_saved(product, "self"), get_saved(product, "mat2")
    is_same = isinstance(left, Tensor) and isinstance(right, Tensor) and left.data_ptr() == right.data_ptr()
    if is_same and left.shape == right.shape[::-1] and len(left) > 2 and left.stride() == right.stride()[::-1]:
        yield from find_by(graph_slip, slip="self pairs", numbers={"number": len(left)})


def _masked_extreme_faults(graph: LossGraph, node: Any) -> Iterator[Found]:
    """Yield faults of extremes of masked values.

    The least of values times a mask is a real one: the zeros of what is masked are no values.
    """
    product, dim, indices = node.next_functions[0][0], get_saved(node, "dim"), get_saved(node, "indices")
    if get_node_name(product) != "Mul" or dim is None or not isinstance(indices, Tensor):
        return
    shape = get_shape(product)
    factors = [f for f in (get_saved(product, "self"), get_saved(product, "other")) if isinstance(f, Tensor)]
    masks = [f for f in factors if f.ndim and bool(((f == 0) | (f == 1)).all())]
    if len(masks) != 1 or not shape:
        return
    axis = get_axis(dim, len(shape))
    mask = masks[0].expand(shape) != 0
    chosen = mask.gather(axis, indices if indices.ndim == len(shape) else indices.unsqueeze(axis))
    if bool(mask.any(dim=axis).all()) and not bool(chosen.any()):
        word = {"Min": "least", "Max": "largest"}[get_node_name(node)]
        yield from find_by(graph_slip, slip="masked", numbers={"word": word, "number": chosen.numel()})


def is_of_pairs(node: Any) -> bool:
    """Return True for a cross entropy of similarities, whose classes are places in a list and have no weights.

    InfoNCE with a queue has its positive first, as a reranker may: the label is always 0.
    """
    scores = skip_shape_operations(next(iter(list_parents(node)), None))
    while get_node_name(scores) in ("LogSoftmax", "Div", "Mul") and len(list_parents(scores)) == 1:
        scores = skip_shape_operations(list_parents(scores)[0])
    is_single = get_node_name(scores) in _LINEAR and get_shape(scores)[-1:] == (1,)  # of the same weights for all
    if get_node_name(scores) == "Cat" or (is_single and get_saved(node, "self").shape[1] > 1):
        return True
    if get_node_name(scores) == "Sum":
        scores = skip_shape_operations(next(iter(list_parents(scores)), None))
        return get_node_name(scores) == "Mul" and len(list_parents(scores)) == 2
    is_product = get_node_name(scores) in _MATRIX_PRODUCTS
    return is_product and all(get_node_name(skip_shape_operations(p)) != "AccumulateGrad" for p in list_parents(scores))


def _overlap_faults(graph: LossGraph, node: Any) -> Iterator[Found]:
    """sum(p t) / sum(p + t), as in Dice and IoU, is between 0 and 1 for p between 0 and 1 alone."""
    if len(node.next_functions) < 2 or None in (node.next_functions[0][0], node.next_functions[1][0]):
        return
    top, bottom = ([skip_shape_operations(n) for n in _list_summed(parent)] for parent, _ in node.next_functions)
    factors = [skip_shape_operations(list_parents(n)[0]) for n in top if n and _is_product_with_constant(n)]
    names = {get_node_name(factor) for factor in factors if any(factor is summed for summed in bottom)}
    if names & UNBOUNDED:
        yield from find_by(graph_slip, slip="overlap", numbers={"names": ", ".join(sorted(names & UNBOUNDED))})


def _is_product_with_constant(node: Any) -> bool:
    return get_node_name(node) == "Mul" and len(list_parents(node)) == 1


def _list_summed(node: Any) -> list[Any]:
    """List what is summed below a node: the operands of its sums, past additions and single factors."""
    found, waiting = [], [node]
    for _ in range(_MAX_CHAIN):
        if not waiting:
            break
        current = waiting.pop()
        name = get_node_name(current)
        if name in ("Sum", "Mean"):
            found += list_parents(current)
        elif name in ("Add", "Sub", "ClampMin", "Clamp") or (name == "Mul" and len(list_parents(current)) == 1):
            waiting += list_parents(current)
    return found


def _divergence_faults(graph: LossGraph, node: Any) -> Iterator[Found]:
    """t log t - t x is the divergence of t from p for x = log p; with x = p it is below zero, and prefers certainty."""
    if node.next_functions[0][0] is not None or get_node_name(product := node.next_functions[1][0]) != "Mul":
        return
    scores = list_parents(product)
    softmax = skip_shape_operations(scores[0]) if len(scores) == 1 else None
    constant = next(
        (c for c in (get_saved(product, "self"), get_saved(product, "other")) if isinstance(c, Tensor)), None
    )
    if get_node_name(softmax) != "Softmax" or constant is None or constant.shape != get_shape(node):
        return
    axis = get_axis(get_saved(softmax, "dim"), constant.ndim)
    is_soft = constant.amax(dim=axis).min() < 0.999  # not the labels of one class each
    is_distribution = ((constant.sum(dim=axis) - 1).abs() < 1e-3).all() & (constant >= 0).all() & is_soft
    if bool(is_distribution) and any(get_node_name(reader) in ("Sum", "Mean") for reader in graph.readers[node]):
        yield from find_by(graph_slip, slip="divergence", numbers={})


def get_axis(dim: int, ndim: int) -> int:
    """Return the axis that a node saved as an unsigned number, counted from 0."""
    return (dim - 2**64 if dim >= 2**63 else dim) % ndim


_JUDGES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_MEAN_LOSSES, (_focal_faults,)),
    **dict.fromkeys(("Min", "Max"), (_masked_extreme_faults,)),
    "NllLoss": (_focal_faults, _pair_faults),
    "Div": (_overlap_faults,),
    "Sub": (_divergence_faults,),
}
"""Relations by the operation at which they are asked."""


_SQUASHING = frozenset(("LogSoftmax", "NllLoss", "NllLoss2D", "BinaryCrossEntropyWithLogits"))
"""Operations of a loss with an activation of their own, or after one."""
_NUM_SAME, _NUM_SAME_OF_PLACES, _MIN_LABELS = 5, 20, 8
_MAX_NODES, _MAX_FIRST_NODES = 300, 3000
_NUM_GRAPHS, _NUM_LINES = 2, 4
"""Graphs of the losses of one line, and lines, that are read far enough for the attention of a deep network."""


class LossMonitor(Monitor):
    """Graph of the loss: activations that the loss applies itself; labels that are all the same."""

    def __init__(self) -> None:
        self._num_graphs = Counter[CallSite]()
        self._classes: deque[float] = deque(maxlen=_NUM_SAME_OF_PLACES)
        self._in_turns: set[float] = set()

    def before_backward_measured(self, loop: Loop, root: Tensor) -> Iterator[Found]:
        if root.grad_fn is None:
            return
        is_early = self._num_graphs[loop.call_site] < _NUM_GRAPHS and len(self._num_graphs) <= _NUM_LINES
        self._num_graphs[loop.call_site] += 1
        graph = LossGraph(root.grad_fn, _MAX_FIRST_NODES if is_early else _MAX_NODES)
        yield from graph.find_faults() if is_early else ()
        nodes = [(get_node_name(node), node) for node in graph.nodes[:_MAX_NODES]]
        squashed = [
            Squashed(name, get_node_name(skip_shape_operations(parents[0])))
            for name, node in nodes
            if name in _SQUASHING and (parents := list_parents(node))
        ]
        yield from find_by(double_softmax, squashed=squashed)
        for name, node in nodes:
            if name.startswith("NllLoss"):
                labels = node._saved_target
                if labels.numel() >= _MIN_LABELS and not is_of_pairs(node):
                    yield from loop.reader.read(_find_one_class(labels, node._saved_ignore_index), self._judge_labels)

    def _judge_labels(self, value: float) -> Iterator[Found]:
        if not value:
            self._classes.clear()
            return
        self._classes.append(abs(value))
        number = _NUM_SAME if value > 0 else _NUM_SAME_OF_PLACES  # with ignored ones: of pixels, or of words
        classes = [*self._classes][-number:]
        if len(self._classes) >= number and _take_turns(classes):
            self._in_turns.update(classes)
        elif len(self._classes) >= number and not self._in_turns.issuperset(classes):
            yield from find_by(sorted_labels, read_classes=ReadClasses(classes, are_of_batches=True))


def _find_one_class(labels: Tensor, ignored: int) -> Tensor:
    """Return 1 + c (0-d) if enough labels are not ignored, and those are class c, and -1 - c if others are ignored.

    Else 0. The graph's number is unsigned.
    """
    is_kept = labels != (ignored + 2**63) % 2**64 - 2**63
    largest = torch.where(is_kept, labels, labels.amin()).amax()
    is_one = ((labels == largest) | ~is_kept).all() & (is_kept.sum() >= _MIN_LABELS)
    return is_one * (1.0 + largest.float()) * (2.0 * is_kept.all() - 1)


def _take_turns(classes: Sequence[float]) -> bool:
    """Return True if batches of two classes come in turns, as real and generated ones do: no set is sorted so."""
    return len(set(classes)) == 2 and sum(one != other for one, other in itertools.pairwise(classes)) > 1
