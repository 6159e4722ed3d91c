"""Programs on points, scans, volumes and graphs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.doctor.programs.program import PlainForm, Program, program, rate, recast


def draw_cloud(kind: int, points: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points of a ball's surface, a box's surface, a ring or a line, and normals with an intensity."""
    directions = F.normalize(torch.randn(points, 3, generator=g), dim=1)
    if kind == 0:
        cloud = directions
    elif kind == 1:
        cloud = directions / directions.abs().amax(1, keepdim=True)
    elif kind == 2:
        cloud = F.normalize(directions * torch.tensor([1.0, 1.0, 0.0]), dim=1)
    else:
        cloud = directions * torch.tensor([0.1, 0.1, 1.0])
    cloud = cloud + 0.03 * torch.randn(points, 3, generator=g)
    intensity = torch.rand(points, 1, generator=g)
    return cloud, torch.cat([directions, intensity], 1)


class Clouds(Dataset[Any]):
    """Clouds of 48 points with features, of four shapes."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(4, (count,), generator=g)
        self.rows = [draw_cloud(label, 48, g) for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return *self.rows[index], self.labels[index]


class PointNetwork(nn.Module):
    """A perceptron of each point and its features, the largest of each channel, a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(7, 32), nn.ReLU(), nn.Linear(32, 48), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        return self.head(self.points(torch.cat([points, features], -1)).amax(-2))


@program("batch: three values", "model: several arguments")
def clouds_with_features() -> Program:
    loader = DataLoader(Clouds(640, 0), batch_size=32, shuffle=True)
    test_loader = DataLoader(Clouds(160, 1), batch_size=40)
    model = PointNetwork()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    criterion = nn.CrossEntropyLoss()

    def step(batch: Any) -> Tensor:
        points, features, labels = batch
        return criterion(model(points, features), labels)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(*batch[:2]).argmax(1) == batch[2]),
        bar=0.6,
        epochs=5,
        plain_form=lambda: PlainForm(model, criterion, recast(loader, lambda batch: (batch[:2], batch[2]))),
    )


class UnequalClouds(Dataset[Any]):
    """Clouds of 30 to 60 points."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(count):
            kind, size = int(torch.randint(4, (1,), generator=g)), int(torch.randint(30, 61, (1,), generator=g))
            self.rows.append({"points": draw_cloud(kind, size, g)[0], "label": kind})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def join_clouds(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {
        "points": torch.cat([row["points"] for row in rows]),
        "offsets": torch.tensor([len(row["points"]) for row in rows]).cumsum(0),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


class JoinedNetwork(nn.Module):
    """The same of clouds end to end; `offsets` says where each ends."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 48))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(48, 4))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        counts = torch.diff(batch["offsets"], prepend=batch["offsets"].new_zeros(1))
        owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
        features = self.points(batch["points"])
        largest = features.new_zeros(len(counts), 48).scatter_reduce(
            0, owner[:, None].expand_as(features), features, "amax", include_self=False
        )
        return self.head(largest)


@program("batch: a mapping", "batch: samples end to end, and where each ends")
def clouds_end_to_end() -> Program:
    loader = DataLoader(UnequalClouds(480, 0), batch_size=16, shuffle=True, collate_fn=join_clouds)
    test_loader = DataLoader(UnequalClouds(160, 1), batch_size=40, collate_fn=join_clouds)
    model = JoinedNetwork()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)

    def step(batch: Any) -> Tensor:
        return F.cross_entropy(model(batch), batch["labels"])

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda batch: model(batch).argmax(1) == batch["labels"]),
        bar=0.6,
        epochs=5,
        plain_form=lambda: PlainForm(
            model,
            F.cross_entropy,
            recast(loader, lambda batch: ({name: batch[name] for name in ("points", "offsets")}, batch["labels"])),
        ),
    )


class Scans(Dataset[Any]):
    """Scans of 8 beams by 48 columns: walls far away, posts and cars near; beams without a return are 0."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        wall = 20 + 3 * torch.rand(count, 1, 1, generator=g)
        self.ranges = wall + 0.2 * torch.randn(count, 8, 48, generator=g)
        self.intensity = 0.2 + 0.05 * torch.randn(count, 8, 48, generator=g)
        self.labels = torch.ones(count, 8, 48, dtype=torch.long)
        for i in range(count):
            for kind, width in ((2, 2), (2, 2), (3, 8)):
                start, near = (
                    int(torch.randint(48 - width, (1,), generator=g)),
                    5 + 8 * float(torch.rand(1, generator=g)),
                )
                top = 0 if kind == 2 else 4
                self.ranges[i, top:, start : start + width] = near + 0.1 * torch.randn(8 - top, width, generator=g)
                self.intensity[i, top:, start : start + width] = 0.4 * kind - 0.3
                self.labels[i, top:, start : start + width] = kind
        is_lost = torch.rand(count, 8, 48, generator=g) < 0.1
        self.ranges[is_lost], self.intensity[is_lost], self.labels[is_lost] = 0.0, 0.0, 0

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ranges = self.ranges[index]
        return {
            "ranges": ranges,
            "intensity": self.intensity[index],
            "valid": ranges > 0,
            "labels": self.labels[index],
            "frame": f"sequence_00/{index:06}.bin",
        }


class ScanNetwork(nn.Module):
    """Labels of a scan, of which the first and last column are neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3)
        self.norm, self.head = nn.BatchNorm2d(24), nn.Conv2d(24, 4, 1)

    def forward(self, ranges: Tensor, intensity: Tensor, valid: Tensor) -> Tensor:
        features = torch.stack([ranges / 20, intensity, valid.float()], 1)
        for layer in (self.first, self.second):
            wide = F.pad(F.pad(features, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1))
            features = layer(wide).relu()
        return self.head(self.norm(features))


@program("batch: a mapping", "batch: a mapping with text", "model: several arguments", "loss: labels that are ignored")
def scans_of_ranges() -> Program:
    loader = DataLoader(Scans(240, 0), batch_size=12, shuffle=True)
    test_loader = DataLoader(Scans(60, 1), batch_size=20)
    model = ScanNetwork()
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 0.4, 2.0, 1.5]), ignore_index=0)

    def step(batch: Any) -> Tensor:
        return criterion(model(batch["ranges"], batch["intensity"], batch["valid"]), batch["labels"])

    def compare(batch: Any) -> Tensor:
        labels = batch["labels"]
        return (model(batch["ranges"], batch["intensity"], batch["valid"]).argmax(1) == labels)[labels > 1]

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=criterion,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.7,
        epochs=5,
        plain_form=lambda: PlainForm(
            model,
            criterion,
            recast(loader, lambda b: ({name: b[name] for name in ("ranges", "intensity", "valid")}, b["labels"])),
        ),
    )


class Volumes(Dataset[Any]):
    """Volumes with a bright ball; its mask, and the edge of a voxel in millimetres."""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        grid = torch.stack(torch.meshgrid(*3 * [torch.arange(10.0)], indexing="ij"))
        self.rows = []
        for _ in range(count):
            middle = 2.5 + 4 * torch.rand(3, 1, 1, 1, generator=g)
            mask = ((grid - middle).norm(dim=0) < 1.5 + 1.3 * torch.rand(1, generator=g)).float()[None]
            volume = mask + 0.5 * torch.randn(1, 10, 10, 10, generator=g)
            self.rows.append((volume, mask, (1.0, 1.0, 2.5)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def measure_mask(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross entropy of voxels, and one minus the Dice overlap of each volume."""
    chance = logits.sigmoid()
    both, total = (chance * mask).flatten(1).sum(1), (chance + mask).flatten(1).sum(1)
    overlap = 1 - (2 * both + 1) / (total + 1)
    return F.binary_cross_entropy_with_logits(logits, mask) + overlap.mean()


@program("batch: three values", "batch: a tuple in a tuple")
def volumes_with_masks() -> Program:
    loader = DataLoader(Volumes(96, 0), batch_size=4, shuffle=True)
    test_loader = DataLoader(Volumes(24, 1), batch_size=8)
    model = nn.Sequential(
        *(nn.Conv3d(1, 8, 3, padding=1), nn.InstanceNorm3d(8, affine=True), nn.LeakyReLU()),
        *(nn.Conv3d(8, 8, 3, padding=1), nn.InstanceNorm3d(8, affine=True), nn.LeakyReLU(), nn.Conv3d(8, 1, 1)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.95, nesterov=True)

    def step(batch: Any) -> Tensor:
        volumes, masks, _ = batch
        return measure_mask(model(volumes), masks)

    def compare(batch: Any) -> Tensor:
        predicted, mask = model(batch[0]) > 0, batch[1] > 0
        return (
            2
            * (predicted & mask).flatten(1).sum(1)
            / (predicted.flatten(1).sum(1) + mask.flatten(1).sum(1)).clamp(min=1)
        )

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=measure_mask,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, compare),
        bar=0.5,
        epochs=4,
        plain_form=lambda: PlainForm(model, measure_mask, recast(loader, lambda batch: (batch[0], batch[1]))),
    )


@dataclass
class GraphBatch:
    """Graphs as one: nodes, edges (2, edges), and which graph a node belongs to."""

    x: Tensor
    edge_index: Tensor
    batch: Tensor
    y: Tensor

    def to(self, device: Any) -> GraphBatch:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


class Molecules(Dataset[Any]):
    """Random rings with or without a chord; nodes of three kinds. Is there a chord?"""

    def __init__(self, count: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        for _ in range(count):
            nodes, label = int(torch.randint(6, 11, (1,), generator=g)), int(torch.randint(2, (1,), generator=g))
            ring = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
            extra = (
                torch.tensor([[0, 1], [nodes // 2, nodes // 2 + 1]]) if label else torch.empty(2, 0, dtype=torch.long)
            )
            edges = torch.cat([ring, extra], 1)
            order = torch.randperm(nodes, generator=g)
            kinds = F.one_hot(torch.randint(3, (nodes,), generator=g), 3).float()
            self.rows.append((kinds, order[torch.cat([edges, edges.flip(0)], 1)], label))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def join_graphs(rows: list[Any]) -> GraphBatch:
    counts = torch.tensor([len(row[0]) for row in rows])
    starts = (counts.cumsum(0) - counts).tolist()
    return GraphBatch(
        torch.cat([row[0] for row in rows]),
        torch.cat([row[1] + start for row, start in zip(rows, starts, strict=True)], 1),
        torch.repeat_interleave(torch.arange(len(rows)), counts),
        torch.tensor([row[2] for row in rows]),
    )


class GraphLayer(nn.Module):
    """Features, and the sum of the neighbours'."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.center, self.neighbours = nn.Linear(width_in, width_out), nn.Linear(width_in, width_out, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        gathered = torch.zeros_like(x).index_add(0, target, x[source])
        return self.center(x) + self.neighbours(gathered)


class GraphClassifier(nn.Module):
    """Two layers, and the mean of each graph's nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = GraphLayer(3, 32), GraphLayer(32, 32), nn.Linear(32, 2)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.second(self.first(x, edge_index).relu(), edge_index).relu()
        count = int(batch.max()) + 1
        nodes = torch.bincount(batch, minlength=count)[:, None]
        return self.head(x.new_zeros(count, 32).index_add(0, batch, x) / nodes)


@program("batch: a dataclass with .to", "model: several arguments", "batch: samples end to end, and where each ends")
def molecules_as_graphs() -> Program:
    loader = DataLoader(Molecules(512, 0), batch_size=32, shuffle=True, collate_fn=join_graphs)
    test_loader = DataLoader(Molecules(160, 1), batch_size=40, collate_fn=join_graphs)
    model = GraphClassifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    device = torch.device("cpu")

    def step(data: GraphBatch) -> Tensor:
        data = data.to(device)
        return F.cross_entropy(model(data.x, data.edge_index, data.batch), data.y)

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        loss=F.cross_entropy,
        evaluation=test_loader,
        score=lambda: rate(model, test_loader, lambda d: model(d.x, d.edge_index, d.batch).argmax(1) == d.y),
        bar=0.9,
        epochs=6,
        plain_form=lambda: PlainForm(
            model, F.cross_entropy, recast(loader, lambda data: ((data.x, data.edge_index, data.batch), data.y))
        ),
    )


def draw_communities(nodes: int = 160) -> dict[str, Tensor]:
    """Draw a graph of four communities, noisy features, and which nodes are for training and for testing."""
    g = torch.Generator().manual_seed(0)
    group = torch.arange(nodes) % 4
    chance = torch.where(group[:, None] == group, 0.3, 0.01)
    edges = torch.triu((torch.rand(nodes, nodes, generator=g) < chance).float(), 1).nonzero().T
    features = 0.7 * F.one_hot(group, 4) + torch.randn(nodes, 4, generator=g)
    is_train = torch.rand(nodes, generator=g) < 0.5
    return {
        "x": torch.cat([features, torch.randn(nodes, 8, generator=g)], 1),
        "edge_index": torch.cat([edges, edges.flip(0)], 1),
        "y": group,
        "train_mask": is_train,
        "test_mask": ~is_train,
    }


class NodeClassifier(nn.Module):
    """Two layers of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.dropout = GraphLayer(12, 32), GraphLayer(32, 4), nn.Dropout(0.3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.dropout(self.first(x, edge_index).relu()), edge_index)


@program("batch: everything at once", "batch: a mapping", "model: several arguments")
def nodes_of_one_graph() -> Program:
    data = draw_communities()
    model = NodeClassifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)

    def step(data: dict[str, Tensor]) -> Tensor:
        logits = model(data["x"], data["edge_index"])
        return F.cross_entropy(logits[data["train_mask"]], data["y"][data["train_mask"]])

    def compare(data: dict[str, Tensor]) -> Tensor:
        return (model(data["x"], data["edge_index"]).argmax(1) == data["y"])[data["test_mask"]]

    return Program(
        model=model,
        optimizer=optimizer,
        loader=[data],
        step=step,
        score=lambda: rate(model, [data], compare),
        bar=0.6,
        epochs=60,
        plain_form=lambda: PlainForm(
            model,
            lambda logits, target: F.cross_entropy(logits[target[1]], target[0][target[1]]),
            [((data["x"], data["edge_index"]), (data["y"], data["train_mask"]))],
        ),
    )


class LinkPredictor(nn.Module):
    """Embeddings of nodes, and products of two."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.names = nn.Embedding(nodes, 16)
        self.first, self.second = GraphLayer(16, 24), GraphLayer(24, 8)
        self.offset = nn.Parameter(torch.zeros(()))

    def encode(self, edge_index: Tensor) -> Tensor:
        return self.second(F.normalize(self.first(self.names.weight, edge_index).relu(), dim=1), edge_index)

    def decode(self, z: Tensor, pairs: Tensor) -> Tensor:
        return (z[pairs[0]] * z[pairs[1]]).sum(1) / 8 + self.offset

    def forward(self, edge_index: Tensor, pairs: Tensor) -> Tensor:
        return self.decode(self.encode(edge_index), pairs)


@program(
    "model: methods beside forward", "step: noise or partners are drawn", "batch: a tuple of one", "loss: no target"
)
def links_of_one_graph() -> Program:
    data = draw_communities()
    one_way = data["edge_index"][:, data["edge_index"][0] < data["edge_index"][1]]
    one_way = one_way[:, torch.randperm(one_way.shape[1], generator=torch.Generator().manual_seed(0))]
    seen, held_out = one_way[:, 80:], one_way[:, :80]
    edge_index = torch.cat([seen, seen.flip(0)], 1)
    loader = DataLoader(TensorDataset(seen.T.contiguous()), batch_size=64, shuffle=True)
    model = LinkPredictor(160)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def step(batch: Any) -> Tensor:
        (pairs,) = batch
        z = model.encode(edge_index)
        strangers = torch.randint(160, (2, len(pairs)))
        logits = torch.cat([model.decode(z, pairs.T), model.decode(z, strangers)])
        labels = torch.cat([torch.ones(len(pairs)), torch.zeros(len(pairs))])
        return F.binary_cross_entropy_with_logits(logits, labels)

    def score() -> float:
        strangers = torch.randint(160, (2, 400), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            linked, unlinked = (model(edge_index, pairs) for pairs in (held_out, strangers))
        return float((linked[:, None] > unlinked).float().mean())

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        score=score,
        bar=0.75,
        epochs=15,
    )


class Energy(nn.Module):
    """Energy of five atoms from their distances."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 1))
        self.register_buffer("centres", torch.linspace(0.5, 3.0, 8))

    def forward(self, positions: Tensor) -> Tensor:
        first, second = torch.triu_indices(5, 5, 1)
        distance = (positions[:, first] - positions[:, second]).norm(dim=-1)
        basis = torch.exp(-4 * (distance[..., None] - self.centres) ** 2)
        return self.pair(basis).sum((1, 2))


@program("loss: the gradient of the outputs", "batch: a mapping", "loss: several arguments")
def energies_and_forces() -> Program:
    g = torch.Generator().manual_seed(0)
    positions = 1.2 * torch.randn(700, 5, 3, generator=g)
    first, second = torch.triu_indices(5, 5, 1)
    moved = positions.clone().requires_grad_()
    energy = torch.exp(-((moved[:, first] - moved[:, second]).norm(dim=-1) - 1.5).square()).sum(1)
    forces = -torch.autograd.grad(energy.sum(), moved)[0]
    energy = energy.detach()
    rows = [{"positions": positions[i], "energy": energy[i], "forces": forces[i]} for i in range(700)]
    loader = DataLoader(rows[:600], batch_size=30, shuffle=True)
    test_loader = DataLoader(rows[600:], batch_size=50)
    model = Energy()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(batch: Any) -> Tensor:
        where = batch["positions"].detach().requires_grad_()
        energy = model(where)
        forces = -torch.autograd.grad(energy.sum(), where, create_graph=True)[0]
        return 0.1 * F.mse_loss(energy, batch["energy"]) + F.mse_loss(forces, batch["forces"])

    return Program(
        model=model,
        optimizer=optimizer,
        loader=loader,
        step=step,
        evaluation=test_loader,
        score=lambda: (
            -rate(model, test_loader, lambda b: (model(b["positions"]) - b["energy"]).square()) / float(energy.var())
        ),
        bar=-0.9,
        epochs=8,
    )
