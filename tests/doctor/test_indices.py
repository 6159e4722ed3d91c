"""Indices of networks of a user's own: flat indices of cells, and neighbours; each bug beside its correct twin."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sightline.doctor.evidence.indices import used_indices
from sightline.doctor.examine import list_rules
from sightline.doctor.forms.form import Batch, CalledForm
from sightline.doctor.subject import Subject

HEIGHT, WIDTH, DEPTH, K = 8, 20, 5, 4


class Network(nn.Module):
    """Network that runs a function of points (B, N, 3) between 0 and 1."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *, points: Tensor) -> dict[str, Tensor]:
        return {"logits": self.run(points)}


def judge(run: Callable[[Tensor], Tensor], seed: int = 0, num: int = 64) -> list[str]:
    torch.manual_seed(seed)
    network = Network(run)
    batch = Batch({"points": torch.rand(4, num, 3)}, None)
    used = used_indices(Subject(network, CalledForm(network, nn.MSELoss()), [batch]))
    rules = [rule for rule in list_rules() if rule.code == "indices"]
    return [found.summary for rule in rules for found in rule.find(used_indices=used)]


def pillars(stride: int) -> Callable[[Tensor], Tensor]:
    def run(points: Tensor) -> Tensor:
        column, row = (points[..., 0] * WIDTH).long(), (points[..., 1] * HEIGHT).long()
        flat = row * stride + column
        canvas = points.new_zeros(len(points), HEIGHT * WIDTH, 3)
        return canvas.scatter_add(1, flat[..., None].expand(-1, -1, 3), points)

    return run


def voxels(*strides: int) -> Callable[[Tensor], Tensor]:
    def run(points: Tensor) -> Tensor:
        x, y, z = (points.reshape(-1, 3) * torch.tensor([WIDTH, HEIGHT, DEPTH])).int().unbind(1)
        flat = z * strides[0] + y * strides[1]
        flat += x
        volume = points.new_zeros(HEIGHT * WIDTH * DEPTH, 3)
        return volume.index_add(0, flat.clamp(0, len(volume) - 1), points.reshape(-1, 3))

    return run


def counts(stride: int) -> Callable[[Tensor], Tensor]:
    def run(points: Tensor) -> Tensor:
        row, column = (points.reshape(-1, 3)[:, :2] * torch.tensor([HEIGHT, WIDTH])).long().unbind(1)
        return torch.bincount(torch.add(column, torch.mul(stride, row)), minlength=HEIGHT * WIDTH)

    return run


def neighbours(find: Callable[[Tensor], Tensor], *, base: int = 0) -> Callable[[Tensor], Tensor]:
    """Gather neighbours by one index for the whole batch; `base` is the number of points of a cloud."""

    def run(points: Tensor) -> Tensor:
        batch, num, _ = points.shape
        flat = (find(points) + torch.arange(batch).view(-1, 1, 1) * (base or num)).view(-1)
        return points.reshape(-1, 3)[flat].view(batch, num, K, 3).max(dim=2)[0]

    return run


def squares(points: Tensor) -> Tensor:
    inner, norms = points @ points.transpose(1, 2), points.pow(2).sum(dim=-1)
    return norms[:, :, None] - 2 * inner + norms[:, None]


def farthest_sampling(points: Tensor) -> Tensor:
    chosen = [torch.zeros(len(points), dtype=torch.long)]
    least = torch.full(points.shape[:2], torch.inf)
    for _ in range(7):
        last = points.gather(1, chosen[-1][:, None, None].expand(-1, 1, 3))
        least = torch.minimum(least, (points - last).pow(2).sum(dim=-1))
        chosen.append(least.argmax(dim=1))
    return points.gather(1, torch.stack(chosen, dim=1)[..., None].expand(-1, -1, 3))


def windows(points: Tensor) -> Tensor:
    """Windows of 6 points, each 3 after the last: they overlap on purpose."""
    starts, offsets = torch.arange(10) * 3, torch.arange(6)
    return points[:, starts[:, None] + offsets]


def hashed(points: Tensor) -> Tensor:
    x, y, z = (points.reshape(-1, 3) * 50).long().unbind(1)
    return torch.ones(64, 3).index_select(0, (x * 7 + y * 5 + z) % 64)


def reached(points: Tensor) -> Tensor:
    """A quantile of distances, as in a robust Hausdorff distance: the largest are values, not neighbours."""
    return torch.cdist(points, points).topk(K, dim=-1)[0].mean(dim=-1)


def affinity(points: Tensor) -> Tensor:
    weights = (-20 * squares(points)).exp() * (1 - torch.eye(points.shape[1]))
    return points[:, weights.topk(K, dim=-1)[1][0]]


def far_beside_near(points: Tensor) -> Tensor:
    """The farthest points tell a layer how large the whole is; the nearest are its neighbours."""
    distances = torch.cdist(points, points)
    far, near = (points[:, distances.topk(K, dim=-1, largest=largest)[1][0]] for largest in (True, False))
    return torch.cat([far, near], dim=2)


def masked(points: Tensor) -> Tensor:
    products = points @ points.transpose(1, 2)
    products = products.masked_fill(torch.eye(points.shape[1], dtype=torch.bool), -torch.inf)
    return points[:, products.topk(K, dim=-1)[1][0]]


FLAT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "pillars": (pillars(HEIGHT), pillars(WIDTH)),
    "voxels": (voxels(HEIGHT * WIDTH, HEIGHT), voxels(HEIGHT * WIDTH, WIDTH)),
    "counts": (counts(HEIGHT), counts(WIDTH)),
    "offsets": (
        neighbours(lambda p: torch.cdist(p, p).topk(K, largest=False)[1], base=K),
        neighbours(lambda p: torch.cdist(p, p).topk(K, largest=False)[1]),
    ),
}
CHOICES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "largest distances": (
        lambda p: torch.cdist(p, p).topk(K)[1],
        lambda p: torch.cdist(p, p).topk(K, largest=False)[1],
    ),
    "sign of squares": (lambda p: squares(p).topk(K)[1], lambda p: (-squares(p)).topk(K)[1]),
    "least negative": (lambda p: (-squares(p)).topk(K, largest=False)[1], lambda p: (-squares(p)).topk(K)[1]),
    "descending": (
        lambda p: squares(p).argsort(dim=-1, descending=True)[..., :K],
        lambda p: squares(p).argsort(dim=-1)[..., :K],
    ),
    "end of the order": (
        lambda p: (-torch.cdist(p, p)).sort(dim=-1)[1][:, :, :K],
        lambda p: torch.cdist(p, p).sort(dim=-1)[1][:, :, 1 : K + 1],
    ),
}
HEALTHY: dict[str, Callable[[Tensor], Tensor]] = {
    f.__name__: f for f in (farthest_sampling, windows, hashed, reached, affinity, masked, far_beside_near)
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FLAT)
def test_flat_indices_that_merge_cells_are_found(name: str, seed: int) -> None:
    bug, twin = FLAT[name]
    (summary,) = judge(bug, seed)
    assert "different cells get one flat index" in summary
    assert judge(twin, seed) == []


def add_in_place(points: Tensor, flat: Tensor) -> Tensor:
    grid = torch.zeros(WIDTH, 3)
    grid[flat] += points.reshape(-1, 3)
    return grid


def add_and_write(points: Tensor, flat: Tensor) -> Tensor:
    rows = points.reshape(-1, 3)
    grid = torch.zeros(WIDTH, 2)
    grid[flat, 0] = grid[flat, 0] - rows[:, 0]
    return grid


def add_by_index(points: Tensor, flat: Tensor) -> Tensor:
    return torch.zeros(WIDTH, 3).index_add_(0, flat, points.reshape(-1, 3))


def accumulate(points: Tensor, flat: Tensor) -> Tensor:
    return torch.zeros(WIDTH, 3).index_put_((flat,), points.reshape(-1, 3), accumulate=True)


def write_last(points: Tensor, flat: Tensor) -> Tensor:
    """The last point of a cell is kept on purpose: it is written, not added."""
    grid = torch.zeros(WIDTH, 3)
    grid[flat] = points.reshape(-1, 3)
    return grid


def add_to_a_part(points: Tensor, flat: Tensor) -> Tensor:
    grid, rows = torch.zeros(len(flat), 3), points.reshape(-1, 3)
    grid[flat > WIDTH // 2] += rows[flat > WIDTH // 2]
    grid[torch.arange(len(flat))] += rows
    return grid


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("add", [add_in_place, add_and_write])
def test_sums_at_repeated_indices_are_found(add: Callable[[Tensor, Tensor], Tensor], seed: int) -> None:
    (summary,) = judge(lambda points: add(points, (points.reshape(-1, 3)[:, 0] * WIDTH).long()), seed)
    assert "sums at indices that repeat are lost" in summary


@pytest.mark.parametrize("add", [add_by_index, accumulate, write_last, add_to_a_part])
def test_other_sums_and_writes_are_right(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    for seed in range(3):
        assert judge(lambda points: add(points, (points.reshape(-1, 3)[:, 0] * WIDTH).long()), seed) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CHOICES)
def test_farthest_points_for_the_nearest_are_found(name: str, seed: int) -> None:
    bug, twin = CHOICES[name]
    (summary,) = judge(neighbours(bug), seed)
    assert "farthest of 64 points" in summary
    assert judge(neighbours(twin), seed) == []


@pytest.mark.parametrize("name", HEALTHY)
def test_other_indices_are_right(name: str) -> None:
    for seed in range(3):
        assert judge(HEALTHY[name], seed) == []


def test_centres_that_take_the_farthest_are_found() -> None:
    def group(points: Tensor, *, largest: bool) -> Tensor:
        chosen = torch.cdist(points[:, :16], points).topk(K, dim=-1, largest=largest)[1]
        return points[torch.arange(len(points))[:, None, None], chosen]

    (summary,) = judge(lambda points: group(points, largest=True))
    assert summary == f"the {K} farthest of 64 points are taken as neighbours, not the nearest"
    assert judge(lambda points: group(points, largest=False)) == []
