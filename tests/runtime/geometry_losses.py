"""Losses of boxes, rotations and depth: four bugs in several forms each, and correct forms that look alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.runtime.blind_losses import Call, LossCase

Loss = Callable[[Tensor, Tensor], Tensor]
PLANTED: dict[str, tuple[str, Callable[[], LossCase]]] = {}
"""First cause of each bug, and its program."""
CORRECT: dict[str, Callable[[], LossCase]] = {}


def case(cause: str, make: Callable[[Loss], LossCase]) -> Callable[[Loss], Loss]:
    """Register a loss with the program that `make` makes of it, under the cause of its bug; "" for a correct one."""

    def add(loss: Loss) -> Loss:
        if cause:
            PLANTED[loss.__name__] = cause, partial(make, loss)
        else:
            CORRECT[loss.__name__] = partial(make, loss)
        return loss

    return add


# --- overlaps ---------------------------------------------------------------------------------------------------------


def _make_corners(rows: Tensor, layer: nn.Module) -> Tensor:
    center, size = layer(rows).sigmoid().chunk(2, dim=-1)
    return torch.cat([center - size / 10, center + size / 10], dim=-1)


def _make_boxes(*shape: int, axes: int = 2) -> Tensor:
    """Make small boxes as corners, of which many pairs do not meet."""
    low = torch.rand(*shape, axes) * 0.8
    return torch.cat([low, low + 0.05 + 0.15 * torch.rand(*shape, axes)], dim=-1)


def _with_corners(loss: Loss, *, axes: int = 2, change: Callable[[Tensor], Tensor] = Tensor.clone) -> LossCase:
    model = Call(_make_corners, nn.Linear(10, 2 * axes))
    return model, loss, (torch.randn(48, 10), change(_make_boxes(48, axes=axes)))


def _area(boxes: Tensor) -> Tensor:
    half = boxes.shape[-1] // 2
    return (boxes[..., half:] - boxes[..., :half]).prod(dim=-1)


def _iou(both: Tensor, output: Tensor, target: Tensor) -> Tensor:
    return both / (_area(output) + _area(target) - both)


def _extent(first: Tensor, second: Tensor) -> Tensor:
    return torch.min(first[..., 2:], second[..., 2:]) - torch.max(first[..., :2], second[..., :2])


@case("loss.form", _with_corners)
def iou_by_columns(output: Tensor, target: Tensor) -> Tensor:
    x1, y1, x2, y2 = output.unbind(1)
    left, top, right, bottom = target.T
    both = (x2.minimum(right) - x1.maximum(left)) * (y2.minimum(bottom) - y1.maximum(top))
    return -_iou(both, output, target).mean()


@case("loss.form", partial(_with_corners, axes=3))
def iou_of_volumes(output: Tensor, target: Tensor) -> Tensor:
    extent = torch.minimum(output[..., 3:], target[..., 3:]) - torch.maximum(output[..., :3], target[..., :3])
    return (1 - _iou(torch.prod(extent, dim=-1), output, target)).square().mean()


@case("loss.form", _with_corners)
def overlap_with_a_late_clamp(output: Tensor, target: Tensor) -> Tensor:
    """The area is clamped, and not the extents: two negative ones have made it positive."""
    width, height = _extent(output, target).split(1, dim=1)
    both = (width * height).squeeze(1).clamp(min=0)
    return -torch.log((both + 1e-3) / (_area(output) + _area(target) - both + 1e-3)).mean()


@case("", _with_corners)
def clamped_overlap(output: Tensor, target: Tensor) -> Tensor:
    size = _extent(output, target).clamp_(min=0)
    return (1 - _iou(size[:, 0] * size[:, 1], output, target)).mean() + F.l1_loss(output, target)


@case("", _with_corners)
def overlap_times_a_mask(output: Tensor, target: Tensor) -> Tensor:
    """As in YOLOX: the product of what does not meet is multiplied by zero."""
    start, end = torch.max(output[:, :2], target[:, :2]), torch.min(output[:, 2:], target[:, 2:])
    both = torch.prod(end - start, 1) * (start < end).type(start.type()).prod(dim=1)
    return (1 - _iou(both, output, target) ** 2).mean()


@case("", _with_corners)
def overlap_where_boxes_meet(output: Tensor, target: Tensor) -> Tensor:
    size = _extent(output, target)
    both = torch.where((size > 0).all(dim=1), size[:, 0] * size[:, 1], 0.0)
    return (1 - _iou(both, output, target)).mean() + F.l1_loss(output, target)


@case("", _with_corners)
def overlap_of_those_that_meet(output: Tensor, target: Tensor) -> Tensor:
    """As in torchvision's losses: extents of the boxes that meet alone are multiplied."""
    start, end = torch.max(output[:, :2], target[:, :2]), torch.min(output[:, 2:], target[:, 2:])
    meets, both = (end > start).all(dim=1), torch.zeros_like(output[:, 0])
    both[meets] = (end[meets, 0] - start[meets, 0]) * (end[meets, 1] - start[meets, 1])
    return (1 - _iou(both, output, target)).mean() + F.l1_loss(output, target)


@case("", _with_corners)
def hull_of_two_boxes(output: Tensor, target: Tensor) -> Tensor:
    hull = (torch.max(output[:, 2:], target[:, 2:]) - torch.min(output[:, :2], target[:, :2])).prod(dim=1)
    return (hull - _area(target)).mean()


@case("", _with_corners)
def distances_along_two_axes(output: Tensor, target: Tensor) -> Tensor:
    """The least minus the greatest of the same two numbers is their distance, below zero."""
    apart = torch.min(output, target) - torch.max(output, target)
    return (apart[:, 0] * apart[:, 1] + apart[:, 2] * apart[:, 3]).mean()


# --- formats of boxes -------------------------------------------------------------------------------------------------


def _to_corners(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)


def _to_sizes(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)


def _to_moved_sizes(boxes: Tensor) -> Tensor:
    return _to_sizes(boxes) + torch.tensor([0.1, 0.1, 0, 0])


def _intersect(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlaps (A, B) of all boxes with all others, as `torchvision.ops.box_iou`."""
    start, end = torch.max(first[:, None, :2], second[:, :2]), torch.min(first[:, None, 2:], second[:, 2:])
    both = (end - start).clamp(min=0).prod(dim=-1)
    return both / (_area(first)[:, None] + _area(second) - both).clamp(min=1e-9)


def _make_anchors() -> Tensor:
    centers = torch.cartesian_prod(torch.linspace(0.1, 0.9, 6), torch.linspace(0.1, 0.9, 6))
    return torch.cat([centers, torch.full((36, 2), 0.2)], dim=1)


def _with_anchors(loss: Loss, make: Callable[[], Tensor] | None = None) -> LossCase:
    return nn.Linear(10, 36), loss, (torch.randn(12, 10), make() if make else _make_boxes(12))


def _of_boxes(loss: Loss, make: Callable[[], Tensor] | None = None) -> LossCase:
    return nn.Linear(10, 4), loss, (torch.randn(48, 10), make() if make else _make_boxes(48))


def _make_padded() -> Tensor:
    boxes = _make_boxes(12, 5)
    boxes[:, 3:] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    boxes[:6, 2:] = 0
    return boxes


def _make_segments() -> Tensor:
    start = torch.rand(12) * 60
    return torch.stack([start, start + 8], dim=1)


BOXES = _make_boxes(9)


@case("assign.box_format", _with_anchors)
def anchors_by_center(output: Tensor, wanted: Tensor) -> Tensor:
    share = _intersect(_make_anchors(), BOXES).amax(dim=1)
    return F.binary_cross_entropy_with_logits(output, (share > 0.3).float().expand_as(output))


@case("", _with_anchors)
def anchors_by_corners(output: Tensor, wanted: Tensor) -> Tensor:
    share = _intersect(_to_corners(_make_anchors()), BOXES).amax(dim=1)
    return F.binary_cross_entropy_with_logits(output, (share > 0.3).float().expand_as(output))


@case("assign.box_format", partial(_with_anchors, make=lambda: _to_sizes(_make_boxes(12))))
def targets_by_width(output: Tensor, wanted: Tensor) -> Tensor:
    """(x, y, w, h) as in COCO, by the columns of each box."""
    x1, y1, x2, y2 = wanted.unbind(dim=-1)
    left, top, right, bottom = _to_corners(_make_anchors()).T[..., None]
    width = (right.minimum(x2) - left.maximum(x1)).clamp(min=0)
    height = (bottom.minimum(y2) - top.maximum(y1)).clamp(min=0)
    return F.binary_cross_entropy_with_logits(output, (width * height).T / 0.04)


@case("assign.box_format", partial(_with_anchors, make=_make_segments))
def segments_by_length(output: Tensor, wanted: Tensor) -> Tensor:
    """Spans of time as (centre, length), one of which is read as (start, end)."""
    slots = torch.stack([torch.linspace(5, 60, 36), torch.full((36,), 4.0)], dim=1)
    both = torch.min(slots[:, None, 1], wanted[:, 1]) - torch.max(slots[:, None, 0], wanted[:, 0])
    return F.binary_cross_entropy_with_logits(output, (both.relu().T > 0).float())


@case("assign.box_format", partial(_with_corners, change=_to_moved_sizes))
def targets_in_a_giou_loss(output: Tensor, target: Tensor) -> Tensor:
    """The model gives corners, the loss reads targets as such; `_judge_boxes` may say so first."""
    both = (torch.min(target[:, 2:], output[:, 2:]) - torch.max(output[:, :2], target[:, :2])).clamp(min=0)
    return 1 - (both.prod(dim=1) / (_area(output) + _area(target).abs())).mean()


@case("", _of_boxes)
def matching_of_raw_outputs(output: Tensor, target: Tensor) -> Tensor:
    """Boxes of an untrained model have no order of their sides; a matching reads them without gradient."""
    with torch.no_grad():
        best = _intersect(output.detach(), target).argmax(dim=1)
    found = torch.stack([own + 0.0 for own in output.data])
    return F.l1_loss(output, target[best]) + 0.1 * _intersect(found, target).mean()


@case("", _of_boxes)
def matching_by_numpy(output: Tensor, target: Tensor) -> Tensor:
    found = torch.from_numpy(np.array(output.detach().numpy()))
    return F.l1_loss(output, target[_intersect(found, target).argmax(dim=1)])


@case("", partial(_with_anchors, make=_make_padded))
def matching_of_padded_targets(output: Tensor, target: Tensor) -> Tensor:
    """Targets are filled up by boxes that are none: of zeros, and one that nothing meets."""
    anchors = _to_corners(_make_anchors())
    share = _intersect(anchors, target.flatten(0, 1)).unflatten(1, target.shape[:2]).amax(dim=2)
    return F.binary_cross_entropy_with_logits(output, (share.T > 0.3).float())


@case("", _of_boxes)
def written_outputs(output: Tensor, target: Tensor) -> Tensor:
    """Outputs are written into a tensor that was made without them."""
    kept = torch.zeros(len(output), 4)
    kept[:, :] = output.detach()
    return F.l1_loss(output, target[_intersect(kept, target).argmax(dim=1)])


@case("", partial(_of_boxes, make=partial(torch.rand, 48, 4)))
def distances_of_points(output: Tensor, target: Tensor) -> Tensor:
    """The least minus the greatest of two points is no overlap: both are of one column."""
    first, second = target[:, :2], target[:, 2:]
    return (output[:, :2] - (torch.min(first, second) - torch.max(second, first))).square().mean()


# --- rotations --------------------------------------------------------------------------------------------------------


def _make_units(width: int = 4) -> Tensor:
    return F.normalize(torch.randn(64, width), dim=1)


def _make_quaternions(*, signs: bool = False) -> Tensor:
    half = 3.14 * torch.rand(64, 1) / 2
    rows = torch.cat([half.cos(), _make_units(3) * half.sin()], dim=1)
    return rows * (torch.randint(2, (64, 1)) * 2.0 - 1) if signs else rows


def _make_near_another() -> Tensor:
    """The sign is that of the product with a quaternion, and w has both."""
    rows = _make_units()
    return rows * (rows @ F.normalize(torch.tensor([0.1, 0.7, -0.5, 0.4]), dim=0)).sign()[:, None]


def _make_directions() -> Tensor:
    angle = torch.rand(64, 2) * 6.28
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def _rotate(loss: Loss, make: Callable[[], Tensor]) -> LossCase:
    target = make()
    model = Call(lambda rows, layer: F.normalize(layer(rows), dim=1), nn.Linear(10, target.shape[1]))
    return model, loss, (torch.randn(64, 10), target)


def _make_poses() -> LossCase:
    """(x, y, z) and a quaternion, as in PoseNet."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        place, turn = F.l1_loss(output[:, :3], target[:, :3]), (output[:, 3:] - target[:, 3:]).norm(dim=1)
        return place + 3 * turn.mean()

    return nn.Linear(10, 7), loss, (torch.randn(64, 10), torch.cat([torch.randn(64, 3), _make_units()], dim=1))


PLANTED["quaternions_by_squares"] = "loss.form", partial(_rotate, F.mse_loss, partial(_make_quaternions, signs=True))
PLANTED["poses_by_distances"] = "loss.form", _make_poses
CORRECT |= {
    "quaternions_of_one_sign": partial(_rotate, F.mse_loss, _make_quaternions),
    "quaternions_near_another": partial(_rotate, F.mse_loss, _make_near_another),
    "two_directions": partial(_rotate, F.mse_loss, _make_directions),
    "one_of_four": partial(_rotate, F.mse_loss, lambda: torch.eye(4)[torch.randint(4, (64,))]),
    "any_four": partial(_rotate, F.mse_loss, partial(torch.randn, 64, 4)),
}


@case("", partial(_rotate, make=partial(_make_quaternions, signs=True)))
def quaternions_of_the_nearer_sign(output: Tensor, target: Tensor) -> Tensor:
    return torch.minimum((output - target).norm(dim=1), (output + target).norm(dim=1)).mean()


@case("", partial(_rotate, make=_make_units))
def quaternions_by_angles(output: Tensor, target: Tensor) -> Tensor:
    return 2 * torch.acos((output * target).sum(dim=1).abs().clamp(max=1 - 1e-6)).mean()


@case("", partial(_rotate, make=_make_units))
def rotations_by_matrices(output: Tensor, target: Tensor) -> Tensor:
    first, second = ((rows[:, :, None] * rows[:, None]).flatten(1) for rows in (output, target))
    return F.mse_loss(first, second)


# --- depth ------------------------------------------------------------------------------------------------------------


def _make_depth() -> Tensor:
    return (3 + 20 * torch.rand(6, 1, 8, 8)) * (torch.rand(6, 1, 8, 8) >= 0.3)


def _make_spectrum() -> Tensor:
    """Spectra go down to zero in small steps: what is below the floor is silence."""
    return 40 * torch.rand(6, 1, 8, 8) ** 8 * (torch.arange(8) < 6)


def _see(loss: Loss, make: Callable[[], Tensor] = _make_depth) -> LossCase:
    model = Call(lambda images, layer: F.softplus(layer(images)) + 0.1, nn.Conv2d(3, 1, 3, padding=1))
    return model, loss, (torch.randn(6, 3, 8, 8), make())


def _classify(loss: Loss) -> LossCase:
    target = F.one_hot(torch.randint(5, (6, 8, 8)), 5).permute(0, 3, 1, 2).float() * 0.9
    target[:, 0] += 0.1
    return nn.Conv2d(3, 5, 1), loss, (torch.randn(6, 3, 8, 8), target)


@case("data.ignore_handling", _see)
def logarithms_of_all(output: Tensor, target: Tensor) -> Tensor:
    return (output.log() - (target + 1e-6).log()).abs().mean()


@case("data.ignore_handling", _see)
def logarithms_of_other_holes(output: Tensor, target: Tensor) -> Tensor:
    """The mask is for what is far away, and leaves the holes."""
    kept = target < 20
    error = torch.log10(output[kept]) - torch.log10(target[kept].clamp(min=1e-3))
    return error.square().mean() - 0.5 * error.mean() ** 2


@case("data.ignore_handling", _see)
def logarithms_without_a_gradient(output: Tensor, target: Tensor) -> Tensor:
    """The target is prepared in its own block, and without its holes nothing is left out."""
    with torch.no_grad():
        wanted = torch.log2(torch.where(target > 0, target, torch.full_like(target, 1e-4)))
    return F.huber_loss(output, wanted)


@case("", _see)
def logarithms_of_targets(output: Tensor, target: Tensor) -> Tensor:
    kept = target > 0
    error = output[kept].log() - target[kept].log()
    return error.square().mean() - 0.85 * error.mean() ** 2


@case("", _see)
def logarithms_times_a_mask(output: Tensor, target: Tensor) -> Tensor:
    """Holes enter the logarithm and are left out later; a term of smoothness pulls at all places."""
    mask = (target > 0).float()
    error = (output.log() - target.clamp(min=1e-6).log()).abs() * mask
    return error.sum() / mask.sum() + 0.1 * output.diff(dim=-1).abs().mean() + 0.1 * output.mean()


@case("", _see)
def logarithms_where_known(output: Tensor, target: Tensor) -> Tensor:
    error = torch.log(output / target.clamp(min=1e-3))
    return torch.where(target > 0, error.square(), torch.zeros(())).mean()


@case("", _see)
def logarithms_of_counts(output: Tensor, target: Tensor) -> Tensor:
    """Zero is a number, and its logarithm is that of one more."""
    return (output - torch.log(1 + target)).abs().mean()


@case("", partial(_see, make=_make_spectrum))
def logarithms_of_small_numbers(output: Tensor, target: Tensor) -> Tensor:
    return (output - target.clamp(min=1e-5).log()).abs().mean()


@case("", _classify)
def divergence_by_hand(output: Tensor, target: Tensor) -> Tensor:
    """Classes of share zero enter a logarithm, and are multiplied by their share."""
    return (target * ((target + 1e-8).log() - output.log_softmax(dim=1))).sum(dim=1).mean()
