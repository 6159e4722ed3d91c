"""A model that returns its loss is asked what the same network is with its loss outside of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sightline
from tests.marks import long_but


class LanguageModel(nn.Module):
    """One layer of attention on tokens; `causal` says whether a step sees later ones."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.table, self.query, self.last = nn.Embedding(12, 16), nn.Linear(16, 16), nn.Linear(16, 12)
        self.causal = causal

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.table(tokens)
        scores = self.query(rows) @ rows.transpose(1, 2)
        if self.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -1e9)
        return self.last(scores.softmax(dim=-1) @ rows)


class Table(nn.Module):
    """Perceptron with a batch norm; with `ends` a softmax behind its scores."""

    def __init__(self, columns: int, *, ends: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(columns, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
        self.ends = ends

    def forward(self, rows: Tensor) -> Tensor:
        scores = self.layers(rows)
        return scores.softmax(dim=1) if self.ends else scores


class Detector(nn.Module):
    """Classes and boxes at each place of a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.classes, self.boxes = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.body(image).relu()
        return self.classes(maps), self.boxes(maps)


class Network(nn.Module):
    """A network of ours on clouds of points."""

    def __init__(self, name: str, *, ends: bool = False) -> None:
        super().__init__()
        self.network, self.ends = sightline.build_model(name, in_channels=3, num_classes=4), ends

    def forward(self, points: Tensor) -> Tensor:
        scores = self.network(points=points)["logits"]
        return scores.softmax(dim=1) if self.ends else scores


class Inside(nn.Module):
    """Network that returns its loss, which reads all of a batch."""

    def __init__(self, network: nn.Module, loss: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.compute = network, loss

    def forward(self, inputs: Tensor, *targets: Tensor) -> Any:
        return self.compute(self.network(inputs), *(targets or (inputs,)))


class InsideOfClouds(Inside):
    """The same, whose first argument has the name of what it is."""

    def forward(self, points: Tensor, *targets: Tensor) -> Any:
        return super().forward(points, *targets)


def shifted(scores: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def unshifted(scores: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), tokens.flatten())


def classes_and_boxes(outputs: tuple[Tensor, Tensor], label: Tensor, box: Tensor, *, reduction: str = "mean") -> Tensor:
    scores, codes = outputs
    return F.cross_entropy(scores, label, reduction=reduction) + 0.1 * F.smooth_l1_loss(codes, box)


def sum_of_classes(outputs: tuple[Tensor, Tensor], label: Tensor, box: Tensor) -> Tensor:
    return classes_and_boxes(outputs, label, box, reduction="sum")


def sum_of_samples(scores: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(scores, label, reduction="sum")


def make_batches() -> dict[str, tuple[Tensor, ...]]:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(96, 10, generator=draw)
    label = rows[:, :4].argmax(dim=1)
    image = torch.randn(48, 3, 16, 16, generator=draw)
    classes = image[:, :, ::2, ::2].argmax(dim=1) + (image[:, 0, ::2, ::2] > 1)
    points = torch.randn(48, 24, 3, generator=draw) * torch.rand(48, 1, 3, generator=draw)
    return {
        "tokens": (torch.randint(12, (96, 9), generator=draw),),
        "rows": (rows, label),
        "rows with the label": (torch.cat([rows, label[:, None].float()], dim=1), label),
        "images": (image, classes, torch.randn(48, 4, 8, 8, generator=draw)),
        "clouds": (points, points.std(dim=1).argmax(dim=1)),
    }


BATCHES = make_batches()
PROGRAMS: Mapping[str, tuple[str, Callable[[], nn.Module], Callable[..., Tensor], set[str]]] = {
    "language model": ("tokens", lambda: LanguageModel(causal=True), shifted, set()),
    "causal mask": ("tokens", lambda: LanguageModel(causal=False), shifted, {"attention"}),
    "unshifted targets": ("tokens", lambda: LanguageModel(causal=True), unshifted, {"label-input"}),
    "table": ("rows", lambda: Table(10, ends=False), F.cross_entropy, set()),
    "table, label among the inputs": (
        "rows with the label",
        lambda: Table(11, ends=False),
        F.cross_entropy,
        {"label-input"},
    ),
    "table, softmax twice": ("rows", lambda: Table(10, ends=True), F.cross_entropy, {"double-softmax"}),
    "table, sum": ("rows", lambda: Table(10, ends=False), sum_of_samples, set()),
    "detector": ("images", Detector, classes_and_boxes, set()),
    "detector, sum for mean": ("images", Detector, sum_of_classes, {"loss-normaliser"}),
    "pointnet": ("clouds", lambda: Network("pointnet_plain"), F.cross_entropy, set()),
    "pointnet, softmax twice": (
        "clouds",
        lambda: Network("pointnet_plain", ends=True),
        F.cross_entropy,
        {"double-softmax"},
    ),
    "dgcnn, sum": ("clouds", lambda: Network("dgcnn"), sum_of_samples, set()),
}
"""By name: the batch, the network, its loss, and the codes of errors and warnings."""


def check(name: str, *, is_inside: bool) -> Any:
    data, make, loss, _ = PROGRAMS[name]
    torch.manual_seed(0)
    network = make()
    model = (InsideOfClouds if data == "clouds" else Inside)(network, loss) if is_inside else network
    optimizer = torch.optim.Adam(model.parameters())
    loader = DataLoader(TensorDataset(*BATCHES[data]), 12, shuffle=True)

    def step(batch: Any) -> Any:
        return model(*batch) if is_inside else loss(model(batch[0]), *(batch[1:] or batch))

    return sightline.check(model, loader=loader, step=step, optimizer=optimizer)


@pytest.mark.parametrize("name", long_but([name for name in PROGRAMS if not name.startswith("dgcnn")], PROGRAMS))
def test_the_same_is_found_and_asked_inside_and_outside(name: str) -> None:
    outside, inside = (check(name, is_inside=is_inside) for is_inside in (False, True))
    for report in (outside, inside):
        found = {finding.code for finding in report.findings if finding.severity != "note"}
        assert found == PROGRAMS[name][3], report
    found = [[(finding.code, finding.severity) for finding in report.findings] for report in (outside, inside)]
    assert found[0] == found[1]
    assert inside.examined.judged == outside.examined.judged


FORMS: Mapping[str, Callable[[Tensor, Tensor], Any]] = {
    "the loss alone": lambda loss, scores: loss,
    "a pair": lambda loss, scores: (loss, scores),
    "a mapping": lambda loss, scores: {"loss": loss, "logits": scores},
    "a mapping of losses": lambda loss, scores: {"classes": loss, "penalty": 1e-3 * scores.square().mean()},
}


class Returning(nn.Module):
    """Perceptron that ends in a softmax, and returns its loss in one form or another."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.table, self.form = Table(10, ends=True), form

    def forward(self, rows: Tensor, labels: Tensor) -> Any:
        scores = self.table(rows)
        return FORMS[self.form](F.cross_entropy(scores, labels), scores)


def read_loss(outputs: Any) -> Tensor:
    if isinstance(outputs, Mapping):
        return outputs["loss"] if "loss" in outputs else outputs["classes"] + outputs["penalty"]
    return outputs[0] if isinstance(outputs, tuple) else outputs


@pytest.mark.parametrize("caller", ["signature", "names", "step", "watch"])
@pytest.mark.parametrize("form", FORMS)
def test_however_it_returns_its_loss_and_is_called(form: str, caller: str) -> None:
    torch.manual_seed(0)
    model = Returning(form)
    rows, labels = BATCHES["rows"]
    batches = [(rows[start : start + 16], labels[start : start + 16]) for start in range(0, 96, 16)]
    if caller == "watch":
        optimizer = torch.optim.Adam(model.parameters())
        with sightline.watch(model) as watched:
            for batch in batches:
                optimizer.zero_grad()
                read_loss(model(*batch)).backward()
                optimizer.step()
        report = watched.report
    elif caller == "names":
        report = sightline.check(model, loader=[dict(zip(("rows", "labels"), batch, strict=True)) for batch in batches])
    else:
        words = {"step": lambda batch: read_loss(model(*batch))} if caller == "step" else {}
        report = sightline.check(model, loader=batches, **words)
    assert "double-softmax" in {finding.code for finding in report.findings}, report
    asked = {name.partition(":")[0] for name in report.examined.judged}
    wanted = {
        "loss-direction",
        "misplaced-targets",
        *({"label-input", "cross-sample-leak"} if caller != "watch" else ()),
    }
    assert wanted <= asked


class ReadsLabels(nn.Module):
    """Its scores depend on the labels, which its loss reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(4, 8), nn.Linear(18, 4)

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.last(torch.cat([rows, self.table(labels)], dim=1)), labels)


class Fused(nn.Module):
    """Later steps are seen by an encoder that torch fuses."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.table, self.encoder, self.last = nn.Embedding(12, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        return shifted(self.last(self.encoder(self.table(tokens))), tokens)


@pytest.mark.parametrize(
    ("make", "data", "code"), [(ReadsLabels, "rows", "label-input"), (Fused, "tokens", "attention")]
)
def test_a_fault_of_a_network_that_returns_its_loss(make: Callable[[], nn.Module], data: str, code: str) -> None:
    torch.manual_seed(0)
    model, loader = make(), DataLoader(TensorDataset(*BATCHES[data]), 16)
    assert code in {finding.code for finding in sightline.check(model, loader=loader).findings}


def test_a_loss_that_cannot_be_taken_out_is_said() -> None:
    """A loop over a list of targets is another one for the next batch."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(10, 4)

        def forward(self, rows: list[Tensor], labels: list[Tensor]) -> Tensor:
            pairs = zip(rows, labels, strict=True)
            return torch.stack([F.cross_entropy(self.last(row[None]), label[None]) for row, label in pairs]).mean()

    rows, labels = BATCHES["rows"]
    model = Listed()
    report = sightline.check(model, loader=[([*rows[:8]], [*labels[:8]])], step=lambda batch: model(*batch))
    assert "which returns its loss; it is judged with it, as one: targets in a list" in report.verdict[0]


def test_one_batch_twice_through_dropout_is_two_views() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))

    def step(batch: Any) -> Tensor:
        first, second = (model(batch[0]) for _ in range(2))
        return F.cross_entropy(first, batch[1]) + (first - second).square().mean()

    loader = DataLoader(TensorDataset(*BATCHES["rows"]), 16, shuffle=True)
    report = sightline.check(model, loader=loader, step=step)
    assert [finding for finding in report.findings if finding.severity != "note"] == []
