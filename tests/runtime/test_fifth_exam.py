"""What a fifth blind exam, of perception, asked for: each bug in a form of its own, beside correct twins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

import sightline
from tests.runtime.odd_healthy_loops import batches, classes, mlp
from tests.runtime.plain_judges import judge

SIDE = 16


# --- what counts -----------------------------------------------------------------------------------------------------


def draw_map(low: int) -> tuple[Tensor, Tensor]:
    return torch.randn(8, 3, SIDE, SIDE), torch.randint(low, 4, (8, SIDE, SIDE))


LOSSES: dict[str, tuple[int, Any, str]] = {
    "clamped, and 0 ignored": (
        -1,
        lambda o, t: F.cross_entropy(o, t.clamp(min=0), ignore_index=0),
        "class 0 does not count",
    ),
    "two that are ignored": (
        -1,
        lambda o, t: F.cross_entropy(o, torch.where(t == 3, -1, t), ignore_index=-1),
        "class 3 does not count",
    ),
    "ignored": (-1, lambda o, t: F.cross_entropy(o, t, ignore_index=-1), ""),
    "class 0 is what has no label": (0, lambda o, t: F.cross_entropy(o, t, ignore_index=0), ""),
    "a weight of 0": (-1, nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1, 1, 1]), ignore_index=-1), ""),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_beside_an_ignored_label_counts(name: str) -> None:
    low, loss, words = LOSSES[name]
    for seed in range(2):
        torch.manual_seed(seed)
        found = judge(nn.Conv2d(3, 4, 3, padding=1), loss, draw_map(low))
        assert [text for text in found if "does not count" in text] == [
            text for text in found if words and words in text
        ]
        assert any("does not count" in text for text in found) == bool(words)


MASKS: dict[str, tuple[Any, bool]] = {
    "after it is standardised": (lambda depth: (depth - 3) / 1.2 > 0, True),
    "of another unit": (lambda depth: depth > 2.5, True),
    "of what is known": (lambda depth: depth > 0, False),
    "up to a largest depth": (lambda depth: (depth > 0) & (depth < 4.5), False),
    "at random": (lambda depth: torch.rand(depth.shape, generator=torch.Generator().manual_seed(0)) < 0.5, False),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_lies_at_a_gap_of_the_targets(name: str) -> None:
    mask, is_bug = MASKS[name]

    def loss(output: Tensor, depth: Tensor) -> Tensor:
        return (output - depth).abs()[mask(depth)].mean()

    for seed in range(2):
        torch.manual_seed(seed)
        depth = 1 + 4 * torch.rand(8, 1, SIDE, SIDE)
        depth = torch.where(torch.rand(depth.shape) < 0.2, 0.0, depth)
        found = judge(nn.Conv2d(3, 1, 3, padding=1), loss, (torch.randn(8, 3, SIDE, SIDE), depth))
        assert any("though they are no holes" in text for text in found) == is_bug


# --- whose boxes, and which views ------------------------------------------------------------------------------------


class Grid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 4, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.layer(image).permute(0, 2, 3, 1)


def compare_rows(output: Tensor, rows: Tensor) -> Tensor:
    owner, (x, y) = rows[:, 0].long(), (rows[:, 2:4] * 3.99).long().T
    return F.mse_loss(output[owner, y, x], rows[:, 2:])


@pytest.mark.parametrize("owned", [True, False])
def test_rows_of_boxes_have_the_number_of_their_image(owned: bool) -> None:
    torch.manual_seed(0)
    rows = torch.cat([torch.zeros(20, 1), torch.randint(0, 3, (20, 1)), 0.1 + 0.8 * torch.rand(20, 4)], dim=1)
    rows[:, 0] = torch.arange(20) % 8 if owned else 0
    found = judge(Grid(), compare_rows, (torch.randn(8, 3, SIDE, SIDE), rows))
    assert any("all boxes of a batch belong to image 0" in text for text in found) != owned


class OfViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(-2), nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, *views: Tensor) -> Tensor:
        first, second = views if len(views) == 2 else views[0].unbind(1)
        return torch.stack([self.layers(first), self.layers(second)], dim=1)


def contrast(output: Tensor, _: Tensor) -> Tensor:
    first, second = F.normalize(output, dim=-1).unbind(1)
    return F.cross_entropy(first @ second.T / 0.2, torch.arange(len(first)))


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_two_views_differ(same: bool, stacked: bool) -> None:
    torch.manual_seed(0)
    cloud = torch.randn(16, 10, 3)
    views = (cloud, cloud.clone() if same else cloud + 0.1 * torch.randn(cloud.shape))
    inputs = torch.stack(views, dim=1) if stacked else views
    found = judge(OfViews(), contrast, (inputs, torch.arange(16)))
    assert any("both views of a sample are the same" in text for text in found) == same


# --- data sets -------------------------------------------------------------------------------------------------------


class Assigned(Dataset):  # type: ignore[type-arg]
    """Images whose anchors the data set itself assigns to boxes, given as corners or as corner and size."""

    def __init__(self, corners: bool) -> None:
        x, y = torch.meshgrid(torch.arange(4.0) * 8, torch.arange(4.0) * 8, indexing="xy")
        self.anchors = torch.stack([x, y, x + 8, y + 8], dim=-1).view(-1, 4)
        low, size = 20 * torch.rand(40, 2, 2), 4 + 8 * torch.rand(40, 2, 2)
        self.boxes = torch.cat([low, low + size if corners else size], dim=-1)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        boxes = self.boxes[index]
        low = torch.maximum(self.anchors[:, None, :2], boxes[:, :2])
        high = torch.minimum(self.anchors[:, None, 2:], boxes[:, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=-1).amax(dim=1) / 64
        return torch.randn(3, 32, 32), overlap


@pytest.mark.parametrize("corners", [True, False])
def test_boxes_that_a_data_set_assigns_are_corners(corners: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 1, 8, 8), nn.Flatten())
    found = judge(model, nn.MSELoss(), DataLoader(Assigned(corners), 8))
    assert any("an intersection of boxes reads corners" in text for text in found) != corners


class Figures(Dataset):  # type: ignore[type-arg]
    """Images with two pairs of spots, of which the left one is the first, and heat maps of all."""

    def __init__(self, swaps: bool) -> None:
        left, height = 5 + 4 * torch.rand(240, 2), torch.tensor([6, 16]) + 5 * torch.rand(240, 2)
        right = 18 + 4 * torch.rand(240, 2)
        self.joints = torch.stack([left, height, right, height], dim=-1).view(240, 2, 2, 2).flatten(1, 2)
        self.swaps, grid = swaps, torch.arange(28.0)
        x, y = self.joints[..., 0, None, None], self.joints[..., 1, None, None]
        self.maps = (-((grid - x).square() + (grid[:, None] - y).square()) / 4).exp()
        self.images = self.maps.sum(dim=1, keepdim=True)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, maps = self.images[index], self.maps[index]
        if torch.rand(()) < 0.5:
            image, maps = image.flip(-1), maps.flip(-1)
            maps = maps[[1, 0, 3, 2]] if self.swaps else maps
        return image, maps


@pytest.mark.parametrize("swaps", [True, False])
def test_joints_of_heat_maps_are_exchanged_by_a_flip(swaps: bool) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 5, padding=2)
    found = judge(layers, nn.MSELoss(), DataLoader(Figures(swaps), 8, shuffle=True))
    assert any("its two sides are not exchanged" in text for text in found) != swaps


@pytest.mark.parametrize("form", ["of others", "of its own", "of two sources"])
def test_weights_of_samples_balance_the_classes(form: str) -> None:
    torch.manual_seed(1)
    shares = torch.tensor([0.7, 0.2, 0.1])
    label = torch.multinomial(shares, 1500, replacement=True)
    if form == "of two sources":
        weighed = (torch.arange(1500) % 5 == 0).long()
    else:
        weighed = label if form == "of its own" else label[torch.randperm(1500)]
    weights = (1 / torch.bincount(weighed).double())[weighed]
    data = [(torch.randn(6), int(each)) for each in label]
    loader = DataLoader(data, 32, sampler=WeightedRandomSampler(weights, 1500))  # type: ignore[arg-type]
    found = judge(mlp(6, 16, 3), nn.CrossEntropyLoss(), loader)
    assert any("have nothing to do with the labels" in text for text in found) == (form == "of others")


# --- loops -----------------------------------------------------------------------------------------------------------


def train(model: nn.Module, optimizer: Any, after: Callable[[int], None], epochs: int = 5) -> list[str]:
    with sightline.watch(model, optimizer=optimizer) as watch:
        for step, (inputs, label) in enumerate(batches(*classes(640), epochs=epochs)):
            model.zero_grad()
            F.cross_entropy(model(inputs), label).backward()
            optimizer.step()
            after(step)
    return [finding.code for finding in watch.findings]


@pytest.mark.parametrize("held", ["by the first", "by a second, made then", "by none"])
def test_layers_that_are_unfrozen_are_in_an_optimiser(held: str) -> None:
    torch.manual_seed(0)
    model = mlp(10, 16, 3)
    model[0].requires_grad_(requires_grad=False)
    optimizer = torch.optim.SGD(model.parameters() if held == "by the first" else model[2].parameters(), 0.1)
    later: list[torch.optim.Optimizer] = []

    def unfreeze(step: int) -> None:
        model[0].requires_grad_(requires_grad=step >= 30)
        if step == 30 and held == "by a second, made then":
            later.append(torch.optim.SGD(model[0].parameters(), 0.01))
        for each in later if step > 30 else ():
            each.step()

    assert train(model, optimizer, unfreeze, epochs=8) == (["not-optimised"] if held == "by none" else [])


class Taught(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = mlp(10, 16, 3)
        self.teacher = copy.deepcopy(self.student).requires_grad_(requires_grad=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.student(rows) + 0.1 * self.teacher(rows)


@pytest.mark.parametrize("form", ["never", "each update", "at times", "of a trained one", "short"])
def test_a_teacher_follows_its_student(form: str) -> None:
    torch.manual_seed(0)
    model = Taught()
    if form == "of a trained one":  # an anchor, as of a model that is tuned
        with torch.no_grad():
            for own, other in zip(model.student.parameters(), model.teacher.parameters(), strict=True):
                other.copy_(own.mul_(5))

    @torch.no_grad()
    def follow(step: int) -> None:
        for mean, weight in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
            if form == "never":
                mean = 0.9 * mean + 0.1 * weight
            elif form == "each update" or (form == "at times" and step == 200):
                mean.lerp_(weight, 0.1)

    optimizer = torch.optim.SGD(model.student.parameters(), 0.05)
    found = train(model, optimizer, follow, epochs=5 if form == "short" else 16)
    assert found == (["ema"] if form == "never" else [])


@pytest.mark.parametrize("form", ["once", "for a while", "each update", "by torch", "from zero", "from an identity"])
def test_pruned_weights_stay_zero(form: str) -> None:
    """Or grow again after many updates: dense, sparse, dense (Han et al. 2017)."""
    torch.manual_seed(0)
    model = mlp(10, 64, 3)
    if form == "from zero":
        nn.init.zeros_(model[0].weight)
    if form == "from an identity":
        nn.init.eye_(model[0].weight)
    mask = (torch.rand(model[0].weight.shape) < 0.2).float()

    def prune(step: int) -> None:
        until = {"once": 41, "for a while": 70, "each update": 100}.get(form, 0)
        if 40 <= step < until:
            model[0].weight.data.mul_(mask)
        elif form == "by torch" and step == 40:
            torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.8)

    found = train(model, torch.optim.Adam(model.parameters(), 1e-3), prune)
    assert ("regrown-weights" in found) == (form == "once")
