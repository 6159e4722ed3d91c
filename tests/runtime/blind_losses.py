"""Bugs of a blind exam, and kin of them, in losses and networks; each with a form in which it is mended.

The forty scripts were written before anything of the package was read (docs/results/doctor.md, "A blind exam").
These are the relations that they asked for, smaller.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.runtime.healthy_loops import batches, net

LossCase = tuple[nn.Module, Callable[[Any, Any], Tensor], tuple[Any, Any]]


class Call(nn.Module):
    """Module of a function, with the layers that it uses."""

    def __init__(self, run: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.run = nn.ModuleList(layers), run

    def forward(self, inputs: Any) -> Any:
        return self.run(inputs, *self.layers)


class CallOfTwo(Call):
    """The same of two inputs."""

    def forward(self, first: Any, second: Any) -> Any:
        return self.run(first, second, *self.layers)


def column_against_row(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return ((output - target).abs() if bug else (output[:, 0] - target).abs()).mean()

    return nn.Linear(10, 1), loss, (torch.randn(12, 10), torch.randn(12))


def depth_with_an_axis_too_many(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        with warnings.catch_warnings(action="ignore"):  # torch warns, and goes on
            return F.smooth_l1_loss(output if bug else output.squeeze(1), target)

    return nn.Conv2d(3, 1, 3, padding=1), loss, (torch.randn(4, 3, 6, 6), torch.randn(4, 6, 6))


def focal_factor_of_the_mean(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        entropy = F.cross_entropy(output, target, reduction="mean" if bug else "none")
        return ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()

    return net(), loss, next(batches(1))


def binary_focal_factor_of_the_mean(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(output, target, reduction="mean" if bug else "none")
        return (0.25 * (1 - (-entropy).exp()) ** 1.5 * entropy).mean()

    return nn.Conv2d(3, 2, 1), loss, (torch.randn(4, 3, 6, 6), torch.randint(2, (4, 2, 6, 6)).float())


def self_pairs(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        rows = F.normalize(output, dim=1)
        products = rows @ rows.T * 5
        products = products if bug else products.masked_fill(torch.eye(len(rows), dtype=torch.bool), -torch.inf)
        return F.cross_entropy(products, torch.arange(len(rows)).roll(len(rows) // 2))

    return nn.Linear(10, 6), loss, (torch.randn(16, 10), torch.zeros(16))


def dice_of_logits(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        scores = output if bug else output.sigmoid()
        both, each = ((values).sum(dim=(1, 2, 3)) for values in (scores * target, scores))
        return 1 - ((2 * both + 1) / (each + target.sum(dim=(1, 2, 3)) + 1)).mean()

    return nn.Conv2d(1, 1, 3, padding=1), loss, (torch.randn(4, 1, 6, 6), torch.randint(2, (4, 1, 6, 6)).float())


def divergence_of_heat_maps(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        rows = output.flatten(1)
        return F.kl_div(rows.softmax(dim=-1) if bug else rows.log_softmax(dim=-1), target, reduction="sum") / len(
            output
        )

    return nn.Conv2d(3, 1, 1), loss, (torch.randn(4, 3, 6, 6), torch.randn(4, 36).softmax(dim=1))


def angles_without_wrapping(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        turn = output - target
        return (turn if bug else torch.atan2(turn.sin(), turn.cos())).abs().mean()

    target = (torch.rand(256) * 2 - 1) * torch.pi
    return Call(lambda x, layer: layer(x)[:, 0], nn.Linear(10, 1)), loss, (torch.randn(256, 10), target)


def boxes_of_two_formats(bug: bool) -> LossCase:
    corners = torch.rand(32, 2).repeat(1, 2) * 0.5 + torch.tensor([0.0, 0.0, 0.3, 0.2])
    target = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1) if bug else corners
    return Call(_corners, nn.Linear(10, 4)), F.l1_loss, (torch.randn(32, 10), target)


def _corners(inputs: Tensor, layer: nn.Module) -> Tensor:
    center, size = layer(inputs).sigmoid().chunk(2, dim=1)
    return torch.cat([center - size / 2, center + size / 2], dim=1)


def padding_with_targets(bug: bool) -> LossCase:
    points, target = torch.randn(6, 20, 3), torch.zeros(6, 20)
    for row, length in enumerate((20, 18, 16, 17, 12, 9)):
        points[row, length:] = 0

    def loss(output: Tensor, wanted: Tensor) -> Tensor:
        mask = (points != 0).any(dim=-1)
        error = (output[..., 0] - wanted).abs()
        return error.mean() if bug else (error * mask).sum() / mask.sum()

    return nn.Linear(3, 1), loss, (points, target)


def weights_of_frequent_classes(bug: bool) -> LossCase:
    label = torch.tensor([0] * 20 + [1] * 8 + [2] * 4)
    counts = label.bincount().float()
    return nn.Linear(10, 3), nn.CrossEntropyLoss(counts if bug else 1 / counts), (torch.randn(32, 10), label)


def weights_of_frequent_pixels(bug: bool) -> LossCase:
    label = torch.multinomial(torch.tensor([0.7, 0.05, 0.2, 0.05]), 4 * 64, replacement=True).view(4, 8, 8)
    share = label.flatten().bincount(minlength=4) / label.numel()
    weight = share.sqrt() if bug else (share + 0.1).log().neg()
    return nn.Conv2d(2, 4, 1), nn.CrossEntropyLoss(weight), (torch.randn(4, 2, 8, 8), label)


def images_of_two_divisions(bug: bool) -> LossCase:
    images = torch.randint(256, (8, 3, 6, 6)).float() / 255
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    return model, F.cross_entropy, (images / 255 if bug else images, torch.randint(3, (8,)))


def images_by_view(bug: bool) -> LossCase:
    def run(images: Tensor, layer: nn.Module, head: nn.Module) -> Tensor:
        rows = images.reshape(len(images), 3, 6, 8) if bug else images.permute(0, 3, 1, 2)
        return head(layer(rows).amax(dim=(2, 3)))

    data = torch.randn(8, 6, 8, 3), torch.randint(4, (8,))
    return Call(run, nn.Conv2d(3, 8, 1), nn.Linear(8, 4)), F.cross_entropy, data


def states_by_view(bug: bool) -> LossCase:
    def run(rows: Tensor, cell: nn.Module, head: nn.Module) -> Tensor:
        _, state = cell(rows)
        state = state.view(len(rows), 2, -1) if bug else state.transpose(0, 1)
        return head(state.flatten(1))

    data = torch.randn(8, 5, 3), torch.randint(4, (8,))
    return Call(run, nn.GRU(3, 6, num_layers=2, batch_first=True), nn.Linear(12, 4)), F.cross_entropy, data


def softmax_over_queries(bug: bool) -> LossCase:
    return _attend(lambda q, k, v: (q @ k.transpose(-2, -1) / 2).softmax(dim=1 if bug else 2) @ v)


def softmax_over_heads(bug: bool) -> LossCase:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in (q, k, v))
        weights = F.softmax(q @ k.mT * 0.5, dim=1 if bug else -1).clone()
        return (weights @ v).transpose(1, 2).flatten(2)

    return _attend(attend)


def _attend(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> LossCase:
    def run(rows: Tensor, layer: nn.Module, head: nn.Module) -> Tensor:
        return head(attend(*layer(rows).chunk(3, dim=2)).mean(dim=1))

    data = torch.randn(6, 7, 5), torch.randint(4, (6,))
    return Call(run, nn.Linear(5, 24), nn.Linear(8, 4)), F.cross_entropy, data


class WrongSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, bug: bool) -> Tensor:
        ctx.save_for_backward(values)
        ctx.bug = bug
        return values * values.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (values,) = ctx.saved_tensors
        share = values.sigmoid()
        return gradient * share * (1 - share if ctx.bug else 1 + values * (1 - share)), None


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Reverse(Round):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -0.5 * gradient


class Spike(Round):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return (values > 0).to(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / (1 + ctx.saved_tensors[0].abs()) ** 2


def own_backward(bug: bool) -> LossCase:
    model = Call(lambda x, one, two: two(WrongSwish.apply(one(x), bug)), nn.Linear(10, 8), nn.Linear(8, 4))
    return model, F.cross_entropy, next(batches(1))


LOSSES: dict[str, Sequence[Callable[[bool], LossCase]]] = {
    "loss.form": (
        *(column_against_row, depth_with_an_axis_too_many, focal_factor_of_the_mean, dice_of_logits),
        *(binary_focal_factor_of_the_mean, divergence_of_heat_maps, angles_without_wrapping),
    ),
    "loss.negatives": [self_pairs],
    "assign.box_format": [boxes_of_two_formats],
    "data.padding": [padding_with_targets],
    "loss.weights": [weights_of_frequent_classes, weights_of_frequent_pixels],
    "data.normalisation": [images_of_two_divisions],
    "data.layout": [images_by_view, states_by_view],
    "model.structure": [softmax_over_queries, softmax_over_heads],
    "model.numerics": [own_backward],
}
"""By the first cause of each."""


def nearest_target() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs().min(dim=1).values.mean()

    return nn.Linear(10, 1), loss, (torch.randn(12, 10), torch.randn(12))


def two_encoders() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        first, second = output.chunk(2, dim=1)
        return F.cross_entropy(first @ second.T, torch.arange(len(first)))

    return nn.Linear(10, 8), loss, (torch.randn(12, 10), torch.zeros(12))


def uncertainty() -> LossCase:
    scale = nn.Parameter(torch.zeros(()))
    return net(), lambda o, t: F.cross_entropy(o, t) * torch.exp(-scale) + scale, next(batches(1))


def scale_of_depth() -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        scale = (output * target).sum() / (output * output).sum()
        return (scale * output - target).abs().mean()

    return nn.Linear(10, 4), loss, (torch.randn(12, 10), torch.randn(12, 4))


def expected_error() -> LossCase:
    return nn.Linear(10, 4), lambda o, t: (1 - t * o.softmax(dim=1)).mean(), (torch.randn(12, 10), torch.eye(4)[:1])


def slots() -> LossCase:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q @ k.mT).softmax(dim=1)
        return (weights / weights.sum(dim=2, keepdim=True)) @ v

    return _attend(attend)


def linear_attention() -> LossCase:
    return _attend(lambda q, k, v: q.softmax(dim=-1) @ (k.softmax(dim=-2).mT @ v))


def clusters() -> LossCase:
    return _attend(lambda q, k, v: (q.softmax(dim=-1).mT @ v).expand(-1, -1, 8))


def shuffled_channels() -> LossCase:
    def run(images: Tensor, layer: nn.Module, head: nn.Module) -> Tensor:
        maps = layer(images)
        maps = maps.view(len(images), 2, 4, 6, 6).transpose(1, 2).reshape(len(images), 8, 6, 6)
        return head(maps.flatten(2).mean(dim=2))

    data = torch.randn(8, 3, 6, 6), torch.randint(4, (8,))
    return Call(run, nn.Conv2d(3, 8, 1), nn.Linear(8, 4)), F.cross_entropy, data


def intended_backward() -> LossCase:
    def run(points: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
        return last(Spike.apply(Reverse.apply(Round.apply(first(points)))))

    return Call(run, nn.Linear(10, 8), nn.Linear(8, 4)), F.cross_entropy, next(batches(1))


def normal_targets() -> LossCase:
    return nn.Linear(10, 1), F.mse_loss, (torch.randn(256, 10), 1.2 * torch.randn(256, 1))


HEALTHY_LOSSES = [
    nearest_target,
    two_encoders,
    uncertainty,
    scale_of_depth,
    expected_error,
    slots,
    linear_attention,
    clusters,
    shuffled_channels,
    intended_backward,
    normal_targets,
]
