"""Batches of which a measurement once failed: none ends in an error of the doctor's own, and none is an alarm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

import sightline
from tests.cases import run_each
from tests.doctor.observing import judged

Program = tuple[nn.Module, Callable[..., Tensor], Any]


def numbers_of_all_lengths() -> Program:
    """Targets (B, T) of floats, of which each batch has its own T."""
    batches = [(torch.randn(16, t, 2), torch.randn(16, t)) for t in (7, 9, 8, 5)]
    return nn.Linear(2, 1), lambda outputs, target: F.mse_loss(outputs.squeeze(-1), target), batches


def no_labels_in_a_batch() -> Program:
    """Labels of those alone that have one; in the first batch none has."""

    def loss(outputs: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        rows, labels = target
        return F.cross_entropy(outputs[rows], labels, reduction="sum") / 8 + 0.01 * outputs.square().mean()

    targets = [(torch.arange(n), torch.randint(3, (n,))) for n in (0, 4, 8, 6)]
    return nn.Linear(4, 3), loss, [(torch.randn(8, 4), target) for target in targets]


def images_beside_vectors() -> Program:
    """Two encoders, of which one reads images; the features of the other have the shape of maps of an image."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.vector = nn.Linear(64, 16), nn.Linear(5, 16)

        def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return self.image(batch[0].flatten(1)), self.vector(batch[1])

    def loss(outputs: tuple[Tensor, Tensor], _: Any) -> Tensor:
        return F.mse_loss(*outputs) + sum(F.relu(1 - each.std(0)).mean() for each in outputs)

    batches = [(torch.randn(16, 1, 8, 8), torch.randn(16, 5)) for _ in range(4)]
    return Two(), loss, batches


def a_batch_sampler_and_a_collate() -> Program:
    """Samples (x, y), which `collate_fn` turns into a mapping, by a sampler of whole batches."""

    def collate(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        return {"x": torch.stack([x for x, _ in samples]), "label": torch.tensor([y for _, y in samples])}

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.layer(batch["x"])

    samples = [(x, int(x[:3].argmax())) for x in torch.randn(64, 4)]
    batches = BatchSampler(SequentialSampler(samples), 16, drop_last=False)
    loader = DataLoader(samples, batch_sampler=batches, collate_fn=collate)  # type: ignore[arg-type]
    return Named(), lambda outputs, batch: F.cross_entropy(outputs, batch["label"]), loader


class Words(Dataset[dict[str, Tensor]]):
    """Pairs of words, read by whole lists of indices alone."""

    def __len__(self) -> int:
        return 64

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        rows = torch.tensor(indices)
        return {"word": rows % 20, "label": rows % 5}


def sparse_gradients_of_a_set_without_an_index() -> Program:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(20, 5, sparse=True)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.table(batch["word"])

    loader = DataLoader(Words(), 16, collate_fn=lambda batch: batch)
    return Looked(), lambda outputs, batch: F.cross_entropy(outputs, batch["label"]), loader


def nodes_beside_a_sparse_matrix() -> Program:
    """Network with its neighbours as a sparse buffer, whose input are all nodes."""

    class Passed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)
            self.register_buffer("neighbours", (torch.rand(40, 40) < 0.1).float().to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(self.neighbours, self.layer(x))

    return Passed(), F.cross_entropy, [(torch.randn(40, 4), torch.randint(3, (40,)))]


def points_of_numbered_clouds() -> Program:
    """Points one after another, with the number of their cloud; each knows the mean of its cloud."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            points, number = batch["points"], batch["number"]
            counts = number.bincount().clamp(min=1)[:, None]
            means = points.new_zeros(len(counts), 3).index_add(0, number, points) / counts
            return self.layer(torch.cat([points, means[number]], 1))

    batches = [
        {"points": torch.randn(45, 3), "number": torch.arange(5).repeat_interleave(9), "label": torch.randint(3, (45,))}
        for _ in range(4)
    ]
    return Pooled(), lambda outputs, batch: F.cross_entropy(outputs, batch["label"]), batches


PROGRAMS = [
    *(numbers_of_all_lengths, no_labels_in_a_batch, images_beside_vectors, a_batch_sampler_and_a_collate),
    *(sparse_gradients_of_a_set_without_an_index, points_of_numbered_clouds, nodes_beside_a_sparse_matrix),
]


@run_each("make", PROGRAMS)
def test_no_measurement_fails(make: Callable[[], Program]) -> None:
    torch.manual_seed(0)
    model, loss, loader = make()
    with judged() as judgements:
        report = sightline.check(model, loss, loader)
    failed = [judgement.reason for judgement in judgements if judgement.outcome == "failed"]
    assert judgements
    assert failed == []
    assert [finding.code for finding in report.findings if finding.severity != "note"] == []


class Pair(nn.Module):
    """Generator of rows, and a critic of these; `forward` is the generator's."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6))
        self.judge = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.make(x)


def test_parameters_that_the_second_loss_of_a_step_trains_are_not_without_a_gradient() -> None:
    """A critic's loss reads what the generator made, detached; the generator learns by the next loss, or by none."""
    for is_trained in (True, False):
        torch.manual_seed(0)
        model = Pair()
        makes, judges = (torch.optim.Adam(part.parameters(), 1e-3) for part in (model.make, model.judge))
        with sightline.watch(model, optimizer=[makes, judges]) as watch:
            for _ in range(3):
                real, fake = torch.randn(16, 6), model(torch.randn(16, 4))
                judges.zero_grad()
                (F.softplus(-model.judge(real)) + F.softplus(model.judge(fake.detach()))).mean().backward()
                judges.step()
                makes.zero_grad()
                if is_trained:
                    F.softplus(-model.judge(fake)).mean().backward()
                    makes.step()
        unreached = [finding for finding in watch.findings if finding.code == "no-gradient"]
        assert bool(unreached) != is_trained


class Momentum(nn.Module):
    """Network that returns its loss, and moves a centre in each pass: one for training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layer(x)
        self.centre.lerp_(outputs.detach().mean(0), 0.1)
        return (outputs - self.centre).square().mean()


def first_step(make: Callable[[], tuple[nn.Module, Callable[..., Tensor]]], batch: Any) -> list[str]:
    """List what is no note of a loop of three steps."""
    torch.manual_seed(0)
    model, loss = make()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with sightline.watch(model, optimizer=optimizer) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            loss(model(batch[0]), *batch[1:]).backward()
            optimizer.step()
    return [finding.code for finding in watch.findings if finding.severity != "note"]


def peaks(outputs: Tensor, heat: Tensor) -> Tensor:
    """Focal loss of a heat map, with weights that fall towards its peaks. Source: CenterNet, eq. 1."""
    share, is_peak = outputs.sigmoid().clamp(1e-4, 1 - 1e-4), heat == 1
    others = (1 - heat) ** 4 * share**2 * (1 - share).log()
    return -torch.where(is_peak, (1 - share) ** 2 * share.log(), others).sum() / is_peak.sum()


def background_first(outputs: Tensor, labels: Tensor) -> Tensor:
    """Binary losses of places whose label 0 is the background, which has no score; -1 is left out."""
    one_hot = F.one_hot(labels.clamp(min=0), 3)[..., 1:].float()
    losses = F.binary_cross_entropy_with_logits(outputs[..., :2], one_hot, reduction="none")
    return (losses * (labels >= 0)[..., None]).sum() / (labels > 0).sum()


def test_numbers_that_the_loss_makes_of_a_target_are_no_targets() -> None:
    torch.manual_seed(0)
    heat = torch.exp(-torch.rand(8, 12, 12) * 9)
    heat[torch.arange(8), torch.randint(12, (8,)), torch.randint(12, (8,))] = 1
    maps = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(1, 2))
    assert first_step(lambda: (maps, peaks), (torch.randn(8, 1, 12, 12), heat)) == []
    labels = torch.where(torch.rand(8, 200) < 0.97, 0, torch.randint(-1, 3, (8, 200)))
    scores = nn.Sequential(nn.Linear(5, 600), nn.Unflatten(1, (200, 3)))
    with torch.no_grad():
        scores[0].weight.mul_(0.1)
        scores[0].bias.copy_(torch.tensor([0.5, -2.0, 0.0]).repeat(200))
    assert first_step(lambda: (scores, background_first), (torch.randn(8, 5), labels)) == []
    assert first_step(lambda: (Momentum(), lambda value: value), (torch.randn(8, 4),)) == []
