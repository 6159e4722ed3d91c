"""What a third and a fourth blind exam asked for: four relations of losses, forms of batches, and correct oddities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

import sightline
from sightline.doctor.batches import BatchForm, find_form
from sightline.doctor.watch.loss_graph import is_misread
from tests.runtime.blind_losses import Call, LossCase
from tests.runtime.odd_healthy_loops import batches, classes, mlp

CPU = torch.device("cpu")


def check(model: nn.Module, loss: Any, batch: Any, **options: Any) -> list[str]:
    return [f.code for f in sightline.check(model, loss, batch, **options).findings if f.severity != "note"]


# --- relations -------------------------------------------------------------------------------------------------------


def nearest_other(bug: bool) -> LossCase:
    """The zeros of a mask are the least distances; infinities are not."""

    def loss(output: Tensor, label: Tensor) -> Tensor:
        distances, is_same = torch.cdist(output, output), label[:, None] == label
        others = distances * (~is_same).float() if bug else distances.masked_fill(is_same, torch.inf)
        return F.relu((distances * is_same).max(dim=1)[0] - others.min(dim=1)[0] + 1).mean()

    return mlp(10, 16, 40), loss, (torch.randn(24, 10), torch.arange(24) % 4)


def chamfer(bug: bool) -> LossCase:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        distances = (output[:, :, None] - target[:, None]).square().sum(dim=-1)
        farthest = distances.min(dim=2)[0].max()  # one of the same minima, for another figure
        return distances.min(dim=2)[0].mean() + distances.min(2 if bug else 1)[0].mean() + farthest

    model = Call(lambda x, layer: layer(x).view(-1, 20, 3), nn.Linear(10, 60))
    return model, loss, (torch.randn(8, 10), torch.randn(8, 25, 3))


def mask_of_bytes(bug: bool) -> LossCase:
    mask = (torch.rand(4, 1, 8, 8) > 0.7).float() * (255 if bug else 1)
    return nn.Conv2d(1, 1, 3, padding=1), nn.BCEWithLogitsLoss(), (torch.randn(4, 1, 8, 8), mask)


def next_tokens(bug: bool) -> LossCase:
    """Causal attention whose mask lets each token see the one that it is to predict."""

    def attend(tokens: Tensor, embedding: nn.Module, head: nn.Module) -> Tensor:
        rows = embedding(tokens)
        scores = rows @ rows.mT / 4
        hidden = torch.triu(torch.ones(scores.shape[1:], dtype=torch.bool), 2 if bug else 1)
        return head(scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ rows)

    words = torch.randint(11, (6, 13))
    loss = lambda output, target: F.cross_entropy(output.flatten(0, 1), target.flatten())  # noqa: E731
    return Call(attend, nn.Embedding(11, 16), nn.Linear(16, 11)), loss, (words[:, :-1], words[:, 1:])


@pytest.mark.parametrize(
    ("before", "after", "is_wrong"),
    [
        ((2, 8, 4, 5), (2, 20, 8), True),
        ((2, 20, 8), (2, 8, 4, 5), True),
        ((2, 20, 8), (2, 4, 20, 2), True),
        ((2, 20, 8), (2, 20, 4, 2), False),
        ((2, 4, 5, 8), (2, 20, 8), False),
        ((2, 20, 8), (2, 4, 5, 8), False),
        ((2, 8, 4, 5), (2, 8, 20), False),
        ((2, 16, 4, 4), (2, 16, 16), False),
        ((2, 1, 4, 5), (2, 20, 1), False),
        ((16, 6, 8, 8), (16, 128, 3), True),  # two anchors of three classes, not moved to the end
        ((16, 6, 8, 3), (16, 48, 3), False),  # rows of three pixels, in their order
        ((16, 6, 8, 8), (16, 48, 8), False),
    ],
)
def test_maps_are_moved_before_they_are_read_as_rows(
    before: tuple[int, ...], after: tuple[int, ...], is_wrong: bool
) -> None:
    assert is_misread(before, after) == is_wrong


# --- batches that are mappings ---------------------------------------------------------------------------------------


class Scenes(Dataset[dict[str, Any]]):
    def __init__(self) -> None:
        self.inputs, self.label = classes(400)

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"points": self.inputs[index], "label": self.label[index], "file": f"{index}.pcd", "weight": 1.0}


class WholeBatch(nn.Module):
    def __init__(self, *, reads: str = "points") -> None:
        super().__init__()
        self.layers, self.reads = mlp(10, 32, 3), reads

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        rows: Tensor = batch[self.reads].float()
        return self.layers(rows if rows.ndim == 2 else rows[:, None].expand(-1, 10))


class Inside(nn.Module):
    """Model with one of other arguments inside, under the name that wrappers use."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Named()

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        return self.module(batch["points"])


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp(10, 32, 3)

    def forward(self, points: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.layers(points)


def entropy(output: Tensor, batch: Mapping[str, Any]) -> Tensor:
    return F.cross_entropy(output, batch["label"])


@pytest.mark.parametrize(
    "model",
    [WholeBatch(), Named(), nn.DataParallel(WholeBatch()), Inside()],
    ids=["the whole batch", "its keys by name", "a wrapper", "a model inside"],
)
def test_a_batch_may_be_a_mapping(model: nn.Module) -> None:
    """A loader, a list of batches, or one; file names are no input, and each sample has its own row."""
    loader = DataLoader(Scenes(), 32, shuffle=True)
    for given in (loader, list(loader), next(iter(loader)))[slice(None) if isinstance(model, WholeBatch) else slice(1)]:
        report = sightline.check(model, entropy, given, optimizer=torch.optim.Adam(model.parameters(), 1e-3))
        assert [str(finding) for finding in report.findings if finding.severity != "note"] == []
    form = find_form(model, entropy, next(iter(loader)), CPU)
    assert form.targets == ("label",)
    assert set(form.inputs) == ({"points", "weight"} if isinstance(model, Named) else {"points"})


def test_a_sampler_of_few_of_a_mapping_is_found() -> None:
    sampler = WeightedRandomSampler([1.0, 1.0, 1.0], 400)
    assert "empty-loader" in check(WholeBatch(), entropy, DataLoader(Scenes(), 32, sampler=sampler))


def test_what_neither_reads_all_is_left_whole() -> None:
    """A model or a loss that fails reads all, and the failure is reported; a pair has no keys."""
    batch = {"points": torch.randn(4, 10), "label": torch.zeros(4, dtype=torch.int64)}
    assert find_form(WholeBatch(reads="none"), entropy, batch, CPU) == BatchForm(
        ("points", "label"), ("points", "label")
    )
    assert find_form(WholeBatch(), entropy, (batch["points"], batch["label"]), CPU) == BatchForm()
    assert check(WholeBatch(reads="none"), entropy, batch) == ["first-step"]


def test_graphs_are_not_divided_into_samples() -> None:
    def spread(batch: Mapping[str, Any], layer: nn.Module) -> Tensor:
        source, end = batch["edges"]
        rows = layer(batch["nodes"])
        return rows.index_add(0, end, rows[source])

    graph = {"nodes": torch.randn(9, 4), "edges": torch.randint(9, (2, 20)), "label": torch.randint(3, (9,))}
    assert check(Call(spread, nn.Linear(4, 3)), entropy, graph) == []


# --- correct, and odd -------------------------------------------------------------------------------------------------


class Wrapped(torch.optim.Optimizer):
    """Optimiser around another, which has no groups of its own, as some of Lookahead."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.param_groups, self.state, self.defaults = base, base.param_groups, base.state, base.defaults


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(10, 8), nn.ModuleList(mlp(10, 8, 3) for _ in range(8))

    def forward(self, rows: Tensor) -> Tensor:
        share, chosen = self.gate(rows).softmax(dim=-1).max(dim=-1)
        outputs = rows.new_zeros(len(rows), 3)
        for index, expert in enumerate(self.experts[:]):
            if len(own := (chosen == index).nonzero()[:, 0]):
                outputs = outputs.index_add(0, own, share[own, None] * expert(rows[own]))
        return outputs


def only_biases() -> nn.Module:
    model = mlp(10, 16, 16, 3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return model


def biases_and_a_head() -> nn.Module:
    model = only_biases()
    model[-1].requires_grad_(True)
    return model


def from_zero() -> nn.Module:
    model = mlp(10, 16, 3)
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


def turn(output: Tensor, target: Tensor) -> Tensor:
    return (1 - (output * target).sum(dim=1).abs()).mean()  # q and -q are one rotation


def known_values(output: Tensor, target: Tensor) -> Tensor:
    is_known = ~target.isnan()
    return (output - target.nan_to_num()).square()[is_known].mean()


WEIGHT = torch.randn(3, generator=torch.Generator().manual_seed(0))
ROWS, LABEL = classes(64)
ODD: dict[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "directions of two signs": lambda: (
        Call(lambda x, layer: F.normalize(layer(x), dim=1), nn.Linear(10, 4)),
        turn,
        (torch.randn(16, 10), F.normalize(torch.randn(16, 4), dim=1)),
    ),
    "NaN for what is not known": lambda: (
        mlp(10, 16, 3),
        known_values,
        (ROWS, torch.where(torch.rand(64, 3) < 0.3, torch.nan, ROWS[:, :3])),
    ),
    "biases alone": lambda: (only_biases(), F.cross_entropy, (ROWS, LABEL)),
    "biases and a head": lambda: (biases_and_a_head(), F.cross_entropy, (ROWS, LABEL)),
    "experts of a gate": lambda: (Experts(), F.cross_entropy, (ROWS, LABEL)),
    "a constant in float32": lambda: (
        mlp(10, 16, 3),
        lambda o, t: (o @ WEIGHT - t @ WEIGHT).square().mean(),
        (ROWS, ROWS[:, :3]),
    ),
    "a last layer of zeros": lambda: (from_zero(), F.mse_loss, (ROWS, ROWS[:, :3])),
    "no pair in few samples": lambda: (mlp(10, 16, 40), nearest_other(False)[1], (ROWS, torch.arange(64) // 8)),
}


@pytest.mark.parametrize("name", ODD)
def test_a_correct_oddity_raises_nothing(name: str) -> None:
    torch.manual_seed(0)
    model, loss, batch = ODD[name]()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    assert check(model, loss, batch, optimizer=optimizer) == []


@pytest.mark.parametrize("kind", ["wrapped", "without a rate", "at the start of a warm-up"])
def test_optimisers_of_other_forms_are_taken(kind: str) -> None:
    torch.manual_seed(0)
    model = mlp(10, 16, 3)
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    if kind == "wrapped":
        optimizer = Wrapped(optimizer)
    elif kind == "without a rate":
        optimizer.param_groups[0]["lr"] = None
    else:
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
    before = copy.deepcopy(optimizer.param_groups[0]["lr"])
    assert check(model, F.cross_entropy, (ROWS, LABEL), optimizer=optimizer) == []
    assert optimizer.param_groups[0]["lr"] == before


def test_a_pass_through_a_frozen_critic_loses_no_gradients() -> None:
    torch.manual_seed(0)
    maker, critic = mlp(4, 16, 10), mlp(10, 16, 1)
    of_maker, of_critic = (torch.optim.Adam(model.parameters(), 1e-3) for model in (maker, critic))
    with sightline.watch(critic, optimizer=of_critic) as watch:
        for (real,) in batches(torch.randn(256, 10)):
            of_critic.zero_grad()
            (critic(maker(torch.randn(32, 4)).detach()).mean() - critic(real).mean()).backward()
            of_critic.step()
            critic.requires_grad_(False)
            of_maker.zero_grad()
            (-critic(maker(torch.randn(32, 4))).mean()).backward()
            of_maker.step()
            critic.requires_grad_(True)
    assert watch.findings == []
