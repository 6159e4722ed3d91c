"""Losses of boxes, rotations and depth: four bugs in several forms each, and correct forms that look alike."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.runtime.blind_losses import Call, LossCase

Loss = Callable[[Tensor, Tensor], Tensor]


# --- overlaps --------------------------------------------------------------------------------------------------------


def _make_corners(rows: Tensor, layer: nn.Module) -> Tensor:
    center, size = layer(rows).sigmoid().chunk(2, dim=-1)
    return torch.cat([center - size / 10, center + size / 10], dim=-1)


def _make_boxes(*shape: int, axes: int = 2) -> Tensor:
    """Make small boxes as corners, of which many pairs do not meet."""
    low = torch.rand(*shape, axes) * 0.8
    return torch.cat([low, low + 0.05 + 0.15 * torch.rand(*shape, axes)], dim=-1)


def _with_corners(loss: Loss, *, axes: int = 2) -> LossCase:
    model = Call(_make_corners, nn.Linear(10, 2 * axes))
    return model, loss, (torch.randn(48, 10), _make_boxes(48, axes=axes))


def _area(boxes: Tensor) -> Tensor:
    half = boxes.shape[-1] // 2
    return (boxes[..., half:] - boxes[..., :half]).prod(dim=-1)


def iou_by_columns() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        x1, y1, x2, y2 = output.unbind(1)
        left, top, right, bottom = target.T
        both = (x2.minimum(right) - x1.maximum(left)) * (y2.minimum(bottom) - y1.maximum(top))
        return -(both / (_area(output) + _area(target) - both + 1e-6)).mean()

    return _with_corners(loss)


def iou_of_volumes() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        extent = torch.minimum(output[..., 3:], target[..., 3:]) - torch.maximum(output[..., :3], target[..., :3])
        both = torch.prod(extent, dim=-1)
        return (1 - both / (_area(output) + _area(target) - both)).square().mean()

    return _with_corners(loss, axes=3)


def overlap_with_a_late_clamp() -> LossCase:
    """The area is clamped, and not the extents: two negative ones have made it positive."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        size = torch.min(output[:, 2:], target[:, 2:]).sub(torch.max(output[:, :2], target[:, :2]))
        width, height = size.split(1, dim=1)
        both = (width * height).squeeze(1).clamp(min=0)
        return -torch.log((both + 1e-3) / (_area(output) + _area(target) - both + 1e-3)).mean()

    return _with_corners(loss)


def clamped_overlap() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        size = (torch.min(output[:, 2:], target[:, 2:]) - torch.max(output[:, :2], target[:, :2])).clamp_(min=0)
        both = size[:, 0] * size[:, 1]
        return (1 - both / (_area(output) + _area(target) - both)).mean() + F.l1_loss(output, target)

    return _with_corners(loss)


def overlap_times_a_mask() -> LossCase:
    """As in YOLOX: the product of what does not meet is multiplied by zero."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        start, end = torch.max(output[:, :2], target[:, :2]), torch.min(output[:, 2:], target[:, 2:])
        both = torch.prod(end - start, 1) * (start < end).type(start.type()).prod(dim=1)
        return (1 - (both / (_area(output) + _area(target) - both + 1e-16)) ** 2).mean()

    return _with_corners(loss)


def overlap_where_boxes_meet() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        size = torch.min(output[:, 2:], target[:, 2:]) - torch.max(output[:, :2], target[:, :2])
        both = torch.where((size > 0).all(dim=1), size[:, 0] * size[:, 1], 0.0)
        return (1 - both / (_area(output) + _area(target) - both)).mean() + F.l1_loss(output, target)

    return _with_corners(loss)


def overlap_of_those_that_meet() -> LossCase:
    """As in torchvision's losses: extents of the boxes that meet alone are multiplied."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        start, end = torch.max(output[:, :2], target[:, :2]), torch.min(output[:, 2:], target[:, 2:])
        meets = (end > start).all(dim=1)
        both = torch.zeros_like(output[:, 0])
        both[meets] = (end[meets, 0] - start[meets, 0]) * (end[meets, 1] - start[meets, 1])
        return (1 - both / (_area(output) + _area(target) - both)).mean() + F.l1_loss(output, target)

    return _with_corners(loss)


def hull_of_two_boxes() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        hull = (torch.max(output[:, 2:], target[:, 2:]) - torch.min(output[:, :2], target[:, :2])).prod(dim=1)
        return (hull - _area(target)).mean()

    return _with_corners(loss)


def distances_along_two_axes() -> LossCase:
    """The least minus the greatest of the same two numbers is their distance, below zero."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        apart = torch.min(output, target) - torch.max(output, target)
        return (apart[:, 0] * apart[:, 1] + apart[:, 2] * apart[:, 3]).mean()

    return _with_corners(loss)


# --- formats of boxes ------------------------------------------------------------------------------------------------


def _to_corners(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)


def _intersect(first: Tensor, second: Tensor) -> Tensor:
    """Return the overlaps (A, B) of all boxes with all others, as `torchvision.ops.box_iou`."""
    start, end = torch.max(first[:, None, :2], second[:, :2]), torch.min(first[:, None, 2:], second[:, 2:])
    both = (end - start).clamp(min=0).prod(dim=-1)
    return both / (_area(first)[:, None] + _area(second) - both).clamp(min=1e-9)


def _match(anchors: Tensor, target: Tensor) -> Loss:
    def loss(output: Tensor, wanted: Tensor) -> Tensor:
        share = _intersect(anchors, target).amax(dim=1)
        return F.binary_cross_entropy_with_logits(output, (share > 0.3).float().expand_as(output))

    return loss


def _make_anchors() -> Tensor:
    centers = torch.cartesian_prod(torch.linspace(0.1, 0.9, 6), torch.linspace(0.1, 0.9, 6))
    return torch.cat([centers, torch.full((36, 2), 0.2)], dim=1)


def _with_anchors(loss: Loss) -> LossCase:
    return nn.Linear(10, 36), loss, (torch.randn(12, 10), _make_boxes(12))


def anchors_by_center() -> LossCase:
    return _with_anchors(_match(_make_anchors(), _make_boxes(9)))


def targets_by_width() -> LossCase:
    """(x, y, w, h) as in COCO, by the columns of each box."""

    def loss(output: Tensor, wanted: Tensor) -> Tensor:
        x1, y1, x2, y2 = wanted.unbind(dim=-1)
        left, top, right, bottom = _to_corners(_make_anchors()).T[..., None]
        width = (right.minimum(x2) - left.maximum(x1)).clamp(min=0)
        height = (bottom.minimum(y2) - top.maximum(y1)).clamp(min=0)
        return F.binary_cross_entropy_with_logits(output, (width * height).T / 0.04)

    low = torch.rand(12, 2) * 0.7 + 0.1
    model, _, (inputs, _) = _with_anchors(loss)
    return model, loss, (inputs, torch.cat([low, 0.05 + 0.1 * torch.rand(12, 2)], dim=1))


def segments_by_length() -> LossCase:
    """Spans of time as (centre, length), one of which is read as (start, end)."""
    slots = torch.stack([torch.linspace(5, 60, 36), torch.full((36,), 4.0)], dim=1)

    def loss(output: Tensor, wanted: Tensor) -> Tensor:
        both = torch.min(slots[:, None, 1], wanted[:, 1]) - torch.max(slots[:, None, 0], wanted[:, 0])
        return F.binary_cross_entropy_with_logits(output, (both.relu().T > 0).float())

    start = torch.rand(12) * 60
    return nn.Linear(10, 36), loss, (torch.randn(12, 10), torch.stack([start, start + 8], dim=1))


def targets_in_a_giou_loss() -> LossCase:
    """The model gives corners, the loss reads targets as such; `_judge_boxes` may say so first."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        both = (torch.min(target[:, 2:], output[:, 2:]) - torch.max(output[:, :2], target[:, :2])).clamp(min=0)
        return 1 - (both.prod(dim=1) / (_area(output) + _area(target).abs())).mean()

    model, _, (inputs, boxes) = _with_corners(loss)
    return model, loss, (inputs, torch.cat([boxes[:, :2] + 0.1, boxes[:, 2:] - boxes[:, :2]], dim=1))


def anchors_by_corners() -> LossCase:
    return _with_anchors(_match(_to_corners(_make_anchors()), _make_boxes(9)))


def matching_of_raw_outputs() -> LossCase:
    """Boxes of an untrained model have no order of their sides; a matching reads them without gradient."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            best = _intersect(output.detach(), target).argmax(dim=1)
        found = torch.stack([own + 0.0 for own in output.data])
        return F.l1_loss(output, target[best]) + 0.1 * _intersect(found, target).mean()

    return nn.Linear(10, 4), loss, (torch.randn(48, 10), _make_boxes(48))


def matching_by_numpy() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        found = torch.from_numpy(np.array(output.detach().numpy()))
        return F.l1_loss(output, target[_intersect(found, target).argmax(dim=1)])

    return nn.Linear(10, 4), loss, (torch.randn(48, 10), _make_boxes(48))


def matching_of_padded_targets() -> LossCase:
    """Targets are filled up by boxes that are none: of zeros, and one that nothing meets."""
    anchors = _to_corners(_make_anchors())

    def loss(output: Tensor, target: Tensor) -> Tensor:
        share = _intersect(anchors, target.flatten(0, 1)).unflatten(1, target.shape[:2]).amax(dim=2)
        return F.binary_cross_entropy_with_logits(output, (share.T > 0.3).float())

    boxes = _make_boxes(12, 5)
    boxes[:, 3:] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    boxes[:6, 2:] = 0
    return nn.Linear(10, 36), loss, (torch.randn(12, 10), boxes)


def written_outputs() -> LossCase:
    """Outputs are written into a tensor that was made without them."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        kept = torch.zeros(len(output), 4)
        kept[:, :] = output.detach()
        return F.l1_loss(output, target[_intersect(kept, target).argmax(dim=1)])

    return nn.Linear(10, 4), loss, (torch.randn(48, 10), _make_boxes(48))


def distances_of_points() -> LossCase:
    """The least minus the greatest of two points is no overlap: both are of one column."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        first, second = target[:, :2], target[:, 2:]
        spread = torch.min(first, second) - torch.max(second, first)
        return (output[:, :2] - spread).square().mean()

    return nn.Linear(10, 4), loss, (torch.randn(48, 10), torch.rand(48, 4))


# --- rotations -------------------------------------------------------------------------------------------------------


def _make_quaternions(*, turn: float = 3.14) -> Tensor:
    axis = F.normalize(torch.randn(64, 3), dim=1)
    half = turn * torch.rand(64, 1) / 2
    return torch.cat([half.cos(), axis * half.sin()], dim=1)


def _sign() -> Tensor:
    return torch.randint(2, (64, 1)) * 2.0 - 1


def _rotate(loss: Loss, target: Tensor) -> LossCase:
    model = Call(lambda rows, layer: F.normalize(layer(rows), dim=1), nn.Linear(10, target.shape[1]))
    return model, loss, (torch.randn(64, 10), target)


def quaternions_by_squares() -> LossCase:
    return _rotate(F.mse_loss, _make_quaternions() * _sign())


def poses_by_distances() -> LossCase:
    """(x, y, z) and a quaternion, as in PoseNet."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        place, turn = F.l1_loss(output[:, :3], target[:, :3]), (output[:, 3:] - target[:, 3:]).norm(dim=1)
        return place + 3 * turn.mean()

    target = torch.cat([torch.randn(64, 3), F.normalize(torch.randn(64, 4), dim=1)], dim=1)
    return nn.Linear(10, 7), loss, (torch.randn(64, 10), target)


def quaternions_of_one_sign() -> LossCase:
    return _rotate(F.mse_loss, _make_quaternions())


def quaternions_near_another() -> LossCase:
    """The sign is that of the product with a quaternion, and w has both."""
    mean = F.normalize(torch.tensor([0.1, 0.7, -0.5, 0.4]), dim=0)
    rows = F.normalize(torch.randn(64, 4), dim=1)
    return _rotate(F.mse_loss, rows * (rows @ mean).sign()[:, None])


def quaternions_of_the_nearer_sign() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return torch.minimum((output - target).norm(dim=1), (output + target).norm(dim=1)).mean()

    return _rotate(loss, _make_quaternions() * _sign())


def quaternions_by_angles() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return 2 * torch.acos((output * target).sum(dim=1).abs().clamp(max=1 - 1e-6)).mean()

    return _rotate(loss, F.normalize(torch.randn(64, 4), dim=1))


def rotations_by_matrices() -> LossCase:
    def to_products(rows: Tensor) -> Tensor:
        return (rows[:, :, None] * rows[:, None]).flatten(1)

    return _rotate(lambda o, t: F.mse_loss(to_products(o), to_products(t)), F.normalize(torch.randn(64, 4), dim=1))


def two_directions() -> LossCase:
    angle = torch.rand(64, 2) * 6.28
    return _rotate(F.mse_loss, torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1))


def one_of_four() -> LossCase:
    return _rotate(F.mse_loss, torch.eye(4)[torch.randint(4, (64,))])


def any_four() -> LossCase:
    return _rotate(F.mse_loss, torch.randn(64, 4))


# --- depth -----------------------------------------------------------------------------------------------------------


def _make_depth(*, share: float = 0.3) -> Tensor:
    depth = 3 + 20 * torch.rand(6, 1, 8, 8)
    depth[torch.rand(6, 1, 8, 8) < share] = 0
    return depth


def _see(loss: Loss, target: Tensor | None = None) -> LossCase:
    model = Call(lambda images, layer: F.softplus(layer(images)) + 0.1, nn.Conv2d(3, 1, 3, padding=1))
    return model, loss, (torch.randn(6, 3, 8, 8), _make_depth() if target is None else target)


def logarithms_of_all() -> LossCase:
    return _see(lambda o, t: (o.log() - (t + 1e-6).log()).abs().mean())


def logarithms_of_other_holes() -> LossCase:
    """The mask is for what is far away, and leaves the holes."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        kept = target < 20
        error = torch.log10(output[kept]) - torch.log10(target[kept].clamp(min=1e-3))
        return error.square().mean() - 0.5 * error.mean() ** 2

    return _see(loss)


def logarithms_without_a_gradient() -> LossCase:
    """The target is prepared in its own block, and without its holes nothing is left out."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = torch.log2(torch.where(target > 0, target, torch.full_like(target, 1e-4)))
        return F.huber_loss(output, wanted)

    return _see(loss)


def logarithms_of_targets() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        kept = target > 0
        error = output[kept].log() - target[kept].log()
        return error.square().mean() - 0.85 * error.mean() ** 2

    return _see(loss)


def logarithms_times_a_mask() -> LossCase:
    """Holes enter the logarithm and are left out later; a term of smoothness pulls at all places."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        mask = (target > 0).float()
        error = (output.log() - target.clamp(min=1e-6).log()).abs() * mask
        return error.sum() / mask.sum() + 0.1 * output.diff(dim=-1).abs().mean() + 0.1 * output.mean()

    return _see(loss)


def logarithms_where_known() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        error = torch.log(output / target.clamp(min=1e-3))
        return torch.where(target > 0, error.square(), torch.zeros(())).mean()

    return _see(loss)


def logarithms_of_counts() -> LossCase:
    """Zero is a number, and its logarithm is that of one more."""
    return _see(lambda o, t: (o - torch.log(1 + t)).abs().mean())


def logarithms_of_small_numbers() -> LossCase:
    """Spectra go down to zero in small steps: what is below the floor is silence."""
    spectrum = 40 * torch.rand(6, 1, 8, 8) ** 8
    spectrum[..., 6:] = 0
    return _see(lambda o, t: (o - t.clamp(min=1e-5).log()).abs().mean(), spectrum)


def divergence_by_hand() -> LossCase:
    """Classes of share zero enter a logarithm, and are multiplied by their share."""
    target = F.one_hot(torch.randint(5, (6, 8, 8)), 5).permute(0, 3, 1, 2).float() * 0.9
    target[:, 0] += 0.1

    def loss(output: Tensor, wanted: Tensor) -> Tensor:
        return (wanted * ((wanted + 1e-8).log() - output.log_softmax(dim=1))).sum(dim=1).mean()

    return nn.Conv2d(3, 5, 1), loss, (torch.randn(6, 3, 8, 8), target)


PLANTED: dict[Callable[[], LossCase], str] = {
    **dict.fromkeys((iou_by_columns, iou_of_volumes, overlap_with_a_late_clamp), "loss.form"),
    **dict.fromkeys(
        (anchors_by_center, targets_by_width, segments_by_length, targets_in_a_giou_loss), "assign.box_format"
    ),
    **dict.fromkeys((quaternions_by_squares, poses_by_distances), "loss.form"),
    **dict.fromkeys(
        (logarithms_of_all, logarithms_of_other_holes, logarithms_without_a_gradient),
        "data.ignore_handling",
    ),
}
"""First cause of each bug."""

CORRECT = [
    *(clamped_overlap, overlap_times_a_mask, overlap_where_boxes_meet, overlap_of_those_that_meet),
    *(
        hull_of_two_boxes,
        distances_along_two_axes,
        anchors_by_corners,
        matching_of_raw_outputs,
        matching_by_numpy,
        matching_of_padded_targets,
    ),
    *(written_outputs, distances_of_points, quaternions_of_one_sign, quaternions_near_another),
    *(quaternions_of_the_nearer_sign, quaternions_by_angles, rotations_by_matrices, two_directions, one_of_four),
    *(any_four, logarithms_of_targets, logarithms_times_a_mask, logarithms_where_known, logarithms_of_counts),
    *(logarithms_of_small_numbers, divergence_by_hand),
]
