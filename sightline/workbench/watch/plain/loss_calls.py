"""Calls of torch's functions in a loss, also without gradients: boxes of two formats, and logarithms of holes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import tree_leaves
from sightline.instrument import InterceptedFunctions
from sightline.workbench.check.runtime_rules import report
from sightline.workbench.watch.loop import Found

Loss = Callable[[Any, Any], Tensor]

_EXTREMES = {"min": False, "minimum": False, "fmin": False, "max": True, "maximum": True, "fmax": True}
"""Functions of two tensors, and whether they take the larger number."""
_SELECTIONS = frozenset(("getitem", "gather", "index_select", "masked_select", "take", "take_along_dim"))
"""Functions whose result holds numbers of the first argument alone."""
_LOGARITHMS = frozenset(("log", "log2", "log10"))
_DIVISIONS = frozenset(("div", "divide", "truediv", "true_divide"))
_EXPORTS = frozenset(("numpy", "tolist", "array"))
_MIN_SIDES, _MAX_UNORDERED = 16, 0.2
_MIN_HOLES, _MIN_SHARE = 8, 0.01
_MIN_OF_MEDIAN, _MAX_OF_LEAST = 0.05, 0.1
_MAX_ADDED = 0.05
"""Least number of a map beside its holes, as a share of its median; a hole inside of a logarithm, as a share of it."""


class Logarithm(NamedTuple):
    """Numbers of a target that enter a logarithm, as a leaf that gets a gradient; True where these were holes."""

    leaf: Tensor
    is_hole: Tensor

    def copy(self) -> Tensor:
        """Copy the numbers with a history, also for a target that is prepared without; a loss may write to them."""
        with torch.enable_grad():
            return self.leaf + 0


class LossCalls:
    """Calls of torch's functions while a loss runs: which tensors hold numbers of the outputs, which of the target.

    A tensor is known by its memory, and each is kept until the end, so that no memory is used twice. Numbers that a
    parameter or an output has part in are those of outputs.
    """

    def __init__(self, outputs: Any, target: Any) -> None:
        leaves, wanted = ([tensor for _, tensor in tree_leaves(tree)] for tree in (outputs, target))
        self.boxes: list[tuple[Tensor, Tensor]] = []
        self.logarithms: list[Logarithm] = []
        self._of_outputs = {place for tensor in leaves if (place := _get_place(tensor))}
        self._of_target = {place for tensor in wanted if (place := _get_place(tensor))} - self._of_outputs
        self._has_holes = any(t.ndim > 2 and not t.min() and _find_holes(t) is not None for t in wanted if t.numel())
        self._known = self._of_outputs | self._of_target
        self._extremes: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}
        self._ratios: dict[int, Logarithm] = {}
        self._kept: list[Tensor] = [*leaves, *wanted]
        self._is_exported = False

    def run(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function and note it; numbers of a target in a logarithm are replaced by equal ones with a gradient."""
        name = getattr(function, "__name__", "").strip("_")
        ratio = None
        if name in _DIVISIONS and self._has_holes:
            args, ratio = self._replace_operand(args)
        result = function(*args, **kwargs)
        self._note_flow(name, args, kwargs, result)
        if not isinstance(result, Tensor):
            return result
        if ratio is not None:
            self._ratios[_get_place(result)] = ratio
        operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if len(operands) == 2:
            self._note_boxes(name, operands[0], operands[1], result)
        elif name == "getitem" and operands:
            for is_largest in (False, True):
                self._pass_on_extreme(operands[0], result, is_largest)
        if name in _LOGARITHMS and operands and self._has_holes:
            return self._replace_logarithm(operands[0], result)
        return result

    def _note_flow(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note whose numbers the results hold; those of a mask, or of places, are not handed on."""
        read = [tensor for _, tensor in tree_leaves(args[:1] if name in _SELECTIONS else (args, kwargs))]
        read = [tensor for tensor in read if tensor.dtype != torch.bool]
        written = [tensor for _, tensor in tree_leaves(args[0] if name == "setitem" else result)]
        is_of_outputs, is_of_target = any(map(self._is_of_outputs, read)), any(map(self._is_of_target, read))
        self._is_exported = self._is_exported or (is_of_outputs and name in _EXPORTS)
        for tensor in written:
            if place := _get_place(tensor):
                self._of_outputs |= {place} if is_of_outputs else set()
                self._of_target |= {place} if is_of_target else set()
        self._known |= {_get_place(tensor) for tensor in (*read, *written)}
        self._kept += written

    def _is_of_outputs(self, tensor: Tensor) -> bool:
        """Return True for numbers of outputs, or of unknown origin after NumPy had some: they may have come back."""
        place = _get_place(tensor)
        return tensor.requires_grad or place in self._of_outputs or (self._is_exported and place not in self._known)

    def _is_of_target(self, tensor: Tensor) -> bool:
        return _get_place(tensor) in self._of_target and not self._is_of_outputs(tensor)

    # --- boxes -------------------------------------------------------------------------------------------------------

    def _note_boxes(self, name: str, first: Tensor, second: Tensor, result: Tensor) -> None:
        """Note sides of boxes without a gradient, if the least right sides minus the greatest left ones is taken."""
        if name in _EXTREMES:
            self._extremes[_get_place(result), _EXTREMES[name]] = first, second
            return
        ends = self._extremes.get((_get_place(first), False))
        starts = self._extremes.get((_get_place(second), True))
        if name in ("sub", "subtract") and ends is not None and starts is not None:
            spans = _pair_sides(starts, ends)
            self.boxes += [span for span in spans if not any(map(self._is_of_outputs, span))]

    def _pass_on_extreme(self, source: Tensor, result: Tensor, is_largest: bool) -> None:
        if (pair := self._extremes.get((_get_place(source), is_largest))) is not None:
            self._extremes.setdefault((_get_place(result), is_largest), pair)

    # --- logarithms --------------------------------------------------------------------------------------------------

    def _replace_logarithm(self, values: Tensor, result: Tensor) -> Tensor:
        ratio = self._ratios.get(_get_place(values))
        if ratio is not None:
            self.logarithms.append(ratio)
        is_hole = _find_holes(values) if self._is_of_target(values) else None
        if is_hole is None or torch.is_inference_mode_enabled():
            return result
        self.logarithms.append(Logarithm(result.detach().clone().requires_grad_(), is_hole))
        return self.logarithms[-1].copy()

    def _replace_operand(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Logarithm | None]:
        """Replace the operand of a ratio of outputs and target that is the target's; its logarithm may be taken."""
        places = [place for place, value in enumerate(args) if isinstance(value, Tensor) and self._is_of_target(value)]
        if len(places) != 1 or not any(isinstance(v, Tensor) and self._is_of_outputs(v) for v in args):
            return args, None
        own = args[places[0]]
        is_hole = _find_holes(own)
        if is_hole is None or torch.is_inference_mode_enabled():
            return args, None
        ratio = Logarithm(own.detach().clone().requires_grad_(), is_hole)
        return tuple(ratio.copy() if place == places[0] else value for place, value in enumerate(args)), ratio


def judge_calls(loss: Loss, run: Callable[[Loss], Tensor]) -> Iterator[Found]:
    """Yield what the calls of a loss show; `run` computes the value of the loss that it is given, of a real batch."""
    noted: list[LossCalls] = []

    def observe(outputs: Any, target: Any) -> Tensor:
        calls = LossCalls(outputs, target)
        with InterceptedFunctions(calls.run):
            value = loss(outputs, target)
        noted.append(calls)
        return value

    value = run(observe)
    yield from _judge_sides(_group_sides(noted[0].boxes))
    yield from _judge_logarithms(value, noted[0].logarithms)


def judge_reads(reads: Iterable[Callable[[], Any]]) -> Iterator[Found]:
    """Yield what the calls of some reads of a data set show, which may assign boxes to anchors: each gives a sample."""
    parts: dict[int, list[Tensor]] = {}
    for read in reads:
        calls = LossCalls((), ())
        with InterceptedFunctions(calls.run):
            read()
        for place, sides in enumerate(_group_sides(calls.boxes)):
            parts.setdefault(place, []).extend(sides)
    yield from _judge_sides(parts.values())


def _group_sides(boxes: Sequence[tuple[Tensor, Tensor]]) -> Collection[list[Tensor]]:
    """Group sides, (2, N) each, by the tensor that they are columns of: they may come one by one."""
    by_place: dict[int, list[Tensor]] = {}
    for starts, ends in boxes:
        by_place.setdefault(_get_place(starts), []).append(torch.stack([starts.flatten(), ends.flatten()]))
    return by_place.values()


def _judge_sides(groups: Iterable[list[Tensor]]) -> Iterator[Found]:
    """Boxes that an intersection reads as corners have no right side left of the left one."""
    for parts in groups:
        starts, ends = torch.cat(parts, dim=1)
        is_unordered = ends < starts
        num, size = int(is_unordered.sum()), len(starts)
        if size < _MIN_SIDES or num <= _MAX_UNORDERED * size:
            continue
        if len(torch.unique(torch.stack([starts, ends], dim=1)[is_unordered], dim=0)) > 1:  # not one that means none
            yield report(
                "loss-form",
                "an intersection of boxes reads corners (x1, y1, x2, y2), and some of its boxes are none: these are "
                "(x, y, w, h) or the like",
                causes=("assign.box_format", "data.target_encoding"),
                measured=f"right < left or bottom < top in {num} of {size} pairs of sides, of boxes that do not come "
                "from the model",
                expected="left <= right and top <= bottom",
                action="convert all boxes to corners before the intersection",
            )
            return


def _judge_logarithms(value: Tensor, logarithms: Sequence[Logarithm]) -> Iterator[Found]:
    """The logarithm of a hole depends on the number that stands for it alone: it gives the loss no gradient."""
    for leaf, is_hole in logarithms:
        (gradient,) = torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True)
        num = 0 if gradient is None else int(((gradient != 0) & is_hole).sum())
        if num >= max(_MIN_HOLES, _MIN_SHARE * is_hole.numel()):
            yield report(
                "loss-form",
                "places without a target count in the loss: zeros of the target enter a logarithm",
                severity="warning",
                causes=("data.ignore_handling", "loss.form"),
                measured=f"{num} of {is_hole.numel()} numbers in the logarithm stand for a zero, and the loss depends "
                "on each; the others are far from zero",
                expected="a loss that does not depend on the logarithm of a hole",
                action="take the places with a target first: mask = target > 0, for outputs and target",
            )
            return


def _find_holes(values: Tensor) -> Tensor | None:
    """Return True where numbers are the least one, if that stands for zero and all others are far above it."""
    if not values.is_floating_point() or not values.numel():
        return None
    least = values.min()
    is_hole = values == least
    others = values[~is_hole]
    if int(is_hole.sum()) < max(_MIN_HOLES, _MIN_SHARE * values.numel()) or not others.numel():
        return None
    next_least = float(others.min())
    is_far = next_least > max(0.0, _MIN_OF_MEDIAN * float(others.median()))
    is_far = is_far and next_least**2 > float(least) * float(others.max())  # log(0.01 + rain) is among the others
    is_small = float(least) <= min(_MAX_ADDED, _MAX_OF_LEAST * next_least)  # log(1 + t) has no holes
    return is_hole.detach() if is_far and is_small else None


def _pair_sides(starts: tuple[Tensor, Tensor], ends: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """List the left and right sides that are columns of one tensor; none if the same column is on both sides."""
    if any(start.data_ptr() == end.data_ptr() for start in starts for end in ends):
        return []
    found = [
        [(start, end) for start, end in zip(order, ends, strict=True) if _is_of_one(start, end)]
        for order in (starts, starts[::-1])
    ]
    return max(found, key=len)


def _is_of_one(start: Tensor, end: Tensor) -> bool:
    is_same_form = start.shape == end.shape and start.stride() == end.stride()
    return is_same_form and _get_place(start) == _get_place(end) and start.storage_offset() < end.storage_offset()


def _get_place(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; 0 for none."""
    return tensor.untyped_storage().data_ptr()
