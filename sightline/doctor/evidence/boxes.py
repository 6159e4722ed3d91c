"""Boxes in images: the sides that intersections read, and the bands that pad images about them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sightline.contract.pytree import is_dense, tree_leaves
from sightline.doctor.attempts import NotApplicableError
from sightline.doctor.evidence import measure
from sightline.doctor.evidence.data.source import Source, list_leaves
from sightline.doctor.objects import preserve_generators
from sightline.doctor.subject import Subject
from sightline.instrument import ModuleCall, record

_EXTREMES = {"minimum": False, "fmin": False, "maximum": True, "fmax": True}
"""Operators of two tensors, and whether they take the larger number."""
_SELECTIONS = frozenset(("index", "gather", "index_select", "masked_select", "take"))
"""Operators whose result holds numbers of the first argument alone."""
_NUM_READS = 16
_MIN_BAND = 0.06
_NUM_IMAGES, _MIN_IMAGES = 32, 6
_MARGIN = 1.5  # pixels: rounding, and the blur of a resized border


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
        subject.evaluate(model, subject.call(model, batch.inputs), batch.target)
    return observer.join()


@measure()
def sides_in_reads(source: Source) -> list[Sides]:
    """Follow the operators of some reads, which may assign boxes to anchors; each reads the same sides."""
    parts: dict[int, list[Sides]] = {}
    with preserve_generators(source.generators()):
        for index in source.take(source.spread(_NUM_READS)):
            observer = _SidesObserver()
            with record(torch.nn.Module(), operators=observer.note):
                source.read(index, 0)
            for number, sides in enumerate(observer.join()):
                parts.setdefault(number, []).append(sides)
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
    """Return the address of a tensor's memory; of one that has its numbers elsewhere, such as a sparse one, none."""
    return tensor.untyped_storage().data_ptr() if is_dense(tensor) else -id(tensor)


class Content(NamedTuple):
    """Part of an image between bands of one number, as (left, top, right, bottom) in pixels, and the image's sides."""

    inside: tuple[int, int, int, int]
    width: int
    height: int

    def is_padded(self) -> bool:
        """Return True for bands at two sides alone, as of a letterbox; a plain background is on all sides."""
        left, top, right, bottom = self.inside
        is_whole = (left, right) == (0, self.width) or (top, bottom) == (0, self.height)
        return is_whole and max(left, top) > _MIN_BAND * min(self.width, self.height)


class OnBands(NamedTuple):
    """Shares of the boxes of padded images that reach into a band: as they are given, and moved by its width."""

    num_images: int
    given: float
    moved: float


@measure()
def boxes_on_bands(source: Source) -> OnBands:
    """Measure how many boxes lie on the bands of padded images, and would if they were moved by these bands.

    Boxes (N, 4) are corners in pixels, or shares of the sides. If the right is not beyond the left, they are centres
    and sizes.
    """
    padded = []
    with preserve_generators(source.generators()):
        for index in source.take(source.spread(_NUM_IMAGES)):
            inputs, target = map(list_leaves, source.read(index, 0))
            images = [leaf for leaf in inputs if leaf.ndim == 3 and leaf.shape[0] in (1, 3, 4)]
            boxes = [leaf for leaf in target if leaf.is_floating_point() and leaf.shape[-1:] == (4,)]
            if len(images) != 1 or len(boxes) != 1:
                raise NotApplicableError("no images with boxes")
            content = _find_content(images[0])
            if boxes[0].numel() and content.is_padded():
                padded.append((content, _to_corners(boxes[0].reshape(-1, 4), content)))
    if len(padded) < _MIN_IMAGES or not all(bool((b[:, 2:] > b[:, :2]).all()) for _, b in padded):
        raise NotApplicableError("no padded images with boxes")
    moved = [(content, corners + torch.tensor([*content.inside[:2]] * 2)) for content, corners in padded]
    shares = [float(np.mean([_measure_outside(*each) for each in pairs])) for pairs in (padded, moved)]
    return OnBands(len(padded), *shares)


def _find_content(image: Tensor) -> Content:
    """Find what is between the bands of one colour at the sides of an image (C, H, W); all of it without bands."""
    is_border = image == image[:, :1, :1]
    rows, columns = is_border.all(dim=0).all(dim=1), is_border.all(dim=0).all(dim=0)
    spans = []
    for is_band in (columns, rows):
        inside = (~is_band).nonzero().flatten()
        spans.append((int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, len(is_band)))
    (left, right), (top, bottom) = spans
    return Content((left, top, right, bottom), image.shape[2], image.shape[1])


def _to_corners(boxes: Tensor, content: Content) -> Tensor:
    """Return corners in pixels."""
    boxes = boxes.double()
    if float(boxes.max()) <= 1 + 1e-3:
        boxes = boxes * torch.tensor([content.width, content.height] * 2)
    if bool((boxes[:, 2:] > boxes[:, :2]).all()):
        return boxes
    return torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)


def _measure_outside(content: Content, boxes: Tensor) -> float:
    """Compute the share of boxes that reach beyond the content of their image."""
    left, top, right, bottom = content.inside
    low, high = torch.tensor([left, top]) - _MARGIN, torch.tensor([right, bottom]) + _MARGIN
    return float(((boxes[:, :2] < low).any(dim=1) | (boxes[:, 2:] > high).any(dim=1)).double().mean())
