"""Sides of boxes that an intersection reads: least ends minus greatest starts, among the operators of a pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sightline.contract.pytree import tree_leaves
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.reading import Source
from sightline.doctor.objects import preserve_generators
from sightline.doctor.subject import Subject
from sightline.instrument import ModuleCall, record

_EXTREMES = {"minimum": False, "fmin": False, "maximum": True, "fmax": True}
"""Operators of two tensors, and whether they take the larger number."""
_SELECTIONS = frozenset(("index", "gather", "index_select", "masked_select", "take"))
"""Operators whose result holds numbers of the first argument alone."""
_NUM_READS = 16


class Sides(NamedTuple):
    """Starts and ends (N,) of the spans of boxes that no output of the model has part in, columns of one tensor."""

    starts: Tensor
    ends: Tensor


@measure(passes=1)
def sides_in_pass(subject: Subject) -> list[Sides]:
    """Follow the operators of the model and the loss to the sides that intersections read."""
    model, batch = subject.copy("train"), subject.batches[0]
    observer = _SidesObserver(batch)
    with record(model, operators=observer.note):
        subject.evaluate(subject.call(model, batch.inputs), batch.target)
    return observer.join()


@measure()
def sides_in_reads(source: Source) -> list[Sides]:
    """Follow the operators of some reads, which may assign boxes to anchors; each reads the same sides."""
    parts: dict[int, list[Sides]] = {}
    with preserve_generators(source.generators()):
        for index in source.iter_timed(source.spread(_NUM_READS)):
            observer = _SidesObserver()
            with record(torch.nn.Module(), operators=observer.note):
                source.read(index, 0)
            for number, sides in enumerate(observer.join()):
                parts.setdefault(number, []).append(sides)
    if not parts:
        raise NotApplicableError("no intersections in reads")
    return [_join(each) for each in parts.values()]


class _SidesObserver:
    """Observer of operators. A tensor is known by its memory; each is kept, so that none is used twice.

    Numbers that a parameter or an output has part in are those of outputs, as are those of unknown origin after outputs
    were detached: NumPy may have had them.
    """

    def __init__(self, given: Any = ()) -> None:
        self._known = {_get_place(tensor) for _, tensor in tree_leaves(given)}
        self._is_detached = False
        self.spans: list[tuple[Tensor, Tensor]] = []
        self._of_outputs: set[int] = set()
        self._extremes: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}
        self._kept: list[Tensor] = []

    def note(self, call: ModuleCall | None, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note a call of an operator: what it is given, and what it returns."""
        name = operator.name().removeprefix("aten::").partition(".")[0].rstrip("_")
        read = [tensor for _, tensor in tree_leaves(args[:1] if name in _SELECTIONS else (args, kwargs))]
        results = [tensor for _, tensor in tree_leaves(result)]
        if any(self._is_of_outputs(tensor) for tensor in read if tensor.dtype != torch.bool):
            self._of_outputs |= {_get_place(tensor) for tensor in results}
            self._is_detached = self._is_detached or name == "detach"
        self._known |= {_get_place(tensor) for tensor in results}
        self._kept += results
        if len(results) != 1 or len(read) < 1:
            return
        place, operands = _get_place(results[0]), [tensor for tensor in read if tensor.ndim > 0]
        if len(operands) == 2 and (name in _EXTREMES or operator.name() in ("aten::max.other", "aten::min.other")):
            self._extremes[place, _EXTREMES.get(name, name == "max")] = operands[0].detach(), operands[1].detach()
        elif name == "sub" and len(operands) == 2:
            ends = self._extremes.get((_get_place(operands[0]), False))
            starts = self._extremes.get((_get_place(operands[1]), True))
            if ends is not None and starts is not None:
                spans = _pair_sides(starts, ends)
                self.spans += [span for span in spans if not any(map(self._is_of_outputs, span))]

    def join(self) -> list[Sides]:
        """Join the sides that are columns of one tensor, which may come one by one."""
        by_place: dict[int, list[Sides]] = {}
        for starts, ends in self.spans:
            by_place.setdefault(_get_place(starts), []).append(Sides(starts.flatten(), ends.flatten()))
        return [_join(parts) for parts in by_place.values()]

    def _is_of_outputs(self, tensor: Tensor) -> bool:
        place = _get_place(tensor)
        return tensor.requires_grad or place in self._of_outputs or (self._is_detached and place not in self._known)


def _join(parts: list[Sides]) -> Sides:
    return Sides(*(torch.cat(column) for column in zip(*parts, strict=True)))


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
