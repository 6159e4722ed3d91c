"""Places in plain loops: where the loss looks, what a masked autoencoder sees, rows that are views of one sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.marks import long_but
from tests.runtime.plain_judges import judge

SIDE, WIDTH, STRIDE, NUM = 24, 32, 4, 16
Case = Callable[[bool], tuple[nn.Module, Any, Any]]


def list_findings(case: Case, seed: int, *, bug: bool) -> list[str]:
    torch.manual_seed(seed)
    model, loss, batch = case(bug)
    return judge(model, loss, batch)


# --- outputs and targets of images -----------------------------------------------------------------------------------


def draw_objects(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Draw images (B, 1, H, W) of one bright rectangle each, and their boxes."""
    size = torch.randint(7, 12, (NUM, 2))
    low = (torch.rand(NUM, 2) * (torch.tensor([width, height]) - size)).long()
    images = 0.2 * torch.randn(NUM, 1, height, width)
    for image, (left, top), (w, h) in zip(images, low.tolist(), size.tolist(), strict=True):
        image[:, top : top + h, left : left + w] += 1
    return images, torch.cat([low, low + size], dim=1).float()


class Dense(nn.Module):
    """Convolutions with a stride of 4; `order` brings their maps into the form of the outputs."""

    def __init__(self, channels: int, order: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.order = order
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, channels, 1))
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.order(self.layers(image))


def dense_boxes(bug: bool, *, by_columns: bool = False) -> tuple[nn.Module, Any, Any]:
    """Boxes from each place (FCOS); outputs and places by rows, or both by columns."""
    images, boxes = draw_objects(SIDE, WIDTH)
    x, y = (torch.arange(size // STRIDE) * STRIDE + STRIDE // 2 for size in (WIDTH, SIDE))
    if bug != by_columns:
        columns, rows = torch.meshgrid(x, y, indexing="ij")
    else:
        rows, columns = torch.meshgrid(y, x, indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], dim=1).float()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        sides = torch.cat([places - target[:, None, :2], target[:, None, 2:] - places], dim=-1)
        is_inside = sides.amin(dim=-1) > 0
        score = F.binary_cross_entropy_with_logits(output[..., 4], is_inside.float())
        return score + F.smooth_l1_loss(output[..., :4][is_inside], sides[is_inside] / STRIDE)

    def order(maps: Tensor) -> Tensor:
        return (maps.transpose(2, 3) if by_columns else maps).flatten(2).transpose(1, 2)

    return Dense(5, order), loss, (images, boxes)


def masks_of_another_origin(bug: bool) -> tuple[nn.Module, Any, Any]:
    images, boxes = draw_objects(SIDE, WIDTH)
    grid_y, grid_x = torch.arange(SIDE)[:, None], torch.arange(WIDTH)
    left, top, right, bottom = boxes.T[:, :, None, None]
    masks = ((grid_x >= left) & (grid_x < right) & (grid_y >= top) & (grid_y < bottom)).long()
    layers = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
    return layers, nn.CrossEntropyLoss(), (images, masks.flip(1) if bug else masks)


def peaks_of_exchanged_axes(bug: bool) -> tuple[nn.Module, Any, Any]:
    images, boxes = draw_objects(SIDE, SIDE)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE
    x, y = (centres.flip(1) if bug else centres).T[:, :, None, None]
    grid = torch.arange(SIDE // STRIDE)
    peaks = (-((grid - x).square() + (grid[:, None] - y).square()) / 2).exp()
    return Dense(1, lambda maps: maps.squeeze(1)), nn.MSELoss(), (images, peaks)


def noise_and_classes(bug: bool) -> tuple[nn.Module, Any, Any]:
    layers = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 12 * 16, 48))
    return layers, nn.CrossEntropyLoss(), (torch.randn(NUM, 1, SIDE, WIDTH), torch.randint(0, 48, (NUM,)))


def images_of_themselves(bug: bool) -> tuple[nn.Module, Any, Any]:
    images, _ = draw_objects(SIDE, WIDTH)
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1)), nn.MSELoss(), (images, images)


def objects_in_the_middle(bug: bool) -> tuple[nn.Module, Any, Any]:
    images = 0.2 * torch.randn(NUM, 1, SIDE, SIDE)
    masks = torch.zeros(NUM, SIDE, SIDE, dtype=torch.long)
    for image, mask, size in zip(images, masks, torch.randint(4, 10, (NUM,)).tolist(), strict=True):
        inside = slice(SIDE // 2 - size, SIDE // 2 + size)
        image[:, inside, inside] += 1
        mask[inside, inside] = 1
    return (
        nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 1)),
        F.cross_entropy,
        (images, masks),
    )


ORDERS: dict[str, tuple[Case, str]] = {
    "places of boxes": (dense_boxes, "rows and columns exchanged"),
    "another origin": (masks_of_another_origin, "upside down"),
    "x for y": (peaks_of_exchanged_axes, "rows and columns exchanged"),
}


@pytest.mark.parametrize("seed", long_but([0], range(3)))
@pytest.mark.parametrize("name", ORDERS)
def test_targets_in_another_order_are_found(name: str, seed: int) -> None:
    case, words = ORDERS[name]
    assert any("at another place" in text and words in text for text in list_findings(case, seed, bug=True))
    assert list_findings(case, seed, bug=False) == []


@pytest.mark.parametrize("case", [noise_and_classes, images_of_themselves, objects_in_the_middle])
def test_what_has_no_other_order_is_right(case: Case) -> None:
    for seed in range(3):
        assert not any("another place" in text for text in list_findings(case, seed, bug=False))


def test_places_by_columns_on_both_sides_are_right() -> None:
    for seed in range(3):
        found = list_findings(lambda bug: dense_boxes(bug, by_columns=True), seed, bug=False)
        assert not any("another place" in text for text in found)


# --- masked autoencoders ---------------------------------------------------------------------------------------------

TOKENS, PATCH, MODEL = 16, 6, 32


def draw_waves() -> Tensor:
    time, phase = torch.linspace(0, 6, TOKENS * PATCH), 6 * torch.rand(NUM, 1)
    return torch.sin(time * (0.5 + torch.rand(NUM, 1)) + phase).view(NUM, TOKENS, PATCH)


class Masked(nn.Module):
    """Masked autoencoder; `mark` is given the order of the tokens and how many are kept, and returns the mask."""

    def __init__(self, mark: Callable[[Tensor, int], Tensor], *, shuffles: bool) -> None:
        super().__init__()
        self.mark, self.shuffles = mark, shuffles
        self.embed, self.decode = nn.Linear(PATCH, MODEL), nn.Linear(MODEL, PATCH)
        self.token, self.places = nn.Parameter(torch.zeros(MODEL)), nn.Parameter(torch.randn(TOKENS, MODEL))
        self.layer = nn.TransformerEncoderLayer(MODEL, 4, 64, dropout=0.0, batch_first=True)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        order, kept = torch.rand(patches.shape[:2]).argsort(dim=1), TOKENS // 4
        rows = self.embed(patches) + self.places
        if self.shuffles:
            rows = rows.gather(1, order[:, :kept, None].expand(-1, -1, MODEL))
            rows = torch.cat([self.layer(rows), self.token.expand(len(rows), TOKENS - kept, -1)], dim=1)
            rows = rows.gather(1, order.argsort(dim=1)[..., None].expand(-1, -1, MODEL))
        else:
            is_kept = order.argsort(dim=1) < kept
            rows = torch.where(is_kept[..., None], rows, self.token + self.places)
        return self.decode(self.layer(rows + self.places)), self.mark(order, kept)


def removed(order: Tensor, kept: int) -> Tensor:
    return (order.argsort(dim=1) >= kept).float()


def put_back_in_the_same_order(order: Tensor, kept: int) -> Tensor:
    mask = torch.ones(order.shape)
    mask[:, :kept] = 0
    return mask.gather(1, order)


def masked_loss(outputs: tuple[Tensor, Tensor], patches: Tensor) -> Tensor:
    errors, mask = (outputs[0] - patches).square().mean(dim=-1), outputs[1]
    return (errors * mask).sum() / mask.sum()


MARKS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "kept for removed": lambda order, kept: 1 - removed(order, kept),
    "the same order again": put_back_in_the_same_order,
    "first in memory": lambda order, kept: (torch.arange(TOKENS) >= kept).float().expand(order.shape),
}


@pytest.mark.parametrize("seed", long_but([0], range(3)))
@pytest.mark.parametrize("shuffles", [True, False])
@pytest.mark.parametrize("name", MARKS)
def test_a_loss_of_what_is_seen_is_found(name: str, shuffles: bool, seed: int) -> None:
    def build(mark: Callable[[Tensor, int], Tensor]) -> Case:
        return lambda bug: (Masked(mark, shuffles=shuffles), masked_loss, ((waves := draw_waves()), waves))

    assert any("places that the model has seen" in text for text in list_findings(build(MARKS[name]), seed, bug=True))
    for mark in (removed, lambda order, kept: torch.ones(order.shape)):  # of what is hidden, or of all
        assert not any("has seen" in text for text in list_findings(build(mark), seed, bug=False))


def test_a_plain_autoencoder_hides_nothing() -> None:
    def build(bug: bool) -> tuple[nn.Module, Any, Any]:
        waves = draw_waves()
        return nn.Sequential(nn.Linear(PATCH, 4), nn.ReLU(), nn.Linear(4, PATCH)), nn.MSELoss(), (waves, waves)

    assert list_findings(build, 0, bug=False) == []


def test_patches_of_images_are_compared_with_pixels() -> None:
    class Patches(nn.Module):
        def __init__(self, bug: bool) -> None:
            super().__init__()
            self.bug, self.embed = bug, nn.Linear(16, MODEL)
            self.token, self.decode = nn.Parameter(torch.zeros(MODEL)), nn.Linear(MODEL, 16)

        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            is_kept = torch.rand(len(image), 48) < 0.5
            patches = F.unfold(image, 4, stride=4).transpose(1, 2)
            rows = torch.where(is_kept[..., None], self.embed(patches), self.token)
            return self.decode(rows + rows.mean(dim=1, keepdim=True)), (is_kept if self.bug else ~is_kept).float()

    def build(bug: bool) -> tuple[nn.Module, Any, Any]:
        def loss(outputs: tuple[Tensor, Tensor], image: Tensor) -> Tensor:
            return masked_loss(outputs, F.unfold(image, 4, stride=4).transpose(1, 2))

        images, _ = draw_objects(SIDE, WIDTH)
        return Patches(bug), loss, (images, images)

    for bug in (True, False):
        assert any("has seen" in text for text in list_findings(build, 0, bug=bug)) == bug


# --- views -----------------------------------------------------------------------------------------------------------


def contrast(bug: bool, *, stacked: bool = False, labelled: bool = False) -> tuple[nn.Module, Any, Any]:
    """InfoNCE of two views in one batch; `stacked` puts the views of a sample beside one another, in batch and loss."""
    rows = torch.randn(NUM, 20)
    views = [rows + 0.5 * torch.randn(NUM, 20) for _ in range(2)]
    inputs = torch.stack(views, dim=1).flatten(0, 1) if stacked else torch.cat(views)

    def loss(features: Tensor, label: Tensor) -> Tensor:
        rows = F.normalize(features, dim=1)
        pairs = rows.view(NUM, 2, -1) if stacked != bug else rows.view(2, NUM, -1).transpose(0, 1)
        scores = pairs[:, 0] @ pairs[:, 1].T / 0.2
        if labelled:
            scores = scores.masked_fill((label[:, None] == label) & ~torch.eye(NUM, dtype=torch.bool), -1e9)
        return F.cross_entropy(scores, torch.arange(NUM))

    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16)), loss, (inputs, torch.arange(NUM) % 4)


@pytest.mark.parametrize("seed", long_but([0], range(3)))
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("stacked", [True, False])
def test_pairs_of_other_rows_are_found(stacked: bool, labelled: bool, seed: int) -> None:
    def build(bug: bool) -> tuple[nn.Module, Any, Any]:
        return contrast(bug, stacked=stacked, labelled=labelled)

    assert any("for the views of a sample" in text for text in list_findings(build, seed, bug=True))
    assert not any("views of a sample" in text for text in list_findings(build, seed, bug=False))


# --- graphs ----------------------------------------------------------------------------------------------------------


class Messages(nn.Module):
    """One round of messages along the edges, and the mean of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(32, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        rows, (source, target) = F.relu(self.first(batch["x"])), batch["edges"]
        rows = torch.cat([rows, torch.zeros_like(rows).index_add(0, target, rows[source])], dim=1)
        size = int(batch["owner"].max()) + 1
        sums = rows.new_zeros(size, rows.shape[1]).index_add(0, batch["owner"], rows)
        value: Tensor = self.last(sums).squeeze(1)
        return value


def collate_graphs(bug: bool) -> dict[str, Tensor]:
    sizes = torch.randint(5, 9, (12,)).tolist()
    edges, start = [], 0
    for size in sizes:
        edges.append(torch.randint(0, size, (2, 2 * size)) + start)
        start += 0 if bug else size
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return {"x": torch.randn(sum(sizes), 3), "edges": torch.cat(edges, 1), "owner": owner, "y": torch.randn(len(sizes))}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bug", [True, False])
def test_edges_that_stay_in_the_first_graph_are_found(bug: bool, seed: int) -> None:
    def build(bug: bool) -> tuple[nn.Module, Any, Any]:
        return Messages(), lambda output, batch: F.mse_loss(output, batch["y"]), collate_graphs(bug)

    assert any("their indices are not moved" in text for text in list_findings(build, seed, bug=bug)) == bug
