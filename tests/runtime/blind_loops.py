"""Bugs of a blind exam, and kin of them, in small losses, loaders and loops; each with a form in which it is mended.

The forty scripts were written before anything of the package was read (docs/results/checks.md, "A blind exam"). These
are the relations that they asked for, smaller: `LOSSES` return a model, a loss and a batch, `LOADERS` a loader, `LOOPS`
a watch. Each takes `bug`, and `is_healthy_kin` are correct codes that look alike.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, WeightedRandomSampler

import sightline
from sightline.workbench.watch.watch import Watch
from tests.runtime.healthy_loops import batches, net, train

# --- losses -----------------------------------------------------------------------------------------------------------

LossCase = tuple[nn.Module, Callable[[Any, Any], Tensor], tuple[Any, Any]]


class Call(nn.Module):
    """Module of a function, with the layers that it uses."""

    def __init__(self, run: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.run = nn.ModuleList(layers), run

    def forward(self, inputs: Any) -> Any:
        return self.run(inputs, *self.layers)


def column_against_row(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return ((output - target).abs() if bug else (output[:, 0] - target).abs()).mean()

    return nn.Linear(10, 1), loss, (torch.randn(12, 10), torch.randn(12))


def row_against_column(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        difference = output - (target[:, None] if bug else target)
        return (difference * difference).mean()

    return Call(lambda x, layer: layer(x).squeeze(1), nn.Linear(10, 1)), loss, (torch.randn(12, 10), torch.randn(12))


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


def self_pairs_of_long_rows(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        products = torch.mm(output, output.t()) / 0.5
        return F.cross_entropy(products if bug else products - 1e9 * torch.eye(len(output)), target)

    return nn.Linear(10, 6), loss, (torch.randn(16, 10), torch.arange(16).roll(8))


def dice_of_logits(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        scores = output if bug else output.sigmoid()
        both, each = ((values).sum(dim=(1, 2, 3)) for values in (scores * target, scores))
        return 1 - ((2 * both + 1) / (each + target.sum(dim=(1, 2, 3)) + 1)).mean()

    return nn.Conv2d(1, 1, 3, padding=1), loss, (torch.randn(4, 1, 6, 6), torch.randint(2, (4, 1, 6, 6)).float())


def jaccard_of_logits(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        scores = output if bug else output.sigmoid()
        both = (scores * target).sum()
        return 1 - (both + 1e-6) / (scores.sum() + target.sum() - both + 1e-6)

    return nn.Linear(10, 4), loss, (torch.randn(16, 10), torch.randint(2, (16, 4)).float())


def divergence_of_probabilities(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        scores = F.softmax(output, dim=1) if bug else F.log_softmax(output, dim=1)
        return F.kl_div(scores, target, reduction="batchmean")

    return nn.Linear(10, 4), loss, (torch.randn(16, 10), torch.randn(16, 4).softmax(dim=1))


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


def degrees_without_wrapping(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        turn = torch.deg2rad(output - target)
        return turn.square().mean() if bug else (1 - turn.cos()).mean()

    return nn.Linear(10, 1), loss, (torch.randn(256, 10), torch.rand(256, 1) * 360)


def boxes_of_two_formats(bug: bool) -> LossCase:
    corners = torch.rand(32, 2).repeat(1, 2) * 0.5 + torch.tensor([0.0, 0.0, 0.3, 0.2])
    target = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1) if bug else corners
    return Call(_corners, nn.Linear(10, 4)), F.l1_loss, (torch.randn(32, 10), target)


def _corners(inputs: Tensor, layer: nn.Module) -> Tensor:
    center, size = layer(inputs).sigmoid().chunk(2, dim=1)
    return torch.cat([center - size / 2, center + size / 2], dim=1)


def padding_with_labels(bug: bool) -> LossCase:
    points, labels = torch.randn(6, 20, 3), torch.randint(3, (6, 20))
    for row, length in enumerate((20, 18, 16, 17, 12, 9)):
        points[row, length:], labels[row, length:] = 0, 0 if bug else -100
    return nn.Linear(3, 3), lambda o, t: F.cross_entropy(o.transpose(1, 2), t), (points, labels)


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


def grey_images_of_two_divisions(bug: bool) -> LossCase:
    images = torch.randint(40, 180, (8, 1, 6, 6)) / (255.0 * 255.0 if bug else 255.0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), F.cross_entropy, (images, torch.randint(3, (8,)))


def points_by_view(bug: bool) -> LossCase:
    def run(points: Tensor, layer: nn.Module, head: nn.Module) -> Tensor:
        rows = points.view(len(points), 3, -1) if bug else points.transpose(1, 2)
        return head(layer(rows).amax(dim=2))

    data = torch.randn(8, 16, 3), torch.randint(4, (8,))
    return Call(run, nn.Conv1d(3, 8, 1), nn.Linear(8, 4)), F.cross_entropy, data


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


class WrongScale(torch.autograd.Function):
    """Its gradient of the scale is a mean where the sum is meant."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, bug: bool) -> Tensor:
        ctx.save_for_backward(values, scale)
        ctx.bug = bug
        return values * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        values, scale = ctx.saved_tensors
        product = gradient * values
        return gradient * scale, product.mean(dim=0) if ctx.bug else product.sum(dim=0), None


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


def own_backward_of_a_scale(bug: bool) -> LossCase:
    model = Call(lambda x, one, two: two(WrongScale.apply(one(x), one.bias, bug)), nn.Linear(10, 8), nn.Linear(8, 4))
    return model, F.cross_entropy, next(batches(1))


LOSSES: dict[Callable[[bool], LossCase], tuple[str, str]] = {
    **dict.fromkeys(
        (
            *(column_against_row, row_against_column, depth_with_an_axis_too_many, focal_factor_of_the_mean),
            *(binary_focal_factor_of_the_mean, dice_of_logits, jaccard_of_logits, divergence_of_probabilities),
            *(divergence_of_heat_maps, angles_without_wrapping, degrees_without_wrapping),
        ),
        ("loss-form", "loss.form"),
    ),
    **dict.fromkeys((self_pairs, self_pairs_of_long_rows), ("loss-form", "loss.negatives")),
    boxes_of_two_formats: ("loss-form", "assign.box_format"),
    **dict.fromkeys((padding_with_labels, padding_with_targets), ("padded-points", "data.padding")),
    **dict.fromkeys((weights_of_frequent_classes, weights_of_frequent_pixels), ("loss-weights", "loss.weights")),
    **dict.fromkeys(
        (images_of_two_divisions, grey_images_of_two_divisions), ("input-statistics", "data.normalisation")
    ),
    **dict.fromkeys((points_by_view, images_by_view, states_by_view), ("exchanged-axes", "data.layout")),
    **dict.fromkeys((softmax_over_queries, softmax_over_heads), ("attention", "model.structure")),
    **dict.fromkeys((own_backward, own_backward_of_a_scale), ("layer-gradient", "model.numerics")),
}
"""Code and first cause of each."""


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

# --- loaders ----------------------------------------------------------------------------------------------------------


class Items(Dataset[Any]):
    """Data set of a function of the index."""

    def __init__(self, read: Callable[[int], Any], size: int = 48) -> None:
        self.read, self.size = read, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        return self.read(index)


_POINTS = torch.randn(48, 30, 3, generator=torch.Generator().manual_seed(0))
_IMAGES = torch.randn(48, 2, 9, 9, generator=torch.Generator().manual_seed(0))


def seeded_by_numpy(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        if bug:
            np.random.seed(0)
        return _POINTS[index] + float(np.random.normal()), index % 3

    return DataLoader(Items(read), 8, shuffle=True)


def seeded_by_torch(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        if bug:
            torch.manual_seed(7)
        return _POINTS[index] + torch.randn(30, 3), index % 3

    return DataLoader(Items(read), 8, shuffle=True)


class Stored(Dataset[Any]):
    def __init__(self, values: Any, bug: bool) -> None:
        self.values, self.bug = values, bug

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Any:
        points = self.values[index] if self.bug else self.values[index] + 0
        points -= 0.3
        points *= 1.1
        return torch.as_tensor(points), index % 3


def edited_tensor(bug: bool) -> DataLoader[Any]:
    return DataLoader(Stored(_POINTS.clone(), bug), 8, shuffle=True)


def edited_array(bug: bool) -> DataLoader[Any]:
    return DataLoader(Stored(_POINTS.numpy().copy(), bug), 8, shuffle=True)


def image_flipped_alone(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        image, mask = _IMAGES[index], (_IMAGES[index, 0] > 0).long()
        if torch.rand(()) < 0.5:
            image, mask = image.flip(-1), mask if bug else mask.flip(-1)
        return image, mask

    return DataLoader(Items(read), 8, shuffle=True)


def scan_upside_down_alone(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        image, depth = _IMAGES[index], _IMAGES[index, :1].exp()
        if torch.rand(()) < 0.5:
            image, depth = image.flip(-2), depth if bug else depth.flip(-2)
        return image + 0.01 * torch.randn(2, 9, 9), depth

    return DataLoader(Items(read), 8, shuffle=True)


def two_subsets(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        chosen = torch.randperm(30)[:16]
        return _POINTS[index][chosen], (_POINTS[index, :, 0] > 0).long()[torch.randperm(30)[:16] if bug else chosen]

    return DataLoader(Items(read), 8, shuffle=True)


def points_shuffled_alone(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        order = torch.randperm(30)
        label = (_POINTS[index, :, 1] > 0).long()
        return _POINTS[index][order].numpy(), label.numpy() if bug else label[order].numpy()

    return DataLoader(Items(read), 8, shuffle=True)


def labels_between_classes(bug: bool) -> DataLoader[Any]:
    def read(index: int) -> Any:
        mask = (_IMAGES[index, :1] * 3).round().clamp(0, 4)[None]
        options = {"mode": "bilinear", "align_corners": False} if bug else {"mode": "nearest"}
        return F.interpolate(_IMAGES[index][None], size=(6, 6))[0], F.interpolate(mask, size=(6, 6), **options)[
            0, 0
        ].long()

    return DataLoader(Items(read), 8, shuffle=True)


def labels_between_classes_of_ids(bug: bool) -> DataLoader[Any]:
    ids = torch.tensor([0, 7, 11, 26])

    def read(index: int) -> Any:
        mask = ids[(_IMAGES[index, 0] > 0).long() + 2 * (_IMAGES[index, 1] > 0).long()].float()[None, None]
        mask = F.interpolate(mask, (12, 12), mode="bicubic") if bug else F.interpolate(mask, (12, 12))
        return _IMAGES[index], mask[0, 0].round().to(torch.int64)

    return DataLoader(Items(read), 8, shuffle=True)


def weights_of_classes(bug: bool) -> DataLoader[Any]:
    label = torch.arange(48) % 3
    weights = 1 / label.bincount().float()
    sampler = WeightedRandomSampler(weights if bug else weights[label], 48)  # type: ignore[arg-type]
    return DataLoader(TensorDataset(_POINTS, label), 8, sampler=sampler)


def few_samples_again_and_again(bug: bool) -> DataLoader[Any]:
    values = torch.randn(400, 5)
    order = [index % 4 if bug else index for index in range(400)]
    return DataLoader(TensorDataset(values, torch.arange(400) % 3), 8, sampler=order)


def inputs_sorted_alone(bug: bool) -> DataLoader[Any]:
    def collate(samples: list[Any]) -> Any:
        points, labels = zip(*samples, strict=True)
        order = sorted(range(len(points)), key=lambda row: float(points[row].sum()))
        return torch.stack([points[row] for row in order]), torch.tensor(
            labels if bug else [labels[row] for row in order]
        )

    return DataLoader(TensorDataset(_POINTS, torch.arange(48)), 8, shuffle=True, collate_fn=collate)


def targets_rolled_by_collate(bug: bool) -> DataLoader[Any]:
    def collate(samples: list[Any]) -> Any:
        points, labels = zip(*samples, strict=True)
        return torch.stack(points), torch.stack(labels).roll(1 if bug else 0, dims=0)

    return DataLoader(TensorDataset(_POINTS, torch.randn(48, 2)), 8, shuffle=True, collate_fn=collate)


def sorted_by_class(bug: bool) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(160, 5), torch.arange(160) // 40), 8, shuffle=not bug)


def sorted_by_falling_class(bug: bool) -> DataLoader[Any]:
    values = torch.randn(160, 5)
    return DataLoader(Items(lambda index: (values[index], 4 - index // 32), size=160), 8, shuffle=not bug)


LOADERS: dict[Callable[[bool], DataLoader[Any]], tuple[str, str]] = {
    **dict.fromkeys((seeded_by_numpy, seeded_by_torch), ("own-generator", "data.duplicate_randomness")),
    **dict.fromkeys((edited_tensor, edited_array), ("data-mutation", "data.item_mutation")),
    **dict.fromkeys(
        (image_flipped_alone, scan_upside_down_alone), ("augmentation-mismatch", "data.augment_target_mismatch")
    ),
    **dict.fromkeys((two_subsets, points_shuffled_alone), ("augmentation-mismatch", "data.pairing")),
    **dict.fromkeys((labels_between_classes, labels_between_classes_of_ids), ("label-range", "data.target_encoding")),
    **dict.fromkeys((weights_of_classes, few_samples_again_and_again), ("empty-loader", "data.sampling")),
    **dict.fromkeys((inputs_sorted_alone, targets_rolled_by_collate), ("exchanged-rows", "data.pairing")),
    **dict.fromkeys((sorted_by_class, sorted_by_falling_class), ("same-label", "data.ordering")),
}


def own_generator() -> DataLoader[Any]:
    generator = np.random.default_rng(0)
    return DataLoader(Items(lambda index: (_POINTS[index] + float(generator.normal()), index % 3)), 8, shuffle=True)


def cached_items() -> DataLoader[Any]:
    cache, is_full = torch.zeros(48, 30, 3), torch.zeros(48, dtype=torch.bool)

    def read(index: int) -> Any:
        if not is_full[index]:
            cache[index], is_full[index] = _POINTS[index] * 2, True
        return cache[index], index % 3

    return DataLoader(Items(read), 8, shuffle=True)


def mixed_up() -> DataLoader[Any]:
    def collate(samples: list[Any]) -> Any:
        points, label = (
            torch.stack([p for p, _ in samples]),
            F.one_hot(torch.tensor([y for _, y in samples]), 3).float(),
        )
        share = torch.distributions.Beta(0.4, 0.4).sample()
        other = torch.randperm(len(points))
        return share * points + (1 - share) * points[other], share * label + (1 - share) * label[other]

    return DataLoader(Items(lambda index: (_POINTS[index], index % 3)), 8, shuffle=True, collate_fn=collate)


def cropped_and_flipped_with_a_class() -> DataLoader[Any]:
    def read(index: int) -> Any:
        image = _IMAGES[index][:, :, int(torch.randint(3, ())) :][:, :, :6]
        return image.flip(-1) if torch.rand(()) < 0.5 else image, index % 3

    return DataLoader(Items(read), 8, shuffle=True)


def binary_mask_by_a_threshold() -> DataLoader[Any]:
    def read(index: int) -> Any:
        mask = F.interpolate((_IMAGES[index, :1] > 0).float()[None], (6, 6), mode="bilinear")
        return _IMAGES[index], (mask[0, 0] > 0.5).long()

    return DataLoader(Items(read), 8, shuffle=True)


HEALTHY_LOADERS = [own_generator, cached_items, mixed_up, cropped_and_flipped_with_a_class, binary_mask_by_a_threshold]

# --- loops ------------------------------------------------------------------------------------------------------------


def overlapping_split(bug: bool, *, evaluates: str = "validation") -> Watch:
    torch.manual_seed(0)
    values = torch.randn(120, 20)
    data = TensorDataset(values, values[:, :4].argmax(dim=1))
    order = torch.randperm(120)
    held = order[torch.randperm(120)[:40]] if bug else order[:40]
    loaders = {"training": DataLoader(Subset(data, order[40:]), 16, shuffle=True)}  # type: ignore[arg-type]
    loaders["validation"] = DataLoader(Subset(data, held), 16)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            for points, label in loaders["training"]:
                optimizer.zero_grad()
                F.cross_entropy(model.train()(points), label).backward()
                optimizer.step()
            with torch.no_grad():
                for name in evaluates.split():
                    for points, _ in loaders[name]:
                        model.eval()(points)
    return watch


def overlapping_split_of_two_evaluations(bug: bool) -> Watch:
    return overlapping_split(bug, evaluates="training validation")


def keys_of_another_model(bug: bool, change: Callable[[str], str] = lambda key: f"module.{key}") -> Watch:
    stored = {change(key) if bug else key: value for key, value in net().state_dict().items()}
    return train(at=lambda step, model: step == 1 and model.load_state_dict(stored, strict=False), steps=3)


def keys_of_a_part(bug: bool) -> Watch:
    stored = {f"body.{key}" if bug else key: value for key, value in nn.Linear(10, 24).state_dict().items()}
    return train(at=lambda step, model: step == 1 and model[0].load_state_dict(stored, strict=False), steps=3)


def accumulation_cleared(bug: bool, *, sets_to_none: bool = True) -> Watch:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step, (points, label) in enumerate(batches(24)):
            if bug or step % 3 == 0:
                optimizer.zero_grad(set_to_none=sets_to_none)
            (F.cross_entropy(model(points), label) / 3).backward()
            if step % 3 == 2:
                optimizer.step()
    return watch


def accumulation_set_to_zero(bug: bool) -> Watch:
    return accumulation_cleared(bug, sets_to_none=False)


def schedule_of_epochs(bug: bool, gamma: float = 0.1) -> Watch:
    def make(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=2 if bug else 20, gamma=gamma)

    return train(scheduler=make, steps=40)


def schedule_that_falls_fast(bug: bool) -> Watch:
    return train(scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5 if bug else 0.98), steps=50)


def clipped_while_scaled(bug: bool, *, by_value: bool = False) -> Watch:
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches(8):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(points), label)).backward()
            if not bug:
                scaler.unscale_(optimizer)
            if by_value:
                nn.utils.clip_grad_value_(model.parameters(), 0.01)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
    return watch


def clipped_by_value_while_scaled(bug: bool) -> Watch:
    return clipped_while_scaled(bug, by_value=True)


class Average(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(model)

    def forward(self, points: Tensor) -> Any:
        return self.module(points)


def average_without_buffers(bug: bool, *, wrap: Callable[[nn.Module], nn.Module] = copy.deepcopy) -> Watch:
    model = net()
    average = wrap(model)

    def update(step: int, model: nn.Module) -> None:
        for mean, own in zip(average.parameters(), model.parameters(), strict=True):
            mean.data.lerp_(own.data, 0.1)
        if step % 10 == 0:
            for mean, own in zip(average.buffers(), model.buffers(), strict=True):
                mean.copy_(mean if bug else own)
            with torch.no_grad():
                average.eval()(torch.randn(4, 10))

    return train(model, at=update, ema=average, steps=30)


def wrapped_average_without_buffers(bug: bool) -> Watch:
    return average_without_buffers(bug, wrap=Average)


class Scenes(nn.Module):
    def __init__(self, bug: bool, *, is_encoder: bool) -> None:
        super().__init__()
        self.embed, self.head, self.bug, self.is_encoder = nn.Linear(4, 8), nn.Linear(8, 4), bug, is_encoder
        self.part = (
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            if is_encoder
            else nn.MultiheadAttention(8, 2)
        )

    def forward(self, rows: Tensor, is_there: Tensor) -> Tensor:
        hidden, ignored = self.embed(rows), is_there if self.bug else ~is_there
        if self.is_encoder:
            return self.head(self.part(hidden, src_key_padding_mask=ignored).amax(dim=1))
        keys = hidden.transpose(0, 1)
        return self.head(self.part(keys[:1], keys, keys, key_padding_mask=ignored)[0][0])


def mask_upside_down(bug: bool, *, is_encoder: bool = False) -> Watch:
    model = Scenes(bug, is_encoder=is_encoder)
    optimizer = torch.optim.Adam(model.parameters())
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            is_there = torch.arange(6) < torch.randint(2, 5, (12, 1))
            rows = torch.randn(12, 6, 4) * is_there[..., None]
            optimizer.zero_grad()
            F.cross_entropy(model(rows, is_there), torch.randint(4, (12,))).backward()
            optimizer.step()
    return watch


def mask_of_an_encoder_upside_down(bug: bool) -> Watch:
    return mask_upside_down(bug, is_encoder=True)


LOOPS: dict[Callable[[bool], Watch], tuple[str, str]] = {
    **dict.fromkeys((overlapping_split, overlapping_split_of_two_evaluations), ("split-overlap", "data.split")),
    **dict.fromkeys((keys_of_another_model, keys_of_a_part), ("nothing-loaded", "ckpt.key_mismatch")),
    **dict.fromkeys((accumulation_cleared, accumulation_set_to_zero), ("gradients-cleared", "optim.grad_accumulation")),
    **dict.fromkeys((schedule_of_epochs, schedule_that_falls_fast), ("schedule", "optim.scheduler")),
    **dict.fromkeys((clipped_while_scaled, clipped_by_value_while_scaled), ("scaled-clipping", "optim.clip")),
    **dict.fromkeys((average_without_buffers, wrapped_average_without_buffers), ("ema", "model.norm_mode")),
    **dict.fromkeys((mask_upside_down, mask_of_an_encoder_upside_down), ("attention", "data.padding")),
}


def adversarial_examples() -> Watch:
    """Gradients of inputs are taken by a backward pass of its own, whose other gradients are cleared."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches(12):
            moved = points.clone().requires_grad_()
            F.cross_entropy(model(moved), label).backward()
            optimizer.zero_grad()
            F.cross_entropy(model(points + 0.1 * moved.grad.sign()), label).backward()
            optimizer.step()
            optimizer.zero_grad()
    return watch


def divided_while_scaled() -> Watch:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for points, label in batches(8):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(points), label)).backward()
            for parameter in model.parameters():
                parameter.grad.div_(4)
            scaler.step(optimizer)
            scaler.update()
    return watch


def average_with_statistics_made_anew() -> Watch:
    model = net()
    average = torch.optim.swa_utils.AveragedModel(model)

    def update(step: int, model: nn.Module) -> None:
        average.update_parameters(model)
        if step == 30:
            torch.optim.swa_utils.update_bn([points for points, _ in batches(3)], average)
            with torch.no_grad():
                average.eval()(torch.randn(4, 10))

    return train(model, at=update, ema=average, steps=30)


def training_set_evaluated() -> Watch:
    return overlapping_split(False, evaluates="training training validation")


def weights_of_a_backbone() -> Watch:
    stored = {key: value for key, value in net().state_dict().items() if key.startswith("0.")}
    return train(at=lambda step, model: step == 1 and model.load_state_dict(stored, strict=False), steps=3)


HEALTHY_LOOPS = [
    adversarial_examples,
    divided_while_scaled,
    average_with_statistics_made_anew,
    training_set_evaluated,
    weights_of_a_backbone,
]
